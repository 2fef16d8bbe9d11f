"""Operations that move elements: indexing, joining, shapes; and masks."""

import numpy as np

from planted.base import Planted, normal
from tinydiff.autograd.function import Function


class EmbeddingOverwritten(Function):
    """Rows 1, 3, 1, 0 and 3 of a table."""

    INDICES = np.array([1, 3, 1, 0, 3])

    def forward(self, W):
        return W[self.INDICES]

    def backward(self, L_Y):
        L_W = np.zeros(self.shapes[0])
        L_W[self.INDICES] += L_Y
        return L_W


class ScatterOverwritten(Function):
    """X (N, D) added up in three bins, then picked again for each row."""

    def forward(self, X):
        bins = np.arange(len(X)) % 3
        sums = np.stack([X[bins == b].sum(0) for b in range(3)])
        self.bins = bins
        return sums[bins]

    def backward(self, L_Y):
        sums = np.zeros((3, L_Y.shape[1]))
        for b, l in zip(self.bins, L_Y, strict=True):  # noqa: E741
            sums[b] = l
        return sums[self.bins]


class ConcatenateExchanged(Function):
    def forward(self, A, B):
        return np.concatenate([A, B], 1)

    def backward(self, L_Y):
        n = self.shapes[0][1]
        return L_Y[:, n:], L_Y[:, :n]


class SplitOffByOne(Function):
    """The elements from index 1 on along axis 0."""

    def forward(self, X):
        return X[1:].copy()

    def backward(self, L_Y):
        L_X = np.zeros(self.shapes[0])
        L_X[:-1] = L_Y
        return L_X


class TransposeSameOrder(Function):
    """Axes in the order (1, 2, 0); backward applies the same order again."""

    def forward(self, X):
        return X.transpose(1, 2, 0)

    def backward(self, L_Y):
        return L_Y.transpose(1, 2, 0)


class TransposeSameOrderCube(TransposeSameOrder):
    pass


class ReshapeOrder(Function):
    def forward(self, X):
        return X.reshape(-1)

    def backward(self, L_Y):
        return L_Y.reshape(self.shapes[0], order="F")


class FlipForgotten(Function):
    def forward(self, X):
        return X[:, ::-1]

    def backward(self, L_Y):
        return L_Y


class RowsSqueezed(Function):
    """Rows times their number; backward drops axes of length 1 on its way."""

    def forward(self, X):
        return X * 3.0

    def backward(self, L_Y):
        return np.squeeze(L_Y) * 3.0


class BroadcastKept(Function):
    """x (C, 1) repeated to (C, 5)."""

    def forward(self, x):
        return np.broadcast_to(x, (*x.shape[:-1], 5)).copy()

    def backward(self, L_Y):
        return L_Y


class CausalMask(Function):
    """Scores above the diagonal are replaced by -1."""

    def forward(self, S):
        self.mask = np.tri(*S.shape, dtype=bool)
        return np.where(self.mask, S, -1.0)

    def backward(self, L_Y):
        return L_Y


class DropoutUnscaled(Function):
    def forward(self, X):
        self.kept = np.random.default_rng(5).random(X.shape) > 0.4
        return X * self.kept / 0.6

    def backward(self, L_Y):
        return L_Y * self.kept


class DropoutOtherMask(Function):
    def forward(self, X):
        return X * (np.random.default_rng(5).random(X.shape) > 0.4) / 0.6

    def backward(self, L_Y):
        return L_Y * (np.random.default_rng(6).random(L_Y.shape) > 0.4) / 0.6


class Detached(Function):
    """A skip connection x + f(x) whose first x is taken for a constant; f doubles."""

    def forward(self, X, b):
        return X + 2 * b

    def backward(self, L_Y):
        return np.zeros_like(L_Y), 2 * L_Y


PLANTED = [
    Planted(EmbeddingOverwritten, normal((5, 3)), "overwritten", "L_W[i] += L_Y, which adds repeated rows only once"),
    Planted(ScatterOverwritten, normal((7, 2)), "overwritten", "= instead of += into bins"),
    Planted(ConcatenateExchanged, normal((3, 4), (3, 4)), "exchanged", "the parts are handed back in the wrong order"),
    Planted(SplitOffByOne, normal((6, 3)), "shifted", "the gradient is put one row too early"),
    Planted(TransposeSameOrder, normal((3, 4, 5)), "transposed", "the order of axes is not inverted"),
    Planted(TransposeSameOrderCube, normal((4, 4, 4)), "transposed", "the same on a cube, where the shapes fit"),
    Planted(ReshapeOrder, normal((4, 5)), "transposed", "reshaped back in Fortran order"),
    Planted(FlipForgotten, normal((4, 5)), "flipped", "not flipped back"),
    Planted(RowsSqueezed, normal((4, 5)), "broadcast", "squeeze drops an axis when its length is 1", {"sizes": True}),
    Planted(BroadcastKept, normal((4, 1)), "broadcast", "not summed over the repeated axis"),
    Planted(CausalMask, normal((5, 5)), "mask", "the mask is not applied in backward"),
    Planted(DropoutUnscaled, normal((4, 5)), "ratio", "1 / (1 - p) is forgotten"),
    Planted(DropoutOtherMask, normal((6, 5)), "mask", "a new mask is drawn in backward"),
    Planted(Detached, normal((4, 5), (4, 5)), "zero", "no gradient for an input that matters"),
]
