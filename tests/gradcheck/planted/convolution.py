"""Images: convolution, pooling, padding, upsampling. Images are (N, H, W, C)."""

import numpy as np

from planted.base import Planted, normal
from tinydiff.autograd.function import Function


def pad(X, by):
    N, H, W, C = X.shape
    padded = np.zeros((N, H + 2 * by, W + 2 * by, C), X.dtype)
    padded[:, by : by + H, by : by + W] = X
    return padded


class Conv(Function):
    """X (N, H, W, C), w (3, 3, C, K), b (K,), padding 1, stride 1: right, to be spoilt below."""

    TAPS = tuple((r, s) for r in range(3) for s in range(3))

    def forward(self, X, w, b):
        _, H, W, _ = X.shape
        self.save(X, w)
        padded = pad(X, 1)
        return sum(padded[:, r : r + H, s : s + W] @ w[r, s] for r, s in self.TAPS) + b

    def backward(self, L_Y):
        return self.L_X(L_Y), self.L_w(L_Y), self.L_b(L_Y)

    def L_X(self, L_Y):
        X, w = self.saved
        _, H, W, _ = X.shape
        L_X = pad(np.zeros_like(X), 1)
        for r, s in self.TAPS:
            L_X[:, r : r + H, s : s + W] += L_Y @ w[r, s].T
        return L_X[:, 1:-1, 1:-1]

    def L_w(self, L_Y):
        X, w = self.saved
        _, H, W, _ = X.shape
        padded, L_w = pad(X, 1), np.zeros_like(w)
        for r, s in self.TAPS:
            L_w[r, s] = np.tensordot(padded[:, r : r + H, s : s + W], L_Y, ([0, 1, 2], [0, 1, 2]))
        return L_w

    def L_b(self, L_Y):
        return L_Y.sum((0, 1, 2))


class ConvNotTurned(Conv):
    """L_X as a convolution of L_Y with the filter as it is instead of turned by 180 degrees."""

    def L_X(self, L_Y):
        X, w = self.saved
        _, H, W, _ = X.shape
        padded = pad(L_Y, 1)
        return sum(padded[:, r : r + H, s : s + W] @ w[r, s].T for r, s in self.TAPS)


class ConvChannelsExchanged(Conv):
    def L_X(self, L_Y):
        X, w = self.saved
        _, H, W, _ = X.shape
        L_X = pad(np.zeros_like(X), 1)
        for r, s in self.TAPS:
            L_X[:, r : r + H, s : s + W] += L_Y @ w[r, s]
        return L_X[:, 1:-1, 1:-1]


class ConvOverwritten(Conv):
    def L_X(self, L_Y):
        X, w = self.saved
        _, H, W, _ = X.shape
        L_X = pad(np.zeros_like(X), 1)
        for r, s in self.TAPS:
            L_X[:, r : r + H, s : s + W] = L_Y @ w[r, s].T
        return L_X[:, 1:-1, 1:-1]


class ConvDroppedTap(Conv):
    def L_X(self, L_Y):
        X, w = self.saved
        _, H, W, _ = X.shape
        L_X = pad(np.zeros_like(X), 1)
        for r, s in self.TAPS[:-1]:
            L_X[:, r : r + H, s : s + W] += L_Y @ w[r, s].T
        return L_X[:, 1:-1, 1:-1]


class ConvCropped(Conv):
    """The padding is cut off one pixel too early on one side and made up for on the other."""

    def L_X(self, L_Y):
        X, w = self.saved
        _, H, W, _ = X.shape
        L_X = pad(np.zeros_like(X), 1)
        for r, s in self.TAPS:
            L_X[:, r : r + H, s : s + W] += L_Y @ w[r, s].T
        return L_X[:, :-2, 1:-1]


class ConvBorder(Conv):
    """Outputs whose window reaches into the padding are left out."""

    def L_X(self, L_Y):
        inner = np.zeros_like(L_Y)
        inner[:, 1:-1, 1:-1] = L_Y[:, 1:-1, 1:-1]
        return super().L_X(inner)


class ConvWeightLastImage(Conv):
    def L_w(self, L_Y):
        X, w = self.saved
        _, H, W, _ = X.shape
        padded, L_w = pad(X, 1), np.zeros_like(w)
        for image, L in zip(padded, L_Y, strict=True):
            for r, s in self.TAPS:
                L_w[r, s] = np.einsum("hwc,hwk->ck", image[r : r + H, s : s + W], L)
        return L_w


class ConvWeightShifted(Conv):
    """Patches for L_w cut from images that are padded on one side twice."""

    def L_w(self, L_Y):
        X, w = self.saved
        _, H, W, _ = X.shape
        padded, L_w = np.pad(X, ((0, 0), (2, 0), (1, 1), (0, 0))), np.zeros_like(w)
        for r, s in self.TAPS:
            L_w[r, s] = np.tensordot(padded[:, r : r + H, s : s + W], L_Y, ([0, 1, 2], [0, 1, 2]))
        return L_w


class ConvWeightTransposed(Conv):
    def L_w(self, L_Y):
        return super().L_w(L_Y).transpose(1, 0, 2, 3)


class ConvBiasPerImage(Conv):
    def L_b(self, L_Y):
        return L_Y.sum((1, 2))


