"""Threads that share the blocks of one operation.

NumPy lets go of the interpreter's lock inside its loops and products, so threads that each take some images through a
whole chain of copies and products use the cores better than products that are themselves split: only those run in
parallel then. So inside `threads(n)` the linear algebra library works with one thread and operations with n.
Outside of it operations run in the calling thread and the library does as it likes.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

_count = 1
_pool: ThreadPoolExecutor | None = None


def available() -> int:
    """CPU threads that this process may use: OMP_NUM_THREADS if it is set, else the processors it may run on."""
    wish = os.environ.get("OMP_NUM_THREADS", "")
    if wish.isdigit() and int(wish) > 0:
        return int(wish)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def keep_freed_memory() -> None:
    """Has the C library keep the memory of large arrays for the next ones, where it can be told so (glibc).

    By default it returns such memory to the system at once, and the system clears it again, page by page, for the next
    array: a fifth of the time of a training step (measured).
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: arrays of up to 1 GiB come from the heap,
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: which keeps up to 2 GiB of freed memory


@contextmanager
def threads(n: int | None = None) -> Iterator[int]:
    """A block in which operations spread over n threads (None: all that are available)."""
    global _count, _pool
    from threadpoolctl import threadpool_limits

    keep_freed_memory()
    before = _count, _pool
    _count = n or available()
    _pool = ThreadPoolExecutor(_count - 1, "tinydiff") if _count > 1 else None
    try:
        with threadpool_limits(1):
            yield _count
    finally:
        if _pool is not None:
            _pool.shutdown()
        _count, _pool = before


def share(work: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    """work(part) for consecutive parts of the items, one part for each thread; the results in the order of the parts.

    The parts depend on the number of threads alone, so that sums over them have the same bits each time.
    """
    n = min(_count, len(items))
    if n <= 1 or _pool is None:
        return [work(items)]
    ends = [len(items) * i // n for i in range(n + 1)]
    parts = [items[a:b] for a, b in pairwise(ends)]
    others = [_pool.submit(work, part) for part in parts[1:]]
    return [work(parts[0]), *(other.result() for other in others)]


class _Workspaces(threading.local):
    """Each thread's arrays, by name and type."""

    def __init__(self) -> None:
        self.arrays: dict[Any, Any] = {}


_workspaces = _Workspaces()


def workspace(name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    """An array of the calling thread with arbitrary content, valid until the thread asks for the same name again."""
    size, key = math.prod(shape), (name, np.dtype(dtype).char)
    kept = _workspaces.arrays.get(key)
    if kept is None or kept.size < size:
        kept = _workspaces.arrays[key] = np.empty(size, dtype)
    return kept[:size].reshape(shape)
