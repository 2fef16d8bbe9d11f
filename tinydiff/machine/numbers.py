"""Numbers that people type."""

from __future__ import annotations

from typing import TypeVar

N = TypeVar("N", int, float)


def parsed(text: str, kind: type[N]) -> N:
    """The number in a text: digits 0 to 9, a sign, and for floats what Python writes, spaces around it allowed. ValueError
    for anything else, also for what Python takes beyond that: 1_000, and digits of other scripts."""
    if not text.isascii() or "_" in text:
        raise ValueError(f"{text!r} is not a number in digits 0 to 9")
    return kind(text)
