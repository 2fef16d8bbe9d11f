"""Stacks of products of matrices, spread over the threads: each takes some of the products, or
some rows or columns of all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinydiff.cpu.blas import MULTIPLICATIONS_WORTH_A_THREAD
from tinydiff.machine.threads import count, share, worthwhile


def product(A: Any, B: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    """A B for A (..., M, K), B (..., K, N), whose leading axes broadcast -> (..., M, N).

    transpose_a: A is given as (..., K, M); transpose_b: B as (..., N, K). NotImplemented for products that one thread
    does as fast.
    """
    A, B = A.swapaxes(-1, -2) if transpose_a else A, B.swapaxes(-1, -2) if transpose_b else B
    stack, (M, K), N = np.broadcast_shapes(A.shape[:-2], B.shape[:-2]), A.shape[-2:], B.shape[-1]
    multiplications = math.prod(stack) * M * K * N
    if count() == 1 or multiplications < MULTIPLICATIONS_WORTH_A_THREAD:
        return NotImplemented
    Y = np.empty((*stack, M, N), np.result_type(A, B))
    # along this axis of Y, counted from its end, the threads divide the work
    axis = next((-Y.ndim + i for i, n in enumerate(stack) if n >= count()), -2 if M >= N else -1)

    def some(part: range) -> None:
        at = slice(part.start, part.stop)
        np.matmul(A if axis == -1 else _cut(A, axis, at), B if axis == -2 else _cut(B, axis, at), out=_cut(Y, axis, at))

    share(some, range(Y.shape[axis]), worthwhile(multiplications, MULTIPLICATIONS_WORTH_A_THREAD))
    return Y


def _cut(X: Any, axis: int, part: slice) -> Any:
    """A part of an axis, counted from the end; all of X where it has no such axis or it is broadcast."""
    if -axis > X.ndim or X.shape[axis] == 1:
        return X
    return X[(..., part, *[slice(None)] * (-axis - 1))]
