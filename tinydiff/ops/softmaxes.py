"""Softmax, its logarithm, and the logarithm of a sum of exponentials."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module
from tinydiff.dispatch import accelerated
from tinydiff.ops.arguments import as_real, normalize_axes, normalize_axis


def shifted(X: Any, axis: Any) -> tuple[Any, Any]:
    """X minus its maximum over an axis (or several), so that exponentials do not overflow, and that maximum. Where it
    is not finite, 0 is subtracted instead."""
    xp = array_module(X)
    top = (X.max if X.size else X.sum)(axis, keepdims=True)  # an empty array has no maximum, but it has a sum
    top = xp.where(xp.isfinite(top), top, 0).astype(X.dtype, copy=False)
    return X - top, top


@accelerated
def softmax_array(X: Any, axis: Any) -> Any:
    """exp(x) / sum exp(x); a row of -inf alone gives zeros."""
    xp = array_module(X)
    P, _ = shifted(X, axis)
    xp.exp(P, out=P)
    total = P.sum(axis, keepdims=True)
    P /= xp.where(total == 0, X.dtype.type(1), total)
    return P


@accelerated
def softmax_backward(P: Any, L_P: Any, axis: Any) -> Any:
    """From dp_i/dx_j = p_i (delta_ij - p_j): L_X = P * (L_P - sum(L_P * P))."""
    L_X = L_P * P
    L_X -= P * L_X.sum(axis, keepdims=True)
    return L_X


class Softmax(Function):
    """L_X = Y * (L_Y - sum(L_Y * Y))    (sum along the axis)"""

    widens_half = True

    def forward(self, X, axis):
        self.axis = axis
        P = softmax_array(X, axis)
        self.save(P)
        return P

    def backward(self, L_Y):
        (Y,) = self.saved
        return softmax_backward(Y, L_Y, self.axis)


def log_softmax_array(X: Any, axis: int) -> Any:
    """x - log sum exp(x). The maximum is subtracted first, so large logits lose no digits."""
    xp = array_module(X)
    Y, _ = shifted(X, axis)
    with np.errstate(divide="ignore"):
        Y -= xp.log(xp.exp(Y).sum(axis, keepdims=True))
    return Y


class LogSoftmax(Function):
    """y = x - log sum exp(x), and dy_i/dx_j = delta_ij - p_j with p = exp(y).

    L_X = L_Y - P * sum(L_Y),  P = exp(Y)    (sum along the axis)
    """

    widens_half = True

    def forward(self, X, axis):
        self.axis = axis
        Y = log_softmax_array(X, axis)
        self.save(Y)
        return Y

    def backward(self, L_Y):
        (Y,) = self.saved
        return L_Y - array_module(Y).exp(Y) * L_Y.sum(self.axis, keepdims=True)


def logsumexp_array(X: Any, axes: Any) -> Any:
    """log sum exp(x) over axes, which stay with length 1; -inf for no elements."""
    xp = array_module(X)
    Y, top = shifted(X, axes)
    with np.errstate(divide="ignore"):
        return xp.log(xp.exp(Y).sum(axes, keepdims=True)) + top


class LogSumExp(Function):
    """L_X = L_Y * softmax(X)    (over the axes)"""

    widens_half = True

    def forward(self, X, axes, keepdims):
        self.axes, self.kept = axes, tuple(1 if i in axes else n for i, n in enumerate(X.shape))
        self.save(X)
        Y = logsumexp_array(X, axes)
        return Y if keepdims else Y.reshape([n for i, n in enumerate(X.shape) if i not in axes])

    def backward(self, L_Y):
        (X,) = self.saved
        return L_Y.reshape(self.kept) * softmax_array(X, self.axes)


def softmax(x: Any, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along an axis of x, an int, without overflow. Integers become float64.

    A row of -inf alone, such as a fully masked row of attention, gives zeros. An element of +inf gives NaN, and 0 in
    the rest of its row. ValueError for an axis that x does not have.
    """
    x = as_real(x)
    return Softmax.apply(x, axis=normalize_axis("softmax", axis, x.ndim))


def log_softmax(x: Any, axis: int = -1) -> Tensor:
    """x - log(sum(exp(x))) along an axis of x, an int, without overflow. Integers become float64.

    A row of -inf alone gives NaN, and so does an element of +inf. ValueError for an axis that x does not have.
    """
    x = as_real(x)
    return LogSoftmax.apply(x, axis=normalize_axis("log_softmax", axis, x.ndim))


def logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) over axes of x, without overflow. Integers become float64. Where all elements are -inf it is
    -inf, with gradients 0.

    axis: an int, a tuple, or None for all axes. keepdims: whether these axes stay, with length 1. ValueError for an
    axis that x does not have.
    """
    x = as_real(x)
    return LogSumExp.apply(x, axes=normalize_axes("logsumexp", axis, x.ndim), keepdims=keepdims)
