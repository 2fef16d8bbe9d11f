"""SiLU alone, by the kernels in kernels/normalization.cu; all float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.cuda.launch import launch
from tinydiff.cuda.updates import MOST_ELEMENTS

_THREADS = 256  # of a block; each has four elements


def silu_forward(A: Any) -> Any:
    """A sigmoid(A). NotImplemented for other dtypes, and for 2**31 elements."""
    if A.dtype != np.float32 or A.size > MOST_ELEMENTS:
        return NotImplemented
    xp = array_module(A)
    flat = xp.ascontiguousarray(A)  # it gives an array without axes one axis
    Y = xp.empty_like(flat)
    _each("silu_forward", A.size, (flat, Y))
    return Y.reshape(A.shape)


def silu_backward(L_Y: Any, A: Any) -> Any:
    """L_A = L_Y sigmoid(A) (1 + A (1 - sigmoid(A))). NotImplemented as for `silu_forward`."""
    if L_Y.dtype != np.float32 or A.dtype != np.float32 or A.size > MOST_ELEMENTS:
        return NotImplemented
    xp = array_module(A)
    L_Y, flat = xp.ascontiguousarray(L_Y), xp.ascontiguousarray(A)
    L_A = xp.empty_like(flat)
    _each("silu_backward", A.size, (L_Y, flat, L_A))
    return L_A.reshape(A.shape)


def _each(kernel: str, n: int, arrays: tuple[Any, ...]) -> None:
    grid = (-(-n // (4 * _THREADS)), 1, 1)
    launch("normalization.cu", kernel, grid, (_THREADS, 1, 1), (*arrays, np.int32(n)), defines={"VECTOR": 4})
