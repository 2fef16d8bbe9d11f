"""A clock on the device: it counts the steps of a loop and lays out what the host has computed for each of them ahead.

So a step needs nothing from the host: no copy, no number among the arguments of its kernels. That lets a step be captured as
a CUDA graph and replayed, and an eager step, which uses the same rows, gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tinydiff import replay
from tinydiff.cuda.launch import launch

MOST_AHEAD = 256  # steps that are computed at once, where they are small
MOST_BYTES = 32 << 20  # of the rows that are computed at once
_ALIGNED = 16  # bytes: a multiple of this is where each column begins

Columns = Mapping[str, tuple[Any, int]]  # (dtype, entries of a row) by name
Fill = Callable[[range], Mapping[str, np.ndarray]]


class Clock:
    """Counts steps 1, 2, ... and holds the numbers of the present step in `now`, {name: array} at addresses that stay.

    xp: the array module. columns: what a step has. fill: gives the rows of consecutive steps, {name: (steps, entries)}.

    `count` is uint32 (2,): the number of the step and 0, as draws of random numbers take it. The device has room for twice
    `ahead` steps: while it works on one half, the host writes the other.
    """

    def __init__(self, xp: Any, columns: Columns, fill: Fill) -> None:
        self.xp, self.fill, self.step = xp, fill, 0
        self._places: dict[str, tuple[int, int, Any, int]] = {}
        end = 0
        for name, (dtype, entries) in columns.items():
            dtype, start = np.dtype(dtype), -(-end // _ALIGNED) * _ALIGNED
            end = start + dtype.itemsize * entries
            self._places[name] = start, end, dtype, entries
        self._bytes = max(_ALIGNED, -(-end // _ALIGNED) * _ALIGNED)
        self.ahead = max(1, min(MOST_AHEAD, MOST_BYTES // self._bytes))
        self.rows = 2 * self.ahead
        self.count = xp.zeros(2, np.uint32)
        self._ring = xp.zeros((self.rows, self._bytes // 4), np.uint32)
        self._now = xp.zeros(self._bytes // 4, np.uint32)
        as_bytes = self._now.view(np.uint8)
        self.now = {name: as_bytes[start:end].view(dtype) for name, (start, end, dtype, _) in self._places.items()}
        self._filled: dict[int, int] = {}  # of each half: which run of `ahead` steps is there

    def forget(self) -> None:
        """What was computed ahead no longer holds."""
        self._filled.clear()
        self.step = 0

    def prepare(self, step: int) -> None:
        """Sees to it that the row of a step is on the device. This copies, and not in every step: not inside a capture."""
        run = step // self.ahead
        half = run % 2
        if self._filled.get(half) == run:
            return
        first = run * self.ahead
        steps = range(max(first, 1), first + self.ahead)
        rows = np.zeros((self.ahead, self._bytes), np.uint8)
        for name, values in self.fill(steps).items():
            start, end, dtype, entries = self._places[name]
            values = np.ascontiguousarray(values.reshape(len(steps), entries).astype(dtype, copy=False))
            rows[steps.start - first :, start:end] = values.view(np.uint8)
        self._ring[half * self.ahead : (half + 1) * self.ahead] = self.xp.asarray(rows.view(np.uint32))
        self._filled[half] = run

    def tick(self) -> None:
        """On to the next step, whose row is there; this is launched and can be captured."""
        replay.counts(self, "step")
        self.step += 1
        numbers = np.int32(self._bytes // 4), np.int32(self.rows)
        launch("batch.cu", "tick", (1, 1, 1), (256, 1, 1), (self.count, self._ring, self._now, *numbers))

    def go_to(self, step: int) -> None:
        """Makes `step` the present one. From the step before it that is a `tick`; where it is already, nothing is done."""
        if step == self.step and self._filled:
            return
        self.prepare(step)
        if step != self.step + 1:
            self.count[0], self.step = step - 1, step - 1
        self.tick()
