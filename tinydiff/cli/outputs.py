"""Files that the user names for a command to write."""

from __future__ import annotations

import os

from tinydiff.errors import InputError


def check_new(path: str | None, force: bool) -> None:
    """InputError if something is at a path where a command is to write, a link that leads nowhere included, unless `force`
    is set."""
    if path is not None and os.path.lexists(path) and not force:
        raise InputError(f"{path} is there already; give another name, or --force to overwrite it")
