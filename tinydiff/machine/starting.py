"""Ctrl-C while the program starts.

Python would answer it with the traceback of whatever import it interrupts. `tinydiff` imports this file first. If the process is
the command `tinydiff` or `python -m tinydiff`, SIGINT ends it without a word until `begin`, and again after `end`. In any other
program nothing changes.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from itertools import pairwise


def _is_command() -> bool:
    arguments = sys.orig_argv
    module = ("-m", "tinydiff") in pairwise(arguments)
    script = os.path.basename(sys.argv[0]) if sys.argv else ""
    return (module and sys.argv[:1] == ["-m"]) or os.path.splitext(script)[0] == "tinydiff"


def _set(before: object, after: object) -> bool:
    """Whether the answer to SIGINT was `before`; then it is `after` now. What nohup or a program has chosen stays."""
    with suppress(ValueError):  # outside of the main thread
        if signal.getsignal(signal.SIGINT) == before:
            signal.signal(signal.SIGINT, after)  # type: ignore[arg-type]
            return True
    return False


_waiting = _is_command() and _set(signal.default_int_handler, signal.SIG_DFL)


def begin() -> None:
    """From now on SIGINT is a KeyboardInterrupt, which somebody answers."""
    if _waiting:
        _set(signal.SIG_DFL, signal.default_int_handler)


def end() -> None:
    """Nobody answers any more."""
    if _waiting:
        _set(signal.default_int_handler, signal.SIG_DFL)
