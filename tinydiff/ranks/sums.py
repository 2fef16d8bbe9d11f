"""Sums over ranks, in the order of the ranks.

A bucket of n elements is cut into a slice for each rank. Every rank sends each other one its slice, adds what it receives for
its own, rank by rank, and sends the sum to all. So each moves 2 n (N - 1) / N elements, as in a ring (Patarasuk & Yuan, 2009,
"Bandwidth optimal all-reduce algorithms"), and the order of the additions is that of the ranks, which no ring has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

BUCKET = 8 << 20  # bytes that are exchanged at once; larger ones leave the cache between the copy and the sum


def sum_in_order(mpi: Any, comm: Any, arrays: list[Any], bucket: int = BUCKET) -> None:
    """Adds up NumPy arrays over the ranks of a communicator, in place. mpi: the module `mpi4py.MPI`. arrays: as many, of the
    same shapes and dtypes, on every rank. bucket: bytes that are exchanged at once."""
    for dtype in dict.fromkeys(a.dtype for a in arrays):
        for pieces in buckets([a for a in arrays if a.dtype == dtype], max(1, bucket // dtype.itemsize)):
            _sum(mpi, comm, pieces)


def buckets(arrays: list[Any], most: int) -> Iterator[list[Any]]:
    """The elements of the arrays as lists of flat pieces, of at most so many elements together. What is written to them before the
    next list is asked for is in the arrays at the end."""
    pieces: list[Any] = []
    room = most
    for a in arrays:
        flat = a.reshape(-1) if a.flags.c_contiguous else np.ascontiguousarray(a).reshape(-1)
        start = 0
        while start < flat.size:
            piece = flat[start : start + room]
            pieces.append(piece)
            start, room = start + piece.size, room - piece.size
            if not room:
                yield pieces
                pieces, room = [], most
        if not a.flags.c_contiguous:
            if pieces:
                yield pieces
            a[...] = flat.reshape(a.shape)
            pieces, room = [], most
    if pieces:
        yield pieces


def _sum(mpi: Any, comm: Any, pieces: list[Any]) -> None:
    rank, size = comm.Get_rank(), comm.Get_size()
    whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    bounds = [len(whole) * i // size for i in range(size + 1)]
    counts, starts = np.diff(bounds) * whole.itemsize, np.array(bounds[:-1]) * whole.itemsize
    parts = np.empty((size, bounds[rank + 1] - bounds[rank]), whole.dtype)
    own = [parts[0].nbytes] * size
    comm.Alltoallv([whole, (counts, starts), mpi.BYTE], [parts, (own, np.arange(size) * own[0]), mpi.BYTE])
    total = parts[0]
    for part in parts[1:]:
        total += part
    comm.Allgatherv([total, own[0], mpi.BYTE], [whole, (counts, starts), mpi.BYTE])
    if len(pieces) > 1:
        start = 0
        for piece in pieces:
            piece[...] = whole[start : start + piece.size]
            start += piece.size
