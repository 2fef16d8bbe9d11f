"""The two ways in which a run can end badly, so that the command line can answer each, and how sentences name a parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class InputError(ValueError):
    """What the user gave cannot be used; the message is one sentence that says why (exit status 2)."""


class RunFailed(RuntimeError):
    """The run itself failed, with good input: a loss that is not finite, a full disk (exit status 1)."""


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
