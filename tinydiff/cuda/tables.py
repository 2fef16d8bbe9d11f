"""Gradients of tables of rows, by the kernels in kernels/matrix.cu; all float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.cuda import products


def sum_picked(L_Y: Any, indices: Any, shape: tuple[int, int]) -> Any:
    """The rows of L_Y (..., D) added up in the rows of a (V, D) array that indices (...) name, as a product with a
    matrix of zeros and ones. CuPy's add.at would add in another order each time. NotImplemented where that matrix
    would be large."""
    rows, D = shape
    if L_Y.dtype != np.float32 or indices.size * rows > 1 << 24:
        return NotImplemented
    xp = array_module(L_Y)
    picked = (indices.reshape(indices.size, 1) == xp.arange(rows)).astype(np.float32)
    return products.matmul(picked, L_Y.reshape(indices.size, D), transpose_a=True, gradient=True)
