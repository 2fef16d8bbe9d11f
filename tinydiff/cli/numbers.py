"""Numbers on the command line: those it is given, and the status that it ends with."""

from __future__ import annotations

import argparse

INTERRUPTED = 128  # plus the signal's number: 130 for SIGINT, 141 for SIGPIPE, 143 for SIGTERM


def whole_number(text: str) -> int:
    """A flag's value as an int; argparse says which flag was wrong."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
