"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
import threading
from typing import Any

from tinydiff.machine.terminal import say


class Interrupts:
    """Turns SIGINT and SIGTERM inside the block into a wish to stop that the loop looks at after each step.

    A second signal acts at once, as does the first after `release`. Outside of the main thread nothing is changed.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: Any) -> None:
        self.release()

    def release(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: Any) -> None:
        self.received = number
        self.release()
        say(f"{signal.Signals(number).name}: finishing the step and saving; once more stops at once")
