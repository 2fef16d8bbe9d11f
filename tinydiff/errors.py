"""The two ways in which a run can end badly, and what their sentences look like.

Every message is one line of bounded length. What a file, a name or another program put into it is shown, never sent to the
terminal: control characters, bytes that are no text, and characters that change the direction of writing appear as escapes.
"""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterator

LONGEST = 300  # characters of a message; advice that has to be copied whole may be longer


def shown(text: object, limit: int | None = None) -> str:
    """The text with what a terminal would act on as escapes: "a\\x1b[31m" -> "a\\\\x1b[31m". Longer ones than `limit`
    lose their middle."""
    plain = "".join(c if c.isprintable() else _escape(c) for c in str(text))
    if limit is None or len(plain) <= limit:
        return plain
    head = (limit - 5) * 2 // 3
    return f"{plain[:head]} ... {plain[len(plain) - (limit - 5 - head) :]}"


def _escape(character: str) -> str:
    if character == "\n":
        return " "
    if unicodedata.category(character) == "Zs":  # other widths of the space
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class _Told(Exception):
    """limit: of the message's length; None where it quotes other programs at length, as a compiler's log: then it stays as it
    is."""

    def __init__(self, message: object = "", limit: int | None = LONGEST) -> None:
        super().__init__(message if limit is None else shown(message, limit))


class InputError(_Told, ValueError):
    """What the user gave cannot be used; the message is one sentence that says why (exit status 2)."""


class RunFailed(_Told, RuntimeError):
    """The run itself failed, with good input: a loss that is not finite, a full disk (exit status 1)."""


@contextlib.contextmanager
def before_work() -> Iterator[None]:
    """A block in which no work has been done yet: a disk that fails there is an unusable place, an InputError."""
    try:
        yield
    except RunFailed as error:
        raise InputError(error) from None
    except OSError as error:
        raise InputError(of_system(error)) from None


@contextlib.contextmanager
def at_work() -> Iterator[None]:
    """A block that works or keeps the result of work: what the disk does there is a failed run, a place that cannot be
    written any more as well."""
    try:
        yield
    except InputError as error:
        raise RunFailed(error) from None
    except OSError as error:
        raise RunFailed(of_system(error)) from None


def of_system(error: OSError) -> str:
    """An error of the system as a sentence."""
    reason = error.strerror or str(error) or type(error).__name__
    return reason if error.filename is None else f"{error.filename}: {reason}"
