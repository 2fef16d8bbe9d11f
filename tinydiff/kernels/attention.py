"""Softmax and attention (kernels/attention.cu and the products of kernels/matrix.cu)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.kernels import launch, matrix

_PER_LANE = (2, 8, 32)  # columns of a row that each lane of a warp holds
VARIANTS = tuple(("attention.cu", {"PER_LANE": k}) for k in _PER_LANE)

_ROWS = 8  # of a block, one for each warp


def softmax(X: Any, axis: Any = -1) -> Any:
    """exp(x) / sum exp(x) over the last axis, float32; a row of -inf alone gives zeros. NotImplemented for other
    dtypes and axes."""
    if X.dtype != np.float32 or not _is_last(axis, X.ndim):
        return NotImplemented
    X = array_module(X).ascontiguousarray(X)
    P = array_module(X).empty_like(X)
    _softmax(X, P)
    return P


def softmax_backward(P: Any, L_P: Any, axis: Any = -1) -> Any:
    """L_X = P (L_P - sum(L_P P)), sums over the last axis, float32. NotImplemented for other dtypes and axes, and where
    one array would have to be broadcast."""
    if P.dtype != np.float32 or L_P.dtype != np.float32 or P.shape != L_P.shape or not _is_last(axis, P.ndim):
        return NotImplemented
    xp = array_module(P)
    L_X = xp.empty(P.shape, np.float32)
    _softmax_backward(xp.ascontiguousarray(P), None, xp.ascontiguousarray(L_P), None, L_X)
    return L_X


def _is_last(axis: Any, ndim: int) -> bool:
    """Whether the axis, or the only one of a tuple, is the last of an array that has any."""
    return ndim > 0 and axis in (-1, ndim - 1, (ndim - 1,))


def _softmax(X: Any, P: Any, z: Any = None) -> None:
    _launch("softmax", "", X.shape, (X, P, z))


def _softmax_backward(X: Any, z: Any, L_P: Any, P: Any, L_X: Any) -> None:
    _launch("softmax", "_backward", X.shape, (X, z, L_P, P, L_X))


def _launch(name: str, direction: str, shape: tuple[int, ...], arrays: tuple[Any, ...]) -> None:
    """Runs the kernel for rows of this length."""
    columns = shape[-1]
    rows = math.prod(shape[:-1]) if columns else 0
    for per_lane in _PER_LANE:
        if columns <= 32 * per_lane:
            kernel, grid = f"{name}_short{direction}", -(-rows // _ROWS)
            args = (*arrays, np.int32(rows), np.int32(columns))
            break
    else:
        kernel, grid = f"{name}_long{direction}", rows
        args = (*arrays, np.int32(columns))
    launch("attention.cu", kernel, (grid, 1, 1), (32 * _ROWS, 1, 1), args, defines={"PER_LANE": per_lane})


def attend(Q: Any, K: Any, V: Any, scale: float) -> Any:
    """Y = P V with P = softmax(scale Q K^T): Q (..., L, D), K (..., M, D), V (..., M, E) of equal leading axes, float32.

    Also returns z = log sum exp(scale Q K^T) (..., L, 1), from which the backward pass computes P again. NotImplemented
    for other dtypes, where the leading axes differ and where there is nothing to attend to.
    """
    if not _fits(Q, K, V):
        return NotImplemented
    P = matrix.matmul(Q, K, transpose_b=True, scale=scale)
    z = array_module(Q).empty((*P.shape[:-1], 1), np.float32)
    _softmax(P, P, z)
    return matrix.matmul(P, V), z


def attend_backward(
    L_Y: Any, Q: Any, K: Any, V: Any, z: Any, Y: Any, scale: float, needs: tuple[bool, ...] = (True, True, True)
) -> Any:
    """(L_Q, L_K, L_V), with None for what `needs` does not ask for, from L_Y and what `attend` took and gave:

    P = exp(scale Q K^T - z), L_V = P^T L_Y, L_P = L_Y V^T, L_S by the softmax, L_Q = scale L_S K, L_K = scale L_S^T Q.
    """
    if not _fits(Q, K, V) or L_Y.dtype != np.float32:
        return NotImplemented
    if not any(needs):
        return None, None, None
    P = matrix.matmul(Q, K, transpose_b=True, scale=scale)
    L_S = matrix.matmul(L_Y, V, transpose_b=True)
    _softmax_backward(P, z, L_S, P if needs[2] else None, L_S)  # the logits become P, L_P becomes L_S
    return (
        matrix.matmul(L_S, K, scale=scale) if needs[0] else None,
        matrix.matmul(L_S, Q, transpose_a=True, scale=scale) if needs[1] else None,
        matrix.matmul(P, L_Y, transpose_a=True) if needs[2] else None,
    )


def _fits(Q: Any, K: Any, V: Any) -> bool:
    alike = Q.dtype == K.dtype == V.dtype == np.float32 and Q.shape[:-2] == K.shape[:-2] == V.shape[:-2]
    return alike and Q.size > 0 and K.size > 0
