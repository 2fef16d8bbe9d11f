"""Signals that ask a run to stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any

from tinydiff.machine.terminal import is_muted
from tinydiff.ranks import World

_AT_ONCE = (signal.SIGINT, signal.SIGTERM)
_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


class Interrupts:
    """Turns SIGINT, SIGTERM and SIGHUP, which a closed terminal sends, into a wish to stop that the loop looks at after each
    step. What the process was told to ignore, as by nohup, stays ignored.

    A second SIGINT or SIGTERM acts at once, as does the first after `release`. A second SIGHUP is the same closing terminal:
    shell and system both send one. Outside of the main thread nothing is changed.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.agreed_on: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (*_AT_ONCE, *([_HANGUP] if _HANGUP else [])):
                if signal.getsignal(number) not in (
                    signal.SIG_IGN,
                    None,
                ):  # None: set by a library, not for us to change
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: Any) -> None:
        self.release()

    def agreed(self, world: World, over: bool = False) -> bool:
        """Whether all ranks stop here: one of them was asked to, or rank 0 finds that it is over."""
        found = world.gather((self.received or 0, over))
        self.agreed_on = (
            max(received for received, _ in found) or None
        )  # one that came meanwhile waits for the next time
        return self.agreed_on is not None or found[0][1]

    def release(self) -> None:
        """Gives all signals back to whom they belonged before."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.received is None:
            self.received = number
        for other in _AT_ONCE if number in _AT_ONCE else ():
            if other in self._before:
                signal.signal(other, self._before.pop(other))
        again = "; once more stops at once" if number in _AT_ONCE else ""
        _write(f"{signal.Signals(number).name}: finishing the step and saving{again}")


def _write(line: str) -> None:
    """A line on stderr from within a signal handler: whatever was being written there may be half done, so past Python's
    buffers, and without waiting for a terminal that may be gone."""
    with suppress(OSError, ValueError, AttributeError):
        if not is_muted():
            os.write(sys.stderr.fileno(), f"{line}\n".encode())
