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
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from tinydiff.machine import limits

T = TypeVar("T")

BLOCK = 1 << 19  # elements; smaller blocks stay in a nearer cache, but threads then wait for the interpreter's lock:
# with 2^17 a second thread gained nothing, with 2^19 it gained a factor of 1.6 (measured for group normalisation)
_SMALL = 1 << 17  # elements that are not worth a second thread
_KEPT = 1024  # layouts

_count = 1


class _Helper(threading.Thread):
    """A thread that does one thing after another for the thread that asks it."""

    def __init__(self) -> None:
        super().__init__(name="tinydiff", daemon=True)
        self._go, self._done = threading.Lock(), threading.Lock()  # released by one thread, acquired by the other
        self._go.acquire()
        self._done.acquire()
        self.busy = False  # from `begin` to the end of `wait`, also when that is interrupted
        self._work: Callable[[], Any] | None = None
        self._outcome: tuple[Any, BaseException | None] = None, None
        self.start()

    def begin(self, work: Callable[[], Any] | None) -> None:
        """Starts the work; None ends the thread."""
        self._work, self.busy = work, work is not None
        self._go.release()

    def wait(self) -> tuple[Any, BaseException | None]:
        """The result of the work, or the error that it raised."""
        self._done.acquire()
        self.busy = False
        outcome, self._outcome = self._outcome, (None, None)
        return outcome

    def run(self) -> None:
        while self._go.acquire() and self._work is not None:
            try:
                self._outcome = self._work(), None
            except BaseException as error:  # raised again by the thread that asked
                self._outcome = None, error
            self._work = None
            self._done.release()


class _Pool:
    """Helpers for one thread at a time. A fork and join of theirs takes 13 microseconds, one of the standard library's
    executors 21: there are a hundred in a forward pass of one image."""

    def __init__(self, count: int) -> None:
        self.helpers = [_Helper() for _ in range(count)]
        self.free = threading.Lock()

    def run(self, work: Callable[[Any], T], parts: Sequence[Any]) -> list[T]:
        """[work(part) for part in parts], all at once; one after another if the helpers are busy with something else."""
        if not self.free.acquire(blocking=False):
            return [work(part) for part in parts]
        busy = self.helpers[: len(parts) - 1]
        for helper, part in zip(busy, parts[1:], strict=True):
            helper.begin(partial(work, part))
        try:
            first = work(parts[0])
        finally:
            try:
                outcomes = [helper.wait() for helper in busy]
            except BaseException:  # an interruption
                forget_workspaces()  # helpers that may be at work keep this memory, and are not asked again
                raise
            self.free.release()
        for _, error in outcomes:
            if error is not None:
                raise error
        return [first, *(result for result, _ in outcomes)]

    def close(self) -> None:
        for helper in self.helpers:
            if helper.busy:  # it may not even have begun
                helper.wait()
            helper.begin(None)
            helper.join()


_pool: _Pool | None = None


def available() -> int:
    """CPU threads that this process may use: OMP_NUM_THREADS if it is set (of a list such as 4,2 the first), else the
    processors that it may run on, as far as a container's share of their time keeps them busy."""
    wish = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(wish) if wish.isdecimal() and int(wish) > 0 else limits.processors()


