"""Rows of a table by index."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, device_of, is_array, widened
from tinydiff.dispatch import accelerated
from tinydiff.ops.arguments import as_array, as_tensor


class Embedding(Function):
    """Y_n = W_i(n), so row i of L_W is the sum of L_Y_n over the n that picked it.

    L_W = scatter(L_Y)    (each row added where it was picked, 0 elsewhere)
    """

    def forward(self, W, indices, known=False):
        self.indices = indices
        return pick_rows(W, indices, known)

    def backward(self, L_Y):
        return sum_picked(widened(L_Y), self.indices, self.shapes[0])


@accelerated
def pick_rows(W: Any, indices: Any, known: bool = False) -> Any:
    """Y_n = W_i(n): rows of W (V, D) by int64 indices (...) -> (..., D). IndexError for indices outside 0..V-1, which are
    not looked for where it is `known` that there are none."""
    if not known:
        _check(indices, len(W))
    return W[indices]


@accelerated
def sum_picked(L_Y: Any, indices: Any, shape: tuple[int, int]) -> Any:
    """L_W of the given shape: L_Y (..., D) added up in the rows that indices (...) name."""
    xp = array_module(L_Y)
    L_W = xp.zeros(shape, L_Y.dtype)
    xp.add.at(L_W, indices, L_Y)
    return L_W


def embedding(indices: Any, w: Any) -> Tensor:
    """Rows of a table: integer indices (...), w (V, D) -> (..., D). A row picked more than once gets the sum of the
    gradients.

    IndexError for indices outside 0..V-1, TypeError for indices that are not integers, ValueError for a w of another
    shape. Of indices on the GPU the IndexError is raised when a result is next read from there.
    """
    w = as_tensor(w)
    if w.ndim != 2:
        raise ValueError(f"embedding: w must be (V, D), not of shape {w.shape}")
    indices = as_array(indices)
    indices = indices if is_array(indices) else np.asarray(indices)
    if indices.dtype.kind not in "iu":
        raise TypeError(f"embedding: indices must be integers, not {indices.dtype}")
    known = device_of(indices) == "cpu"
    if known:
        _check(indices, w.shape[0])
    return Embedding.apply(w, indices=array_module(w.data).asarray(indices, "int64"), known=known)


def _check(indices: Any, V: int) -> None:
    """Reads the indices, wherever they are."""
    if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= V):
        raise IndexError(f"embedding: indices {int(indices.min())}..{int(indices.max())} are not in 0..{V - 1}")
