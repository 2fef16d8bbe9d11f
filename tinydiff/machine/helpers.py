"""Threads that help a thread with the parts of one piece of work.

They start when they are first needed, and wait for the next piece of work until the process ends. All callers have the same
helpers. A caller works on the parts as well and never waits for a part that nobody has begun, so that callers cannot block
each other, and works alone where no helper can be started.

A fork and join takes about 13 microseconds, one of the standard library's executors 21: there are a hundred in a forward
pass of one image.
"""

from __future__ import annotations

import _thread
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, TypeVar

from tinydiff.machine.workspaces import forget_workspaces

T = TypeVar("T")


class _Job:
    """Parts of one piece of work, which the caller and its helpers take one after another."""

    def __init__(self, work: Callable[[Any], Any], parts: Sequence[Any]) -> None:
        self.work, self.parts = work, parts
        self.results: list[Any] = [None] * len(parts)
        self.errors: dict[int, BaseException] = {}
        self.waiting = iter(range(len(parts)))  # each number goes to one thread
        self.done: list[int] = []
        self.helping: set[int] = set()  # identifiers of the helpers that may be at work on a part
        self.news: SimpleQueue[None] = SimpleQueue()  # a helper has left
        self.context = copy_context()  # NumPy's errstate is part of it

    def take_parts(self, caught: type[BaseException]) -> None:
        for i in self.waiting:
            try:
                self.results[i] = self.work(self.parts[i])
            except caught as error:  # the caller raises it
                self.errors[i] = error
            self.done.append(i)

    def help(self) -> None:
        me = threading.get_ident()
        self.helping.add(me)
        self.take_parts(BaseException)
        self.helping.discard(me)
        self.news.put(None)

    def finish(self) -> None:
        """Waits for the parts that helpers have begun."""
        while len(self.done) < len(self.results):
            self.news.get()

    def stop(self) -> None:
        """Leaves out the parts that nobody has begun, and waits for the helpers at work."""
        for _ in self.waiting:
            pass
        while self.helping:
            self.news.get()

    def forget(self) -> None:
        """A helper that comes late shall not keep arrays alive."""
        self.work, self.parts, self.results, self.errors = _nothing, (), [], {}  # tracebacks lead back here


def _nothing(part: Any) -> None:
    pass


class _Helpers:
    def __init__(self) -> None:
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        self.starting, self.count = threading.RLock(), 0

    def start(self, wanted: int) -> int:
        """Has up to `wanted` helpers; returns how many there are of those."""
        if self.count < wanted:
            with self.starting, suppress(RuntimeError):  # at the interpreter's end, or where the system allows no more
                while self.count < wanted:
                    # threading.Thread waits for the new thread: an interruption there would leave its locks behind
                    _thread.start_new_thread(_wait_for_jobs, (self.jobs,))
                    self.count += 1
        return min(self.count, wanted)


_helpers = _Helpers()


def _wait_for_jobs(jobs: SimpleQueue[_Job]) -> None:
    while True:
        job = jobs.get()
        job.context.copy().run(job.help)
        del job


def _after_fork() -> None:
    """A forked process has none of the threads."""
    global _helpers
    _helpers = _Helpers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def run(work: Callable[[Any], T], parts: Sequence[Any], threads: int) -> list[T]:
    """[work(part) for part in parts], by the calling thread and up to `threads` - 1 helpers.

    Which thread works on a part is left to chance. All parts are worked on, also where some raise; then the first of the
    errors is raised. After an interruption (Ctrl-C) of the caller no more parts are begun, and it goes on when those begun
    are done; a second interruption does not wait for them.
    """
    job = _Job(work, parts)
    try:
        for _ in range(_helpers.start(min(threads, len(parts)) - 1)):
            _helpers.jobs.put(job)
        job.take_parts(Exception)
        job.finish()
    except BaseException:
        try:
            job.stop()
        except BaseException:
            forget_workspaces()  # helpers still write to them
            raise
        job.forget()
        raise
    results, errors = job.results, job.errors
    job.forget()
    if errors:
        try:
            raise errors[min(errors)]
        finally:
            del errors  # the error leads to this frame, which shall not lead to the error
    return results
