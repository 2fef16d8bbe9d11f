"""Convolutions from or to images of few channels, such as a network's first and last: patches as planes.

With one channel, copying patches pixel by pixel copies three numbers at a time. Here patches are planes, one for each
entry of the filter, and a plane is made of whole rows of pixels:

    P_n (R S C, Ho Wo)    Y_n = P_n^T W    L_P_n = W L_Y_n^T    L_W = sum_n P_n L_Y_n

With stride 1, a convolution to few channels is the input gradient of one from few channels, with its filters turned by
180 degrees. It reads its large image only once.

Measured on one AVX-512 core for 64 images of 32x32, the definition against this: from 1 channel to 32, 2.3 and 1.3 ms,
weight gradient 2.0 and 0.64; from 32 to 1, 5.9 and 2.2 ms, input gradient 1.7 and 0.68, weight gradient 5.7 and 0.65.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.cpu.patches import add_terms, image_blocks, result_type
from tinydiff.machine.threads import share
from tinydiff.machine.workspaces import workspace
from tinydiff.ops.windows import Window

Array = np.ndarray
Terms = tuple[Any, Any, Any]

FEW_CHANNELS = 4  # at most
ENTRIES_OF_A_BLOCK = 1 << 17  # of patches


def convolve(X: Any, W: Any, b: Any, window: Window, groups: int = 1, E: Any = None, R: Any = None) -> Any:
    """Y = P W + 1 b + E + R from few channels or to few, in float32."""
    C, K = W.shape[2:]
    if is_faster(C, K, groups, X, W) and result_type(X, W, b, E, R) == X.dtype:
        return _from_few(X, W, (b, E, R), window)
    if is_faster(K, C, groups, X, W) and window.turned is not None and result_type(X, W, b, E, R) == X.dtype:
        shape = (len(X), *window.output_size(X.shape), K)
        return _back_to_few(X, turn(W), (b, E, R), shape, window.turned)
    return NotImplemented


def convolve_weight_gradient(X: Any, L_Y: Any, shape: tuple[int, ...], window: Window, groups: int = 1) -> Any:
    """L_W = P^T L_Y from few channels or to few, in float32."""
    R, S, C, K = shape
    if is_faster(C, K, groups, X, L_Y):
        return _weight_gradient(X, L_Y, shape, window)
    if is_faster(K, C, groups, X, L_Y) and window.turned is not None:
        return turn(_weight_gradient(L_Y, X, (R, S, K, C), window.turned))
    return NotImplemented


def is_faster(few: int, many: int, groups: int, *arrays: Array) -> bool:
    """Whether a convolution between these numbers of channels is computed here. float64 is left to other algorithms."""
    return few <= FEW_CHANNELS < many and groups == 1 and all(a.dtype == np.float32 for a in arrays)


def turn(W: Array) -> Array:
    """The filters (R, S, K, C) that lead from outputs back to inputs with stride 1: turned by 180 degrees."""
    return np.ascontiguousarray(W[::-1, ::-1].swapaxes(2, 3))


def _from_few(X: Array, W: Array, terms: Terms, window: Window) -> Array:
    """Y = P^T W plus b, E and R, which may be None: X (N, H, W, C), W (R, S, C, K) -> (N, Ho, Wo, K)."""
    K, N, (Ho, Wo) = W.shape[3], len(X), window.output_size(X.shape)
    Y, filters = np.empty((N, Ho, Wo, K), X.dtype), W.reshape(-1, K)

    def some(blocks: list[slice]) -> None:
        for images in blocks:
            P = _planes(X[images], window)
            np.matmul(P.swapaxes(1, 2), filters, out=Y[images].reshape(-1, Ho * Wo, K))
            add_terms(Y, images, *terms)

    share(some, image_blocks(N, Ho * Wo * len(filters), ENTRIES_OF_A_BLOCK))
    return Y


def _back_to_few(L_Y: Array, W: Array, terms: Terms, shape: tuple[int, ...], window: Window) -> Array:
    """L_X: every plane of L_P = W L_Y^T added to the pixels that it was read from, plus terms; L_Y (N, Ho, Wo, K) -> shape."""
    (R, S, C, K), (N, Ho, Wo, _) = W.shape, L_Y.shape
    (N, height, width, _), ((top, bottom), (left, right)) = shape, window.padding
    L_X, filters = np.empty(shape, L_Y.dtype), np.ascontiguousarray(W.reshape(-1, K))

    def some(blocks: list[slice]) -> None:
        for images in blocks:
            l_y = L_Y[images].reshape(-1, Ho * Wo, K)
            L_P = workspace("planes", (len(l_y), R, S, C, Ho, Wo))
            np.matmul(filters, l_y.swapaxes(1, 2), out=L_P.reshape(len(l_y), R * S * C, Ho * Wo))
            sums = workspace("sums of planes", (len(l_y), C, height + top + bottom, width + left + right))
            sums[...] = 0
            for r in range(R):
                for s in range(S):
                    i, j = r * window.dilation[0], s * window.dilation[1]
                    (a, b), (e, f) = window.stride, (Ho - 1, Wo - 1)
                    sums[:, :, i : i + a * e + 1 : a, j : j + b * f + 1 : b] += L_P[:, r, s]
            L_X[images] = sums[:, :, top : top + height, left : left + width].transpose(0, 2, 3, 1)
            add_terms(L_X, images, *terms)

    share(some, image_blocks(N, Ho * Wo * len(filters), ENTRIES_OF_A_BLOCK))
    return L_X


def _weight_gradient(X: Array, L_Y: Array, shape: tuple[int, ...], window: Window) -> Array:
    """L_W = sum_n P_n L_Y_n: X (N, H, W, C), L_Y (N, Ho, Wo, K) -> (R, S, C, K); sums over images in order."""
    N, Ho, Wo, K = L_Y.shape
    rows = window.size[0] * window.size[1] * X.shape[3]

    def some(blocks: list[slice]) -> Array:
        L_W = np.zeros((rows, K), X.dtype)
        for images in blocks:
            L_W += np.matmul(_planes(X[images], window), L_Y[images].reshape(-1, Ho * Wo, K)).sum(0)
        return L_W

    L_W, *others = share(some, image_blocks(N, Ho * Wo * rows, ENTRIES_OF_A_BLOCK))
    for other in others:
        L_W += other
    return L_W.reshape(shape)


def _planes(X: Array, window: Window) -> Array:
    """(n, R S C, Ho Wo), valid until the thread's next call."""
    (n, H, W, C), (R, S) = X.shape, window.size
    (Ho, Wo), ((top, bottom), (left, right)) = window.output_size(X.shape), window.padding
    padded = workspace("padded planes", (n, C, H + top + bottom, W + left + right))
    padded[...] = 0
    padded[:, :, top : top + H, left : left + W] = X.transpose(0, 3, 1, 2)
    image, channel, i, j = padded.strides
    (a, b), (c, d) = window.dilation, window.stride
    view = np.lib.stride_tricks.as_strided(
        padded, (n, R, S, C, Ho, Wo), (image, a * i, b * j, channel, c * i, d * j), writeable=False
    )
    P = workspace("planes", (n, R, S, C, Ho, Wo))
    P[...] = view
    return P.reshape(n, R * S * C, Ho * Wo)
