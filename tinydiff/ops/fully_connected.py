"""The fully connected layer.

It is (source A, 4.1) Y = X W + 1 b, in elements y_nm = sum_d x_nd w_dm + b_m, with

    X (N, D)    W (D, M)    b (M,)    Y (N, M).

Let L be the loss and L_Y (N, M) its derivative with respect to Y. As y_nm depends on x_ij only where n = i, with slope
w_jm, the chain rule gives L_x_ij = sum_m L_y_im w_jm; likewise L_w_ij = sum_n x_ni L_y_nj and L_b_j = sum_n L_y_nj:

    L_X = L_Y W^T    (N, D) = (N, M) (M, D)    (4.1.8)
    L_W = X^T L_Y    (D, M) = (D, N) (N, M)    (4.1.11)
    L_b = 1^T L_Y    (1, M) = (1, N) (N, M)    (4.1.14)

The shapes alone leave no other way to write the products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import widened
from tinydiff.dispatch import accelerated_in_float32
from tinydiff.ops.arguments import as_tensor
from tinydiff.precision import rounds_factors


class Linear(Function):
    """Y = X W + 1 b (4.1.1), for X of any number of leading axes, which count as rows; b may be None."""

    adds_waiting = gives_new = takes_half = True
    weights = slice(1, 2)

    def forward(self, X, W, b):
        self.save(X, W)
        return _like(X, linear_forward(_rows(X), W, b))  # (4.1.1)

    def backward(self, L_Y):
        X, W = self.saved
        x, l_y = _rows(X), _rows(L_Y)
        L_X = L_W = L_b = None
        if self.needs[0]:
            L_X = _like(X, linear_input_gradient(l_y, W))  # (4.1.8)
        if self.needs[1]:
            L_W = linear_weight_gradient(x, l_y)  # (4.1.11)
        if self.needs[2]:
            L_b = sum_rows(l_y)  # (4.1.14)
        return L_X, L_W, L_b


class Linears(Function):
    """Y_i = X W_i + 1 b_i, several layers of one X, as the q, k and v of attention; inputs are X, W_1, b_1, W_2, b_2, ...

    As X reaches the loss through every Y_i, L_X = sum_i L_Y_i W_i^T; L_W_i = X^T L_Y_i, L_b_i = 1^T L_Y_i.
    """

    adds_waiting = gives_new = takes_half = True
    weights = slice(1, None, 2)

    def forward(self, X, *layers):
        self.save(X, *layers[::2])
        return tuple([_like(X, Y) for Y in linears_forward(_rows(X), layers[::2], layers[1::2])])

    def backward(self, *L_Ys):
        X, *Ws = self.saved
        x, l_ys, needs = _rows(X), [_rows(L_Y) for L_Y in L_Ys], self.needs
        L_X = _like(X, linears_input_gradient(l_ys, Ws)) if needs[0] else None
        L_Ws = _where(needs[1::2], l_ys, lambda some: linears_weight_gradient(x, some))
        L_bs = _where(needs[2::2], l_ys, sums_of_rows)
        return L_X, *(L for pair in zip(L_Ws, L_bs, strict=True) for L in pair)


@rounds_factors
@accelerated_in_float32
def linear_forward(X: Any, W: Any, b: Any) -> Any:
    """Y = X W + 1 b for X (N, D), W (D, M), b (M,) or None -> (N, M)  (4.1.1)."""
    return X @ W if b is None else X @ W + b


@rounds_factors
@accelerated_in_float32
def linears_forward(X: Any, Ws: Sequence[Any], bs: Sequence[Any]) -> Any:
    """Y_i = X W_i + 1 b_i for all i."""
    return [linear_forward(X, W, b) for W, b in zip(Ws, bs, strict=True)]


@rounds_factors
@accelerated_in_float32
def linear_input_gradient(L_Y: Any, W: Any) -> Any:
    """L_X = L_Y W^T  (4.1.8)."""
    return L_Y @ W.T


@rounds_factors
@accelerated_in_float32
def linears_input_gradient(L_Ys: Sequence[Any], Ws: Sequence[Any]) -> Any:
    """L_X = sum_i L_Y_i W_i^T, of one layer at least."""
    return reduce(add, [widened(linear_input_gradient(L_Y, W)) for L_Y, W in zip(L_Ys, Ws, strict=True)])


@rounds_factors
@accelerated_in_float32
def linear_weight_gradient(X: Any, L_Y: Any) -> Any:
    """L_W = X^T L_Y  (4.1.11)."""
    return X.T @ L_Y


@rounds_factors
@accelerated_in_float32
def linears_weight_gradient(X: Any, L_Ys: Sequence[Any]) -> Any:
    """L_W_i = X^T L_Y_i for all i."""
    return [linear_weight_gradient(X, L_Y) for L_Y in L_Ys]


@accelerated_in_float32
def sum_rows(L_Y: Any) -> Any:
    """L_b = 1^T L_Y for L_Y (N, M) -> (M,)  (4.1.14), or for each of several matrices."""
    return L_Y.sum(-2)


@accelerated_in_float32
def sums_of_rows(L_Ys: Sequence[Any]) -> Any:
    """L_b_i = 1^T L_Y_i for all i."""
    return [sum_rows(L_Y) for L_Y in L_Ys]


def _where(needs: Sequence[bool], xs: Sequence[Any], function: Callable[[Sequence[Any]], Sequence[Any]]) -> list[Any]:
    """What the function gives for those that are needed, None for the others."""
    some = [x for x, need in zip(xs, needs, strict=True) if need]
    found = iter(function(some) if some else ())
    return [next(found) if need else None for need in needs]


def _rows(X: Any) -> Any:
    """(..., D) as (N, D)."""
    return X if X.ndim == 2 else X.reshape(math.prod(X.shape[:-1]), X.shape[-1])


def _like(X: Any, Y: Any) -> Any:
    """Y (N, M), made of X (..., D) as rows, as (..., M)."""
    return Y if X.ndim == 2 else Y.reshape(*X.shape[:-1], Y.shape[1])


def linear(x: Any, w: Any, b: Any = None) -> Tensor:
    """The fully connected layer x w + b (source A, 4.1.1): x (..., D), w (D, M), b (M,) or None -> (..., M).

    The derivation of its backward pass stands at the head of this file. ValueError where the shapes do not fit.
    """
    x, w = as_tensor(x), as_tensor(w)
    _check(x, w, b)
    return Linear.apply(x, w, b)


def linears(x: Any, layers: Sequence[tuple[Any, Any]]) -> tuple[Tensor, ...]:
    """x w + b for each (w, b) of `layers` in one operation; shapes as for `linear`, which computes the same."""
    x = as_tensor(x)
    for w, b in layers:
        _check(x, as_tensor(w), b)
    return Linears.apply(x, *[term for layer in layers for term in layer])


def _check(x: Tensor, w: Tensor, b: Any) -> None:
    given, needed = x.shape, w.shape
    if not given or len(needed) != 2 or given[-1] != needed[0]:
        raise ValueError(f"linear: x {given} does not fit w {needed}; needed are (..., D) and (D, M)")
    if b is not None and as_tensor(b).shape != needed[1:]:
        raise ValueError(f"linear: b {as_tensor(b).shape} does not fit w {needed}; needed is {needed[1:]}")
