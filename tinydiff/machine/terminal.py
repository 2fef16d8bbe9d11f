"""What people see while a program works."""

from __future__ import annotations

import shlex
import sys
from contextlib import suppress

from tinydiff.errors import shown


def say(text: str) -> None:
    """One line on stderr, above a bar if there is one. Where it cannot be written, nothing is lost but the line."""
    out = sys.stderr
    if out is None:  # closed when Python began
        return
    with suppress(Exception):  # a terminal that is gone, a file that was closed, any object that a program put there
        text = escaped(text)
        if out.isatty():
            from tqdm import tqdm

            tqdm.write(text, file=out)
        else:
            print(text, file=out, flush=True)


def tell(text: object) -> None:
    """Writes the lines of a text to stdout, as the result of a command. OSError where they cannot be written."""
    print(escaped(str(text)))


def quoted(path: object) -> str:
    """A path as a command to copy takes it: no flag, and one word."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def escaped(text: str) -> str:
    """The lines of a text as they may be sent to a terminal: see `errors.shown`."""
    return "\n".join(map(shown, text.split("\n")))
