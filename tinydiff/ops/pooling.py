"""Pooling and upsampling of images."""

from __future__ import annotations

from typing import Any

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, is_float, widened
from tinydiff.dispatch import accelerated
from tinydiff.ops.arguments import as_tensor, pair
from tinydiff.ops.broadcasting import masked
from tinydiff.ops.windows import Window, fold, pad_images, sliding_view


class AvgPool2d(Function):
    """Y is the mean over each window of n pixels, and every pixel of it gets L_Y / n.

    L_X = patches^T(L_Y / n)    (added up where windows overlap)
    """

    widens_half = True

    def forward(self, X, window):
        self.window, self.n = window, window.size[0] * window.size[1]
        view = sliding_view(pad_images(X, window), window, window.output_size(X.shape))
        return view.mean((3, 4))

    def backward(self, L_Y):
        (R, S), xp = self.window.size, array_module(L_Y)
        N, Ho, Wo, C = L_Y.shape
        L_P = xp.broadcast_to((L_Y / self.n)[:, :, :, None, None], (N, Ho, Wo, R, S, C))
        return fold(L_P, self.shapes[0], self.window)


class MaxPool2d(Function):
    """Equal largest entries of a window share its gradient equally. NaN counts as the largest.

    L_X = patches^T(H * L_Y / sum(H)),  H = (patches(X) == Y)    (sum over each window)
    """

    widens_half = True

    def forward(self, X, window):
        self.window = window
        Y = self._view(X).max((3, 4))
        self.save(X, Y)
        return Y

    def backward(self, L_Y):
        X, Y = self.saved
        V = self._view(X)
        hit = (Y[:, :, :, None, None] == V) | (V != V)
        if self.window.padded:  # padding equals the maximum of a window of -inf
            hit &= self._view(array_module(X).zeros((1, *X.shape[1:3], 1), X.dtype)) == 0
        share = L_Y / hit.sum((3, 4)).astype(L_Y.dtype)
        return fold(masked(hit, share[:, :, :, None, None]), X.shape, self.window)

    def _view(self, X):
        return sliding_view(
            pad_images(X, self.window, fill=-float("inf")), self.window, self.window.output_size(X.shape)
        )


class UpsampleNearest2d(Function):
    """Each pixel becomes f x g equal ones and so gets the sum of their gradients.

    L_X = sum(L_Y)    (over each block of pixels that were one)
    """

    def forward(self, X, factor):
        self.factor = factor
        return repeat_pixels(X, factor)

    def backward(self, L_Y):
        return sum_pixel_blocks(widened(L_Y), self.factor)


@accelerated
def repeat_pixels(X: Any, factor: tuple[int, int]) -> Any:
    """Every pixel of X (N, H, W, C) as f x g equal ones: (N, f H, g W, C)."""
    (f, g), (N, H, W, C) = factor, X.shape
    Y = array_module(X).empty((N, H, f, W, g, C), X.dtype)
    Y[...] = X[:, :, None, :, None]
    return Y.reshape(N, H * f, W * g, C)


@accelerated
def sum_pixel_blocks(L_Y: Any, factor: tuple[int, int]) -> Any:
    """The sum of every f x g pixels of L_Y (N, f H, g W, C): (N, H, W, C)."""
    f, g = factor
    parts = [L_Y[:, i::f, j::g] for i in range(f) for j in range(g)]
    L_X = parts[0].copy()
    for part in parts[1:]:
        L_X += part
    return L_X


def avg_pool2d(x: Any, window: Any, stride: Any = None, padding: Any = 0) -> Tensor:
    """The mean over windows of x (N, H, W, C) -> (N, Ho, Wo, C), with Ho and Wo as for `conv2d`.

    window: the size (R, S) in pixels, or an int. stride: an int or a pair; the window's size if None. padding: pixels
    of zeros, as for `conv2d`; they count in the mean. ValueError where x is not images or the window does not fit into
    them.
    """
    x, moving = _read("avg_pool2d", x, window, stride, padding)
    return AvgPool2d.apply(x, window=moving)


def max_pool2d(x: Any, window: Any, stride: Any = None, padding: Any = 0) -> Tensor:
    """The maximum over windows of x (N, H, W, C) -> (N, Ho, Wo, C), with Ho and Wo as for `conv2d`. Equal maxima share
    the gradient.

    window: the size (R, S) in pixels, or an int. stride: an int or a pair; the window's size if None. padding: as for
    `conv2d`, at most half the window; a padded pixel is never the maximum. ValueError where x is not images or window
    and padding do not fit, TypeError for integers.
    """
    x, moving = _read("max_pool2d", x, window, stride, padding)
    if any(2 * max(p) > r for p, r in zip(moving.padding, moving.size, strict=True)):
        raise ValueError(f"max_pool2d: padding {padding} must be at most half of the window {window}")
    if not is_float(x.dtype):
        raise TypeError(f"max_pool2d: needs a floating point tensor, not {x.dtype}")
    return MaxPool2d.apply(x, window=moving)


def upsample_nearest2d(x: Any, factor: Any = 2) -> Tensor:
    """x (N, H, W, C) -> (N, f H, g W, C): every pixel becomes f x g equal ones.

    factor: (f, g), or an int for both, at least 1. ValueError where x is not images or for another factor.
    """
    x = as_tensor(x)
    if x.ndim != 4:
        raise ValueError(f"upsample_nearest2d: x must be images (N, H, W, C), not of shape {x.shape}")
    return UpsampleNearest2d.apply(x, factor=pair("upsample_nearest2d", "factor", factor, 1))


def _read(name: str, x: Any, window: Any, stride: Any, padding: Any) -> tuple[Tensor, Window]:
    x = as_tensor(x)
    if x.ndim != 4:
        raise ValueError(f"{name}: x must be images (N, H, W, C), not of shape {x.shape}")
    moving = Window.read(name, window, window if stride is None else stride, padding, 1)
    moving.check(name, x.shape)
    return x, moving
