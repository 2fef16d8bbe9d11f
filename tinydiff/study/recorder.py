"""The observer behind a trace: sees every pass of every operation, and every gradient on its way."""

from __future__ import annotations

import inspect
import sys
import time
import types
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinydiff.autograd.function import Function
from tinydiff.autograd.tape import Edge, Node
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import is_array, synchronize, to_numpy
from tinydiff.nn import Parameter
from tinydiff.ops.windows import Window
from tinydiff.study.arrays import Summarizer, Summary
from tinydiff.study.flops import count_flops
from tinydiff.study.places import Place, Places

_LARGE = object()
_MOST_PARTS = 64  # of a tuple among the settings of an operation


@dataclass(eq=False, repr=False)
class Leaf:
    """A tensor that no recorded operation made. number: counts them. name: a weight's path or a variable's name; "" where
    neither is known. place: where it was first used."""

    number: int
    name: str
    is_weight: bool
    shape: tuple[int, ...]
    needs: bool
    place: str = ""

    def __repr__(self) -> str:
        return f"Leaf({self.shown or 'array'} {self.shape})"

    @property
    def shown(self) -> str:
        """Its name, else the line of its first use."""
        return self.name or (f"the array of {self.place}" if self.place else "")


@dataclass(eq=False, repr=False)
class Operation:
    """An operation as it was recorded.

    name: its Function. known: False where forward ran before the trace began or inside `recompute`.
    names, inputs, sources: of what forward took: parameter names, arrays (None for numbers), and the leaf or operation that
    each came from. settings: options, inputs that are numbers or None, and what forward has put on the operation, as far as it
    is small. outputs: arrays. users: how many operations took an output.
    L_Ys, L_Xs: gradients of the outputs and the inputs, once backward has run. seconds, flops, bytes: (forward, backward).
    saved: bytes kept for backward that no other operation kept already; kept_at, freed_at: the numbers of the events at
    which they were kept and freed (None: never).
    """

    number: int
    name: str
    function: type[Any] | None
    place: Place
    names: list[str] = field(default_factory=list)
    inputs: list[Summary | None] = field(default_factory=list)
    sources: list[Any] = field(default_factory=list)
    needs: tuple[bool, ...] = ()
    options: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    outputs: list[Summary] = field(default_factory=list)
    known: bool = True
    users: int = 0
    L_Ys: list[Summary] = field(default_factory=list)
    L_Xs: list[Summary | None] = field(default_factory=list)
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])
    flops: tuple[int, int] = (0, 0)
    bytes: list[int] = field(default_factory=lambda: [0, 0])
    saved: int = 0
    saved_arrays: list[tuple[str, tuple[int, ...], str, int]] = field(default_factory=list)
    kept_at: int | None = None
    freed_at: int | None = None
    ran_backward: bool = False

    def __repr__(self) -> str:
        where = " ".join(text for text in (self.place.module, self.place.shown) if text)
        return f"Operation(#{self.number} {self.name}{where and f', {where}'})"

    @property
    def given(self) -> frozenset[str]:
        """The names of the inputs and options that are not None, False or 0."""
        names = {name for name, x in zip(self.names, self.inputs, strict=False) if x is not None}
        return frozenset(names | {k for k, v in self.settings.items() if isinstance(v, int | float | str) and v})


@dataclass(eq=False, repr=False)
class Event:
    """A step of the trace. kind: "forward" or "backward" of an operation; or "sum", where a gradient (`second`) met another
    one (`first`) on its way to output `output` of an operation or to a leaf (`target`), and `total` is their sum.

    parts: of a sum, the gradients that are in it, the second one last: (operation, number of its input); None for a gradient
    that was there before the walk. came_from: the operation that sent the second one. live: bytes that were kept for backward
    passes afterwards.
    """

    kind: str
    operation: Operation | None = None
    target: Any = None
    output: int = 0
    first: Summary | None = None
    second: Summary | None = None
    total: Summary | None = None
    parts: list[tuple[Operation, int] | None] = field(default_factory=list)
    came_from: Operation | None = None
    live: int = 0

    def __repr__(self) -> str:
        return f"Event({self.kind}, {self.operation or self.target!r})"


