"""Arrays of float32 as fp16 or bf16, and back, by the kernels in kernels/conversion.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.cuda.launch import launch
from tinydiff.cuda.source import precision_of_elements
from tinydiff.precision import precision_of

SOURCE = "conversion.cu"
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = tuple(
    (SOURCE, {"PRECISION": precision}) for precision in ("BF16", "FP16")
)

_THREADS, _EACH = 256, 8  # threads of a block, and elements of each


def converted(X: Any, dtype: Any) -> Any:
    """X, of any shape, in another dtype: float32 as fp16 or bf16 (`precision.precision_of`), rounded to nearest even, or one of
    these as float32. NaN stays NaN, and what is too large for fp16 becomes infinite. NotImplemented for other dtypes."""
    dtype = np.dtype(dtype)
    wide, halves = np.dtype(np.float32), ("fp16", "bf16")
    narrowing = X.dtype == wide and precision_of(dtype) in halves
    if not narrowing and not (dtype == wide and precision_of(X.dtype) in halves):
        return NotImplemented
    xp = array_module(X)
    flat = xp.ascontiguousarray(X)  # it gives an array without axes one axis
    Y = xp.empty(flat.shape, dtype)
    kernel, half = ("to_half", Y) if narrowing else ("from_half", flat)
    grid = (-(-X.size // (_EACH * _THREADS)), 1, 1)
    launch(SOURCE, kernel, grid, (_THREADS, 1, 1), (flat, Y, np.uint64(X.size)), defines=precision_of_elements(half))
    return Y.reshape(X.shape)
