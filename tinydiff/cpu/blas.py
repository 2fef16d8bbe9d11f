"""Products of matrices and rows added to them, arranged for speed on the CPU; the results are those of `A @ B` and `Y + b`
up to rounding. On the GPU, products of float32 are those of our own kernels, as CuPy's need cuBLAS.

Measured on cores with AVX-512, OpenBLAS 0.3.31 and NumPy 2.4, in one thread:
- OpenBLAS's code for AVX-512 works on the operands of a float32 product of up to 10^6 multiplications as they lie; those
  of a larger one it copies first. In small products (16384, 64) (64, 64) ran at 112 instead of 95 GFLOP/s, (256, 256)
  (256, 256) at 114 instead of 104, (64, 512) (512, 256) at 113 instead of 96. One of 2^20 multiplications is no longer
  small: cut into such, (256, 512) (512, 256) ran at 83. Its code for AVX2 copies always; there (256, 256) (256, 256) ran
  at 109 GFLOP/s whole, at 87 in pieces of 32 rows and at 58 in pieces of 8.
- A second thread has to be woken: with one, 8 x 2^20 multiplications took 242 instead of 184 us, 12 x 2^20 took 232
  instead of 273.
- NumPy adds a row of 64 numbers to each row of a matrix at 3.5 numbers a nanosecond, one of 1,024 numbers at 8, if its
  buffer is small: into a large one it copies the row again and again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.machine import limits
from tinydiff.ops.contraction import product

LIMIT = 1_000_000  # multiplications of a small product
_ROWS, _COLUMNS = (32, 16, 8), 64  # of a small product
_CACHED = 1 << 13  # numbers of which a core's nearest cache has room
_TALL = 256  # rows of a piece of a tall matrix
_KERNELS = ("SkylakeX", "Cooperlake", "SapphireRapids")  # what OpenBLAS calls its code for processors with AVX-512
SHARED = 12 << 20  # multiplications that are worth a second thread
ROW = 1024  # numbers in a row that is broadcast, at most
_FEW = 1 << 15  # numbers for which a longer row does not pay


def multiply(A: Any, B: Any, out: Any) -> Any:
    """out = A B for A (n, L, D), B (n, D, M), out (n, L, M), or all without n."""
    xp, (*stack, L, D), M = array_module(out), A.shape, B.shape[-1]
    if xp is not np:
        out[...] = product(A, B)
        return out
    # A transposed B is left whole: small products with one are slower.
    if L * D * M <= LIMIT or B.strides[-1] != B.itemsize:
        return xp.matmul(A, B, out=out)
    rows, columns = _cut(L, D, M, has_small_products())
    if columns == M:
        cut = (*stack, L // rows, rows)
        xp.matmul(A.reshape(*cut, D), B[..., None, :, :], out=out.reshape(*cut, M))
        return out
    return multiply_panels(A, B.reshape(*B.shape[:-1], M // columns, columns).swapaxes(-2, -3), out)


def multiply_panels(A: Any, B: Any, out: Any) -> Any:
    """out = A [B_0 B_1 ...] for A (n, L, D), B (n, panels, D, columns), out (n, L, panels columns), or all without n."""
    (L, D), (panels, _, columns), stack = A.shape[-2:], B.shape[-3:], A.shape[:-2]
    rows = _rows(L, D, columns) or L
    left = A.reshape(*stack, 1, L // rows, rows, D)
    to = out.reshape(*stack, L // rows, rows, panels, columns).swapaxes(-2, -3).swapaxes(-3, -4)
    array_module(out).matmul(left, B[..., None, :, :], out=to)  # (..., panels, L / rows, rows, columns)
    return out


def panel_width(D: int, M: int) -> int:
    """Columns of the panels in which a matrix (D, M) is best written where it is made by transposing another.

    Reading down a panel's columns has to stay within the nearest cache: NumPy transposes (256, 256) in 60 us, into panels
    of 32 columns in 24.
    """
    fits = (width for width in (64, 32, 16) if M % width == 0 and D * width <= _CACHED)
    return next(fits, M) if has_small_products() else M


@lru_cache(1024)
def _cut(L: int, D: int, M: int, small: bool) -> tuple[int, int]:
    """(rows of A, columns of B) that one product takes of (L, D) (D, M), where small products gain or not."""
    if small:
        if L % _ROWS[0] == 0 and _ROWS[0] * D * M <= LIMIT:
            return _ROWS[0], M
        if M % _COLUMNS == 0 and (rows := _rows(L, D, _COLUMNS)):
            return rows, _COLUMNS
    return L, M


def _rows(L: int, D: int, columns: int) -> int | None:
    """The rows of A that a small product takes with so many columns of B."""
    return next((rows for rows in _ROWS if L % rows == 0 and rows * D * columns <= LIMIT), None)


@cache
def has_small_products() -> bool:
    """Whether the linear algebra library multiplies small matrices without copying them first."""
    return any(name in limits.blas() for name in _KERNELS)


def add_row(Y: Any, b: Any) -> Any:
    """Y (N, C) += b (C,), where Y is contiguous and the wider type."""
    N, C = Y.shape
    repeat = math.gcd(N, 1 << max(0, (ROW // max(C, 1)).bit_length() - 1))
    if repeat == 1 or Y.size < _FEW:
        Y += b
        return Y
    with long_rows(repeat * C):
        wide = Y.reshape(N // repeat, repeat * C)
        wide += array_module(b).tile(b, repeat)
    return Y


@contextmanager
def long_rows(length: int) -> Iterator[None]:
    """A block in which NumPy broadcasts rows of that length as fast as it can, in the calling thread.

    Into its usual buffer it copies such a row again and again; with the smallest one it does not. Short rows are faster
    with the usual one (measured: from 512 numbers on the small one is faster).
    """
    if length < 512:
        yield
        return
    before = np.setbufsize(16)
    try:
        yield
    finally:
        np.setbufsize(before)


def multiply_transposed(A: Any, B: Any) -> Any:
    """A^T B for C-contiguous A (T, C) and B (T, K) -> (C, K), in pieces of equal numbers of rows.

    On one AVX-512 core (OpenBLAS 0.3.31) A (16384, 64) and B (16384, 32) take that at 107 instead of 57 GFLOP/s, (4096, 288)
    and (4096, 32) at 109 instead of 87. With 128 and more columns in B nothing is gained.
    """
    xp, (T, C), K = array_module(A), A.shape, B.shape[1]
    if xp is not np:
        return product(A, B, transpose_a=True)
    c = C
    while c > 16 and c % 2 == 0 and c * _TALL * K > LIMIT:
        c //= 2
    pieces = T // _TALL if 0 < c * _TALL * K <= LIMIT and has_small_products() else 0
    if not pieces:
        return A.T @ B
    whole = pieces * _TALL
    cut = A[:whole].reshape(pieces, _TALL, C // c, c).transpose(0, 2, 3, 1)
    total = xp.matmul(cut, B[:whole].reshape(pieces, 1, _TALL, K)).sum(0).reshape(C, K)
    if whole < T:
        total += A[whole:].T @ B[whole:]
    return total
