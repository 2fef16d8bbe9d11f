"""Inputs and gradients that are nested: dicts, lists and tuples of arrays, and the names by which a gradient is returned."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tinydiff.backend import is_array
from tinydiff.errors import InputError

MANY = 16  # numbers in a list are one array rather than an output each
NUMBERS = {float, int, complex, np.float64, np.complex128}

# How people name the gradient of the loss with respect to W.
GRADIENT_NAMES = (
    "d{}",
    "d_{}",
    "D{}",
    "grad_{}",
    "{}_grad",
    "L_{}",
    "g_{}",
    "g{}",
    "dL_d{}",
    "dLd{}",
    "dl_d{}",
    "delta_{}",
    "{}_g",
)


class Tree:
    """The structure of one input, or of all: where the leaves stand, and their names."""

    def __init__(self, value: Any, name: str, leaves: list[Any], names: list[str], inside: bool = False) -> None:
        """Appends the leaves of the value, and their names. inside: whether it is a part of a larger one."""
        self.name, self.kind, self.first = name, type(value), len(leaves)
        self.children: dict[Any, Tree] | None = None
        if _is_nested(value):
            self.children = {
                key: Tree(v, self._name_of(key, inside), leaves, names, True) for key, v in items_of(value)
            }
        else:
            leaves.append(value)
            names.append(name)
        self.leaves = range(self.first, len(leaves))

    def _name_of(self, key: Any, inside: bool) -> str:
        """W for params["W"], layer1.W for params["layer1"]["W"]."""
        if not isinstance(key, str):
            return f"{self.name}[{key}]"
        return f"{self.name}.{key}" if inside else key

    def filled(self, leaves: Sequence[Any]) -> Any:
        """The structure with other leaves."""
        if self.children is None:
            return leaves[self.first]
        if issubclass(self.kind, Mapping):
            return {key: child.filled(leaves) for key, child in self.children.items()}
        values = [child.filled(leaves) for child in self.children.values()]
        if dataclasses.is_dataclass(self.kind):
            new = object.__new__(self.kind)
            for name, value in zip(self.children, values, strict=True):
                object.__setattr__(new, name, value)
            return new
        return self.kind(*values) if hasattr(self.kind, "_fields") else self.kind(values)

    def spread(self, gradient: Any, found: dict[int, Any], needed: Sequence[int]) -> None:
        """Gradients by leaf into `found`, out of what backward returned for this part. InputError for names that fit none."""
        if gradient is None:
            return
        if self.children is None:
            found[self.first] = gradient
            return
        gradient = by_name(gradient, lambda n: n in self.children)  # type: ignore[operator]
        if isinstance(gradient, Mapping):
            by_key = match(gradient, {str(key): child for key, child in self.children.items()}, needed)
            for child, g in by_key:
                child.spread(g, found, needed)
        else:
            if not isinstance(gradient, Sequence) or len(gradient) != len(self.children):
                count = len(gradient) if isinstance(gradient, Sequence) else 1
                raise InputError(
                    f"backward returned {count} gradients for {self.name}, which holds {len(self.children)} arrays"
                )
            for child, g in zip(self.children.values(), gradient, strict=True):
                child.spread(g, found, needed)


def parts_of(trees: Iterable[Tree]) -> Iterator[Tree]:
    """Trees and all their parts, the outermost last so that its name counts."""
    for tree in trees:
        yield from parts_of((tree.children or {}).values())
        yield tree


def fits(tree: Tree, gradient: Any, leaves: Sequence[Any]) -> bool:
    """Whether a gradient has the structure and the shapes of an input."""
    if tree.children is None:
        try:
            return bool(np.shape(gradient) == np.shape(leaves[tree.first]))
        except ValueError:  # of arrays of several shapes
            return False
    if isinstance(gradient, Mapping):
        return True
    if not isinstance(gradient, tuple | list) or len(gradient) != len(tree.children):
        return False
    return all(fits(t, g, leaves) for t, g in zip(tree.children.values(), gradient, strict=True))


def match(gradients: Mapping[Any, Any], parts: Mapping[str, Tree], needed: Sequence[int]) -> list[tuple[Tree, Any]]:
    """The part for each key of a dict of gradients. InputError where a part that is needed has no key."""
    found, missing = [], []
    for name, part in parts.items():
        key = key_of(name, gradients)
        if key is not None:
            found.append((part, gradients[key]))
        elif any(leaf in needed for leaf in part.leaves):
            missing.append(name)
    if missing:
        keys = ", ".join(map(repr, gradients)) or "none"
        raise InputError(
            f"backward returned no gradient for {missing[0]!r}: its keys are {keys}, the inputs are "
            f"{', '.join(map(repr, parts))}; wrt= checks some of the inputs only"
        )
    return found


def key_of(name: str, keys: Any) -> Any:
    """The key under which the gradient of the input named stands, or None."""
    return next((key for key in (name, *(form.format(name) for form in GRADIENT_NAMES)) if key in keys), None)


def base_of(key: str, has: Callable[[str], bool]) -> str | None:
    """The name of that which a gradient named `key` belongs to, of those that `has` knows; None if there is none."""
    if has(key):
        return key
    for form in GRADIENT_NAMES:
        before, after = form.split("{}")
        if key.startswith(before) and key.endswith(after):
            name = key[len(before) : len(key) - len(after) or None]
            if name and has(name):
                return name
    return None


def by_name(gradients: Any, has: Callable[[str], bool]) -> Any:
    """What backward returned as a list or, where it says names, as a dict: generators, objects and named tuples too."""
    if dataclasses.is_dataclass(gradients) and not isinstance(gradients, type):
        return {n: g for n, g in items_of(gradients) if g is not None}
    if isinstance(gradients, types.SimpleNamespace):
        return dict(vars(gradients))
    if isinstance(gradients, tuple) and hasattr(gradients, "_fields"):
        fields = gradients._fields
        return dict(zip(fields, gradients, strict=True)) if all(base_of(n, has) for n in fields) else tuple(gradients)
    return list(gradients) if isinstance(gradients, Iterator) else gradients


def items_of(value: Any) -> Iterator[tuple[Any, Any]]:
    """(key, part) of a dict, list, tuple or object of a dataclass."""
    if dataclasses.is_dataclass(value):
        return ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    if hasattr(value, "_fields"):
        return zip(value._fields, value, strict=True)
    return iter(value.items()) if isinstance(value, Mapping) else enumerate(value)


def outputs_of(value: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """The arrays and numbers that a forward pass returned, and what puts others in their places."""
    if not isinstance(value, Mapping | list | tuple):
        return [value], lambda values: values[0]
    if type(value) is list and len(value) >= MANY and _are_numbers(value):
        return [np.array(value, np.result_type(*map(type, value)))], list_of_numbers
    parts = [outputs_of(v) for _, v in items_of(value)]
    counts = [len(leaves) for leaves, _ in parts]

    def rebuilt(values: Sequence[Any]) -> Any:
        starts = [sum(counts[:i]) for i in range(len(counts))]
        made = [put(values[a : a + n]) for a, n, (_, put) in zip(starts, counts, parts, strict=True)]
        if isinstance(value, Mapping):
            return dict(zip(value, made, strict=True))
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)

    return [leaf for leaves, _ in parts for leaf in leaves], rebuilt


def list_of_numbers(values: Sequence[Any]) -> list[float]:
    return list(values[0].tolist())


def _are_numbers(values: Sequence[Any]) -> bool:
    """Whether all are numbers, and one of them a floating point one."""
    kinds = {type(v) for v in values}
    return kinds <= NUMBERS and kinds != {int}


def _is_nested(value: Any) -> bool:
    if isinstance(value, Mapping | list | tuple) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return any(_holds_arrays(v) for _, v in items_of(value))
    return False


def _holds_arrays(value: Any) -> bool:
    return is_array(value) or _is_nested(value) or (hasattr(value, "detach") and hasattr(value, "shape"))


def as_array(value: Any) -> Any:
    """Lists of floats and NumPy's numbers as arrays, PyTorch's tensors too; everything else as it is."""
    if type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach"):
        return value.detach().cpu().numpy()
    if isinstance(value, np.floating):
        return np.asarray(value)
    if isinstance(value, list | tuple) and value and not _is_nested(value):
        try:
            a = np.asarray(value)
        except ValueError:
            return value
        return a if a.dtype.kind == "f" else value
    return value
