"""Softmax, by the kernels in kernels/attention.cu; all float32."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.cuda.launch import launch

_PER_LANE = (2, 8, 32)  # columns of a row that each lane of a warp holds
VARIANTS = tuple(("attention.cu", {"PER_LANE": k}) for k in _PER_LANE)

_ROWS = 8  # of a block, one for each warp


def softmax_array(X: Any, axis: Any) -> Any:
    """exp(x) / sum exp(x) over the last axis, float32; a row of -inf alone gives zeros. NotImplemented for other
    dtypes and axes."""
    if X.dtype != np.float32 or not _is_last(axis, X.ndim):
        return NotImplemented
    X = array_module(X).ascontiguousarray(X)
    P = array_module(X).empty_like(X)
    softmax_to(X, P)
    return P


def softmax_backward(P: Any, L_P: Any, axis: Any) -> Any:
    """L_X = P (L_P - sum(L_P P)), sums over the last axis, float32. NotImplemented for other dtypes and axes, and where
    one array would have to be broadcast."""
    if P.dtype != np.float32 or L_P.dtype != np.float32 or P.shape != L_P.shape or not _is_last(axis, P.ndim):
        return NotImplemented
    xp = array_module(P)
    L_X = xp.empty(P.shape, np.float32)
    softmax_backward_to(xp.ascontiguousarray(P), None, xp.ascontiguousarray(L_P), None, L_X)
    return L_X


def softmax_to(X: Any, P: Any, z: Any = None) -> None:
    _launch("softmax", "", X.shape, (X, P, z))


def softmax_backward_to(X: Any, z: Any, L_P: Any, P: Any, L_X: Any) -> None:
    _launch("softmax", "_backward", X.shape, (X, z, L_P, P, L_X))


def _is_last(axis: Any, ndim: int) -> bool:
    """Whether the axis, or the only one of a tuple, is the last of an array that has any."""
    return ndim > 0 and axis in (-1, ndim - 1, (ndim - 1,))


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
