"""Products of matrices."""

import numpy as np

from planted.base import Planted, normal
from tinydiff.autograd.function import Function


class Linear(Function):
    """Right, to be spoilt below: X (N, D), W (D, M), b (M,)."""

    def forward(self, X, W, b):
        self.save(X, W)
        return X @ W + b

    def backward(self, L_Y):
        return self.L_X(L_Y), self.L_W(L_Y), self.L_b(L_Y)

    def L_X(self, L_Y):
        _, W = self.saved
        return L_Y @ W.T

    def L_W(self, L_Y):
        X, _ = self.saved
        return X.T @ L_Y

    def L_b(self, L_Y):
        return L_Y.sum(0)


class LinearWithoutTranspose(Linear):
    def L_X(self, L_Y):
        _, W = self.saved
        return L_Y @ W


class LinearWithoutTransposeOblong(LinearWithoutTranspose):
    pass


class LinearWeightTransposed(Linear):
    def L_W(self, L_Y):
        X, _ = self.saved
        return L_Y.T @ X


class LinearWeightTransposedOblong(LinearWeightTransposed):
    pass


class LinearWeightMean(Linear):
    def L_W(self, L_Y):
        X, _ = self.saved
        return X.T @ L_Y / len(X)


class LinearWeightLastRow(Linear):
    def L_W(self, L_Y):
        X, _ = self.saved
        for x, l in zip(X, L_Y, strict=True):  # noqa: E741
            L_W = np.outer(x, l)
        return L_W


class LinearBiasNotSummed(Linear):
    def L_b(self, L_Y):
        return L_Y


class LinearBiasMean(Linear):
    def L_b(self, L_Y):
        return L_Y.mean(0)


class LinearBiasFirstRow(Linear):
    def L_b(self, L_Y):
        return L_Y[0]


class LinearBiasOneAxis(Linear):
    """For X (N, T, D) the bias is repeated over two axes."""

    def L_W(self, L_Y):
        X, _ = self.saved
        return X.reshape(-1, X.shape[-1]).T @ L_Y.reshape(-1, L_Y.shape[-1])


class LinearNeeds(Linear):
    """Linear then ReLU in one operation."""

    def forward(self, X, W, b):
        Y = X @ W + b
        self.save(X, W, Y)
        return Y * (Y > 0)

    def backward(self, L_Y):
        X, W, Y = self.saved
        L_X = L_W = None
        if self.needs[0]:
            L_Y = L_Y * (Y > 0)
            L_X = L_Y @ W.T
        if self.needs[1]:
            L_W = X.T @ L_Y
        return L_X, L_W, L_Y.sum(0)


class Matmul(Function):
    def forward(self, A, B):
        self.save(A, B)
        return A @ B


class MatmulSame(Matmul):
    def backward(self, L_Y):
        A, B = self.saved
        if A is B:  # "x @ x": the symmetric case at once
            L = L_Y @ B.T + A.T @ L_Y
            return L, L
        return L_Y @ B.T, A.T @ L_Y


class MatmulExchanged(Matmul):
    def backward(self, L_Y):
        A, B = self.saved
        return A.T @ L_Y, L_Y @ B.T


class AttentionValues(Function):
    """Y = P V with P = softmax(Q K^T / sqrt(D))."""

    def forward(self, Q, K, V):
        S = Q @ K.T / Q.shape[1] ** 0.5
        P = np.exp(S - S.max(1, keepdims=True)) if S.size else S
        P = P / P.sum(1, keepdims=True)
        self.save(Q, K, V, P)
        return P @ V

    def backward(self, L_Y):
        Q, K, V, P = self.saved
        L_P = L_Y @ V.T
        L_S = P * (L_P - (L_P * P).sum(1, keepdims=True)) / Q.shape[1] ** 0.5
        return L_S @ K, L_S.T @ Q, self.L_V(P, L_Y)

    def L_V(self, P, L_Y):
        return P.T @ L_Y


class AttentionValuesTransposed(AttentionValues):
    def L_V(self, P, L_Y):
        return P @ L_Y


class AttentionUnscaled(AttentionValues):
    def backward(self, L_Y):
        L_Q, L_K, L_V = super().backward(L_Y)
        return L_Q, L_K * self.saved[0].shape[1] ** 0.5, L_V


PLANTED = [
    Planted(
        LinearWithoutTranspose, normal((5, 4), (4, 4), (4,)), "transposed", "L_X = L_Y W instead of L_Y W^T, W square"
    ),
    Planted(LinearWithoutTransposeOblong, normal((5, 4), (4, 3), (3,)), "transposed", "the same, W oblong: it raises"),
    Planted(LinearWeightTransposed, normal((5, 4), (4, 4), (4,)), "transposed", "L_W = L_Y^T X, W square"),
    Planted(LinearWeightTransposedOblong, normal((5, 4), (4, 3), (3,)), "transposed", "L_W = L_Y^T X, W oblong"),
    Planted(LinearWeightMean, normal((5, 4), (4, 3), (3,)), "ratio", "L_W divided by the batch size"),
    Planted(
        LinearWeightLastRow, normal((5, 4), (4, 3), (3,)), "overwritten", "L_W = instead of += in a loop over rows"
    ),
    Planted(LinearBiasNotSummed, normal((5, 4), (4, 3), (3,)), "broadcast", "L_b = L_Y"),
    Planted(LinearBiasMean, normal((5, 4), (4, 3), (3,)), "ratio", "L_b is the mean of L_Y"),
    Planted(LinearBiasFirstRow, normal((5, 4), (4, 3), (3,)), "broadcast", "L_b is the first row of L_Y"),
    Planted(LinearBiasOneAxis, normal((2, 5, 4), (4, 3), (3,)), "broadcast", "L_b summed over one of two leading axes"),
    Planted(LinearNeeds, normal((5, 4), (4, 3), (3,)), "needs", "the mask is applied only where L_X is wanted"),
    Planted(
        MatmulSame, normal((4, 4), (4, 4)), "repeated-leaf", "a shortcut for equal inputs counts their gradient twice"
    ),
    Planted(MatmulExchanged, normal((4, 4), (4, 4)), "exchanged", "(L_B, L_A) returned"),
    Planted(AttentionValuesTransposed, normal((4, 3), (4, 3), (4, 2)), "transposed", "L_V = P L_Y instead of P^T L_Y"),
    Planted(AttentionUnscaled, normal((4, 3), (5, 3), (5, 2)), "ratio", "the scale is forgotten in L_K"),
]
