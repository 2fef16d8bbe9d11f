"""Sums over the rows of tall matrices, as products: the weight gradients of convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.ops.contraction import product
from tinydiff.ops.products import LIMIT, has_small_products

_ROWS = 256  # of a piece


def multiply_transposed(A: Any, B: Any) -> Any:
    """A^T B for C-contiguous A (T, C) and B (T, K) -> (C, K), in pieces of equal numbers of rows.

    On one AVX-512 core (OpenBLAS 0.3.31) A (16384, 64) and B (16384, 32) take that at 107 instead of 57 GFLOP/s, (4096, 288)
    and (4096, 32) at 109 instead of 87. With 128 and more columns in B nothing is gained.
    """
    xp, (T, C), K = array_module(A), A.shape, B.shape[1]
    if xp is not np:
        return product(A, B, transpose_a=True)
    c = C
    while c > 16 and c % 2 == 0 and c * _ROWS * K > LIMIT:
        c //= 2
    pieces = T // _ROWS if 0 < c * _ROWS * K <= LIMIT and has_small_products() else 0
    if not pieces:
        return A.T @ B
    whole = pieces * _ROWS
    cut = A[:whole].reshape(pieces, _ROWS, C // c, c).transpose(0, 2, 3, 1)
    total = xp.matmul(cut, B[:whole].reshape(pieces, 1, _ROWS, K)).sum(0).reshape(C, K)
    if whole < T:
        total += A[whole:].T @ B[whole:]
    return total
