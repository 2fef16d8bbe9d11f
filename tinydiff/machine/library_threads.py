"""The threads of the linear algebra library that NumPy multiplies with, while operations have threads of their own.

OpenBLAS has one number of threads for the whole process. Inside operations it is 1: the first thread that begins one sets
it, the last one that ends one gives back what the program had. A call takes a fifth of a microsecond (measured); through
threadpoolctl it takes up to 300.

Libraries without such a call (Accelerate), or whose number belongs to the calling thread (those with OpenMP), keep their
threads.
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
    """How many threads the library works with, in the whole process."""

    get: Callable[[], int]
    set: Callable[[int], Any]


@cache
def library() -> Library | None:
    """NumPy's linear algebra library, if one call sets its number of threads for the whole process."""
    from threadpoolctl import ThreadpoolController

    found = [lib for lib in ThreadpoolController().lib_controllers if lib.internal_api == "openblas"]
    # another package may have brought an OpenBLAS as well
    own = [lib for lib in found if "numpy" in os.path.basename(os.path.dirname(lib.filepath)).lower()] or found
    if len(own) != 1 or own[0].threading_layer == "openmp":
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


class _Pin:
    """Keeps the library at one thread while any thread is inside. Entering and leaving again changes nothing, so that an
    interrupted call can be made again."""

    def __init__(self) -> None:
        self.inside: set[int] = set()  # identifiers of threads
        self.lock = threading.RLock()  # a signal's handler may run an operation while its thread holds the lock
        self.before: int | None = None  # the program's number, while it is another one than 1

    def enter(self, thread: int) -> None:
        with self.lock:
            self.inside.add(thread)
            self.adjust()

    def leave(self, thread: int) -> None:
        with self.lock:
            self.inside.discard(thread)
            self.adjust()

    def adjust(self) -> None:
        if (self.before is None) != bool(self.inside) or (lib := library()) is None:
            return
        if self.before is None:
            if (now := lib.get()) != 1:
                self.before = now
                lib.set(1)
        else:
            if lib.get() == 1:  # else the program has chosen another number meanwhile
                lib.set(self.before)
            self.before = None

    def after_fork(self) -> None:
        """A forked process has one thread: the one that forked."""
        self.lock = threading.RLock()
        self.inside &= {threading.get_ident()}
        self.adjust()


pin = _Pin()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pin.after_fork)
