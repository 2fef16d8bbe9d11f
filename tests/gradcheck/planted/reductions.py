"""Sums, means, norms and normalisation."""

import numpy as np

from planted.base import Planted, normal
from tinydiff.autograd.function import Function


class MeanUndivided(Function):
    def forward(self, X):
        return X.mean(1)

    def backward(self, L_Y):
        return np.broadcast_to(L_Y[:, None], self.shapes[0])


class MeanWrongLength(Function):
    """The mean over axis 1, divided by the length of axis 0."""

    def forward(self, X):
        return X.mean(1)

    def backward(self, L_Y):
        return np.broadcast_to(L_Y[:, None], self.shapes[0]) / self.shapes[0][0]


class SumWithoutAxis(Function):
    """The sum over axis 1; backward leaves it to broadcasting to find the axis."""

    def forward(self, X):
        return X.sum(1)

    def backward(self, L_Y):
        return np.broadcast_to(L_Y, self.shapes[0])


class VarianceNotCentred(Function):
    def forward(self, X):
        self.save(X)
        return X.var(1)

    def backward(self, L_Y):
        (X,) = self.saved
        return 2 * X * L_Y[:, None] / X.shape[1]


class VarianceBiased(Function):
    def forward(self, X):
        self.save(X)
        return X.var(1, ddof=1) if X.shape[1] > 1 else X.var(1)

    def backward(self, L_Y):
        (X,) = self.saved
        return 2 * (X - X.mean(1, keepdims=True)) * L_Y[:, None] / X.shape[1]


class MaximumToAll(Function):
    def forward(self, X):
        return X.max(1)

    def backward(self, L_Y):
        return np.broadcast_to(L_Y[:, None], self.shapes[0])


class MaximumTied(Function):
    """Every one of several equal maxima gets the whole gradient."""

    def forward(self, X):
        top = X.max(1, keepdims=True)
        self.hit = top == X
        return X.max(1)

    def backward(self, L_Y):
        return L_Y[:, None] * self.hit


def _with_ties(rng):
    X = rng.normal(size=(4, 5))
    X[1, 2] = X[1, 4] = 9.0
    return [X]


class UnitNorm(Function):
    """Rows divided by their length."""

    def forward(self, X):
        r = np.sqrt((X * X).sum(1, keepdims=True))
        self.save(r)
        return X / r

    def backward(self, L_Y):
        (r,) = self.saved
        return L_Y / r


class CumulativeSum(Function):
    def forward(self, X):
        return np.cumsum(X, 1)

    def backward(self, L_Y):
        return np.cumsum(L_Y, 1)


class Moments(Function):
    """The means and the variances of rows, with a shortcut where no gradient comes from the means."""

    def forward(self, X):
        self.save(X)
        return X.mean(1), X.var(1)

    def backward(self, L_mean, L_var):
        (X,) = self.saved
        if not L_mean.any():
            return np.zeros_like(X)
        n = X.shape[1]
        return L_mean[:, None] / n + 2 * (X - X.mean(1, keepdims=True)) * L_var[:, None] / n


class Softmax(Function):
    def forward(self, X):
        P = np.exp(X)
        P = P / P.sum(1, keepdims=True)
        self.save(P)
        return P


class SoftmaxWithoutSum(Softmax):
    def backward(self, L_P):
        (P,) = self.saved
        return P * L_P


class SoftmaxDiagonal(Softmax):
    def backward(self, L_P):
        (P,) = self.saved
        return P * (1 - P) * L_P


class SoftmaxZeros(Softmax):
    def backward(self, L_P):
        (P,) = self.saved
        return np.zeros_like(P)


class SoftmaxOtherAxis(Softmax):
    def backward(self, L_P):
        (P,) = self.saved
        return P * (L_P - (P * L_P).sum(0, keepdims=True))


class LogSoftmaxWithoutSum(Function):
    def forward(self, X):
        Y = X - np.log(np.exp(X).sum(1, keepdims=True))
        self.save(Y)
        return Y

    def backward(self, L_Y):
        (Y,) = self.saved
        return L_Y - np.exp(Y)


class StandardizeWithoutVariance(Function):
    """Rows to mean 0 and variance 1."""

    def forward(self, X):
        centred = X - X.mean(1, keepdims=True)
        self.s = np.sqrt((centred**2).mean(1, keepdims=True))
        return centred / self.s

    def backward(self, L_Z):
        return (L_Z - L_Z.mean(1, keepdims=True)) / self.s


class GroupNorm(Function):
    """X (N, P, C) in two groups of channels, times w (C,)."""

    GROUPS = 2

    def forward(self, X, w):
        N, P, C = X.shape
        grouped = X.reshape(N, P, self.GROUPS, C // self.GROUPS)
        centred = grouped - grouped.mean((1, 3), keepdims=True)
        self.s = np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-5)
        Z = (centred / self.s).reshape(X.shape)
        self.save(Z, w)
        return Z * w

    def backward(self, L_Y):
        Z, w = self.saved
        shape = (*Z.shape[:2], self.GROUPS, -1)
        L_X = self.L_X((L_Y * w).reshape(shape), Z.reshape(shape), self.s)
        return L_X.reshape(Z.shape), (L_Y * Z).sum((0, 1))

    def L_X(self, L_Z, Z, s):
        mean = {"axis": (1, 3), "keepdims": True}
        return (L_Z - L_Z.mean(**mean) - Z * (L_Z * Z).mean(**mean)) / s


