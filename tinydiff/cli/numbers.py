"""Numbers on the command line: those it is given, and the status that it ends with."""

from __future__ import annotations

import argparse

from tinydiff.machine.numbers import parsed

INTERRUPTED = 128  # plus the signal's number: 130 for SIGINT, 141 for SIGPIPE, 143 for SIGTERM


def whole_number(text: str) -> int:
    """A flag's value as an int; argparse says which flag was wrong."""
    try:
        return parsed(text, int)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def number(text: str) -> float:
    """A flag's value as a float; argparse says which flag was wrong."""
    try:
        return parsed(text, float)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
