"""Maps joined and cut along their channels, by the kernels in kernels/resampling.cu; all float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.cuda.resampling import launch_vectors


def join(Xs: Sequence[Any], axis: int) -> Any:
    """Two maps (..., A) and (..., B) along their channels -> (..., A + B). NotImplemented for more and along other axes."""
    if len(Xs) != 2 or axis not in (-1, Xs[0].ndim - 1):
        return NotImplemented
    first, second = Xs
    if first.dtype != np.float32 or second.dtype != np.float32 or first.shape[:-1] != second.shape[:-1]:
        return NotImplemented
    xp, A, B = array_module(first), first.shape[-1], second.shape[-1]
    first, second = xp.ascontiguousarray(first), xp.ascontiguousarray(second)
    Y = xp.empty((*first.shape[:-1], A + B), np.float32)
    launch_vectors("concatenate", A if A % 4 else B, [first, second, Y], Y.size, (A, B))
    return Y


def cut(X: Any, ends: Sequence[int], axis: int) -> Any:
    """The first A channels of X (..., A + B) and the others, the backward pass of `join` -> (..., A), (..., B), for
    ends = [A]. NotImplemented for more parts and along other axes."""
    if X.dtype != np.float32 or len(ends) != 1 or axis not in (-1, X.ndim - 1):
        return NotImplemented
    A = ends[0]
    xp, B = array_module(X), X.shape[-1] - A
    X = xp.ascontiguousarray(X)
    first, second = (xp.empty((*X.shape[:-1], n), np.float32) for n in (A, B))
    launch_vectors("split", A if A % 4 else B, [X, first, second], X.size, (A, B))
    return first, second
