"""Products of matrices and rows added to them, arranged for speed; the results are those of `A @ B` and `Y + b` up to
rounding.

Measured on cores with AVX-512, OpenBLAS 0.3.31 and NumPy 2.4, in one thread:
- OpenBLAS's code for AVX-512 reads the operands of a float32 product in place up to 10^6 multiplications; larger ones
it copies
  first. In small products (16384, 64) (64, 64) ran at 112 instead of 95 GFLOP/s, (256, 256) (256, 256) at 114 instead
  of 104, (64, 512) (512, 256) at 113 instead of 96. A product of 2^20 multiplications is no longer small: cut into
  such, (256, 512) (512, 256) ran at 83. The code for AVX2 always copies; there (256, 256) (256, 256) ran at 109 GFLOP/s
  whole, at 87 in pieces of 32 rows and at 58 in pieces of 8.
- A^T B in pieces of rows: A (16384, 64) and B (16384, 32) ran at 107 instead of 57 GFLOP/s, (4096, 288) and (4096, 32)
at 109
  instead of 87. With 128 and more columns in B nothing is gained.
- Waking a second thread takes time: with two, 8 x 2^20 multiplications took 242 instead of 184 us, and 12 x 2^20 took
232
  instead of 273.
- NumPy transposes (256, 256) in 60 us, and in 24 us into panels of 32 columns, because a panel's column stays in the
nearest
  cache.
- NumPy adds a row of 64 numbers to each row of a matrix at 3.5 numbers a nanosecond. It adds a row of 1,024 numbers at
8, if its
  buffer is small: into a large one it copies the row again and again. Rows of less than 512 numbers are faster with a
  large one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import numpy as np

from tinydiff.machine import limits

MULTIPLICATIONS_OF_A_SMALL_PRODUCT = 1_000_000
MULTIPLICATIONS_WORTH_A_THREAD = 12 << 20
ROWS_OF_A_SMALL_PRODUCT, COLUMNS_OF_A_SMALL_PRODUCT = (32, 16, 8), 64
ROWS_OF_A_TALL_PIECE, LEAST_COLUMNS_OF_A_TALL_PIECE = 256, 16  # of what is transposed
NUMBERS_IN_THE_NEAREST_CACHE = 1 << 13
NUMBERS_OF_A_ROW = 1024  # that is added, at most
NUMBERS_WORTH_A_LONGER_ROW = 1 << 15
NUMBERS_OF_A_ROW_WORTH_A_SMALL_BUFFER = 512
OPENBLAS_FOR_AVX512 = ("SkylakeX", "Cooperlake", "SapphireRapids")  # OpenBLAS's names of its code for such processors


def multiply(A: Any, B: Any, out: Any) -> Any:
    """out = A B for A (n, L, D), B (n, D, M), out (n, L, M), or all without n."""
    (*stack, L, D), M = A.shape, B.shape[-1]
    # A transposed B is left whole: small products with one are slower.
    if L * D * M <= MULTIPLICATIONS_OF_A_SMALL_PRODUCT or B.strides[-1] != B.itemsize:
        return np.matmul(A, B, out=out)
    rows, columns = _cut(L, D, M, has_small_products())
    if columns == M:
        cut = (*stack, L // rows, rows)
        np.matmul(A.reshape(*cut, D), B[..., None, :, :], out=out.reshape(*cut, M))
        return out
    return multiply_panels(A, B.reshape(*B.shape[:-1], M // columns, columns).swapaxes(-2, -3), out)


def multiply_panels(A: Any, B: Any, out: Any) -> Any:
    """out = A [B_0 B_1 ...] for A (n, L, D), B (n, panels, D, columns), out (n, L, panels columns), or all without n."""
    (L, D), (panels, _, columns), stack = A.shape[-2:], B.shape[-3:], A.shape[:-2]
    rows = _rows(L, D, columns) or L
    left = A.reshape(*stack, 1, L // rows, rows, D)
    to = out.reshape(*stack, L // rows, rows, panels, columns).swapaxes(-2, -3).swapaxes(-3, -4)
    np.matmul(left, B[..., None, :, :], out=to)  # (..., panels, L / rows, rows, columns)
    return out


def panel_width(D: int, M: int) -> int:
    """Columns of a panel, for a matrix (D, M) that is written into panels while another is transposed.

    Reading down a panel's columns has to stay within the nearest cache.
    """
    fits = (width for width in (64, 32, 16) if M % width == 0 and D * width <= NUMBERS_IN_THE_NEAREST_CACHE)
    return next(fits, M) if has_small_products() else M


@lru_cache(1024)
def _cut(L: int, D: int, M: int, small: bool) -> tuple[int, int]:
    """(rows of A, columns of B) of one product of (L, D) (D, M). small: whether small products are faster."""
    if small:
        most, columns = ROWS_OF_A_SMALL_PRODUCT[0], COLUMNS_OF_A_SMALL_PRODUCT
        if L % most == 0 and most * D * M <= MULTIPLICATIONS_OF_A_SMALL_PRODUCT:
            return most, M
        if M % columns == 0 and (rows := _rows(L, D, columns)):
            return rows, columns
    return L, M


def _rows(L: int, D: int, columns: int) -> int | None:
    """The rows of A that a small product takes with so many columns of B."""
    most = MULTIPLICATIONS_OF_A_SMALL_PRODUCT // max(1, D * columns)
    return next((rows for rows in ROWS_OF_A_SMALL_PRODUCT if L % rows == 0 and rows <= most), None)


@cache
def has_small_products() -> bool:
    """Whether the linear algebra library multiplies small matrices without copying them first."""
    return any(name in limits.blas() for name in OPENBLAS_FOR_AVX512)


def add_row(Y: Any, b: Any) -> Any:
    """Y (N, C) += b (C,), where Y is contiguous and the wider type."""
    N, C = Y.shape
    repeat = math.gcd(N, 1 << max(0, (NUMBERS_OF_A_ROW // max(C, 1)).bit_length() - 1))
    if repeat == 1 or Y.size < NUMBERS_WORTH_A_LONGER_ROW:
        Y += b
        return Y
    with long_rows(repeat * C):
        wide = Y.reshape(N // repeat, repeat * C)
        wide += np.tile(b, repeat)
    return Y


@contextmanager
def long_rows(length: int) -> Iterator[None]:
    """A block in which NumPy broadcasts rows of that length as fast as it can, in the calling thread.

    Into its usual buffer it copies such a row again and again; with the smallest one it does not.
    """
    if length < NUMBERS_OF_A_ROW_WORTH_A_SMALL_BUFFER:
        yield
        return
    before = np.setbufsize(16)
    try:
        yield
    finally:
        np.setbufsize(before)


def multiply_transposed(A: Any, B: Any) -> Any:
    """A^T B for C-contiguous A (T, C) and B (T, K) -> (C, K), in pieces of equal numbers of rows."""
    (T, C), K = A.shape, B.shape[1]
    rows, c = ROWS_OF_A_TALL_PIECE, C
    while c > LEAST_COLUMNS_OF_A_TALL_PIECE and c % 2 == 0 and c * rows * K > MULTIPLICATIONS_OF_A_SMALL_PRODUCT:
        c //= 2
    pieces = T // rows if 0 < c * rows * K <= MULTIPLICATIONS_OF_A_SMALL_PRODUCT and has_small_products() else 0
    if not pieces:
        return A.T @ B
    whole = pieces * rows
    cut = A[:whole].reshape(pieces, rows, C // c, c).transpose(0, 2, 3, 1)
    total = np.matmul(cut, B[:whole].reshape(pieces, 1, rows, K)).sum(0).reshape(C, K)
    if whole < T:
        total += A[whole:].T @ B[whole:]
    return total
