"""The two ways in which a run can end badly, what their sentences look like, and how those name a parameter.

Every message is one line of bounded length. What a file, a name or another program put into it is shown, never sent to the
terminal: control characters, bytes that are no text, and characters that change the direction of writing appear as escapes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

LONGEST = 300  # characters of a message; advice that has to be copied whole may be longer


def shown(text: object, limit: int | None = None) -> str:
    """The text with escapes for what a terminal would act on: "a\\x1b[31m" -> "a\\\\x1b[31m". Texts of more than `limit`
    characters lose their middle."""
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


def a_type(x: object) -> str:
    """ "an int", "a Tensor", "None": what x is, for a sentence."""
    name = type(x).__name__
    vowel = name.lower().startswith(("a", "e", "i", "o", "un", "nd"))
    return "None" if x is None else f"{'an' if vowel else 'a'} {name}"


class _Told(Exception):
    """limit: of the message's length; None where it quotes other programs at length, as a compiler's log: then it stays as it
    is."""

    def __init__(self, message: object = "", limit: int | None = LONGEST) -> None:
        super().__init__(message if limit is None else shown(message, limit))


class InputError(_Told, ValueError):
    """What the user gave cannot be used (exit status 2).

    message: one sentence that says why. limit: of its length in characters; None: it may have any.
    """


class RunFailed(_Told, RuntimeError):
    """The run itself failed, with good input: a loss that is not finite, a full disk (exit status 1).

    message: one sentence that says why. limit: of its length in characters; None: it may have any.
    """


def _in_python(name: str, *value: Any) -> str:
    if not value:
        return name
    return f'{name}="{value[0]}"' if isinstance(value[0], str) else f"{name}={value[0]!r}"


_spelling: ContextVar[Callable[..., str]] = ContextVar("spelling", default=_in_python)


def named(name: str, *value: Any) -> str:
    """The parameter `name` as the caller knows it, for a sentence: image_size, or with its value image_size=8.

    The command line has it spelt --image-size and --image-size 8, see `spelling`.
    """
    return _spelling.get()(name, *value)


@contextmanager
def spelling(spell: Callable[..., str]) -> Iterator[None]:
    """A block in which `named(name, *value)` is spell(name, *value)."""
    token = _spelling.set(spell)
    try:
        yield
    finally:
        _spelling.reset(token)


@contextmanager
def before_work() -> Iterator[None]:
    """A block in which no work has been done yet: a disk that fails there is an unusable place, an InputError."""
    try:
        yield
    except RunFailed as error:
        raise InputError(error) from None
    except OSError as error:
        raise InputError(of_system(error)) from None


@contextmanager
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
    """A system's error as a sentence: the file's name, if it has one, and the reason."""
    reason = error.strerror or str(error) or type(error).__name__
    return reason if error.filename is None else f"{error.filename}: {reason}"
