"""Convolution: the fully connected layer on patches.

With P = patches(X), one row for each output pixel and one column for each weight of a filter,

    X (N, H, W, C)    P (N Ho Wo, R S C)    W (R S C, K)    b (K,)    Y (N Ho Wo, K)

a convolution is Y = P W + 1 b, and its backward pass is that of the fully connected layer (source A, 4.1.8-4.1.14)
followed by the adjoint of `patches`, which adds every entry of a patch back to the pixel that it was read from:

    L_P = L_Y W^T        (N Ho Wo, R S C) = (N Ho Wo, K) (K, R S C)
    L_W = P^T L_Y        (R S C, K) = (R S C, N Ho Wo) (N Ho Wo, K)
    L_b = 1^T L_Y        (1, K)
    L_X = patches^T(L_P)

Stride, padding and dilation only change which pixels a patch reads. With groups, each group of channels has its
own convolution. A transposed convolution is the adjoint in X: its forward pass is the backward pass above, and
the reverse.

`patches` and its adjoint are `unfold` and `fold` in `windows.py`. Faster ways to the same sums are in `cpu/convolution.py`
and `cuda/convolution.py`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, widened
from tinydiff.dispatch import accelerated_in_float32
from tinydiff.ops.arguments import add_bias, as_tensor, channels_first, pair
from tinydiff.ops.contraction import product
from tinydiff.ops.pooling import repeat_pixels, sum_pixel_blocks
from tinydiff.ops.shape import pad
from tinydiff.ops.windows import Window, by_group, fold, joined, unfold
from tinydiff.precision import emulated_by, rounds_factors

Shape = tuple[int, ...]

SAME = Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))  # of a 3x3 convolution that keeps the size of images

# A 3x3 convolution of doubled pixels is the adjoint of one with stride 2 from L_Y to L_X, by 4x4 filters. Their tap j is the sum of
# the taps r of W through which output 2 p - 1 + j sees a copy of pixel p. Kernels compute it so, and so does `emulated`.
DOUBLING = Window((4, 4), (2, 2), ((1, 1), (1, 1)), (1, 1))


class Patches(Function):
    """L_X = patches^T(L_Y)."""

    def forward(self, X, window):
        self.window = window
        P = unfold(X, window)
        self.by_pixel = P.shape
        return P.reshape(-1, P.shape[3] * P.shape[4] * P.shape[5])

    def backward(self, L_Y):
        return fold(widened(L_Y).reshape(self.by_pixel), self.shapes[0], self.window)


class Unpatches(Function):
    """L_P = patches(L_Y)."""

    widens_half = True

    def forward(self, P, shape, window):
        self.window = window
        return fold(P.reshape(shape[0], *window.output_size(shape), *window.size, shape[3]), shape, window)

    def backward(self, L_Y):
        return unfold(L_Y, self.window).reshape(self.shapes[0])


class Conv2d(Function):
    """Y = P W + 1 b + E + R, group by group; E has one row for all pixels of an image, R one for each pixel.

    L_E = sum(L_Y)    (over the pixels of each image)
    L_R = L_Y
    """

    adds_waiting, gives_new, takes_half, weights = True, True, True, slice(1, 2)

    def forward(self, X, W, b, E, R, window, groups):
        self.window, self.groups = window, groups
        self.save(X, W)
        return convolve(X, W, b, window, groups, E, R)

    def backward(self, L_Y):
        X, W = self.saved
        L_X = L_W = L_b = L_E = L_R = None
        if self.needs[0]:
            L_X = convolve_input_gradient(L_Y, W, X.shape, self.window, self.groups)  # patches^T(L_Y W^T)
        if self.needs[1]:
            L_W = convolve_weight_gradient(X, L_Y, W.shape, self.window, self.groups)  # P^T L_Y
        if self.needs[2]:
            L_E, L_b = sum_pixels_and_images(L_Y)  # 1^T L_Y
        elif self.needs[3]:
            L_E = sum_pixels(L_Y)
        if self.needs[4]:
            L_R = L_Y
        return L_X, L_W, L_b, L_E, L_R


class UpsampleConv2d(Function):
    """Conv2d of the image U whose pixels are doubled, by 3x3 filters: P = patches(U), U = doubling(X). U is not kept: its
    gradient is summed back to X."""

    adds_waiting, gives_new, takes_half, weights = True, True, True, slice(1, 2)

    def forward(self, X, W, b):
        self.save(X, W)
        return upsample_convolve(X, W, b)

    def backward(self, L_Y):
        X, W = self.saved
        L_X = L_W = L_b = None
        if self.needs[0]:
            L_X = upsample_convolve_input_gradient(L_Y, W)  # doubling^T(patches^T(L_Y W^T))
        if self.needs[1]:
            L_W = upsample_convolve_weight_gradient(X, L_Y)  # P^T L_Y
        if self.needs[2]:
            _, L_b = sum_pixels_and_images(L_Y)  # 1^T L_Y
        return L_X, L_W, L_b


class ConvTranspose2d(Function):
    """The adjoint of X -> P W: Y = patches^T(X W^T), hence L_X = patches(L_Y) W and L_W = patches(L_Y)^T X."""

    gives_new = widens_half = True

    def forward(self, X, W, b, shape, window, groups):
        self.window, self.groups = window, groups
        self.save(X, W)
        Y = convolve_input_gradient(X, W, shape, window, groups)
        return Y if b is None else add_bias(Y, b)

    def backward(self, L_Y):
        X, W = self.saved
        L_X = L_W = L_b = None
        if self.needs[0]:
            L_X = convolve(L_Y, W, None, self.window, self.groups)  # patches(L_Y) W
        if self.needs[1]:
            L_W = convolve_weight_gradient(L_Y, X, W.shape, self.window, self.groups)  # patches(L_Y)^T X
        if self.needs[2]:
            _, L_b = sum_pixels_and_images(L_Y)  # 1^T L_Y
        return L_X, L_W, L_b


@rounds_factors
@accelerated_in_float32
def convolve(X: Any, W: Any, b: Any, window: Window, groups: int = 1, E: Any = None, R: Any = None) -> Any:
    """Y = P W + 1 b + E + R with b (K,), E (N, K) for all pixels of an image, R (N, Ho, Wo, K); None leaves one out."""
    P = by_group(unfold(X, window), groups)
    Y = joined(product(P, by_group(W, groups)), (len(X), *window.output_size(X.shape), W.shape[3]))  # Y = P W
    for term in (b, None if E is None else E[:, None, None], R):
        Y = Y if term is None else Y + term
    return Y


@rounds_factors
@accelerated_in_float32
def convolve_input_gradient(L_Y: Any, W: Any, shape: tuple[int, ...], window: Window, groups: int = 1) -> Any:
    """L_X = patches^T(L_P) with L_P = L_Y W^T, for X of the given shape."""
    L_P = product(by_group(L_Y, groups), by_group(W, groups), transpose_b=True)  # L_P = L_Y W^T
    return fold(joined(L_P, (*L_Y.shape[:3], *window.size, shape[3])), shape, window)


@rounds_factors
@accelerated_in_float32
def convolve_weight_gradient(X: Any, L_Y: Any, shape: tuple[int, ...], window: Window, groups: int = 1) -> Any:
    """L_W = P^T L_Y, for W of the given shape."""
    P = by_group(unfold(X, window), groups)
    return joined(product(P, by_group(L_Y, groups), transpose_a=True), shape)  # L_W = P^T L_Y


@accelerated_in_float32
def sum_pixels(X: Any) -> Any:
    """The sum over the pixels of each image: X (N, H, W, C) -> (N, C)."""
    return X.sum((1, 2))


@accelerated_in_float32
def sum_pixels_and_images(X: Any) -> Any:
    """The sum over the pixels of each image, and that over all images: X (N, H, W, C) -> (N, C) and (C,)."""
    L_E = sum_pixels(X)
    return L_E, L_E.sum(0)


def _sum_taps(W: Any) -> Any:
    """T (4, 4, K, C), through which the outputs around the 2 x 2 copies of a pixel see it: sums of the taps W (3, 3, C, K)."""
    W = widened(W)
    rows, stack = (W[2], W[1] + W[2], W[0] + W[1], W[0]), array_module(W).stack
    return stack([stack([b[2], b[1] + b[2], b[0] + b[1], b[0]]) for b in rows]).swapaxes(2, 3)


def _upsample_convolve(X: Any, W: Any, b: Any) -> Any:
    Y = convolve_input_gradient(X, _sum_taps(W), (len(X), 2 * X.shape[1], 2 * X.shape[2], W.shape[3]), DOUBLING)
    return Y if b is None else Y + b


def _upsample_convolve_weight_gradient(X: Any, L_Y: Any) -> Any:
    L_T = convolve_weight_gradient(L_Y, X, (4, 4, L_Y.shape[3], X.shape[3]), DOUBLING)
    rows, stack = (L_T[2] + L_T[3], L_T[1] + L_T[2], L_T[0] + L_T[1]), array_module(L_T).stack
    return stack([stack([b[2] + b[3], b[1] + b[2], b[0] + b[1]]) for b in rows]).swapaxes(2, 3)


@emulated_by(_upsample_convolve)
@accelerated_in_float32
def upsample_convolve(X: Any, W: Any, b: Any) -> Any:
    """The 3x3 convolution of X with its pixels doubled: X (N, H, W, C), W (3, 3, C, K), b (K,) or None ->
    (N, 2 H, 2 W, K)."""
    return convolve(repeat_pixels(X, (2, 2)), W, b, SAME)


@emulated_by(lambda L_Y, W: convolve(L_Y, _sum_taps(W), None, DOUBLING))
@accelerated_in_float32
def upsample_convolve_input_gradient(L_Y: Any, W: Any) -> Any:
    """The gradient of a doubled pixel is the sum of those of its copies: L_Y (N, 2 H, 2 W, K) -> L_X (N, H, W, C)."""
    return sum_pixel_blocks(convolve_input_gradient(L_Y, W, (*L_Y.shape[:3], W.shape[2]), SAME), (2, 2))


@emulated_by(_upsample_convolve_weight_gradient)
@accelerated_in_float32
def upsample_convolve_weight_gradient(X: Any, L_Y: Any) -> Any:
    """That of the convolution that sees the doubled pixels: X (N, H, W, C), L_Y (N, 2 H, 2 W, K) -> L_W (3, 3, C, K)."""
    return convolve_weight_gradient(repeat_pixels(X, (2, 2)), L_Y, (3, 3, X.shape[3], L_Y.shape[3]), SAME)


def patches(x: Any, kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> Tensor:
    """What a convolution sees: x (N, H, W, C) -> (N Ho Wo, R S C), a row for each output pixel (n, i, j).

    Entry (r, s, c) of the row is channel c of pixel (i stride + r dilation - top, j stride + s dilation - left), 0
    outside of the image. kernel_size: (R, S) or an int. stride, padding, dilation: as for `conv2d`. ValueError where x
    is not images or the window does not fit into them.
    """
    x = as_tensor(x)
    _check_images("patches", x.shape)
    window = Window.read("patches", kernel_size, stride, padding, dilation)
    window.check("patches", x.shape)
    return Patches.apply(x, window=window)


def unpatches(
    p: Any, shape: tuple[int, ...], kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1
) -> Tensor:
    """The adjoint of `patches`: p (N Ho Wo, R S C) -> images of the shape (N, H, W, C). Every entry is added to the
    pixel that `patches` reads it from.

    kernel_size, stride, padding, dilation: as for `patches`. ValueError where p is not of the shape of such images'
    patches.
    """
    p, shape = as_tensor(p), tuple(shape)
    if len(shape) != 4:
        raise ValueError(f"unpatches: shape must be that of images (N, H, W, C), not {shape}")
    window = Window.read("unpatches", kernel_size, stride, padding, dilation)
    window.check("unpatches", shape)
    (N, _, _, C), (Ho, Wo), (R, S) = shape, window.output_size(shape), window.size
    if p.shape != (N * Ho * Wo, R * S * C):
        raise ValueError(f"unpatches: p {p.shape} is not {(N * Ho * Wo, R * S * C)}, the patches of images {shape}")
    return Unpatches.apply(p, shape=shape, window=window)


def conv2d(
    x: Any, w: Any, b: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    """The two-dimensional convolution (cross-correlation) of images with filters, plus a bias.

    x (N, H, W, C), w (R, S, C / groups, K), b (K,) or None -> (N, Ho, Wo, K) with
    Ho = floor((H + top + bottom - dilation (R - 1) - 1) / stride) + 1, Wo likewise.

    stride, dilation: in pixels, an int or (vertical, horizontal).
    padding: pixels of zeros, an int, (vertical, horizontal), or ((top, bottom), (left, right)).
    groups: each of `groups` equal runs of channels has its own filters.

    It is the fully connected layer (source A, 4.1) on patches, as derived at the head of this file. ValueError where
    shapes do not fit, channels are not divisible by groups, or the filter is larger than the padded image.
    """
    x, w = as_tensor(x), as_tensor(w)
    return Conv2d.apply(
        x, w, b, None, None, window=_read("conv2d", x, w, b, groups, stride, padding, dilation), groups=groups
    )


def conv2d_add(
    x: Any, w: Any, b: Any = None, embedding: Any = None, residual: Any = None, stride: Any = 1, padding: Any = 0
) -> Tensor:
    """conv2d(x, w, b, stride, padding) + embedding + residual in one operation, which saves passes over the images.

    embedding (N, K) is added to all pixels of an image, residual (N, Ho, Wo, K) to each pixel; None leaves one out.
    """
    x, w = as_tensor(x), as_tensor(w)
    window = _read("conv2d_add", x, w, b, 1, stride, padding, 1)
    shape = (x.shape[0], *window.output_size(x.shape), w.shape[3])
    for name, term, needed in (("embedding", embedding, (shape[0], shape[3])), ("residual", residual, shape)):
        if term is not None and as_tensor(term).shape != needed:
            raise ValueError(f"conv2d_add: {name} {as_tensor(term).shape} must be {needed} for an output of {shape}")
    return Conv2d.apply(x, w, b, embedding, residual, window=window, groups=1)


def upsample_conv2d(x: Any, w: Any, b: Any = None) -> Tensor:
    """conv2d(upsample_nearest2d(x), w, b, padding=1) for 3x3 filters: x (N, H, W, C), w (3, 3, C, K) ->
    (N, 2 H, 2 W, K)."""
    x, w = as_tensor(x), as_tensor(w)
    if w.shape[:2] != (3, 3):
        raise ValueError(f"upsample_conv2d: w must be filters (3, 3, C, K), not of shape {w.shape}")
    _read("upsample_conv2d", x, w, b, 1, 1, 1, 1)
    return UpsampleConv2d.apply(x, w, b)


def conv_transpose2d(
    x: Any,
    w: Any,
    b: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """The transposed convolution, the adjoint of `conv2d` with the same w, plus a bias (Dumoulin and Visin, 2016, 4).

    x (N, H, W, K), w (R, S, C / groups, K), b (C,) or None -> (N, Ho, Wo, C) with
    Ho = (H - 1) stride - top - bottom + dilation (R - 1) + 1 + output_padding, Wo likewise.

    stride, padding, dilation, groups: as for `conv2d`.
    output_padding: rows added at the bottom and columns at the right, an int or a pair, below stride or dilation. Below
        the stride it chooses among the sizes that `conv2d` maps to H.

    ValueError where shapes do not fit or no pixels are left.
    """
    name = "conv_transpose2d"
    x, w = as_tensor(x), as_tensor(w)
    _check_images(name, x.shape)
    outputs = (w.shape[2] * groups,) if w.ndim == 4 else ()
    window = _read_weights(name, w.shape, _shape(b), groups, stride, padding, dilation, outputs)
    if x.shape[3] != w.shape[3]:
        hint = channels_first(x.shape, w.shape[3])
        raise ValueError(f"{name}: x {x.shape} has {x.shape[3]} channels, w {w.shape} takes {w.shape[3]}{hint}")
    extra = pair(name, "output_padding", output_padding, 0)
    if any(e >= max(s, d) and e > 0 for e, s, d in zip(extra, window.stride, window.dilation, strict=True)):
        raise ValueError(f"{name}: output_padding {output_padding} must be smaller than the stride or the dilation")
    size = [
        (n - 1) * s - sum(p) + d * (r - 1) + 1 + e
        for n, s, p, d, r, e in zip(
            x.shape[1:3], window.stride, window.padding, window.dilation, window.size, extra, strict=True
        )
    ]
    if min(size) < 1:
        raise ValueError(f"{name}: x {x.shape} with filters {window.size} and padding {padding} gives no pixels")
    # conv2d maps an image enlarged by a stride or more to more than H rows: the others belong to rows of zeros below x
    rows, columns = (e // s for e, s in zip(extra, window.stride, strict=True))
    if rows or columns:
        x = pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)))
    return ConvTranspose2d.apply(x, w, b, shape=(x.shape[0], *size, w.shape[2] * groups), window=window, groups=groups)


def _read(name: str, x: Tensor, w: Tensor, b: Any, groups: int, stride: Any, padding: Any, dilation: Any) -> Window:
    """The window of a convolution whose arguments fit; ValueError in the name of the operation."""
    plain = type(groups) is type(stride) is type(padding) is type(dilation) is int
    # checking takes 10 microseconds, a tenth of a small convolution
    fit = _known_fit if plain else _fit
    return fit(name, x.shape, w.shape, _shape(b), groups, stride, padding, dilation)


def _fit(
    name: str, x: Shape, w: Shape, b: Shape | None, groups: int, stride: Any, padding: Any, dilation: Any
) -> Window:
    _check_images(name, x)
    window = _read_weights(name, w, b, groups, stride, padding, dilation, w[3:4])
    if x[3] != w[2] * groups:
        hint = channels_first(x, w[2] * groups)
        if not hint and x[3] == w[1] * groups:
            hint = "; filters are (R, S, C / groups, K) here: write w.transpose(2, 3, 1, 0) for PyTorch's (K, C / groups, R, S)"
        raise ValueError(f"{name}: x {x} has {x[3]} channels, w {w} with groups={groups} takes {w[2] * groups}{hint}")
    window.check(name, x)
    return window


_known_fit = lru_cache(1024)(_fit)


def _shape(b: Any) -> Shape | None:
    return None if b is None else as_tensor(b).shape


def _check_images(name: str, x: Shape) -> None:
    if len(x) != 4:
        raise ValueError(f"{name}: x must be images (N, H, W, C), not of shape {x}")


def _read_weights(
    name: str, w: Shape, b: Shape | None, groups: int, stride: Any, padding: Any, dilation: Any, outputs: Shape
) -> Window:
    if len(w) != 4:
        raise ValueError(f"{name}: w must be filters (R, S, C / groups, K), not of shape {w}")
    if not isinstance(groups, int) or groups < 1 or w[3] % groups:
        raise ValueError(f"{name}: the {w[3]} filters of w {w} do not divide into groups={groups}")
    if b is not None and b != outputs:
        raise ValueError(f"{name}: b {b} does not fit w {w}; needed is {outputs}")
    return Window.read(name, w[:2], stride, padding, dilation)
