"""The number of the format that runs and checkpoints are saved in, by which later versions tell how to read a file.

It stands in config.toml and in a checkpoint's tinydiff.json, which speaks for the whole folder. tinydiff 0.1.0 wrote none.
Whoever changes what a file that is saved means raises FORMAT, reads the earlier formats on, and keeps a fixture of the
new one (tests/fixtures).
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from tinydiff.errors import InputError

FORMAT = 1


def check(content: Mapping[str, Any], file: object) -> None:
    """InputError, a sentence, where the content of a file names a format that this version does not know; a file that
    names none has the first."""
    value = content.get("format", 1)
    if type(value) is not int or value < 1:
        raise InputError(f"{file}: format must be a whole number of at least 1, not {reprlib.repr(value)}")
    if value > FORMAT:
        raise InputError(
            f"{file} was saved by a later version of tinydiff, in a format that this one does not know: update tinydiff"
        )
