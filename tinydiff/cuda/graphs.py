"""`td.cuda.graph`: a step of a loop of the user's own as one CUDA graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tinydiff import backend, random, replay
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import device_of, is_array, module_for
from tinydiff.cuda import tensor
from tinydiff.cuda.capture import Captured, NotCapturable, Outdated, rehearsal, wanted
from tinydiff.machine.terminal import say
from tinydiff.precision import held
from tinydiff.random import Generator
from tinydiff.replay import NotRepeatable

MOST_GRAPHS = 8  # of one function, for arguments of different shapes and values
MOST_CAPTURES = 3  # of one graph, where arrays that it relies on are replaced again and again


def graph(step: Callable[..., Any]) -> Any:
    """Decorates a step of a loop: its first two calls run as they are, then it is captured as a CUDA graph and replayed. The
    results have the same bits.

        generator = td.random.Generator(0)
        @td.cuda.graph
        def step(x, labels, generator):
            optimizer.zero_grad()
            loss = diffusion.loss(unet, x, generator, labels)
            loss.backward()
            optimizer.step(ema)
            return loss
        for generator.step, (x, labels) in enumerate(batches, 1):
            loss = step(x, labels, generator)

    step: a function of arrays and tensors on the GPU, generators, and other values. What may change from call to call:

    - Arrays and tensors among the arguments. They are copied to fixed places. Another shape or dtype, or another value of any
      other argument, makes another graph.
    - Generators: their step and offset, of those that are arguments and of those that the function draws from directly.
      Inside, `generator.at(stream, generator.step)` is possible.
    - What optimisers read and count: their learning rate, which is set outside, bias corrections, averages.

    Results are copies: arrays, or tensors without a tape. Python's own side effects, such as appending to a list, happen only
    in the first calls. `Adam.clipped_step` returns arrays instead of numbers;
    each replay waits for them, since an update that is not finite does not count. A decorated function inside another one
    becomes part of its graph.

    NotRepeatable (a ValueError) says what a graph would repeat wrongly, and what to write instead. Where the function reads
    a value from the GPU, one line says so, and it goes on being called as it is. So it does without further words on the CPU,
    inside `td.by_definition()`, and where the environment variable TINYDIFF_GRAPH is 0.
    """
    replayed = _Replayed(step)

    @functools.wraps(step)
    def call(*args: Any, **kwargs: Any) -> Any:
        return replayed(*args, **kwargs)

    return call


class _Replayed:
    """The function behind a decorated one. Its graphs, by the arguments' shapes and values."""

    def __init__(self, step: Callable[..., Any]) -> None:
        self.step, self.refused = step, False
        self.graphs: dict[Any, _One] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if replay.current() is not None:  # inside another graph, whose part it becomes
            return self.step(*args, **kwargs)
        leaves: list[Any] = []
        tree = _flatten((args, kwargs), leaves)
        devices = {device_of(x) for x in _arrays(leaves)}
        if self.refused or not wanted() or backend.cupy() is None or devices == {"cpu"}:
            return self.step(*args, **kwargs)
        if "cpu" in devices:
            return self._give_up(
                "some of its arguments are arrays on the CPU; move them to the GPU first", args, kwargs
            )
        key = tree, tuple(map(_described, leaves)), tensor.chosen(), held()
        if key not in self.graphs and len(self.graphs) == MOST_GRAPHS:
            return self._give_up(
                f"{MOST_GRAPHS} graphs were made for other shapes and values of its arguments", args, kwargs
            )
        one = self.graphs.setdefault(key, _One(self.step))
        try:
            return one(tree, leaves, args, kwargs)
        except NotCapturable as error:
            reason = str(error)
        except MemoryError:
            if not one.capturing:
                raise
            reason = "the GPU has too little memory for it"
        return self._give_up(reason, args, kwargs)  # out here, where the error no longer holds the capture's memory

    def _give_up(self, reason: str, args: Any, kwargs: Any) -> Any:
        self.refused = True
        self.graphs.clear()
        say(f"{getattr(self.step, '__name__', 'the step')} runs without a CUDA graph: {reason}")
        return self.step(*args, **kwargs)


