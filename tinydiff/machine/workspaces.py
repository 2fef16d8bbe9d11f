"""Arrays that each thread uses over and over, since touching fresh pages costs more than the arithmetic on them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

LAYOUTS_KEPT = 1024  # for each thread


class _Workspaces(threading.local):
    """Each thread's arrays, by name and type, and what was made of views of them."""

    def __init__(self) -> None:
        self.arrays: dict[Any, Any] = {}
        self.prepared: dict[Any, Any] = {}


_workspaces = _Workspaces()


def workspace(name: str, shape: tuple[int, ...], dtype: Any = np.float32, xp: Any = np) -> Any:
    """An array of the calling thread with arbitrary content, valid until the thread asks for the same name again."""
    size, key = math.prod(shape), (name, np.dtype(dtype), xp.__name__)
    kept = _workspaces.arrays.get(key)
    if kept is None or kept.size < size:
        kept = _workspaces.arrays[key] = xp.empty(size, dtype)
        _workspaces.prepared.clear()  # else it would keep the smaller array
    return kept[:size].reshape(shape)


def forget_workspaces() -> None:
    """Has the calling thread begin with new workspaces."""
    _workspaces.arrays, _workspaces.prepared = {}, {}


def prepared(make: Callable[..., T], *arguments: Any) -> T:
    """make(*arguments), which the calling thread keeps for the next time, unless a workspace is replaced: for layouts, mostly
    of workspaces, which take longer to set up than small operations take to run."""
    key = make, arguments
    kept = _workspaces.prepared.get(key)
    if kept is None:
        kept = make(*arguments)
        if len(_workspaces.prepared) >= LAYOUTS_KEPT:
            _workspaces.prepared.clear()
        _workspaces.prepared[key] = kept
    return kept