class Recorder:
    """What `autograd.tape.observing` is given. `outer` is the observer around the trace, if there is one."""

    def __init__(self, summarize: Summarizer, outer: Callable[..., Any] | None) -> None:
        self.operations: list[Operation] = []
        self.events: list[Event] = []
        self.leaves: list[Leaf] = []
        self.live, self._summarize, self._outer, self._places = 0, summarize, outer, Places()
        self._by_op: dict[int, tuple[weakref.ref[Any], Operation]] = {}
        self._by_node: weakref.WeakKeyDictionary[Node, Operation] = weakref.WeakKeyDictionary()
        self._by_array: dict[
            int, tuple[weakref.ref[Any], Any, int]
        ] = {}  # which operation's output or leaf an array is
        self._held: dict[int, list[Any]] = {}  # memory: [bytes, operations that hold it, weak reference]
        self._holds: dict[Operation, list[int]] = {}
        self._arrived: dict[tuple[int, int], tuple[weakref.ref[Any], list[Any]]] = {}  # gradients at outputs and leaves

    # ------------------------------------------------------------------------------- what the tape calls

    def __call__(self, op: Any, phase: str, arrays: Sequence[Any], options: dict[str, Any]) -> Any:
        taken = [self._summary(a) for a in arrays]  # before the pass may change them
        outer = self._outer
        synchronize()
        start = time.perf_counter()
        results = getattr(op, phase)(*arrays, **options) if outer is None else outer(op, phase, arrays, options)
        synchronize()
        seconds = time.perf_counter() - start
        given = list(results) if isinstance(results, tuple | list) else [results]
        moved = sum(a.nbytes for a in (*arrays, *given) if is_array(a))
        if phase == "forward":
            self._ran_forward(op, arrays, taken, options, given, seconds, moved)
        else:
            self._ran_backward(op, taken, given, seconds, moved)
        return results

    def recorded(self, op: Any, inputs: Sequence[Any], outputs: Sequence[Tensor]) -> None:
        known = self._by_op.get(id(op))
        if known is None or known[0]() is not op:
            return
        operation = known[1]
        operation.place, scopes = self._places.find(sys._getframe(1), [x for x in inputs if isinstance(x, Parameter)])
        for x, summary in zip(inputs, operation.inputs, strict=True):
            operation.sources.append(None if summary is None else self._source(x, scopes, operation.place.shown))
        for source in {id(s): s for s in operation.sources if isinstance(s, tuple)}.values():
            source[0].users += 1
        for index, y in enumerate(outputs):
            self._by_array[id(y.data)] = weakref.ref(y.data), operation, index
            if y._node is not None:
                self._by_node[y._node] = operation
        if any(y._node is not None for y in outputs):
            self._keep(op, operation, inputs)
        else:
            operation.needs = (False,) * len(inputs)
        self.events[-1].live = self.live

    def deferred(self, node: Node, inputs: Sequence[Any]) -> None:
        self._keep(node.op, self._of(node), inputs)
        if self.events:
            self.events[-1].live = self.live

    def sending(self, node: Node | None, edge: Edge, L: Any, there: Any) -> None:
        source = None if node is None else self._of(node)
        key = id(edge.target), edge.output
        known, parts = self._arrived.get(key, (None, []))
        if there is None or known is None or known() is not edge.target:
            parts = [] if there is None else [None]
            self._arrived[key] = weakref.ref(edge.target), parts
        part = next((i for i, other in enumerate(node.parents) if other is edge), None) if node else None
        parts.append(None if source is None or part is None else (source, part))
        if there is None:
            return
        target: Any = self._leaf(edge.target, []) if isinstance(edge.target, Tensor) else self._of(edge.target)
        first, second, total = self._summarize(there), self._summarize(L), self._summarize(there + L)
        self.events.append(Event("sum", None, target, edge.output, first, second, total, parts[:], source, self.live))

    def releasing(self, node: Node) -> None:
        if (operation := self._by_node.get(node)) is not None:
            self._free(operation)
            self.events[-1].live = self.live

    def name_leaves(self, frame: types.FrameType | None) -> None:
        """Gives leaves that have no name yet that of the variable in a frame, the user's, that holds them now."""
        if frame is None:
            return
        scopes = [frame.f_locals, frame.f_globals]
        for known in list(self._by_array.values()):
            if isinstance(known[1], Leaf) and not known[1].name and (array := known[0]()) is not None:
                known[1].name = self._places.name_of(array, scopes)

    # ------------------------------------------------------------------------------------------------- inside

    def _summary(self, a: Any) -> Summary | None:
        """NumPy's arithmetic on arrays () gives its scalars."""
        return self._summarize(a) if is_array(a) or isinstance(a, np.generic) else None

    def _ran_forward(
        self, op: Function, arrays: Any, taken: Any, options: Any, given: list[Any], seconds: float, moved: int
    ) -> None:
        operation = Operation(len(self.operations), type(op).__name__, type(op), Place("", "", 0, ""))
        operation.names, operation.inputs = input_names(type(op), len(arrays)), taken
        operation.needs, operation.options = op.needs, _shown(options)
        numbers = {n: a for n, a in zip(operation.names, arrays, strict=True) if not is_array(a)}
        found = {
            **{k: v for k, v in vars(op).items() if k[0] != "_" and k not in ("needs", "shapes")},
            **options,
            **numbers,
        }
        operation.settings = {k: small for k, v in found.items() if (small := self._small(v)) is not _LARGE}
        operation.outputs = [self._summarize(y) for y in given]
        operation.flops = count_flops(op, arrays, [y for y in given if is_array(y)], op.needs)
        operation.seconds[0], operation.bytes[0] = seconds, moved
        self.operations.append(operation)
        self.events.append(Event("forward", operation, live=self.live))
        self._by_op[id(op)] = weakref.ref(op), operation

    def _small(self, value: Any) -> Any:
        """A setting, with copies of arrays; _LARGE for large arrays and what is none."""
        if is_array(value):
            return to_numpy(value).copy() if value.size <= self._summarize.each else _LARGE
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, tuple | list):
            parts = [self._small(v) for v in value] if len(value) <= _MOST_PARTS else [_LARGE]
            return _LARGE if any(p is _LARGE for p in parts) else type(value)(parts)
        plain = isinstance(value, int | float | str | slice | Window) or value is None or value is Ellipsis
        return value if plain else _LARGE

    def _ran_backward(self, op: Any, taken: Any, given: list[Any], seconds: float, moved: int) -> None:
        known = self._by_op.get(id(op))
        if known is None or known[0]() is not op:
            operation = Operation(len(self.operations), type(op).__name__, type(op), Place("", "", 0, ""), known=False)
            operation.names = input_names(type(op), len(given))
            self.operations.append(operation)
            self._by_op[id(op)] = weakref.ref(op), operation
        else:
            operation = known[1]
        operation.L_Ys, operation.ran_backward = taken, True
        needs = operation.needs if len(operation.needs) == len(given) else (True,) * len(given)
        operation.L_Xs = [self._summary(L) if need else None for L, need in zip(given, needs, strict=True)]
        operation.seconds[1] += seconds
        operation.bytes[1] += moved + operation.saved
        self.events.append(Event("backward", operation, live=self.live))

    def _of(self, node: Node) -> Operation:
        """The record of a node, made now if the trace did not see it made."""
        found = self._by_node.get(node)
        if found is None:
            known = self._by_op.get(id(node.op))
            if known is not None and known[0]() is node.op:
                found = known[1]
            else:
                name = "recompute" if node.name == "_Recompute" else node.name
                found = Operation(len(self.operations), name, None, Place("", "", 0, ""), known=False)
                self.operations.append(found)
                if not isinstance(node.op, type):
                    self._by_op[id(node.op)] = weakref.ref(node.op), found
            self._by_node[node] = found
        return found

    def _source(self, x: Any, scopes: list[dict[str, Any]], place: str) -> Any:
        """(operation, output) that made an input, or its leaf."""
        if isinstance(x, Tensor) and x._node is not None:
            return self._of(x._node), x._index
        data = x.data if isinstance(x, Tensor) else x
        known = self._by_array.get(id(data))
        if known is not None and known[0]() is data:
            return known[1] if isinstance(known[1], Leaf) else (known[1], known[2])
        return self._leaf(x, scopes, place) if is_array(data) else None

    def _leaf(self, x: Any, scopes: list[dict[str, Any]], place: str = "") -> Leaf:
        data = x.data if isinstance(x, Tensor) else x
        known = self._by_array.get(id(data))
        if known is not None and known[0]() is data and isinstance(known[1], Leaf):
            return known[1]
        name = self._places.name_of(x, scopes)
        needs = isinstance(x, Tensor) and x.requires_grad
        leaf = Leaf(len(self.leaves), name, isinstance(x, Parameter), data.shape, needs, place)
        self.leaves.append(leaf)
        self._by_array[id(data)] = weakref.ref(data), leaf, 0
        return leaf

    def _keep(self, op: Any, operation: Operation, inputs: Sequence[Any]) -> None:
        """Counts what an operation keeps for its backward pass. Memory that several keep counts once; leaves that need a
        gradient, such as weights, do not count, as they live anyway."""
        leaves = {id(_owner(x.data)) for x in inputs if isinstance(x, Tensor) and x._node is None and x.requires_grad}
        held = self._holds[operation] = []
        seen: set[int] = set()
        for name, array in _arrays_of(op):
            memory = _owner(array)
            if id(memory) in seen:
                continue
            seen.add(id(memory))
            operation.saved_arrays.append((name, array.shape, str(array.dtype), array.nbytes))
            if id(memory) in leaves:
                continue
            entry = self._held.get(id(memory))
            if entry is None or entry[2]() is not memory:
                entry = self._held[id(memory)] = [memory.nbytes, 0, weakref.ref(memory)]
                operation.saved += memory.nbytes
                self.live += memory.nbytes
            entry[1] += 1
            held.append(id(memory))
        operation.kept_at = max(len(self.events) - 1, 0)
        weakref.finalize(op, self._free, operation).atexit = False  # a graph that is dropped without backward

    def _free(self, operation: Operation) -> None:
        for key in self._holds.pop(operation, ()):
            entry = self._held[key]
            entry[1] -= 1
            if not entry[1]:
                self.live -= entry[0]
                del self._held[key]
        if operation.freed_at is None:
            operation.freed_at = len(self.events) - 1


