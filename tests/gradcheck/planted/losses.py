"""Losses."""

import numpy as np

from planted.base import Planted, normal
from tinydiff.autograd.function import Function


class MseSign(Function):
    def forward(self, P, Y):
        self.save(P - Y)
        return ((P - Y) ** 2).mean()

    def backward(self, L):
        (D,) = self.saved
        L_P = 2 * D * L / D.size
        return L_P, L_P


class MseUndivided(Function):
    def forward(self, P, Y):
        self.save(P - Y)
        return ((P - Y) ** 2).mean()

    def backward(self, L):
        (D,) = self.saved
        return 2 * D * L, -2 * D * L


class MseBatchMean(Function):
    """The mean over the batch of a sum in forward, over everything in backward."""

    def forward(self, P, Y):
        self.save(P - Y)
        return ((P - Y) ** 2).sum() / len(P)

    def backward(self, L):
        (D,) = self.saved
        return 2 * D * L / D.size, -2 * D * L / D.size


class CrossEntropy(Function):
    """The mean over rows of -log softmax at labels 0, 1, 2, 0, ..."""

    def forward(self, X):
        P = np.exp(X)
        P = P / P.sum(1, keepdims=True)
        self.save(P)
        self.labels = np.arange(len(X)) % max(1, min(3, X.shape[1]))
        return -np.log(P[np.arange(len(X)), self.labels]).mean()

    def onehot(self, labels):
        return np.eye(self.saved[0].shape[1])[labels]


class CrossEntropyUndivided(CrossEntropy):
    def backward(self, L):
        (P,) = self.saved
        return L * (P - self.onehot(self.labels))


class CrossEntropyAlone(CrossEntropy):
    def backward(self, L):
        (P,) = self.saved
        return (P - self.onehot(self.labels)) / len(P)


class CrossEntropySign(CrossEntropy):
    def backward(self, L):
        (P,) = self.saved
        return L * (self.onehot(self.labels) - P) / len(P)


class CrossEntropyNextLabel(CrossEntropy):
    def backward(self, L):
        (P,) = self.saved
        return L * (P - self.onehot(self.labels + 1)) / len(P)


class CrossEntropyWithoutLabels(CrossEntropy):
    def backward(self, L):
        (P,) = self.saved
        return L * P / len(P)


class KlVariance(Function):
    """KL(N(m, exp(s)) || N(0, 1)) summed: (m^2 + exp(s) - 1 - s) / 2."""

    def forward(self, m, s):
        self.save(m, s)
        return ((m**2 + np.exp(s) - 1 - s) / 2).sum()

    def backward(self, L):
        m, s = self.saved
        return L * m, L * (np.exp(s) - 1)


class HuberBranch(Function):
    """x^2 / 2 inside of -1..1, |x| - 1/2 outside."""

    def forward(self, X):
        self.save(X)
        return np.where(np.abs(X) < 1, X * X / 2, np.abs(X) - 0.5)

    def backward(self, L_Y):
        (X,) = self.saved
        return L_Y * np.minimum(X, 1)


PLANTED = [
    Planted(MseSign, normal((4, 5), (4, 5)), "sign", "the target gets the prediction's gradient"),
    Planted(MseUndivided, normal((4, 5), (4, 5)), "ratio", "the mean's 1/N is missing"),
    Planted(MseBatchMean, normal((4, 5), (4, 5)), "ratio", "mean over elements instead of rows"),
    Planted(CrossEntropyUndivided, normal((5, 4)), "ratio", "not divided by the batch size"),
    Planted(CrossEntropyAlone, normal((5, 4)), "ignores-upstream", "L is not multiplied in"),
    Planted(CrossEntropySign, normal((5, 4)), "sign", "onehot - p"),
    Planted(CrossEntropyNextLabel, normal((5, 4)), "shifted", "labels counted from 1 in backward"),
    Planted(CrossEntropyWithoutLabels, normal((5, 4)), "partial", "p instead of p - onehot"),
    Planted(KlVariance, normal((4, 5), (4, 5)), "ratio", "the half of the variance's part is forgotten"),
    Planted(HuberBranch, normal((6, 5)), "branch", "clipped on one side only"),
]
