"""What a step does on the host beside its launches, so that replays of a CUDA graph can do it too.

A graph repeats launches with the arguments that they had when it was captured. So what changes from step to step must lie
on the GPU, and what counts on the host must go on counting. While a step is recorded, whoever computes such a number tells
the `Recording`: generators, optimisers, averages and gradients. Before each replay the numbers are computed again and copied
to the same places, in one copy. After it the counters have moved as they did in the recorded pass.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import numpy as np

from tinydiff.machine.terminal import say


class NotRepeatable(ValueError):
    """A step, or a part of one, that a graph would repeat wrongly. The message says what to write instead."""


class Live(float):
    """A number that is read again, by `read`, before each replay."""

    read: Callable[[], float]


class _Counter:
    """An attribute of integers, one or a list, that a step moves on."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name, self.start = owner, name, copy(getattr(owner, name))
        self.moved = self.distance()

    def distance(self) -> Any:
        """How far it has moved since the pass began."""
        now = getattr(self.owner, self.name)
        return [a - b for a, b in zip(now, self.start, strict=True)] if isinstance(now, list) else now - self.start

    def move(self, by: Any, sign: int = 1) -> None:
        now = getattr(self.owner, self.name)
        moved = [n + sign * k for n, k in zip(now, by, strict=True)] if isinstance(now, list) else now + sign * by
        setattr(self.owner, self.name, moved)


class _Gradient:
    """`.grad` of a tensor. fresh: the step forgot it before it added to it, so what was there before does not matter."""

    def __init__(self, tensor: Any, fresh: bool) -> None:
        self.tensor, self.fresh, self.before, self.after = tensor, fresh, tensor.grad, None


class Recording:
    """What one pass through a step tells of itself.

    place: a function that gives a new array on the GPU for values, a NumPy array. launches: of kernels, so far.
    """

    def __init__(self, place: Callable[[np.ndarray], Any]) -> None:
        self._place, self.launches = place, 0
        self.feeds: list[Callable[[], np.ndarray]] = []
        self._counters: dict[int, _Counter] = {}
        self._gradients: dict[int, _Gradient] = {}
        self._arrays: list[tuple[Callable[[], Sequence[Any]], list[Any]]] = []
        self._afterwards: list[Callable[[], None]] = []

    # ------------------------------------------------------------------------------------------- told by a step

    def feed(self, now: np.ndarray, later: Callable[[], np.ndarray]) -> Any:
        """An array on the GPU that holds `now` in this pass, and later(), called before each replay, in that."""
        self.feeds.append(later)
        return self._place(now)

    def counts(self, owner: Any, name: str) -> None:
        """Told before an attribute of `owner`, an integer or a list of them, moves on."""
        self._counters.setdefault(id(owner), _Counter(owner, name))

    def here(self, read: Callable[[], Any], owners: Sequence[Any]) -> Callable[[], Any]:
        """A function that gives, before a replay, what read() gives at this point of the pass. owners: whose counters it
        reads."""
        known = [self._counters[id(owner)] for owner in owners if id(owner) in self._counters]
        ahead = [(counter, counter.distance()) for counter in known]

        def later() -> Any:
            for counter, distance in ahead:
                counter.move(distance)
            try:
                return read()
            finally:
                for counter, distance in ahead:
                    counter.move(distance, -1)

        return later

    def relies_on(self, read: Callable[[], Sequence[Any]]) -> None:
        """The graph holds the addresses of these arrays: it is of no use once they are others."""
        self._arrays.append((read, list(read())))

    def gradient(self, tensor: Any, fresh: bool) -> None:
        """Told before `.grad` of a leaf changes. fresh: because it is forgotten."""
        if id(tensor) not in self._gradients:
            self._gradients[id(tensor)] = _Gradient(tensor, fresh)

    def afterwards(self, work: Callable[[], None]) -> None:
        """What the host does when the pass has been given to the GPU, each time."""
        self._afterwards.append(work)

    # ---------------------------------------------------------------------------------------- around the replays

    def finish(self) -> None:
        """After a pass that computed, or a replay: what was to be done afterwards."""
        for work in self._afterwards:
            work()

    def settle(self, done: bool) -> None:
        """After the pass: the host stands where it stood before, but that gradients are those of the graph if it is
        `done`."""
        for counter in self._counters.values():
            counter.moved = counter.distance()
            counter.move(counter.moved, -1)
        for gradient in self._gradients.values():
            gradient.after = gradient.tensor.grad
            if not done:
                gradient.tensor.grad = gradient.before

    def fits(self) -> bool:
        """Whether a replay does now what the step itself would do."""
        same = all(a is b for read, before in self._arrays for a, b in zip(read(), before, strict=True))
        return same and all(g.fresh or g.tensor.grad is g.before for g in self._gradients.values())

    def advance(self) -> None:
        """After a replay: does what the pass did on the host."""
        for counter in self._counters.values():
            counter.move(counter.moved)
        for gradient in self._gradients.values():
            gradient.tensor.grad = gradient.after
        self.finish()


class _Mode(threading.local):
    recording: Recording | None = None


_mode = _Mode()


def current() -> Recording | None:
    """The recording of the pass that this thread is in."""
    return _mode.recording


@contextmanager
def recorded_by(recording: Recording | None) -> Iterator[None]:
    """A block that tells `recording` what it does; None: nobody."""
    before, _mode.recording = _mode.recording, recording
    try:
        yield
    finally:
        _mode.recording = before


def counts(owner: Any, name: str) -> None:
    """Tells a recording that an attribute of `owner` is about to move on, see `Recording.counts`."""
    if _mode.recording is not None:
        _mode.recording.counts(owner, name)


def relies_on(read: Callable[[], Sequence[Any]]) -> None:
    """Tells a recording which objects must be the same at each replay, see `Recording.relies_on`."""
    if _mode.recording is not None:
        _mode.recording.relies_on(read)


def live(read: Callable[[], tuple[Any, ...]], *owners: Any) -> tuple[Any, ...]:
    """read(), a tuple. Where a step is recorded, its numbers are `Live`. owners: whose counters they depend on."""
    values = read()
    if _mode.recording is None:
        return values
    later = _mode.recording.here(read, owners)
    return tuple(v if isinstance(v, bool | tuple) else _live(v, later, i) for i, v in enumerate(values))


def _live(value: float, later: Callable[[], Any], index: int) -> Live:
    number = Live(value)
    number.read = lambda: later()[index]
    return number


def fed(xp: Any, function: Callable[..., np.ndarray], *numbers: Any) -> Any:
    """function(*numbers) as an array of xp. Where a step is recorded, it is that of each replay, with `Live` numbers read
    again."""
    if (recording := current()) is None:
        return xp.asarray(function(*numbers))
    return recording.feed(
        function(*numbers), lambda: function(*(n.read() if isinstance(n, Live) else n for n in numbers))
    )


def refuse(what: str, instead: str) -> None:
    """NotRepeatable, where a step is recorded: a graph would repeat `what` as it is now."""
    if current() is not None:
        raise NotRepeatable(f"{what} would be the same in every replay of a CUDA graph: {instead}")


def give_up(what: str, error: Exception) -> None:
    """Says in one line that `what` goes on without a graph, and why."""
    reason = "the GPU has too little memory for it" if isinstance(error, MemoryError) else error
    say(f"{what} goes on without a CUDA graph: {reason}")


def tools() -> Any:
    """The module `tinydiff.cuda.capture`, for what stands below it."""
    return importlib.import_module("tinydiff.cuda.capture")
