"""What people see while a program works."""

from __future__ import annotations

import sys
from contextlib import suppress


def say(text: str) -> None:
    """One line on stderr, above a bar if there is one. Where it cannot be written, nothing is lost but the line."""
    with suppress(OSError):
        if sys.stderr.isatty():
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)
