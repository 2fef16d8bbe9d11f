"""Sums, means, variances and extremes over axes.

Backward passes first restore the reduced axes of the gradient, with length 1, so it broadcasts against the input.
"""

from __future__ import annotations

import math
from typing import Any

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module
from tinydiff.dispatch import accelerated
from tinydiff.ops.arguments import as_real, as_tensor, check_number, normalize_axes
from tinydiff.ops.broadcasting import masked


@accelerated
def sum_of_squares(x: Any) -> Any:
    """|x|^2 of x (n,), a number or an array () of its dtype."""
    return (x * x).sum()


class Reduction(Function):
    """Remembers its axes. `restored(L_Y)` is the gradient with those axes restored, of length 1."""

    widens_half = True

    def reduce_over(self, X: Any, axis: Any) -> None:
        self.axes = axis
        self.kept = tuple(1 if i in axis else n for i, n in enumerate(X.shape))
        self.n = math.prod(X.shape[i] for i in axis)

    def restored(self, L_Y: Any) -> Any:
        return L_Y.reshape(self.kept)


class Sum(Reduction):
    """L_X = L_Y    (repeated along the axes that were summed over)"""

    def forward(self, X, axis, keepdims):
        self.reduce_over(X, axis)
        return X.sum(axis, keepdims=keepdims)

    def backward(self, L_Y):
        return array_module(L_Y).broadcast_to(self.restored(L_Y), self.shapes[0])


class Mean(Reduction):
    """L_X = L_Y / n    (repeated along the axes; each mean is over n elements)"""

    def forward(self, X, axis, keepdims):
        self.reduce_over(X, axis)
        return X.mean(axis, keepdims=keepdims)

    def backward(self, L_Y):
        return array_module(L_Y).broadcast_to(self.restored(L_Y) / self.n, self.shapes[0])


class Var(Reduction):
    """y = sum (x - m)^2 / (n - ddof), and the sum of x - m is 0, so the mean's own slope drops out.

    L_X = 2 (X - mean(X)) * L_Y / (n - ddof)    (mean over the axes, of n elements each)
    """

    def forward(self, X, axis, keepdims, ddof):
        self.reduce_over(X, axis)
        self.scale = 2 / (self.n - ddof)
        self.save(X)
        return X.var(axis, keepdims=keepdims, ddof=ddof)

    def backward(self, L_Y):
        (X,) = self.saved
        return (X - X.mean(self.axes, keepdims=True)) * (self.restored(L_Y) * self.scale)


class Std(Reduction):
    """y = sqrt(sum (x - m)^2 / (n - ddof)).

    L_X = (X - mean(X)) * L_Y / ((n - ddof) Y)    (mean over the axes, of n elements each; 0 where Y is 0)
    """

    def forward(self, X, axis, keepdims, ddof):
        self.reduce_over(X, axis)
        self.scale = 1 / (self.n - ddof)
        Y = X.std(axis, keepdims=keepdims, ddof=ddof)
        self.save(X, Y)
        return Y

    def backward(self, L_Y):
        X, Y = self.saved
        D = X - X.mean(self.axes, keepdims=True)
        return D * (_per_length(self.restored(L_Y), self.restored(Y)) * self.scale)


class Norm(Reduction):
    """y = sqrt(sum x^2), L_X = X * L_Y / Y    (0 where Y is 0)"""

    def forward(self, X, axis, keepdims):
        self.reduce_over(X, axis)
        Y = array_module(X).sqrt((X * X).sum(axis, keepdims=keepdims))
        self.save(X, Y)
        return Y

    def backward(self, L_Y):
        X, Y = self.saved
        return X * _per_length(self.restored(L_Y), self.restored(Y))


def _per_length(L_Y: Any, Y: Any) -> Any:
    """L_Y / Y, 0 where Y = 0."""
    zero = Y == 0
    return masked(~zero, L_Y / array_module(Y).where(zero, Y.dtype.type(1), Y))


