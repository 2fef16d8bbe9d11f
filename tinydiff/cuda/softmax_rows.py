"""Softmax over the last axis, written to existing arrays, by the kernels in kernels/attention.cu; all float32."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinydiff.cuda.launch import launch

_PER_LANE = (2, 8, 32)  # columns of a row that each lane of a warp holds
VARIANTS = tuple(("attention.cu", {"PER_LANE": k}) for k in _PER_LANE)

_ROWS = 8  # of a block, one for each warp


def softmax_to(X: Any, P: Any, z: Any = None) -> None:
    """P = softmax of the rows of X, which may be P itself; z (..., 1): log sum exp of each row, if it is not None."""
    _launch("softmax", "", X.shape, (X, P, z))


def softmax_backward_to(X: Any, z: Any, L_P: Any, P: Any, L_X: Any) -> None:
    """L_X from L_P. With z None, X is the softmax itself. Otherwise X are the logits and z is what `softmax_to` gave:
    the softmax is computed again, and written to P unless P is None."""
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
