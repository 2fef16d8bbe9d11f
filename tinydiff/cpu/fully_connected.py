"""The fully connected layer, with its rows spread over the threads.

Measured:
- X.dot(W) has less overhead than X @ W: (1, 128) (128, 64) takes 0.7 instead of 1.3 microseconds.
- Several layers of one X are computed in one call of the threads: three products (256, 256) (256, 256) take 0.51
instead of
  0.79 ms. With few rows, reading the weights takes most of the time, so each thread takes some of the layers: 8 rows
  with 22 layers (512, 128 or 256) take 1.3 instead of 1.6 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinydiff.cpu.blas import (
    MULTIPLICATIONS_OF_A_SMALL_PRODUCT,
    MULTIPLICATIONS_WORTH_A_THREAD,
    add_row,
    multiply,
    multiply_transposed,
)
from tinydiff.machine.threads import add_to, share_blocks, share_tasks, sum_shares
from tinydiff.ops.arguments import add_bias

ROWS_FOR_WHICH_THREADS_TAKE_LAYERS = 64  # at most; of more rows they take rows


def linear_forward(X: Any, W: Any, b: Any) -> Any:
    """Y = X W + 1 b."""
    if X.size * W.shape[1] < MULTIPLICATIONS_WORTH_A_THREAD:
        return _in_one_thread(X, W, b)
    return _spread_rows(X, [(W, b)])[0]


def linears_forward(X: Any, Ws: Sequence[Any], bs: Sequence[Any]) -> Any:
    """Y_i = X W_i + 1 b_i for all i."""
    layers = list(zip(Ws, bs, strict=True))
    if X.size * sum([W.shape[1] for W in Ws]) < MULTIPLICATIONS_WORTH_A_THREAD:
        return [_in_one_thread(X, W, b) for W, b in layers]
    if len(X) <= ROWS_FOR_WHICH_THREADS_TAKE_LAYERS:
        return share_tasks(lambda layer: _in_one_thread(X, *layer), layers)
    return _spread_rows(X, layers)


def linear_input_gradient(L_Y: Any, W: Any) -> Any:
    """L_X = L_Y W^T."""
    D = W.shape[0]
    L_X = np.empty((len(L_Y), D), np.result_type(L_Y, W))
    W_T = np.ascontiguousarray(W.T) if len(L_Y) > 4 * D else W.T  # the copy lets `multiply` cut
    small = MULTIPLICATIONS_WORTH_A_THREAD // max(D, 1)
    share_blocks(lambda rows: multiply(L_Y[rows], W_T, out=L_X[rows]), L_Y, small=small)
    return L_X


def linears_input_gradient(L_Ys: Sequence[Any], Ws: Sequence[Any]) -> Any:
    """L_X = sum_i L_Y_i W_i^T."""
    L_X, *others = (linear_input_gradient(L_Y, W) for L_Y, W in zip(L_Ys, Ws, strict=True))
    for other in others:
        add_to(L_X, other)
    return L_X


def linear_weight_gradient(X: Any, L_Y: Any) -> Any:
    """L_W = X^T L_Y."""
    small = MULTIPLICATIONS_WORTH_A_THREAD // max(X.shape[1], 1)
    return sum_shares(lambda rows: multiply_transposed(X[rows], L_Y[rows]), L_Y, small=small)


def sum_rows(L_Y: Any) -> Any:
    """L_b = 1^T L_Y as a product, the fastest way to sum."""
    return np.ones(L_Y.shape[-2], L_Y.dtype) @ L_Y


def _in_one_thread(X: Any, W: Any, b: Any) -> Any:
    """Y = X W + 1 b in the calling thread."""
    if X.size * W.shape[1] > MULTIPLICATIONS_OF_A_SMALL_PRODUCT:
        return _write(X, W, b, out=_empty(X, W, b))
    Y = X.dot(W)
    return Y if b is None else add_bias(Y, b)


def _spread_rows(X: Any, layers: Sequence[tuple[Any, Any]]) -> Sequence[Any]:
    """Y_i = X W_i + 1 b_i for all i, with the rows spread over the threads."""
    Ys = [_empty(X, W, b) for W, b in layers]

    def some(rows: slice) -> None:
        for Y, (W, b) in zip(Ys, layers, strict=True):
            _write(X[rows], W, b, out=Y[rows])

    share_blocks(some, X, small=0)
    return Ys


def _empty(X: Any, W: Any, b: Any) -> Any:
    """Room for Y, of the widest type among X, W and b."""
    return np.empty((len(X), W.shape[1]), np.result_type(X, W) if b is None else np.result_type(X, W, b))


def _write(X: Any, W: Any, b: Any, out: Any) -> Any:
    multiply(X, W, out=out)
    return out if b is None else add_row(out, b)
