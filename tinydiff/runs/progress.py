"""How a long loop tells where it is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from tinydiff.machine.terminal import is_terminal, say


class Progress:
    """Steps first+1..last of a training run. On a terminal a tqdm bar, otherwise a line at the
    first and last step and every `seconds` in between, with loss, speed and the time that is left for these steps, on
    stderr."""

    def __init__(self, first: int, last: int, seconds: float = 15) -> None:
        self.first, self.last, self.seconds = first, last, seconds
        self.start = self.shown = time.monotonic()
        self.bar: Any = None
        if is_terminal():
            from tqdm import tqdm

            self.bar = tqdm(total=last, initial=first, desc="training", unit="step", dynamic_ncols=True)

    def update(self, step: int, loss: float, images_per_second: float) -> None:
        if self.bar is not None:
            with suppress(Exception):  # the terminal may be gone
                self.bar.set_postfix_str(f"loss {loss:.4f}, {images_per_second:.0f} images/s", refresh=False)
                self.bar.update(1)
            return
        now = time.monotonic()
        if step in (self.first + 1, self.last) or now - self.shown >= self.seconds:
            self.shown = now
            left = (now - self.start) / (step - self.first) * (self.last - step)
            speed = f"{images_per_second:.0f} images/s"
            say(f"step {step}/{self.last}  loss {loss:.4f}  {speed}  {duration(left)} of training left")

    def close(self) -> None:
        if self.bar is not None:
            with suppress(Exception):
                self.bar.close()


def duration(seconds: float) -> str:
    """45 -> "45s", 130 -> "2m10s", 4000 -> "1h06m"."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    return f"{s // 60}m{s % 60:02d}s" if s < 3600 else f"{s // 3600}h{s % 3600 // 60:02d}m"
