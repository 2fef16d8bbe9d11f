"""SiLU alone, by the kernels in kernels/normalization.cu; float32, fp16 or bf16."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.cuda.launch import launch
from tinydiff.cuda.normalization import SOURCE
from tinydiff.cuda.source import precision_of_elements
from tinydiff.cuda.updates import MOST_ELEMENTS
from tinydiff.precision import precision_of

_THREADS = 256  # of a block; each has 16 bytes


def silu_forward(A: Any) -> Any:
    """A sigmoid(A). NotImplemented for other dtypes, and for 2**31 elements."""
    if precision_of(A.dtype) is None or A.size > MOST_ELEMENTS:
        return NotImplemented
    xp = array_module(A)
    flat = xp.ascontiguousarray(A)  # it gives an array without axes one axis
    Y = xp.empty_like(flat)
    _each("silu_forward", A.size, (flat, Y))
    return Y.reshape(A.shape)


def silu_backward(L_Y: Any, A: Any) -> Any:
    """L_A = L_Y sigmoid(A) (1 + A (1 - sigmoid(A))). NotImplemented as for `silu_forward`."""
    if L_Y.dtype != A.dtype or precision_of(A.dtype) is None or A.size > MOST_ELEMENTS:
        return NotImplemented
    xp = array_module(A)
    L_Y, flat = xp.ascontiguousarray(L_Y), xp.ascontiguousarray(A)
    L_A = xp.empty_like(flat)
    _each("silu_backward", A.size, (L_Y, flat, L_A))
    return L_A.reshape(A.shape)


def _each(kernel: str, n: int, arrays: tuple[Any, ...]) -> None:
    vector = 16 // arrays[0].itemsize
    grid, args = (-(-n // (vector * _THREADS)), 1, 1), (*arrays, np.int32(n))
    defines = {"VECTOR": vector, **precision_of_elements(arrays[0])}
    launch(SOURCE, kernel, grid, (_THREADS, 1, 1), args, defines=defines)
