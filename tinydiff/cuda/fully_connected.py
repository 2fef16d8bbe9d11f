"""The fully connected layer, by the kernels in kernels/matrix.cu and kernels/sums.cu; float32, or the products in 16 bits.
Several layers of one input are computed together where `joint.py` takes the arrays, one after another elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from tinydiff.autograd import waiting
from tinydiff.backend import widened
from tinydiff.cuda import joint, products, sums
from tinydiff.cuda.products import LARGEST, Cost
from tinydiff.ops import fully_connected as definitions
from tinydiff.precision import of_half


def linear_forward(X: Any, W: Any, b: Any) -> Any:
    """Y = X W + 1 b for X (N, D), W (D, M), b (M,) or None."""
    return products.matmul(X, W, bias=b)


def linear_input_gradient(L_Y: Any, W: Any) -> Any:
    """L_X = L_Y W^T."""
    if L_Y.dtype != np.float32:
        return products.matmul(L_Y, W, transpose_b=True)
    return linears_input_gradient([L_Y], [W])


def linears_forward(X: Any, Ws: Sequence[Any], bs: Sequence[Any]) -> Any:
    """Y_i = X W_i + 1 b_i for all i."""
    Ys = joint.forward(X, Ws, bs) if len(Ws) > 1 else None
    if Ys is None:
        return [definitions.linear_forward(X, W, b) for W, b in zip(Ws, bs, strict=True)]
    return Ys


def linears_input_gradient(L_Ys: Sequence[Any], Ws: Sequence[Any]) -> Any:
    """L_X = sum_i L_Y_i W_i^T, and what waits at X. One by one, each product is added to those before it; then products of 16 bits
    are rounded to 16 bits and added in float32."""
    if len(Ws) > 1 and (L_X := joint.input_gradient(L_Ys, Ws)) is not None:
        return L_X
    if all(of_half(L_Y.dtype) for L_Y in L_Ys):
        L_Xs = [linear_input_gradient(L_Y, W) for L_Y, W in zip(L_Ys, Ws, strict=True)]
        known = all(L_X is not NotImplemented for L_X in L_Xs)
        return reduce(add, map(widened, L_Xs)) if known else NotImplemented
    if any(a.dtype != np.float32 or max(a.shape) > LARGEST for a in (*L_Ys, *Ws)):
        return NotImplemented
    L_X = waiting.claim((len(L_Ys[0]), len(Ws[0])))
    for L_Y, W in zip(L_Ys, Ws, strict=True):
        L_X = products.matmul(L_Y, W, transpose_b=True, R=L_X)
    return L_X


def linear_weight_gradient(X: Any, L_Y: Any) -> Any:
    """L_W = X^T L_Y."""
    return products.matmul(X, L_Y, transpose_a=True, gradient=True)


def linears_weight_gradient(X: Any, L_Ys: Sequence[Any]) -> Any:
    """L_W_i = X^T L_Y_i for all i."""
    L_Ws = joint.weight_gradients(X, L_Ys) if len(L_Ys) > 1 else None
    return [definitions.linear_weight_gradient(X, L_Y) for L_Y in L_Ys] if L_Ws is None else L_Ws


def sum_rows(L_Y: Any) -> Any:
    """The sums of the columns of L_Y (M, K) -> (K,), or of each of several matrices (N, M, K) -> (N, K). NotImplemented for
    other shapes and dtypes."""
    return sums.sum_columns(L_Y)


def sums_of_rows(L_Ys: Sequence[Any]) -> Any:
    """The sums of the columns of several matrices."""
    L_bs = sums.sum_columns_of_each(L_Ys) if len(L_Ys) > 1 else None
    return [definitions.sum_rows(L_Y) for L_Y in L_Ys] if L_bs is None else L_bs


def sum_rows_cost(X: Any) -> Cost:
    """The cost of `sum_rows`."""
    return Cost(X.size, 4 * (X.size + X.size // max(1, X.shape[-2])))
