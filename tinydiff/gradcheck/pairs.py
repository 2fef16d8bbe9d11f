"""Backward passes written by hand, in the forms that homework has."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import is_array, to_numpy
from tinydiff.errors import InputError
from tinydiff.gradcheck.calling import CACHES, Plan, plan
from tinydiff.gradcheck.slots import Slot, kept, unnamed_gradients
from tinydiff.gradcheck.subject import Arrays, Subject, add, float64, positional_parameters
from tinydiff.gradcheck.surroundings import attributes, objects_in, random_sources
from tinydiff.gradcheck.trees import Tree, as_array, by_name, fits, list_of_numbers, match, outputs_of, parts_of


class PairSubject(Subject):
    """A function of plain arrays and a backward function written by hand.

    backward(L_Y, *inputs), or with `cache` backward(L_Y, cache) or backward(cache, L_Y) where fn returns (output, cache),
    or backward(L_Y) of an object that keeps what it needs, or, of a loss, gradient(*inputs); `loss`: no backward, fn
    returns (loss, gradients). Gradients are a tuple, or a dict by name, as nested as the inputs; those of `slots`, the
    parameters that an object holds, are where it stores them.
    """

    loss = False  # whether fn returns (loss, gradients)
    swapped: bool | None = None  # whether backward takes the cache first, where names do not say it
    stored = False  # whether fn returns a loss, and stores its gradients

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
        self.structure: Callable[[Sequence[Any]], Any] = lambda values: values[0]
        self.generators = list(dict.fromkeys([*self.generators, *random_sources([backward])]))
        self.unasked: list[str] = []  # parameters whose gradients backward stores and nobody asked about
        self.stores: dict[int, list[str]] = {}  # {id of an object: names of all such}
        self.numbers: list[
            int
        ] = []  # places of Python's floats among the inputs for which backward returned a gradient
        self.nothing = False  # whether backward returned no gradient at all
        self.inside: list[str] = []  # the same of objects that the object holds

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
        if self.loss and not self.stored:
            result, *cache = result
        elif self.cache:
            if not isinstance(result, tuple | list) or len(result) < 2:
                raise InputError("with cache=True, the forward function must return (output, cache)")
            *result, cache = result
            result = result[0] if len(result) == 1 else result
        elif not self.loss and self.is_cached(result):
            raise InputError("forward returns an output and what looks like a cache: pass cache=True")
        ys, self.structure = outputs_of(result)
        for y in ys:
            if (
                isinstance(y, Tensor)
                or not (is_array(y) or np.isscalar(y) or hasattr(y, "detach"))
                or isinstance(y, str)
            ):
                raise InputError(
                    f"the forward function must return arrays or numbers beside a backward, not {type(y).__name__}; "
                    "if it returns (output, cache), pass cache=True"
                )
        return [y if is_array(y) else np.asarray(as_array(y)) for y in ys], cache

    def is_cached(self, result: Any) -> bool:
        """Whether the last of several results is what backward needs rather than an output: a container that is handed on
        in a parameter called cache, or beside an array where backward takes two arguments."""
        if not isinstance(result, tuple | list) or len(result) < 2 or hasattr(result, "_fields"):
            return False
        if is_array(result[-1]) or np.isscalar(result[-1]) or not (is_array(result[0]) or np.isscalar(result[0])):
            return False
        parameters, _ = positional_parameters(self.backward)
        names = [p.name.lower() for p in parameters if p.default is p.empty]
        return len(names) == 2 and (len(self.trees) > 1 or bool(set(names) & set(CACHES)))

    def forward(self, arrays: Arrays) -> list[Any]:
        args = self.filled(arrays)
        with self.same_noise(), self.borrowed(args):
            ys, _ = self.run(args)
        return [np.array(to_numpy(y)) if y.dtype.kind in "fc" else None for y in ys]  # fn may use one array again

    def plan(self, ys: Sequence[Any]) -> Plan:
        """How backward is called."""
        is_number = len(ys) == 1 and ys[0].size == 1
        found = plan(self.backward, self.fn, len(ys), len(self.trees), self.cache, is_number)
        if is_number and found.parts == (("g", 0),) and len(self.trees) == 1 and self.is_gradient():
            return Plan((("x", 0),), scaled=True)
        return found

    def is_gradient(self) -> bool:
        """Whether backward, a plain function of one array, makes a gradient of the input and none of a single number."""
        backward, x = self.backward, self.args[0]
        if hasattr(backward, "__self__") or not _is_floating(x) or np.ndim(x) == 0:
            return False
        try:
            with np.errstate(all="ignore"):
                return np.shape(backward(np.ones(()))) != np.shape(backward(np.array(x))) == np.shape(x)  # type: ignore[misc]
        except Exception:
            return False

    def pull(self, ys: list[Any], cache: Any, args: Sequence[Any], cotangents: Arrays) -> list[Any]:
        L_Ys = [np.zeros(y.shape) if u is None else u for y, u in zip(ys, cotangents, strict=True)]
        scaled = self.loss
        if self.stored:
            grads = None
        elif self.loss:
            grads = cache[0] if len(cache) == 1 else tuple(cache)
        else:
            called = self.plan(ys)
            scaled, inputs = called.scaled, self.inputs(args)
            given = {
                "g": lambda i: self.structure(L_Ys) if self.structure is list_of_numbers else L_Ys[i],
                "gs": lambda i: self.structure(L_Ys),
                "c": lambda i: cache,
                "x": lambda i: inputs[i],
                "y": lambda i: ys[i],
            }
            assert self.backward is not None
            values = [given[kind](i) for kind, i in called.parts]
            grads = self.call(values, called, args)
        self.nothing = grads is None
        by_leaf = self.by_leaf(grads, args)
        self.numbers = [
            i for i, g in by_leaf.items() if g is not None and isinstance(self.args[i], float) and np.any(to_array(g))
        ]
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
        for i, g in zip(self.checked, got, strict=True):
            if g is not None and g.dtype.kind not in "fiubc":
                raise ValueError(f"the gradient of {self.input_names[i]} is no array of numbers but of {g.dtype}")
        if scaled:
            got = [None if g is None else g * L_Ys[0].reshape(()) for g in got]
        else:
            got = [g if g is None or g.base is None else g.copy() for g in got] if self.slots else got
        return got

    def call(self, values: list[Any], called: Plan, args: Sequence[Any]) -> Any:
        """What backward returns; (cache, L_Y) is tried where (L_Y, cache) does not run, and kept if it fits."""
        backward: Any = self.backward
        if not called.unsure or self.swapped is not None:
            return backward(*(reversed(values) if self.swapped else values))
        try:
            grads = backward(*values)
        except Exception:
            try:
                grads = backward(*reversed(values))
                by_leaf = self.by_leaf(grads, args)
                fit = all(np.shape(by_leaf.get(i, 0)) == np.shape(args[i]) for i in self.checked)
            except Exception:
                fit = False
            if not fit:
                raise
            self.swapped = True
        else:
            self.swapped = self.is_swapped(values, grads)
            return backward(*reversed(values)) if self.swapped else grads
        return grads

    def is_swapped(self, values: list[Any], grads: Any) -> bool:
        """Whether backward, which is linear in L_Y, is so in the second of (L_Y, cache) alone."""
        backward: Any = self.backward
        L_Y, cache = values
        if not (is_array(L_Y) and is_array(cache) and is_array(grads) and L_Y.shape == cache.shape == grads.shape):
            return False
        with np.errstate(all="ignore"):
            if np.allclose(backward(2 * L_Y, cache), 2 * grads):
                return False
            try:
                return np.allclose(backward(cache, 2 * L_Y), 2 * backward(cache, L_Y))
            except Exception:
                return False

    def by_leaf(self, grads: Any, args: Sequence[Any]) -> dict[int, Any]:
        """Gradients by position among the args, out of what backward returned."""
        found: dict[int, Any] = {}
        inner = [i for i in self.checked if i < len(args) - len(self.slots)]
        parts = {self.input_names[i]: _leaf(i, self.input_names[i]) for i in range(len(args))}
        grads = by_name(grads, {*parts, *(t.name for t in parts_of(self.trees))}.__contains__)
        if isinstance(grads, Mapping):
            top = {tree.name: tree for tree in parts_of(self.trees) if tree.children is not None}
            self._match(grads, {**top, **parts}, found)
            return found
        floating = [t for t in self.trees if any(_is_floating(args[i]) for i in t.leaves)]
        if (
            isinstance(grads, list)
            and len(floating) == 1
            and floating[0].children is None
            and fits(floating[0], grads, args)
        ):
            grads = [grads]  # the gradient of one input, as a list of numbers
        if is_array(grads) and len(floating) == len(grads.shape[:1]) * len(grads) > 1:
            shapes = [np.shape(args[t.first]) if t.children is None else None for t in floating]
            grads = list(grads) if shapes == [grads.shape[1:]] * len(shapes) else grads
        asked = [t for t in self.trees if any(i in self.checked for i in t.leaves)]
        if len(asked) == 1 and asked[0].children is not None and fits(asked[0], grads, args):
            grads = [grads]
        grads = list(grads) if isinstance(grads, tuple | list) else [grads]
        if self.slots and grads and isinstance(grads[-1], Mapping):
            self._match(grads.pop(), {s.name: parts[s.name] for s in self.slots}, found, needed=())
        plain = [t for t in floating if t.children is None]
        slots = [parts[s.name] for s in self.slots]
        where = slots if slots and not inner and len(slots) == len(grads) else None
        where = where or next((w for w in (floating, self.trees, asked, plain) if len(w) == len(grads)), None)
        if where is None and self.slots and len(grads) == len(asked) + len(self.slots):
            where = [*asked, *slots]
        if where is None:
            if not inner and all(g is None for g in grads):
                return found
            of = ", ".join(t.name for t in floating)
            if len(grads) == 1 and grads[0] is None:
                raise InputError(f"backward returned None, not the gradients of {of}: is its return missing?")
            raise InputError(
                f"backward returned {len(grads)} gradient{'s' * (len(grads) != 1)} for {len(floating)} floating point inputs "
                f"({of}); wrt= names those that it returns"
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
            before = [attributes(o) for o in self.owners]
            ys, cache = self.run(args)
            grads = self.pull(ys, cache, args, cotangents)
            stored = [unnamed_gradients(o, self.slots, b) for o, b in zip(self.owners, before, strict=True)]
            top = tops_of(self.fn, self.backward)
            self.stores = {id(o): names for o, names in zip(self.owners, stored, strict=True)}
            self.unasked = [
                n for o, names in zip(self.owners, stored, strict=True) for n in names if any(o is t for t in top)
            ]
            self.inside = [f"{type(o).__name__}.{n}" for o, names in zip(self.owners, stored, strict=True)
                           for n in names if not any(o is t for t in top)]  # fmt: skip
            grads = [None if g is None else np.array(g) if self.owners else g for g in grads]
        if same is not None:
            grads[same[0]] = add(grads[same[0]], grads[same[1]])
        return grads

    def vjp_of_two(self, first: Arrays, second: Arrays, cotangents: Arrays) -> list[Any]:
        one, two = self.filled(first), self.filled(second)
        if self.slots or self.loss:
            return []  # an object that keeps one forward pass cannot be asked for two
        with self.borrowed(one):
            with self.same_noise():
                ys, cache = self.run(one)
            if not self.cache and self.plan(ys).remembers:
                return []
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
        if subject.inside:
            names = ", ".join(dict.fromkeys(subject.inside))
            notes.append(
                f"the objects inside also store gradients of {names}, which were not looked at: parameters= with a list "
                "of these objects checks them"
            )
    return notes


def tops_of(*functions: Any) -> list[Any]:
    """The objects that functions are methods of."""
    found = []
    for f in functions:
        while isinstance(f, functools.partial):
            f = f.func
        found.append(getattr(f, "__self__", f))
    return found


def owners_of(*functions: Any) -> list[Any]:
    """The objects that functions are methods of, and those that these hold."""
    return list({id(o): o for o in objects_in(tops_of(*functions))}.values())


def _leaf(i: int, name: str) -> Tree:
    return Tree(None, name, [None] * i, [])


def _is_floating(a: Any) -> bool:
    return is_array(a) and a.dtype.kind == "f"


def to_array(g: Any) -> Any:
    g = as_array(g) if hasattr(g, "detach") else g
    return g if is_array(g) else np.asarray(g, dtype=np.float64) if isinstance(g, list | tuple | float | int) else g
