"""Threads that share the blocks of one operation.

NumPy lets go of the interpreter's lock inside its loops and products, so threads that each take some images through a
whole chain of copies and products use the cores better than products that are themselves split: only those run in
parallel then. So inside `threads(n)` the linear algebra library works with one thread and operations with n.
Outside of it operations run in the calling thread and the library does as it likes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from tinydiff.machine import limits
from tinydiff.machine.pages import keep_freed_memory
from tinydiff.machine.workspaces import forget_workspaces

T = TypeVar("T")

BLOCK = 1 << 19  # elements; smaller blocks stay in a nearer cache, but threads then wait for the interpreter's lock:
# with 2^17 a second thread gained nothing, with 2^19 it gained a factor of 1.6 (measured for group normalisation)
_SMALL = 1 << 17  # elements that are not worth a second thread

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