class Max(Reduction):
    """Equal extremes share the gradient equally. NaN counts as the extreme.

    L_X = H * L_Y / sum(H),  H = (X == Y)    (sum over the axes)
    """

    def forward(self, X, axis, keepdims):
        self.reduce_over(X, axis)
        Y = X.max(axis, keepdims=keepdims)
        self.save(X, Y)
        return Y

    def backward(self, L_Y):
        X, Y = self.saved
        hit = (self.restored(Y) == X) | (X != X)
        count = hit.sum(self.axes, keepdims=True).astype(L_Y.dtype)
        return masked(hit, self.restored(L_Y) / count)


class Min(Max):
    """L_X = H * L_Y / sum(H),  H = (X == Y)    (sum over the axes)"""

    def forward(self, X, axis, keepdims):
        self.reduce_over(X, axis)
        Y = X.min(axis, keepdims=keepdims)
        self.save(X, Y)
        return Y


def sum(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The sum of x over axes.

    axis: an int, a tuple, or None for all axes. keepdims: whether the axes summed over stay, with length 1. ValueError
    for an axis that x does not have.
    """
    x = as_tensor(x)
    return Sum.apply(x, axis=normalize_axes("sum", axis, x.ndim), keepdims=keepdims)


def mean(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The mean of x over axes. Over no elements it is NaN.

    axis: an int, a tuple, or None for all axes. keepdims: whether the axes averaged over stay, with length 1.
    ValueError for an axis that x does not have.
    """
    x = as_tensor(x)
    return Mean.apply(x, axis=normalize_axes("mean", axis, x.ndim), keepdims=keepdims)


def var(x: Any, axis: Any = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
    """The variance of x over axes: the sum of squared deviations from the mean, divided by n - ddof for n elements.

    axis: an int, a tuple, or None for all axes. keepdims: whether these axes stay, with length 1. ddof: a number; 0
    gives the variance of the elements themselves, 1 the unbiased estimate from a sample. ValueError where n <= ddof and
    for an axis that x does not have.
    """
    return _spread(Var, "var", x, axis, keepdims, ddof)


def std(x: Any, axis: Any = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
    """The standard deviation of x over axes, the square root of `var`. Where it is 0, its slope is taken as 0.

    axis, keepdims, ddof: as for `var`, and so are the errors.
    """
    return _spread(Std, "std", x, axis, keepdims, ddof)


def norm(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The Euclidean norm of x over axes: the square root of the sum of squares. Where it is 0, its slope is taken as 0.

    axis: an int, a tuple, or None for all axes. keepdims: whether these axes stay, with length 1. ValueError for an
    axis that x does not have. Integers become float64.
    """
    x = as_real(x)
    return Norm.apply(x, axis=normalize_axes("norm", axis, x.ndim), keepdims=keepdims)


def _spread(function: type[Reduction], name: str, x: Any, axis: Any, keepdims: bool, ddof: int) -> Tensor:
    x = as_tensor(x)
    axes = normalize_axes(name, axis, x.ndim)
    check_number(name, "ddof", ddof)
    n = math.prod(x.shape[i] for i in axes)
    if n <= ddof:
        raise ValueError(f"{name}: {n} elements of shape {x.shape} over axes {axes} are too few for ddof={ddof}")
    return function.apply(x, axis=axes, keepdims=keepdims, ddof=ddof)


def max(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The largest element of x over axes, NaN where there is one. Equal largest elements share the gradient equally.

    axis: an int, a tuple, or None for all axes. keepdims: whether these axes stay, with length 1. ValueError for an
    axis that is empty or that x does not have.
    """
    return _extreme(Max, "max", x, axis, keepdims)


def min(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The smallest element of x over axes, NaN where there is one. Equal smallest elements share the gradient equally.

    axis: an int, a tuple, or None for all axes. keepdims: whether these axes stay, with length 1. ValueError for an
    axis that is empty or that x does not have.
    """
    return _extreme(Min, "min", x, axis, keepdims)


def _extreme(function: type[Reduction], name: str, x: Any, axis: Any, keepdims: bool) -> Tensor:
    x = as_tensor(x)
    axes = normalize_axes(name, axis, x.ndim)
    if any(x.shape[i] == 0 for i in axes):
        raise ValueError(f"{name}: there is no extreme over an empty axis of shape {x.shape}")
    return function.apply(x, axis=axes, keepdims=keepdims)
