"""Memory that a process keeps, in large pages, and memory that it gives back."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from functools import cache

from tinydiff.machine import limits


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


def return_freed_memory() -> None:
    """Has the C library return to the system what large arrays left in the heaps of all threads, where it can (glibc)."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


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