class AvgPool(Function):
    """Means over windows of 2 x 2."""

    def forward(self, X):
        N, H, W, C = X.shape
        return X.reshape(N, H // 2, 2, W // 2, 2, C).mean((2, 4))


class AvgPoolUndivided(AvgPool):
    def backward(self, L_Y):
        return L_Y.repeat(2, 1).repeat(2, 2)


class BlurBorder(Function):
    """Means over 3 x 3 windows, the padding counting; backward divides by what lies inside of the image."""

    def forward(self, X):
        _, H, W, _ = X.shape
        padded = pad(X, 1)
        return sum(padded[:, r : r + H, s : s + W] for r in range(3) for s in range(3)) / 9

    def backward(self, L_Y):
        _, H, W, _ = L_Y.shape
        ones = pad(np.ones_like(L_Y), 1)
        count = sum(ones[:, r : r + H, s : s + W] for r in range(3) for s in range(3))
        padded = pad(L_Y, 1)
        return sum(padded[:, r : r + H, s : s + W] for r in range(3) for s in range(3)) / count


class MaxPoolFirst(Function):
    """The maximum over windows of 2 x 2; backward gives its gradient to the first element of each."""

    def forward(self, X):
        N, H, W, C = X.shape
        return X.reshape(N, H // 2, 2, W // 2, 2, C).max((2, 4))

    def backward(self, L_Y):
        L_X = np.zeros(self.shapes[0])
        L_X[:, ::2, ::2] = L_Y
        return L_X


class UpsampleCorner(Function):
    """Every pixel becomes four; backward takes the gradient of one of them."""

    def forward(self, X):
        return X.repeat(2, 1).repeat(2, 2)

    def backward(self, L_Y):
        return L_Y[:, ::2, ::2]


class UpsampleCounted(Function):
    """Every pixel becomes four; backward takes the first gradient twice and forgets the second."""

    def forward(self, X):
        return X.repeat(2, 1).repeat(2, 2)

    def backward(self, L_Y):
        L_X = L_Y[:, ::2, ::2].copy()
        for i, j in ((0, 0), (1, 0), (1, 1)):
            L_X += L_Y[:, i::2, j::2]
        return L_X


class ReflectCropped(Function):
    """Padding by reflection; backward cuts it off as if it were zeros."""

    def forward(self, X):
        return np.pad(X, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")

    def backward(self, L_Y):
        return L_Y[:, 1:-1, 1:-1]


class PadCropped(Function):
    """Padding by one before and two behind; backward takes them for each other."""

    def forward(self, X):
        return np.pad(X, ((0, 0), (1, 2), (0, 0), (0, 0)))

    def backward(self, L_Y):
        return L_Y[:, 2:-1]


class StrideForgotten(Function):
    """Every second row and column; backward writes the gradients side by side."""

    def forward(self, X):
        return X[:, ::2, ::2].copy()

    def backward(self, L_Y):
        _, H, W, _ = L_Y.shape
        L_X = np.zeros(self.shapes[0])
        L_X[:, :H, :W] = L_Y
        return L_X


_CONV = normal((2, 4, 3, 2), (3, 3, 2, 2), (2,))
_IMAGES = normal((2, 4, 6, 2))

PLANTED = [
    Planted(ConvNotTurned, _CONV, "flipped", "the filter is not turned for L_X"),
    Planted(
        ConvChannelsExchanged,
        normal((1, 4, 5, 3), (3, 3, 3, 3), (3,)),
        "transposed",
        "w instead of w^T, as many in as out",
    ),
    Planted(ConvOverwritten, _CONV, "overwritten", "= instead of += where patches overlap"),
    Planted(ConvDroppedTap, _CONV, "missing", "one of the nine taps is left out"),
    Planted(ConvCropped, _CONV, "shifted", "the padding is cut off in the wrong place"),
    Planted(ConvBorder, _CONV, "border", "windows that reach into the padding are left out"),
    Planted(ConvWeightLastImage, _CONV, "overwritten", "= instead of += over images"),
    Planted(ConvWeightShifted, _CONV, "shifted", "padding (2, 0) instead of (1, 1) for L_w"),
    Planted(ConvWeightTransposed, _CONV, "transposed", "rows and columns of the filter exchanged"),
    Planted(ConvBiasPerImage, _CONV, "broadcast", "L_b is not summed over images"),
    Planted(AvgPoolUndivided, _IMAGES, "ratio", "a mean's 1/4 is missing"),
    Planted(BlurBorder, normal((1, 6, 5, 1)), "border", "divided by the pixels inside of the image"),
    Planted(MaxPoolFirst, _IMAGES, "misplaced", "the first element instead of the largest"),
    Planted(UpsampleCorner, _IMAGES, "broadcast", "one of four copies counts"),
    Planted(UpsampleCounted, normal((2, 3, 4, 2)), "twice", "one of four copies counted twice, one not at all"),
    Planted(ReflectCropped, normal((1, 7, 8, 1)), "border", "what the reflection repeats is lost"),
    Planted(PadCropped, normal((2, 6, 4, 3)), "shifted", "before and behind exchanged"),
    Planted(StrideForgotten, normal((1, 6, 8, 2)), "misplaced", "the stride is forgotten"),
]
