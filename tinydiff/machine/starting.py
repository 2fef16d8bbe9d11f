"""Ctrl-C while the program starts.

Python would answer it with the traceback of whatever import it interrupts. `tinydiff` imports this file first. If the process is
the command `tinydiff` or `python -m tinydiff`, SIGINT ends it without a word until `begin`, and again after `end`. In any other
program nothing changes. What Python itself does before its first line of ours is beyond us: some 15 ms.
"""

from __future__ import annotations

import _signal  # what `signal` is made of; that one imports as much again as Python has until here
import os
import sys
from itertools import pairwise  # built in, as _signal is


def _is_command() -> bool:
    arguments = sys.orig_argv
    module = ("-m", "tinydiff") in pairwise(arguments)
    script = os.path.basename(sys.argv[0]) if sys.argv else ""
    return (module and sys.argv[:1] == ["-m"]) or os.path.splitext(script)[0] == "tinydiff"


def _set(before: object, after: object) -> bool:
    """Whether the answer to SIGINT was `before`; then it is `after` now. What nohup or a program has chosen stays."""
    try:
        if _signal.getsignal(_signal.SIGINT) == before:
            _signal.signal(_signal.SIGINT, after)
            return True
    except ValueError:  # outside of the main thread
        return False
    return False


_waiting = _is_command() and _set(_signal.default_int_handler, _signal.SIG_DFL)


def begin() -> None:
    """From now on SIGINT is a KeyboardInterrupt, which somebody answers."""
    if _waiting:
        _set(_signal.SIG_DFL, _signal.default_int_handler)


def end() -> None:
    """Nobody answers any more."""
    if _waiting:
        _set(_signal.default_int_handler, _signal.SIG_DFL)