class GroupNormWithoutMean(GroupNorm):
    def L_X(self, L_Z, Z, s):
        return (L_Z - Z * (L_Z * Z).mean((1, 3), keepdims=True)) / s


class GroupNormWithoutVariance(GroupNorm):
    def L_X(self, L_Z, Z, s):
        return (L_Z - L_Z.mean((1, 3), keepdims=True)) / s


class GroupNormWithoutWeight(GroupNorm):
    def backward(self, L_Y):
        Z, _ = self.saved
        shape = (*Z.shape[:2], self.GROUPS, -1)
        return self.L_X(L_Y.reshape(shape), Z.reshape(shape), self.s).reshape(Z.shape), (L_Y * Z).sum((0, 1))


class GroupNormFirstTerm(GroupNorm):
    def L_X(self, L_Z, Z, s):
        return L_Z - (L_Z.mean((1, 3), keepdims=True) + Z * (L_Z * Z).mean((1, 3), keepdims=True)) / s


class GroupNormWeightPerImage(GroupNorm):
    def backward(self, L_Y):
        L_X, _ = super().backward(L_Y)
        return L_X, (L_Y * self.saved[0]).sum(1)


class LayerNormEps(Function):
    """eps under the root in forward, outside of it in backward."""

    def forward(self, X):
        centred = X - X.mean(1, keepdims=True)
        self.variance = (centred**2).mean(1, keepdims=True)
        self.save(centred)
        return centred / np.sqrt(self.variance + 1e-5)

    def backward(self, L_Y):
        (centred,) = self.saved
        s = np.sqrt(self.variance) + 1e-5
        Z = centred / s
        return (L_Y - L_Y.mean(1, keepdims=True) - Z * (L_Y * Z).mean(1, keepdims=True)) / s


class LogSumExpEmpty(Function):
    """log sum exp over axis 1; backward takes the maximum again, without the start value that forward had."""

    def forward(self, X):
        top = X.max(1, keepdims=True, initial=-1e30)
        self.save(X)
        with np.errstate(divide="ignore"):
            return np.log(np.exp(X - top).sum(1)) + top[:, 0]

    def backward(self, L_Y):
        (X,) = self.saved
        P = np.exp(X - X.max(1, keepdims=True))
        return L_Y[:, None] * P / P.sum(1, keepdims=True)


PLANTED = [
    Planted(MeanUndivided, normal((4, 5)), "ratio", "a mean's 1/N is missing"),
    Planted(
        MeanWrongLength,
        normal((4, 4)),
        "square-only",
        "divided by the length of the wrong axis, checked on a square",
        {"sizes": True},
    ),
    Planted(SumWithoutAxis, normal((4, 4)), "transposed", "the reduced axis is not put back, checked on a square"),
    Planted(VarianceNotCentred, normal((4, 5)), "mean-term", "2 x / n instead of 2 (x - mean) / n"),
    Planted(VarianceBiased, normal((4, 5)), "ratio", "n instead of n - 1"),
    Planted(MaximumToAll, normal((4, 5)), "mask", "every element gets the gradient, not the largest alone"),
    Planted(MaximumTied, _with_ties, "kink", "each of two equal maxima gets the whole gradient"),
    Planted(UnitNorm, normal((4, 5)), "variance-term", "the term through the norm is missing"),
    Planted(CumulativeSum, normal((4, 5)), "transposed", "summed in the same direction as in forward"),
    Planted(Moments, normal((4, 5)), "dropped-output", "a shortcut where the first output's gradient is 0"),
    Planted(SoftmaxWithoutSum, normal((4, 5)), "mean-term", "p L_p without its sum"),
    Planted(SoftmaxDiagonal, normal((4, 5)), "missing", "only the diagonal of the Jacobian"),
    Planted(SoftmaxZeros, normal((4, 5)), "zero", "nothing comes back, which is right for a constant L_Y"),
    Planted(SoftmaxOtherAxis, normal((4, 5)), "mean-term", "the sum runs over the other axis"),
    Planted(LogSoftmaxWithoutSum, normal((4, 5)), "mean-term", "p instead of p sum(L_Y)"),
    Planted(
        StandardizeWithoutVariance,
        normal((4, 7)),
        "variance-term",
        "the term through the variance is missing, without weights: right for a constant L_Y",
    ),
    Planted(GroupNormWithoutMean, normal((2, 6, 4), (4,)), "mean-term", "the term through the mean is missing"),
    Planted(
        GroupNormWithoutVariance, normal((2, 6, 4), (4,)), "variance-term", "the term through the variance is missing"
    ),
    Planted(GroupNormFirstTerm, normal((2, 6, 4), (4,)), "direct-term", "1/s is missing in the first of three terms"),
    Planted(GroupNormWithoutWeight, normal((2, 6, 4), (4,)), "operand", "L_Z = L_Y instead of L_Y w"),
    Planted(GroupNormWeightPerImage, normal((2, 6, 4), (4,)), "broadcast", "L_w is not summed over images"),
    Planted(LayerNormEps, normal((4, 9)), "small", "eps in another place than in forward"),
    Planted(LogSumExpEmpty, normal((4, 5)), "size-0", "fails on an empty axis that forward takes", {"sizes": True}),
]
