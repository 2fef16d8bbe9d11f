"""Resampling and joining of NHWC maps, by the kernels in kernels/resampling.cu; all float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.kernels import launch
from tinydiff.kernels.matrix import Cost, vector

SOURCE = "resampling.cu"
VARIANTS = tuple((SOURCE, {"VECTOR": n}) for n in (4, 1))


def upsample(X: Any, factor: tuple[int, int] = (2, 2)) -> Any:
    """Every pixel of X (N, H, W, C) as 2 x 2 pixels -> (N, 2 H, 2 W, C). NotImplemented for other factors."""
    if X.dtype != np.float32 or factor != (2, 2):
        return NotImplemented
    xp, (N, H, W, C) = array_module(X), X.shape
    X, Y = xp.ascontiguousarray(X), xp.empty((N, 2 * H, 2 * W, C), np.float32)
    _launch("upsample", C, [X, Y], X.size, (N * H, W, C))
    return Y


def upsample_backward(L_Y: Any, factor: tuple[int, int] = (2, 2)) -> Any:
    """L_X (N, H, W, C), the sums of the 2 x 2 pixels of L_Y (N, 2 H, 2 W, C). NotImplemented for other factors."""
    if L_Y.dtype != np.float32 or factor != (2, 2):
        return NotImplemented
    xp, (N, H, W, C) = array_module(L_Y), L_Y.shape
    L_Y, L_X = xp.ascontiguousarray(L_Y), xp.empty((N, H // 2, W // 2, C), np.float32)
    _launch("upsample_backward", C, [L_Y, L_X], L_X.size, (N * (H // 2), W // 2, C))
    return L_X


def concatenate(Xs: Sequence[Any], axis: int = -1) -> Any:
    """Two maps (..., A) and (..., B) along their channels -> (..., A + B). NotImplemented for more and along other axes."""
    if len(Xs) != 2 or axis not in (-1, Xs[0].ndim - 1):
        return NotImplemented
    first, second = Xs
    if first.dtype != np.float32 or second.dtype != np.float32 or first.shape[:-1] != second.shape[:-1]:
        return NotImplemented
    xp, A, B = array_module(first), first.shape[-1], second.shape[-1]
    first, second = xp.ascontiguousarray(first), xp.ascontiguousarray(second)
    Y = xp.empty((*first.shape[:-1], A + B), np.float32)
    _launch("concatenate", A if A % 4 else B, [first, second, Y], Y.size, (A, B))
    return Y


def split(L_Y: Any, ends: Sequence[int], axis: int = -1) -> Any:
    """The first A channels of L_Y (..., A + B) and the others, the backward pass of `concatenate` -> (..., A), (..., B), for
    ends = [A]. NotImplemented for more parts and along other axes."""
    if L_Y.dtype != np.float32 or len(ends) != 1 or axis not in (-1, L_Y.ndim - 1):
        return NotImplemented
    A = ends[0]
    xp, B = array_module(L_Y), L_Y.shape[-1] - A
    L_Y = xp.ascontiguousarray(L_Y)
    first, second = (xp.empty((*L_Y.shape[:-1], n), np.float32) for n in (A, B))
    _launch("split", A if A % 4 else B, [L_Y, first, second], L_Y.size, (A, B))
    return first, second


def copy_cost(*arrays: Any) -> Cost:
    """The cost of copying between arrays, each of which is read or written once."""
    return Cost(0, 4 * sum(a.size for a in arrays))


def _launch(kernel: str, channels: int, arrays: Sequence[Any], size: int, sizes: Sequence[int]) -> None:
    """One thread for each `VECTOR` of `size` entries."""
    n = vector(channels, *arrays)
    grid = (-(-size // (256 * n)), 1, 1)
    args = (*arrays, np.uint64(size // n), *map(np.int32, sizes))
    launch(SOURCE, kernel, grid, (256, 1, 1), args, defines={"VECTOR": n})
