"""Rows of tables and their gradients, by the kernels in kernels/resampling.cu and kernels/matrix.cu. Rows are float32, fp16
or bf16, their gradients float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff import backend
from tinydiff.backend import array_module
from tinydiff.cuda import products
from tinydiff.cuda.resampling import launch_vectors
from tinydiff.precision import precision_of


def pick_rows(W: Any, indices: Any, known: bool = False) -> Any:
    """Y_n = W_i(n): W (V, D), int64 indices (...) -> (..., D). An index outside 0..V-1 gives the first or the last row. Unless
    it is `known` that there is none, the device notes it: `backend.to_numpy` raises the IndexError. NotImplemented for
    other dtypes, and for a table without rows."""
    if precision_of(W.dtype) is None or indices.dtype != np.int64 or not len(W):
        return NotImplemented
    xp, (V, D), shape = array_module(W), W.shape, indices.shape
    W, indices = xp.ascontiguousarray(W), xp.ascontiguousarray(indices)
    Y = xp.empty((*shape, D), W.dtype)
    if isinstance(W, np.ndarray):  # on the host, where reading costs nothing
        note = None if known else np.zeros(1, np.int32)
    else:
        note = None if known else backend.note_of_wrong_indices()
    launch_vectors("pick_rows", D, [W, indices, Y, note], Y.size, (D, V))
    if note is not None and isinstance(W, np.ndarray) and note[0]:
        raise IndexError(backend.wrong_index(int(note[0])))
    return Y


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
