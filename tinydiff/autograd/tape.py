"""The tape: what was computed from what, and the walk back over it.

Every operation on tensors that need gradients leaves a `Node` that points to its parents, the nodes and leaves it was
computed from. Nothing points the other way, so there are no reference cycles: when the last output is dropped, the
whole graph is freed by reference counting alone. `backward` visits the nodes from the newest to the oldest, which is a
topological order because a node is always newer than its parents.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from tinydiff.autograd import origin, places, waiting
from tinydiff.autograd.hooks import run as run_hooks
from tinydiff.backend import array_module, is_array, is_float, refuse_missing_library, widened
from tinydiff.errors import a_type
from tinydiff.machine.threads import add_to, operation

_sequence = itertools.count()


class _Mode(threading.local):
    """Per thread: a worker that samples under no_grad does not switch off the tape of the thread that trains."""

    recording: bool = True
    checking: bool = False
    seen: dict[Any, int] | None = None  # for recompute: versions of the tensors that operations took
    unrecorded: bool = False  # for recompute: an operation took a tensor that needs a gradient
    observer: Any = None  # for profiles: runs the operations' passes


mode = _Mode()


def is_recording() -> bool:
    """False inside `no_grad`."""
    return mode.recording


def note_inputs(tensors: Iterable[Any]) -> None:
    """Called by an operation that is not recorded: `recompute` wants to know what its block uses."""
    if mode.seen is not None:
        for x in tensors:
            if x is not None:
                mode.seen.setdefault(x._version, x._version.count)
                mode.unrecorded = mode.unrecorded or x.requires_grad


@contextmanager
def set_mode(**modes: Any) -> Iterator[None]:
    """A block in which this thread's modes have these values."""
    before = {name: getattr(mode, name) for name in modes}
    for name, value in modes.items():
        setattr(mode, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(mode, name, value)


def no_grad(function: Any = None) -> Any:
    """A block (or, as a decorator, a function) in which nothing is recorded: for sampling, evaluation and updates.
    function: what `@no_grad` stands before, where it is written without parentheses."""
    block = set_mode(recording=False)
    return block if function is None else block(function)


def check_finite() -> Any:
    """A block in which the first operation that makes a value or a gradient that is not finite raises
    `NonFiniteError`, which names it, its module and the caller's line. Of a graph made outside of the block, the operation."""
    return set_mode(checking=True)


def observing(observer: Callable[[Any, str, Any, dict[str, Any]], Any]) -> Any:
    """A block in which `observer(op, "forward" or "backward", arrays, options)` is called in place of that pass of each
    operation, and has to run it and return what it returns.

    If the observer has these methods, they are called as well:
    `recorded(op, inputs, outputs)` after forward, with the tensors;
    `deferred(node, inputs)` after a block that `recompute` will run again in backward, with the block's inputs;
    `sending(node, edge, L, there)` before a gradient goes from a node (None: from the start of the walk) to the edge's
    target, where the sum `there` (or None) waits for it;
    `releasing(node)` before a node forgets what was saved for it.
    """
    return set_mode(observer=observer)


def current_observer() -> Any:
    """What `observing` has set, None outside of it."""
    return mode.observer


class NonFiniteError(ArithmeticError):
    """Raised inside `check_finite`; names the operation that made the first NaN or infinity."""


def refuse_non_finite(arrays: Iterable[Any], what: str, called: str | None = None) -> None:
    """Raises NonFiniteError if `check_finite` is on and one of the arrays has a NaN or an infinity. called: where the
    operation was; None: the call that is running."""
    if mode.checking:
        for a in arrays:
            if a is not None and is_float(a.dtype) and not bool(array_module(a).isfinite(a).all()):
                called = origin.here() if called is None else called
                raise NonFiniteError(f"{what}, called in {called}" if called else what)


class Edge(NamedTuple):
    """Where the gradient of an operation's input goes: to one output of a node, or to a leaf tensor."""

    target: Any
    output: int
    shape: tuple[int, ...]
    dtype: Any


def edge_to(tensor: Any) -> Edge | None:
    """The edge to a tensor that needs a gradient, else None."""
    if not tensor.requires_grad:
        return None
    return Edge(tensor._node or tensor, tensor._index, tensor.shape, tensor.dtype)


class Node:
    """One recorded operation: `op` knows how to pull gradients back, `parents` where they go (None: not needed).

    `outputs` holds (shape, dtype, array module) of each output, enough to make a zero gradient for one that was not
    used.
    """

    __slots__ = ("__weakref__", "op", "origin", "outputs", "parents", "sequence", "watchers")

    def __init__(self, op: Any, parents: tuple[Edge | None, ...], outputs: Iterable[Any]) -> None:
        self.op, self.parents = op, parents
        self.outputs = tuple((y.shape, y.dtype, array_module(y)) for y in outputs)
        self.sequence = next(_sequence)
        self.origin = origin.here() if mode.checking else ""
        self.watchers: dict[int, Any] = {}  # a `hooks.Watch` for outputs whose gradient somebody wants to see

    def pull(self, L_Ys: list[Any], gradients: _Gradients | None = None) -> Iterator[tuple[Edge, Any, bool]]:
        """The edges to the parents, each with its gradient and whether nothing else holds that array. gradients: those on
        their way, for an operation that may add what waits at its first input already; None to leave that to others."""
        op, name = self.op, self.name
        if op.rounds_to is not None and not op.takes_half:
            L_Ys = [widened(L_Y) for L_Y in L_Ys]
        try:
            L_Xs = self._onto(L_Ys, gradients)
        except (ImportError, RuntimeError) as error:
            refuse_missing_library(error, f"the backward pass of {name}")
            raise
        L_Xs = L_Xs if isinstance(L_Xs, tuple | list) else (L_Xs,)
        if len(L_Xs) != len(self.parents):
            raise ValueError(f"{name}.backward returned {len(L_Xs)} gradients for {len(self.parents)} inputs")
        refuse_non_finite(L_Xs, f"the backward pass of {name}", self.origin)
        for i, (edge, L_X) in enumerate(zip(self.parents, L_Xs, strict=True)):
            if edge is None or L_X is None:
                continue
            array = is_array(L_X)
            if not array and not (hasattr(L_X, "dtype") and hasattr(L_X, "astype")):
                raise TypeError(f"{name}.backward returned {a_type(L_X)} as gradient of input {i}, not an array")
            if L_X.shape != edge.shape:
                raise ValueError(
                    f"{name}.backward returned a gradient of shape {L_X.shape} for input {i} of shape {edge.shape}"
                )
            new = array and op.gives_new and True not in [L_X is L_Y for L_Y in L_Ys]
            yield edge, L_X if L_X.dtype is edge.dtype else L_X.astype(edge.dtype, copy=False), new

    def _onto(self, L_Ys: list[Any], gradients: _Gradients | None) -> Any:
        """What `_placed` gives, where the gradient of the first input may include what waits there already."""
        op = self.op
        adds = op.adds_waiting and (op.rounds_to is None or op.takes_half)  # arrays come as they are
        first = self.parents[0] if adds else None
        if gradients is not None and first is not None:
            key = first.target, first.output
            there = gradients.there(key)
            if there is not None and not isinstance(there, np.ndarray):  # on a CPU `_Gradients` adds, in place
                with waiting.offered(there) as offer:
                    L_Xs = self._placed(L_Ys)
                if offer.gradient is None:
                    gradients.pop(key)
                return L_Xs
        return self._placed(L_Ys) if places.in_use() else self._run(L_Ys)

    def _run(self, L_Ys: list[Any]) -> Any:
        observer = mode.observer
        return self.op.backward(*L_Ys) if observer is None else observer(self.op, "backward", L_Ys, {})

    def _placed(self, L_Ys: list[Any]) -> Any:
        """What `_run` gives, where some of the inputs may have places for their gradients."""
        leaves = [None if edge is None or isinstance(edge.target, Node) else edge.target for edge in self.parents]
        with places.offered(leaves):
            L_Xs = self._run(L_Ys)
            several = isinstance(L_Xs, tuple | list)
            settled = places.settle(L_Xs if several else (L_Xs,), leaves)
        return settled if several else settled[0]

    def release(self) -> None:
        self.op.release()
        self.op, self.parents = type(self.op), ()

    @property
    def name(self) -> str:
        return (self.op if isinstance(self.op, type) else type(self.op)).__name__

    @property
    def released(self) -> bool:
        return isinstance(self.op, type)


class _Gradients:
    """Gradients on their way, by (node, output index). Of two that arrive, one that nothing else holds takes the sum in
    place; without such a one there is a new array, since another branch may hold them too."""

    def __init__(self) -> None:
        self._sums: dict[tuple[Any, int], Any] = {}
        self._own: set[tuple[Any, int]] = set()

    def add(self, key: tuple[Any, int], L: Any, own: bool) -> None:
        total = self._sums.get(key)
        if total is None:
            self._sums[key] = L
        elif key in self._own:
            add_to(total, L)
        elif own:
            add_to(L, total)
            self._sums[key] = L
        else:
            self._sums[key] = array_module(L).asarray(total + L)  # the sum of two 0-d arrays is a scalar
            own = True
        if own:
            self._own.add(key)

    def there(self, key: tuple[Any, int]) -> Any:
        """What has arrived so far, or None."""
        return self._sums.get(key)

    def pop(self, key: tuple[Any, int]) -> Any:
        """The gradient that has arrived, which is forgotten."""
        self._own.discard(key)
        return self._sums.pop(key)

    def take(self, node: Node) -> list[Any]:
        """One gradient for each output of the node, zeros for outputs that nothing was computed from."""
        L_Ys = []
        for index, (shape, dtype, xp) in enumerate(node.outputs):
            L_Y = self._sums.pop((node, index), None)
            L_Ys.append(xp.zeros(shape, dtype) if L_Y is None else L_Y)
        return L_Ys


def backward(tensor: Any, L_Y: Any, retain_graph: bool = False) -> None:
    """Walks from `tensor`, whose gradient is L_Y, to the leaves and adds their gradients to `.grad`.

    Frees gradients as it goes, and saved arrays unless `retain_graph`: the graph is used up. RuntimeError for a graph that
    was used up before.
    """
    operation(_walk, (tensor, L_Y, retain_graph), {})


def _walk(tensor: Any, L_Y: Any, retain_graph: bool) -> None:
    gradients, waiting, hooked = _Gradients(), set(), {}
    heap: list[tuple[int, Node]] = []
    sending, releasing = (getattr(mode.observer, name, None) for name in ("sending", "releasing"))

    def send(edge: Edge, L: Any, own: bool, source: Node | None = None) -> None:
        if sending is not None:
            summed = isinstance(edge.target, Node) or edge.target._hooks
            sending(source, edge, L, gradients.there((edge.target, edge.output)) if summed else edge.target.grad)
        if not isinstance(edge.target, Node):
            if not edge.target._hooks:
                edge.target._accumulate(L, own)
                return
            hooked[id(edge.target)] = edge.target  # its hooks get the sum, once all has arrived
            gradients.add((edge.target, 0), L, own)
            return
        gradients.add((edge.target, edge.output), L, own)
        if edge.target not in waiting:
            waiting.add(edge.target)
            heapq.heappush(heap, (-edge.target.sequence, edge.target))

    start = edge_to(tensor)
    assert start is not None
    send(start, L_Y, own=False)
    while heap:
        _, node = heapq.heappop(heap)
        waiting.discard(node)
        if node.released:
            raise RuntimeError(
                f"backward came to {node.name} a second time: the first pass freed what was saved for it; "
                "run the forward pass again, or call the first with backward(retain_graph=True)"
            )
        arrived = [index for index in node.watchers if gradients.there((node, index)) is not None]
        L_Ys = gradients.take(node)
        for index, watch in node.watchers.items():
            L_Ys[index] = watch.pass_on(L_Ys[index], index in arrived)
        for edge, L_X, own in node.pull(L_Ys, gradients if sending is None else None):
            send(edge, L_X, own, node)
        if not retain_graph:
            if releasing is not None:
                releasing(node)
            node.release()
        del L_Ys  # so that it does not live on beside the next one
    for leaf in hooked.values():
        leaf._accumulate(run_hooks(leaf._hooks, gradients.pop((leaf, 0))))
