"""Threads that share the blocks of one operation.

NumPy releases the interpreter's lock inside loops and products. So two threads that each take half the images through a
whole chain of copies and products beat products that are themselves split: only those would run in parallel. Operations
spread over all available processors by themselves. Meanwhile the linear algebra library works with one thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from tinydiff.machine import helpers, limits
from tinydiff.machine.library_threads import library, pin, slow_pin
from tinydiff.machine.pages import keep_freed_memory
from tinydiff.machine.workspaces import forget_workspaces

T = TypeVar("T")

BLOCK = 1 << 19  # elements; smaller blocks stay in a nearer cache, but threads then wait for the interpreter's lock:
# with 2^17 a second thread gained nothing, with 2^19 it gained a factor of 1.6 (measured for group normalisation)
_SMALL = 1 << 17  # elements that are not worth a second thread

_chosen: ContextVar[int] = ContextVar("threads", default=0)  # by the block that the calling thread is in; 0: by none
_wish: int | None = None  # of `set_threads`
_usual: int | None = None  # outside of blocks, when it is known
_deciding = threading.RLock()  # held while one of the two changes


def available() -> int:
    """CPU threads that this process may use: OMP_NUM_THREADS if it is set (of a list such as 4,2 the first), else the
    processors that it may run on, as far as a container's share of their time keeps them busy."""
    wish = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(wish) if wish.isdecimal() and int(wish) > 0 else limits.processors()


def set_threads(n: int | None) -> None:
    """How many CPU threads operations spread over from now on, in every thread of the process.

    n: at least 1. None, as at the start: the environment variable OMP_NUM_THREADS, read anew, or else all processors that
    this process may use. TypeError or ValueError for anything else. Sums have the same bits for the same number of threads.
    """
    global _wish, _usual
    if n is not None:
        if isinstance(n, bool) or not hasattr(n, "__index__"):
            raise TypeError(f"set_threads: the number of threads must be a whole number or None, not {n!r}")
        n = n.__index__()
        if n < 1:
            raise ValueError(f"set_threads: there must be at least 1 thread, not {n}")
    with _deciding:
        _wish, _usual = n, None
        if n is None:
            slow_pin.leave("set_threads")
        elif library() is None:
            slow_pin.enter("set_threads")


def count() -> int:
    """Threads that the calling thread's work is spread over."""
    return _chosen.get() or _usual or _find_usual()


def _find_usual() -> int:
    """The number outside of `threads`. A library that keeps its threads gets no others beside them, unless asked for."""
    global _usual
    keep_freed_memory()
    with _deciding:
        _usual = usual = _wish or (1 if library() is None else available())
    return usual


def operation(work: Callable[..., T], arguments: Sequence[Any], options: dict[str, Any]) -> T:
    """work(*arguments, **options), while the linear algebra library works with one thread: threads that each take some
    images through a whole chain of products are faster than products that are themselves split."""
    me = threading.get_ident()
    if me in pin.inside:
        return work(*arguments, **options)
    try:
        pin.enter(me)
        return work(*arguments, **options)
    finally:
        try:  # not in a function of its own: an interruption may come where it begins
            pin.leave(me)
        except BaseException:
            pin.leave(me)
            raise


@contextmanager
def threads(n: int | None = None) -> Iterator[int]:
    """A block in which the calling thread's operations spread over n threads (None: those of `set_threads`, or all that are
    available), and the linear algebra library works with one. Other threads that are started in it have their own number."""
    me, before, held = threading.get_ident(), _chosen.get(), pin if library() else slow_pin
    inside, chosen = me in held.inside, n or _wish or available()
    keep_freed_memory()
    try:
        _chosen.set(chosen)
        held.enter(me)
        yield chosen
    finally:
        try:
            _chosen.set(before)
        finally:
            if not inside:
                try:
                    held.leave(me)
                except BaseException:
                    held.leave(me)
                    raise
        if chosen > count():
            forget_workspaces()  # the calling thread has some for every worker


def share(work: Callable[[Any], T], items: Sequence[Any], most: int | None = None) -> list[T]:
    """work(part) for consecutive parts of the items, one part for each thread; the results in the order of the parts.

    most: parts, however many threads there are. The parts depend on numbers alone, so that sums over them have the same bits
    each time.
    """
    n = min(count(), len(items), most or len(items))
    if n <= 1:
        return [operation(work, (items,), {})]
    ends = [len(items) * i // n for i in range(n + 1)]
    parts = [items[a:b] for a, b in pairwise(ends)]
    return operation(helpers.run, (work, parts, n), {})


def share_blocks(work: Callable[[slice], Any], X: Any, entries: int | None = None, small: int = _SMALL) -> None:
    """work(slice) for consecutive blocks of X's first axis, spread over the threads, for chains of steps whose
    intermediate results shall stay in a core's cache.

    entries: numbers that the work holds at once for one item (None: as many as the item has); a block has about BLOCK of
    them. Fewer than `small` in all stay in the calling thread, and each thread gets half of that at least. Arrays on the GPU
    are one block.
    """
    N, entries = len(X), max(1, X.size // max(1, len(X)) if entries is None else entries)
    if N * entries < small or not isinstance(X, np.ndarray):
        work(slice(0, N))
        return
    step = max(1, min(BLOCK // entries, -(-N // min(count(), worthwhile(N * entries, small)))))
    share_tasks(work, [slice(start, min(start + step, N)) for start in range(0, N, step)])


def worthwhile(work: int, worth: int) -> int:
    """How many threads to wake for so much work, where two are worth it from `worth` on."""
    return max(2, 2 * work // worth) if worth else max(2, work)


def share_tasks(work: Callable[[Any], T], tasks: Sequence[Any]) -> list[T]:
    """[work(task) for task in tasks], where each thread takes the next task when it is done with one. No result may depend
    on another: which thread does a task is left to chance."""
    n = min(count(), len(tasks))
    if n <= 1:
        return operation(lambda: [work(task) for task in tasks], (), {})
    return operation(helpers.run, (work, tasks, n), {})


def sum_shares(work: Callable[[slice], Any], X: Any, small: int = _SMALL) -> Any:
    """The sum of work(slice) over equal parts of X's first axis, one for each thread; in the calling thread where X has
    fewer than `small` entries or is on the GPU."""
    if X.size < small or not isinstance(X, np.ndarray):
        return work(slice(0, len(X)))
    shares = share(lambda part: work(slice(part.start, part.stop)), range(len(X)), worthwhile(X.size, small))
    total, *others = shares
    for other in others:
        total += other
    return total


def add_to(A: Any, B: Any) -> None:
    """A += B, of equal shapes, spread over the threads."""
    if A.ndim == 0 or A.size < _SMALL:
        A += B
    else:
        share_blocks(lambda part: A[part].__iadd__(B[part]), A)
