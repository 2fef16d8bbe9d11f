"""Right formulas with wrong memory: written in place, read without strides, kept between calls."""

import numpy as np

from planted.base import Planted, normal
from tinydiff.autograd.function import Function


def as_a_kernel_reads(a):
    """The a.size numbers that lie behind a's first one in memory: what code sees that ignores strides."""
    owner = a
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    flat = owner.ravel(order="K")
    first = (a.__array_interface__["data"][0] - owner.__array_interface__["data"][0]) // a.itemsize
    return flat[(first + np.arange(a.size)) % max(flat.size, 1)].reshape(a.shape)


class ScaleKernel(Function):
    def forward(self, X):
        return X * 2.0

    def backward(self, L_Y):
        return as_a_kernel_reads(L_Y) * 2.0


class SquareKernel(Function):
    """Reads its input without strides in forward, and so does backward."""

    def forward(self, X):
        self.save(as_a_kernel_reads(X))
        return as_a_kernel_reads(X) ** 2

    def backward(self, L_Y):
        (X,) = self.saved
        return 2 * X * L_Y


class MemoryOrder(Function):
    """Flattens L_Y in the order in which it lies in memory."""

    def forward(self, X):
        return X * 3.0

    def backward(self, L_Y):
        return L_Y.ravel(order="K").reshape(self.shapes[0]) * 3.0


class ExpInPlace(Function):
    def forward(self, X):
        Y = np.exp(X)
        self.save(Y)
        return Y

    def backward(self, L_Y):
        (Y,) = self.saved
        L_Y *= Y
        return L_Y


class CentreInPlace(Function):
    def forward(self, X):
        X -= X.mean(0)
        return X * 1.0

    def backward(self, L_Y):
        return L_Y - L_Y.mean(0)


class ReluMarksInPlace(Function):
    def forward(self, X):
        self.save(X)
        return np.maximum(X, 0)

    def backward(self, L_Y):
        (X,) = self.saved
        L_Y[X <= 0] = 0
        return L_Y


class SharedCache(Function):
    """Keeps its input on the class, where the next call finds it."""

    def forward(self, X):
        type(self).kept = X
        return X**3

    def backward(self, L_Y):
        return 3 * type(self).kept ** 2 * L_Y


class BufferNotCleared(Function):
    """Adds to a buffer that it keeps, and that nobody clears."""

    buffers: dict = {}  # noqa: RUF012

    def forward(self, X, w):
        self.save(X, w)
        return X * w

    def backward(self, L_Y):
        X, w = self.saved
        L_w = self.buffers.setdefault(w.shape, np.zeros(w.shape))
        L_w += (L_Y * X).sum(0)
        return L_Y * w, L_w.copy()


class NoiseInBackward(Function):
    """Rounds its gradient at random, to save memory."""

    rng = np.random.default_rng(0)

    def forward(self, X):
        return X * 1.5

    def backward(self, L_Y):
        return L_Y * 1.5 + 1e-3 * self.rng.normal(size=L_Y.shape)


PLANTED = [
    Planted(ScaleKernel, normal((4, 5)), "strides", "a kernel that ignores the strides of L_Y"),
    Planted(SquareKernel, normal((4, 5)), "strides", "a kernel that ignores the strides of its input"),
    Planted(MemoryOrder, normal((4, 5)), "strides", "flattened in memory order"),
    Planted(ExpInPlace, normal((4, 5)), "in-place", "L_Y *= y"),
    Planted(CentreInPlace, normal((4, 5)), "in-place", "forward changes its input"),
    Planted(ReluMarksInPlace, normal((4, 5)), "in-place", "L_Y[x <= 0] = 0"),
    Planted(SharedCache, normal((4, 5)), "reused", "kept on the class between forward and backward"),
    Planted(BufferNotCleared, normal((4, 5), (5,)), "not-repeatable", "a gradient buffer is not cleared"),
    Planted(NoiseInBackward, normal((4, 5)), "not-repeatable", "stochastic rounding"),
]