class _One:
    """One graph of a function: calls before it is captured, its places for arguments, its replays."""

    def __init__(self, step: Callable[..., Any]) -> None:
        self.step, self.calls, self.captures = step, 0, 0
        self.used: list[Generator] = []  # by the first call
        self.captured: Captured | None = None
        self.capturing = False
        self.places: list[Any] = []

    def __call__(self, tree: Any, leaves: list[Any], args: Any, kwargs: Any) -> Any:
        self.calls += 1
        given = [x for x in leaves if isinstance(x, Generator)]
        if self.calls == 1:
            with random.recording() as uses:
                result = self.step(*args, **kwargs)
            self.used = list(uses)  # those that are made inside are others at the next call
            return result
        if self.calls == 2:
            with random.recording() as uses:
                result = self.step(*args, **kwargs)
            self.used = [g for g in self.used if any(g is other for other in uses)]
            return result
        generators = [*given, *self.used]
        if self.calls == 3:
            with rehearsal(generators):
                return self.step(*args, **kwargs)
        if self.captured is None or not self.captured.fits():
            self._capture(tree, leaves, generators)
        assert self.captured is not None
        for place, x in zip(self.places, _arrays(leaves), strict=True):
            place[...] = x
        try:
            self.captured.replay()
        except Outdated:
            self._capture(tree, leaves, generators)
            self.captured.replay()
        return _map(_copied, self.captured.result)

    def _capture(self, tree: Any, leaves: list[Any], generators: list[Generator]) -> None:
        if self.captures == MOST_CAPTURES:
            raise NotCapturable("its weights, gradients or averages lie in other arrays from call to call")
        self.captures += 1
        self.capturing = True
        xp = module_for("cuda")
        self.captured = None  # gives its memory back before another is made
        self.places = [xp.array(x) for x in _arrays(leaves)]
        free = iter(self.places)
        filled = [_like(x, next(free)) if _has_array(x) else x for x in leaves]
        args, kwargs = _unflatten(tree, iter(filled))
        self.captured = Captured(lambda: self.step(*args, **kwargs), generators)
        self.capturing = False
        results: list[Any] = []
        _flatten(self.captured.result, results)
        for x in results:
            if not (x is None or (_has_array(x) and device_of(x.data if isinstance(x, Tensor) else x) == "cuda")):
                raise NotCapturable(
                    f"it returns {type(x).__name__}, a value of the host, which a graph cannot give anew"
                )


# ---------------------------------------------------------------------------------------------------- trees of arguments

_LEAF = object()


def _flatten(value: Any, leaves: list[Any]) -> Any:
    """The structure of nested lists, tuples and dicts, hashable; its leaves are appended."""
    if isinstance(value, dict):
        return dict, tuple((key, _flatten(item, leaves)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(_flatten(item, leaves) for item in value)
    leaves.append(value)
    return _LEAF


def _unflatten(tree: Any, leaves: Any) -> Any:
    if tree is _LEAF:
        return next(leaves)
    kind, items = tree
    if kind is dict:
        return {key: _unflatten(item, leaves) for key, item in items}
    values = [_unflatten(item, leaves) for item in items]
    return kind(*values) if hasattr(kind, "_fields") else kind(values)


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    leaves: list[Any] = []
    tree = _flatten(value, leaves)
    return _unflatten(tree, map(function, leaves))


def _has_array(x: Any) -> bool:
    return isinstance(x, Tensor) or is_array(x)


def _arrays(leaves: list[Any]) -> list[Any]:
    return [x.data if isinstance(x, Tensor) else x for x in leaves if _has_array(x)]


def _like(x: Any, place: Any) -> Any:
    return Tensor(place) if isinstance(x, Tensor) else place


def _described(x: Any) -> Any:
    """What must be the same for the same graph. NotRepeatable for a tensor that needs a gradient."""
    if isinstance(x, Tensor) and x.requires_grad:
        raise NotRepeatable(
            "an argument of a step is copied to a fixed place, where its gradient would stay: use weights inside the step "
            "and give it inputs only"
        )
    if _has_array(x):
        return type(x).__name__, x.shape, x.dtype.str
    if isinstance(x, Generator):
        return id(x), x.seed, x.stream
    try:
        hash(x)
    except TypeError:
        return type(x), id(x)
    return type(x), x


def _copied(x: Any) -> Any:
    if isinstance(x, Tensor):
        return Tensor(x.data.copy())
    return x.copy() if is_array(x) else x
