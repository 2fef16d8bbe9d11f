"""Steps of training as replays of one CUDA graph, where all that they take is prepared on the GPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from tinydiff import replay
from tinydiff.cuda.capture import Captured, NotCapturable, rehearsal
from tinydiff.machine.terminal import say
from tinydiff.runs.ahead import Ahead

EAGER = 2  # steps that make the workspaces and compile the kernels before one is captured
MOST_CAPTURES = 3  # where weights or averages are replaced again and again


class Replays:
    """Gives the GPU one step after another.

    inputs: of the steps. step: launches everything of a step; where it reads nothing, it returns None. agree: whether something
    is true on all ranks, that all ask at the same time: they replay all or none. None: of a process alone.
    """

    def __init__(self, inputs: Ahead, step: Callable[[int], Any], agree: Callable[[bool], bool] | None = None) -> None:
        self._inputs, self._step, self._agree = inputs, step, agree
        self._eager, self._captures, self._refused = 0, 0, False
        self._graph: Captured | None = None

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
        self._graph, self._captures = None, self._captures + 1
        try:
            if self._captures > MOST_CAPTURES:
                raise NotCapturable("its weights or averages lie in other arrays from step to step")
            self._graph = Captured(lambda: self._step(step))
        except (NotCapturable, ValueError, MemoryError) as error:
            self._refused = True
            replay.give_up("training", error)
        if self._agree is not None and not self._agree(self._graph is not None) and not self._refused:
            self._graph, self._refused = None, True
            say("training goes on without a CUDA graph: another rank has none")
