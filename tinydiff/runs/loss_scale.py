"""fp16's loss scale in a run: it lies on the device, and moves there after each step; see `ops.optim.move_loss_scale`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinydiff.backend import module_for, to_numpy
from tinydiff.errors import InputError
from tinydiff.ops.optim import FIRST_SCALE, LEAST_SCALE

NAME = "loss_scale"  # what a checkpoint calls it, and a column of the log
_REMEMBERED = 4096  # steps


class LossScale:
    """device: the resolved one. precision: what the run is computed in there; all but "fp16" have no scale.

    A run that goes on in another precision, as on a CPU, keeps the scale of its checkpoint.
    """

    def __init__(self, device: str, precision: Callable[[], str]) -> None:
        self._device, self._precision = device, precision
        self._array: Any = None  # (2,): the scale, and the good steps in a row
        self._saved: tuple[float, float] | None = None
        self._used: dict[int, float] = {}

    @property
    def state(self) -> Any:
        """float32 (2,) on the device, or None where there is no scale."""
        if self._precision() != "fp16":
            return None
        if self._array is None:
            self._array = module_for(self._device).asarray(self._saved or (FIRST_SCALE, 0), np.float32)
        return self._array

    def taken(self, step: int, numbers: list[float]) -> list[float]:
        """The losses of a step without the scale that they end with where there is one, which is remembered."""
        if self.state is None:
            return numbers
        self._used.pop(step - _REMEMBERED, None)
        *losses, self._used[step] = numbers
        return losses

    def used(self, step: int) -> float | None:
        """With which scale a step was made; None for none."""
        return self._used.get(step)

    def skipped(self, step: int) -> bool:
        """Whether a step that is not finite was left out, to go on with a smaller scale. With the least one it is a failure."""
        return self._used.get(step, LEAST_SCALE) > LEAST_SCALE

    def metadata(self) -> dict[str, str]:
        """For a checkpoint."""
        if self._array is not None:
            self._saved = tuple(to_numpy(self._array).tolist())
        return {} if self._saved is None else {NAME: " ".join(map(repr, self._saved))}

    def restore(self, metadata: dict[str, str]) -> None:
        """Takes what `metadata` gave. InputError where that is damaged."""
        self._array = self._saved = None
        if NAME not in metadata:
            return
        try:
            scale, good = map(float, metadata[NAME].split())
        except ValueError:
            scale = good = np.nan
        if not (LEAST_SCALE <= scale < np.inf and 0 <= good < np.inf):
            raise InputError(f"the checkpoint's loss scale is damaged: {metadata[NAME][:40]!r}")
        self._saved = scale, good
