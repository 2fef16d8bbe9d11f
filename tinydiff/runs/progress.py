"""How a long loop tells where it is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tinydiff.machine.terminal import is_terminal, say

_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class Progress:
    """Steps first+1..last of a training run. On a terminal a tqdm bar, otherwise a line at the first and last step and every
    `seconds` in between, with loss, speed and the time that is left, on stderr.

    last: None: minutes alone end the run. minutes: of training, after which it is `over`. after: the seconds that what comes
    after the last step takes, given images/s of training."""

    def __init__(
        self, first: int, last: int | None, seconds: float = 15, minutes: float | None = None,
        after: Callable[[float], float] = lambda speed: 0.0,
    ) -> None:  # fmt: skip
        self.first, self.last, self.seconds, self.minutes, self.after = first, last, seconds, minutes, after
        self.start = self.shown = time.monotonic()
        self.bar: Any = None
        if is_terminal():
            from tqdm import tqdm

            options = {"initial": first, "desc": "training", "unit": "step", "dynamic_ncols": True}
            self.bar = tqdm(total=last, bar_format=_BAR, **options)

    @property
    def over(self) -> bool:
        """Whether the minutes are."""
        return self.minutes is not None and time.monotonic() - self.start >= 60 * self.minutes

    def update(self, step: int, loss: float, images_per_second: float) -> None:
        """Tells of a step that is done, with its loss and its speed."""
        speed = f"{images_per_second:.0f} images/s"
        if self.bar is not None:
            with suppress(Exception):  # the terminal may be gone
                left = self._left(step, images_per_second)
                self.bar.set_postfix_str(f"{left}, loss {loss:.4f}, {speed}", refresh=False)
                self.bar.update(1)
            return
        now = time.monotonic()
        if step in (self.first + 1, self.last) or now - self.shown >= self.seconds:
            self.shown = now
            of = "" if self.last is None else f"/{self.last}"
            say(f"step {step}{of}  loss {loss:.4f}  {speed}  {self._left(step, images_per_second)}")

    def _left(self, step: int, images_per_second: float) -> str:
        gone, after = time.monotonic() - self.start, self.after(images_per_second)
        each = gone / max(1, step - self.first)
        left = time_left(each, None if self.last is None else self.last - step, gone, self.minutes)
        return f"{duration(left + after)} left" + ", samples included" * (after > 0)

    def close(self) -> None:
        if self.bar is not None:
            with suppress(Exception):
                self.bar.close()


def time_left(each: float, steps: int | None, gone: float, minutes: float | None) -> float:
    """Seconds of training that are left, of so many steps that take `each`, or of so many minutes of which `gone` seconds are
    over; None: no such end."""
    ends = [] if steps is None else [steps * each]
    ends += [] if minutes is None else [max(0.0, 60 * minutes - gone)]
    return min(ends)


def duration(seconds: float) -> str:
    """45 -> "45s", 130 -> "2m10s", 4000 -> "1h06m"."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    return f"{s // 60}m{s % 60:02d}s" if s < 3600 else f"{s // 3600}h{s % 3600 // 60:02d}m"
