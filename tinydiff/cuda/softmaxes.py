"""Softmax, by the kernels in kernels/attention.cu; all float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.cuda.softmax_rows import softmax_backward_to, softmax_to


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


def _is_last(axis: Any, ndim: int) -> bool:
    """Whether the axis, or the only one of a tuple, is the last of an array that has any."""
    return ndim > 0 and axis in (-1, ndim - 1, (ndim - 1,))