def _after_fork() -> None:
    """A forked process has the pool but not its threads, and would wait for them for ever: it gets a pool of its own."""
    global _pool
    if _pool is not None:
        _pool = _Pool(_count - 1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@cache
def keep_freed_memory() -> None:
    """Has the C library keep the memory of large arrays for the next ones, in large pages, where it can be told so (glibc).

    By default it returns such memory to the system at once, and the system clears it again, page by page, for the next
    array: a fifth of the time of a training step (measured). To find the address of each page takes a twentieth. It holds
    for the whole process, whose memory stays near its peak from then on.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        # M_MMAP_THRESHOLD: arrays of up to 1 GiB, or 32 MiB where glibc before 2.35 allows no more, come from the heap,
        if libc.mallopt(-3, 1 << 30) or libc.mallopt(-3, 1 << 25):
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: which keeps up to 2 GiB of freed memory
            if limits.addresses_are_free():
                _ask_for_large_pages(libc)


def _ask_for_large_pages(libc: ctypes.CDLL) -> None:
    """Grows the heap by 1 GiB of addresses, none of which take memory yet, and asks for pages of 2 MiB there."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.madvise.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], [ctypes.c_void_p]
    size, page = 1 << 28, 1 << 21
    pieces = [libc.malloc(size) for _ in range(4)]
    for piece in pieces:
        if piece is not None:
            start, end = -(-piece // page) * page, (piece + size) // page * page
            libc.madvise(start, end - start, 14)  # MADV_HUGEPAGE
    for piece in pieces:
        libc.free(piece)


@contextmanager
def threads(n: int | None = None) -> Iterator[int]:
    """A block in which operations spread over n threads (None: all that are available)."""
    global _count, _pool
    from threadpoolctl import threadpool_limits

    keep_freed_memory()
    before = _count, _pool
    _count = n or available()
    _pool = _Pool(_count - 1) if _count > 1 else None
    try:
        with threadpool_limits(1):
            yield _count
    finally:
        if _pool is not None:
            _pool.close()
        if _count > before[0]:
            forget_workspaces()  # the calling thread has some for every worker
        _count, _pool = before


def count() -> int:
    """Threads that `share` spreads work over."""
    return _count


def share(work: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    """work(part) for consecutive parts of the items, one part for each thread; the results in the order of the parts.

    The parts depend on the number of threads alone, so that sums over them have the same bits each time.
    """
    n = min(_count, len(items))
    if n <= 1 or _pool is None:
        return [work(items)]
    ends = [len(items) * i // n for i in range(n + 1)]
    parts = [items[a:b] for a, b in pairwise(ends)]
    return _pool.run(work, parts)


def share_blocks(work: Callable[[slice], Any], X: Any, entries: int | None = None, small: int = _SMALL) -> None:
    """work(slice) for consecutive blocks of X's first axis, spread over the threads, for chains of steps whose
    intermediate results shall stay in a core's cache.

    entries: numbers that the work holds at once for one item (None: as many as the item has); a block has about BLOCK of
    them. Fewer than `small` in all stay in the calling thread. Arrays on the GPU are one block.
    """
    N, entries = len(X), max(1, X.size // max(1, len(X)) if entries is None else entries)
    if N * entries < small or not isinstance(X, np.ndarray):
        work(slice(0, N))
        return
    step = max(1, min(BLOCK // entries, -(-N // _count)))
    share_tasks(work, [slice(start, min(start + step, N)) for start in range(0, N, step)])


def share_tasks(work: Callable[[Any], T], tasks: Sequence[Any]) -> list[T]:
    """[work(task) for task in tasks], where each thread takes the next task when it is done with one. No result may depend
    on another: which thread does a task is left to chance."""
    results: list[Any] = [None] * len(tasks)
    waiting = iter(range(len(tasks)))

    def some(_: Any) -> None:
        for i in waiting:
            results[i] = work(tasks[i])

    share(some, range(min(_count, len(tasks))))
    return results


def sum_shares(work: Callable[[slice], Any], X: Any, small: int = _SMALL) -> Any:
    """The sum of work(slice) over equal parts of X's first axis, one for each thread; in the calling thread where X has
    fewer than `small` entries or is on the GPU."""
    if X.size < small or not isinstance(X, np.ndarray):
        return work(slice(0, len(X)))
    total, *others = share(lambda part: work(slice(part.start, part.stop)), range(len(X)))
    for other in others:
        total += other
    return total


def add_to(A: Any, B: Any) -> None:
    """A += B, of equal shapes, spread over the threads."""
    if A.ndim == 0 or A.size < _SMALL:
        A += B
    else:
        share_blocks(lambda part: A[part].__iadd__(B[part]), A)


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
        if len(_workspaces.prepared) >= _KEPT:
            _workspaces.prepared.clear()
        _workspaces.prepared[key] = kept
    return kept