def input_names(function: type[Any], count: int) -> list[str]:
    """The names of what forward takes: those of its parameters, numbered where it takes any number."""
    names: list[str] = []
    for p in list(inspect.signature(function.forward).parameters.values())[1:]:
        if p.kind is p.VAR_POSITIONAL and p.name == "layers":  # W_1, b_1, W_2, ...
            names += [f"{'Wb'[i % 2]}_{i // 2 + 1}" for i in range(count - len(names))]
        elif p.kind is p.VAR_POSITIONAL:
            names += [f"{p.name}[{i}]" for i in range(count - len(names))]
        elif p.kind is not p.VAR_KEYWORD:
            names.append(p.name)
    return [names[i] if i < len(names) else f"input {i}" for i in range(count)]


def _arrays_of(op: Any) -> list[tuple[str, Any]]:
    """(name, array) of all that an operation has put on itself."""
    found = []
    for name, value in vars(op).items():
        parts = value if isinstance(value, tuple | list) else (value,)
        arrays = [part.data if isinstance(part, Tensor) else part for part in parts]
        found += [("" if name == "_saved" else name, a) for a in arrays if is_array(a)]
    return found


def _owner(a: Any) -> Any:
    while a.base is not None and is_array(a.base):
        a = a.base
    return a


def _shown(options: dict[str, Any]) -> str:
    """Options of forward in short, without arrays."""
    plain: dict[str, Any] = {k: v for k, v in options.items() if isinstance(v, int | float | str | bool | None)}
    for k, v in options.items():
        if isinstance(v, tuple | list) and len(v) < 8 and all(isinstance(i, int) for i in v):
            plain[k] = tuple(v)
        elif type(v).__name__ == "Window":
            plain |= {"size": v.size, "stride": v.stride, "padding": v.padding, "dilation": v.dilation}
    return ", ".join(f"{k}={v!r}" for k, v in plain.items())
