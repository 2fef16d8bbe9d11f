"""Inputs and gradients that are nested: dicts, lists and tuples of arrays, and the names by which a gradient is returned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tinydiff.backend import is_array
from tinydiff.errors import InputError

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

    def __init__(self, value: Any, name: str, leaves: list[Any], names: list[str]) -> None:
        """Appends the leaves of the value, and their names."""
        self.name, self.kind, self.first = name, type(value), len(leaves)
        self.children: dict[Any, Tree] | None = None
        if _is_nested(value):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            self.children = {
                key: Tree(v, key if isinstance(key, str) else f"{name}[{key}]", leaves, names) for key, v in items
            }
        else:
            leaves.append(value)
            names.append(name)
        self.leaves = range(self.first, len(leaves))

    def filled(self, leaves: Sequence[Any]) -> Any:
        """The structure with other leaves."""
        if self.children is None:
            return leaves[self.first]
        if issubclass(self.kind, Mapping):
            return {key: child.filled(leaves) for key, child in self.children.items()}
        values = [child.filled(leaves) for child in self.children.values()]
        return self.kind(*values) if hasattr(self.kind, "_fields") else self.kind(values)

    def spread(self, gradient: Any, found: dict[int, Any], needed: Sequence[int]) -> None:
        """Gradients by leaf into `found`, out of what backward returned for this part. InputError for names that fit none."""
        if gradient is None:
            return
        if self.children is None:
            found[self.first] = gradient
        elif isinstance(gradient, Mapping):
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


def _is_nested(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_arrays, value.values()))
    return isinstance(value, list | tuple) and any(map(_holds_arrays, value))


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
