"""What people see while a program works."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, cast

from tinydiff.errors import shown
from tinydiff.machine.files import name_bytes

_muted = False


def mute(muted: bool = True) -> None:
    """From now on this process says and tells nothing: another one speaks for it. muted: whether that is so."""
    global _muted
    _muted = muted


def is_muted() -> bool:
    """Whether another process speaks for this one."""
    return _muted


def say(text: str) -> None:
    """One line on stderr, above a bar if there is one. Where it cannot be written, nothing is lost but the line."""
    out = sys.stderr
    if out is None or _muted:  # None: closed when Python began
        return
    with suppress(Exception):  # a terminal that is gone, a file that was closed, any object that a program put there
        text = escaped(text)
        if is_terminal():
            from tqdm import tqdm

            tqdm.write(text, file=out)
        else:
            print(text, file=out, flush=True)


def tell(text: object) -> None:
    """Writes the lines of a text to stdout, as the result of a command. OSError where they cannot be written."""
    if not _muted:
        print(_writable(escaped(str(text)), sys.stdout))


def bar(steps: Iterable[Any], total: int, name: str) -> Iterable[Any]:
    """The steps, with a bar of that name while they are gone through, where stderr is a terminal."""
    if not is_terminal():
        return steps
    from tqdm import tqdm

    return cast(Iterable[Any], tqdm(steps, total=total, desc=name, unit="step", leave=False))


def is_terminal() -> bool:
    """Whether somebody looks at stderr."""
    try:
        return not _muted and sys.stderr is not None and sys.stderr.isatty()
    except (AttributeError, ValueError):  # it is closed, or any object
        return False


# What stands for the characters of pictures and tables, one for one, where a terminal lacks them.
_PLAIN = str.maketrans("░▒▓█…ᵀ", ".:*#~T")


def _writable(text: str, stream: Any) -> str:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeError, LookupError):
        return text.translate(_PLAIN)
    return text


def quoted(path: object) -> str:
    """A path as it can be pasted into a shell: characters that a terminal does not show stand as escapes in $'...', which bash,
    zsh and others read back. It is one word, and no flag."""
    text = str(path)
    text = f"./{text}" if text.startswith("-") else text
    if all(c.isprintable() and _is_written(c) for c in text):
        return shlex.quote(text)
    plain = {"'": "\\'", "\\": "\\\\"}
    return "$'" + "".join(plain.get(c, c) if " " <= c <= "~" else _octal(c) for c in text) + "'"


def _is_written(character: str) -> bool:
    """Whether stdout and stderr have the character."""
    try:
        for stream in (sys.stdout, sys.stderr):
            character.encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeError, LookupError):
        return False
    return True


def _octal(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in name_bytes(character))


def escaped(text: str) -> str:
    """The lines of a text as they may be sent to a terminal: see `errors.shown`."""
    return "\n".join(map(shown, text.split("\n")))
