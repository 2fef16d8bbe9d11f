"""Backward passes written by hand, in the forms that homework has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import is_array, to_numpy
from tinydiff.errors import InputError
from tinydiff.gradcheck.slots import Slot, kept, unnamed_gradients
from tinydiff.gradcheck.subject import Arrays, Subject, add, float64, positional_parameters
from tinydiff.gradcheck.trees import Tree, match

CACHES = ("res", "residual", "residuals", "cache", "caches", "ctx", "context", "saved", "tmp", "memory", "tape")
COTANGENTS = (
    "g",
    "gy",
    "ct",
    "cotangent",
    "grad",
    "grad_output",
    "dout",
    "dy",
    "upstream",
    "delta",
    "l_y",
    "dl",
    "dz",
    "dh",
)


class PairSubject(Subject):
    """A function of plain arrays and a backward function written by hand.

    backward(L_Y, *inputs), or with `cache` backward(L_Y, cache) or backward(cache, L_Y) where fn returns (output, cache),
    or backward(L_Y) of an object that keeps what it needs, or, of a loss, gradient(*inputs); `loss`: no backward, fn
    returns (loss, gradients). Gradients are a tuple, or a dict by name, as nested as the inputs; those of `slots`, the
    parameters that an object holds, are where it stores them.
    """

    loss = False  # whether fn returns (loss, gradients)

    def __init__(
        self,
        fn: Any,
        trees: Sequence[Tree],
        args: Sequence[Any],
        names: Sequence[str],
        checked: Sequence[int],
        generators: Sequence[Any],
        backward: Callable[..., Any] | None,
        cache: bool,
        slots: Sequence[Slot] = (),
    ) -> None:
        super().__init__(fn, [*args, *(float64(s.kept) for s in slots)], checked, generators)
        self.backward, self.cache, self.trees, self.slots = backward, cache, list(trees), list(slots)
        self.input_names = [*names, *(s.name for s in slots)]
        self.names = [self.input_names[i] for i in checked]
        self.owners = owners_of(fn, backward)
        self.unasked: list[str] = []  # parameters whose gradients backward stores and nobody asked about

    def inputs(self, args: Sequence[Any]) -> list[Any]:
        return [tree.filled(args) for tree in self.trees]

    @contextmanager
    def borrowed(self, args: Sequence[Any]) -> Iterator[None]:
        """The objects have the parameters among args inside the block, and their own state after it."""
        if not self.owners and not self.slots:
            yield
            return
        with kept(self.owners, self.slots):
            for slot, value in zip(self.slots, args[len(args) - len(self.slots) :], strict=True):
                slot.put(value)
            yield

    def run(self, args: Sequence[Any]) -> tuple[list[Any], Any]:
        result, cache = self.fn(*self.inputs(args)), None
        if self.loss:
            result, *cache = result
        elif self.cache:
            if not isinstance(result, tuple | list) or len(result) < 2:
                raise InputError("with cache=True, the forward function must return (output, cache)")
            *result, cache = result
            result = result[0] if len(result) == 1 else result
        ys = list(result) if isinstance(result, tuple | list) else [result]
        for y in ys:
            if isinstance(y, Tensor) or not (is_array(y) or np.isscalar(y)):
                raise InputError(
                    f"the forward function must return arrays or numbers beside a backward, not {type(y).__name__}; "
                    "if it returns (output, cache), pass cache=True"
                )
        return [y if is_array(y) else np.asarray(y) for y in ys], cache

    def forward(self, arrays: Arrays) -> list[Any]:
        args = self.filled(arrays)
        with self.same_noise(), self.borrowed(args):
            ys, _ = self.run(args)
        return [to_numpy(y) if y.dtype.kind in "fc" else None for y in ys]

    def remembers(self, outputs: int) -> bool:
        """Whether backward takes nothing but the gradients of the outputs: an object that keeps what it needs."""
        if self.backward is None:
            return False
        parameters, more = positional_parameters(self.backward)
        return more is False and sum(p.default is p.empty for p in parameters) == outputs

    def is_gradient(self, ys: Sequence[Any]) -> bool:
        """Whether backward is the gradient of a loss, as SciPy takes it: a function of the inputs alone."""
        parameters, more = positional_parameters(self.backward)
        required = [p.name for p in parameters if p.default is p.empty]
        if more is not False or len(ys) != 1 or ys[0].ndim or len(required) != len(self.trees):
            return False
        forward = [p.name for p in positional_parameters(self.fn)[0]][: len(required)]
        if len(required) > 1 or hasattr(self.backward, "__self__"):
            return required == forward
        return required == forward or required[0].lower() not in COTANGENTS

    def pull(self, ys: list[Any], cache: Any, args: Sequence[Any], cotangents: Arrays) -> list[Any]:
        L_Ys = [np.zeros(y.shape) if u is None else u for y, u in zip(ys, cotangents, strict=True)]
        backward: Any = self.backward
        if self.loss:
            grads = cache[0] if len(cache) == 1 else tuple(cache)
        elif self.cache:
            grads = backward(cache, *L_Ys) if cache_first(backward) else backward(*L_Ys, cache)
        elif self.is_gradient(ys):
            grads = backward(*self.inputs(args))
        else:
            grads = backward(*L_Ys, *(() if self.remembers(len(ys)) else self.inputs(args)))
        by_leaf = self.by_leaf(grads, args)
        for i, slot in enumerate(self.slots, len(args) - len(self.slots)):
            if by_leaf.get(i) is None:
                by_leaf[i] = slot.read()
            if by_leaf[i] is None and i in self.checked:
                forms = f"d{slot.name}, grad_{slot.name}, {slot.name}_grad or grads[{slot.name!r}]"
                raise InputError(
                    f"there is no gradient of {slot.name!r} after backward: it returned none, and none is stored as "
                    f'{forms}; parameters={{"{slot.name}": "NAME"}} says where it is'
                )
        got = [None if by_leaf.get(i) is None else np.asarray(to_array(by_leaf[i])) for i in self.checked]
        if self.loss or (not self.cache and self.is_gradient(ys)):
            got = [None if g is None else g * L_Ys[0] for g in got]
        else:
            got = [g if g is None or g.base is None else g.copy() for g in got] if self.slots else got
        return got

    def by_leaf(self, grads: Any, args: Sequence[Any]) -> dict[int, Any]:
        """Gradients by position among the args, out of what backward returned."""
        found: dict[int, Any] = {}
        inner = [i for i in self.checked if i < len(args) - len(self.slots)]
        parts = {self.input_names[i]: _leaf(i, self.input_names[i]) for i in range(len(args))}
        if isinstance(grads, Mapping):
            top = {tree.name: tree for tree in self.trees if tree.children is not None}
            self._match(grads, {**top, **parts}, found)
            return found
        floating = [t for t in self.trees if any(_is_floating(args[i]) for i in t.leaves)]
        if isinstance(grads, list) and len(floating) == 1 and np.shape(grads) == np.shape(args[floating[0].first]):
            grads = [grads]  # the gradient of one input, as a list of numbers
        grads = list(grads) if isinstance(grads, tuple | list) else [grads]
        if self.slots and grads and isinstance(grads[-1], Mapping):
            self._match(grads.pop(), {s.name: parts[s.name] for s in self.slots}, found, needed=())
        asked = [t for t in self.trees if any(i in self.checked for i in t.leaves)]
        where = next((w for w in (floating, self.trees, asked) if len(w) == len(grads)), None)
        if where is None and self.slots and len(grads) == len(asked) + len(self.slots):
            where = [*asked, *(parts[s.name] for s in self.slots)]
        if where is None:
            if not inner and all(g is None for g in grads):
                return found
            raise ValueError(
                f"backward returned {len(grads)} gradients for {len(floating)} floating point inputs; with wrt=, name "
                "those that it returns"
            )
        for tree, gradient in zip(where, grads, strict=True):
            tree.spread(gradient, found, self.checked)
        return found

    def _match(
        self, grads: Mapping[Any, Any], parts: Mapping[str, Any], found: dict[int, Any], needed: Any = None
    ) -> None:
        stored = range(len(self.args) - len(self.slots), len(self.args))
        needed = [i for i in self.checked if i not in stored] if needed is None else needed
        covered: set[int] = set()
        whole = {name: part for name, part in parts.items() if part.children is not None}
        for part, gradient in match(grads, whole, ()):
            part.spread(gradient, found, needed)
            covered |= set(part.leaves)
        single = {name: part for name, part in parts.items() if part.children is None}
        for part, gradient in match(grads, single, [i for i in needed if i not in covered]):
            found[part.first] = gradient

    def vjp(
        self, arrays: Arrays, cotangents: Arrays, needs: Sequence[bool] | None = None, same: Any = None
    ) -> list[Any]:
        if same is not None:
            arrays = [arrays[same[0]] if k == same[1] else a for k, a in enumerate(arrays)]
        args = self.filled(arrays)
        with self.same_noise(), self.borrowed(args):
            before = [dict(getattr(o, "__dict__", {})) for o in self.owners]
            ys, cache = self.run(args)
            grads = self.pull(ys, cache, args, cotangents)
            stored = [unnamed_gradients(o, self.slots, b) for o, b in zip(self.owners, before, strict=True)]
            self.unasked = [name for names in stored for name in names]
            grads = [None if g is None else np.array(g) if self.owners else g for g in grads]
        if same is not None:
            grads[same[0]] = add(grads[same[0]], grads[same[1]])
        return grads

    def vjp_of_two(self, first: Arrays, second: Arrays, cotangents: Arrays) -> list[Any]:
        one, two = self.filled(first), self.filled(second)
        if self.slots or self.loss or (not self.cache and self.remembers(len(cotangents))):
            return []  # an object that keeps one forward pass cannot be asked for two
        with self.same_noise():
            ys, cache = self.run(one)
        with self.same_noise():
            zs, other = self.run(two)
        grads = self.pull(zs, other, two, cotangents)
        return [add(a, b) for a, b in zip(grads, self.pull(ys, cache, one, cotangents), strict=True)]


def readings(subject: Subject) -> list[str]:
    """How an ambiguous pair was read, and which gradients it makes that nobody asked about, in words."""
    notes = []
    if isinstance(subject, PairSubject):
        if subject.loss:
            notes.append(f"what it returns was taken for (loss, gradients): of {', '.join(subject.names)}")
        if subject.unasked:
            names = ", ".join(subject.unasked)
            notes.append(
                f"backward also stores gradients of {names}, which were not looked at: parameters={subject.unasked!r} "
                "checks them"
            )
    return notes


def owners_of(*functions: Any) -> list[Any]:
    """The objects that functions are methods of."""
    owners: dict[int, Any] = {}
    for f in functions:
        owner = getattr(f, "__self__", None)
        if owner is not None and hasattr(owner, "__dict__") and not isinstance(owner, type(np)):
            owners[id(owner)] = owner
    return list(owners.values())


def cache_first(backward: Any) -> bool:
    """Whether backward is backward(cache, L_Y), as a rule of JAX is, judged by the names of its parameters."""
    names = [p.name.lower().lstrip("_") for p in positional_parameters(backward)[0]]
    return len(names) >= 2 and names[0] in CACHES and names[-1] not in CACHES


def _leaf(i: int, name: str) -> Tree:
    return Tree(None, name, [None] * i, [])


def _is_floating(a: Any) -> bool:
    return is_array(a) and a.dtype.kind == "f"


def to_array(g: Any) -> Any:
    return g if is_array(g) else np.asarray(g, dtype=np.float64) if isinstance(g, list | tuple | float | int) else g
