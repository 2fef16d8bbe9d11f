"""Steps of training as replays of one CUDA graph, where all that they take is prepared on the GPU.

With several GPUs the sum over ranks is a part of the graph. Where NCCL cannot be captured, the graph is cut there: the sum is
launched between the replays of two.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

from tinydiff import replay
from tinydiff.backend import array_module
from tinydiff.cuda.capture import Captured, NotCapturable, rehearsal
from tinydiff.runs.ahead import Ahead

EAGER = 2  # steps that make the workspaces and compile the kernels before one is captured
MOST_CAPTURES = 3  # where weights or averages are replaced again and again


class Cut(NamedTuple):
    """A step of one of several ranks, in three pieces.

    own: computes this rank's share of the gradients, and returns its losses, arrays (). exchange: sums up the gradients of all
    ranks and returns the losses of all, of which there are `losses`. update: changes the weights. agree: whether something is true
    on all ranks, which all ask at the same time.
    """

    losses: int
    own: Callable[[int], list[Any]]
    exchange: Callable[[list[Any]], list[Any]]
    update: Callable[[list[Any]], Any]
    agree: Callable[[bool], bool]


class Replays:
    """Gives the GPU one step after another.

    inputs: of the steps. step: launches everything of a step; where it reads nothing, it returns None. cut: the same of one of
    several ranks, which replay all or none; None: of a process alone.
    """

    def __init__(self, inputs: Ahead, step: Callable[[int], Any], cut: Cut | None = None) -> None:
        self._inputs, self._step, self._cut = inputs, step, cut
        self._eager, self._captures, self._refused = 0, 0, False
        self._graph: Captured | _Halves | None = None

    @property
    def replaying(self) -> bool:
        """Whether the last step was a replay."""
        return self._graph is not None

    def __call__(self, step: int) -> Any:
        """Step 1, 2, ... with the bits and the result of the step itself."""
        self._inputs.prepare(step)
        if self._refused or self._eager < EAGER or self._inputs.clock.step != step - 1:
            self._eager += 1
            with rehearsal() if self._eager == EAGER else nullcontext():
                return self._step(step)
        if self._graph is None or not self._graph.fits():
            self._capture(step)
        if self._graph is None:
            return self._step(step)
        self._graph.replay()
        return None

    def _capture(self, step: int) -> None:
        self._captures += 1
        error = self._try(lambda: Captured(lambda: self._step(step)))
        if (cut := self._cut) is not None and not cut.agree(error is None):
            halves = self._try(lambda: _Halves(cut, step))
            error = None if cut.agree(halves is None) else halves or error or NotCapturable("another rank has none")
        if error is not None:
            self._graph, self._refused = None, True
            replay.give_up("training", error)

    def _try(self, capture: Callable[[], Any]) -> Exception | None:
        """Sets the graph, or returns why there is none."""
        self._graph = None
        try:
            if self._captures > MOST_CAPTURES:
                raise NotCapturable("its weights or averages lie in other arrays from step to step")
            self._graph = capture()
        except (NotCapturable, ValueError, MemoryError) as error:
            return error
        return None


class _Halves:
    """The graphs of a step before and after the sum over ranks."""

    def __init__(self, cut: Cut, step: int) -> None:
        self._exchange = cut.exchange
        self._before = Captured(lambda: cut.own(step))
        xp = array_module(self._before.result[0])
        self._losses = xp.zeros(cut.losses, self._before.result[0].dtype)
        self._after = Captured(lambda: cut.update(list(self._losses)))

    def replay(self) -> None:
        self._before.replay()
        self._losses[...] = array_module(self._losses).stack(self._exchange(self._before.result))
        self._after.replay()

    def fits(self) -> bool:
        return self._before.fits() and self._after.fits()
