"""The threads of the linear algebra library that NumPy multiplies with, while operations have threads of their own.

OpenBLAS has one number of threads for the whole process. Inside operations it is 1: the first thread that begins one sets
it, the last one that ends one gives back what the program had. A call takes a fifth of a microsecond (measured); through
threadpoolctl it takes up to 300. So libraries without such a call, or whose number belongs to the calling thread (those with
OpenMP), keep their threads in operations. Blocks of `threads` and `set_threads` limit those that threadpoolctl can (MKL,
BLIS, not Accelerate).

A program that asks for the number, or limits it, in another thread while an operation runs, finds 1 and may put that back.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

NAMES = [(prefix, suffix) for prefix in ("scipy_openblas", "openblas") for suffix in ("64_", "_64", "")]


class Library(NamedTuple):
    """How many threads a library works with, in the whole process: as `get` has it and `set` takes it."""

    get: Callable[[], Any]
    set: Callable[[Any], Any]
    one: Any = 1


@cache
def library() -> Library | None:
    """NumPy's linear algebra library, if one call sets its number of threads for the whole process."""
    from threadpoolctl import ThreadpoolController

    found = [lib for lib in ThreadpoolController().lib_controllers if lib.internal_api == "openblas"]
    # another package may have brought an OpenBLAS as well
    own = [lib for lib in found if "numpy" in os.path.basename(os.path.dirname(lib.filepath)).lower()] or found
    if len(own) != 1 or own[0].threading_layer not in ("pthreads", "disabled"):
        return None
    handle = ctypes.PyDLL(own[0].filepath)  # keeps the interpreter's lock, which takes longer to let go than the call
    for prefix, suffix in NAMES:
        try:
            return Library(
                getattr(handle, f"{prefix}_get_num_threads{suffix}"),
                getattr(handle, f"{prefix}_set_num_threads{suffix}"),
            )
        except AttributeError:
            continue
    return None


def others() -> Library | None:
    """All linear algebra libraries that threadpoolctl knows, as one."""
    from threadpoolctl import ThreadpoolController

    libraries = ThreadpoolController().select(user_api="blas").lib_controllers

    def set_all(numbers: list[int]) -> None:
        for lib, number in zip(libraries, numbers, strict=True):
            lib.set_num_threads(number)

    return Library(lambda: [lib.num_threads for lib in libraries], set_all, [1] * len(libraries)) if libraries else None


class Pin:
    """Keeps a library at one thread while anyone is inside. To enter or leave again changes nothing, so that an interrupted
    call can be made again."""

    def __init__(self, find: Callable[[], Library | None]) -> None:
        self.find = find
        self.inside: set[Any] = set()  # identifiers of threads
        self.lock = threading.RLock()  # a signal's handler may run an operation while its thread holds the lock
        self.before: Any = None  # the program's number, while it is another one than 1

    def enter(self, who: Any) -> None:
        with self.lock:
            self.inside.add(who)
            self.adjust()

    def leave(self, who: Any) -> None:
        with self.lock:
            self.inside.discard(who)
            self.adjust()

    def adjust(self) -> None:
        before = self.before
        if (before is None) != bool(self.inside) or (lib := self.find()) is None:
            return
        if before is None:
            if (now := lib.get()) != lib.one:
                self.before = now
                lib.set(lib.one)
        else:
            if lib.get() == lib.one:  # else the program has chosen another number meanwhile
                lib.set(before)
            self.before = None

    def after_fork(self) -> None:
        """A forked process has one thread: the one that forked."""
        self.lock = threading.RLock()
        self.inside -= {who for who in self.inside if isinstance(who, int) and who != threading.get_ident()}
        self.adjust()


pin, slow_pin = Pin(library), Pin(cache(others))

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pin.after_fork)
    os.register_at_fork(after_in_child=slow_pin.after_fork)
