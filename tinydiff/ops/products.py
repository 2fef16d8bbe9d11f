"""Products of matrices and rows added to them, arranged for speed on the CPU; the results are those of `A @ B` and `Y + b`
up to rounding.

Measured on cores with AVX-512, OpenBLAS 0.3.31 and NumPy 2.4, in one thread:
- A float32 product of up to 10^6 multiplications works on its operands as they lie, a larger one copies them first. In
  small products (16384, 64) (64, 64) ran at 113 instead of 96 GFLOP/s, (1024, 256) (256, 256) at 115 instead of 104.
- NumPy adds a row of 64 numbers to each row of a matrix at 3.5 numbers a nanosecond, one of 1,024 numbers at 8, if its
  buffer is small: into a large one it copies the row again and again.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.workers import long_rows

_LIMIT = 1 << 20  # multiplications of a small product
_ROWS, _COLUMNS = 32, 64  # of a small product
ROW = 1024  # numbers in a row that is broadcast, at most
_FEW = 1 << 15  # numbers for which a longer row does not pay


def multiply(A: Any, B: Any, out: Any) -> Any:
    """out = A B for A (n, L, D), B (n, D, M), out (n, L, M), or all without n."""
    xp, (L, D), M = array_module(out), A.shape[-2:], B.shape[-1]
    columns = M if _ROWS * D * M <= _LIMIT else _COLUMNS
    cuts = L * D * M > _LIMIT and L % _ROWS == 0 and M % columns == 0 and _ROWS * D * columns <= _LIMIT
    if not (cuts and xp is np and B.strides[-1] == B.itemsize):  # a transposed B would be slower
        return xp.matmul(A, B, out=out)
    stack = A.shape[:-2]
    left = A.reshape(*stack, 1, L // _ROWS, _ROWS, D)
    right = B.reshape(*stack, D, 1, M // columns, columns).swapaxes(-2, -4)  # (..., M / columns, 1, D, columns)
    to = out.reshape(*stack, L // _ROWS, _ROWS, M // columns, columns)
    xp.matmul(left, right, out=to.swapaxes(-2, -3).swapaxes(-3, -4))  # (..., M / columns, L / _ROWS, _ROWS, columns)
    return out


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
