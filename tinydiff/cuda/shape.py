"""Maps joined and cut along their channels, by the kernels in kernels/resampling.cu; float32, fp16 or bf16."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tinydiff.backend import array_module
from tinydiff.cuda.resampling import launch_vectors
from tinydiff.precision import precision_of


def join(Xs: Sequence[Any], axis: int) -> Any:
    """Two maps (..., A) and (..., B) along their channels -> (..., A + B). NotImplemented for more, along other
    axes and for other dtypes."""
    if len(Xs) != 2 or axis not in (-1, Xs[0].ndim - 1):
        return NotImplemented
    first, second = Xs
    if precision_of(first.dtype) is None or second.dtype != first.dtype or first.shape[:-1] != second.shape[:-1]:
        return NotImplemented
    xp, A, B = array_module(first), first.shape[-1], second.shape[-1]
    first, second = xp.ascontiguousarray(first), xp.ascontiguousarray(second)
    Y = xp.empty((*first.shape[:-1], A + B), first.dtype)
    launch_vectors("concatenate", math.gcd(A, B), [first, second, Y], Y.size, (A, B))
    return Y


def cut(X: Any, ends: Sequence[int], axis: int) -> Any:
    """The first A channels of X (..., A + B) and the others, the backward pass of `join` -> (..., A), (..., B), for
    ends = [A]. NotImplemented for more parts, along other axes and for other dtypes."""
    if precision_of(X.dtype) is None or len(ends) != 1 or axis not in (-1, X.ndim - 1):
        return NotImplemented
    A = ends[0]
    xp, B = array_module(X), X.shape[-1] - A
    X = xp.ascontiguousarray(X)
    first, second = (xp.empty((*X.shape[:-1], n), X.dtype) for n in (A, B))
    launch_vectors("split", math.gcd(A, B), [X, first, second], X.size, (A, B))
    return first, second
