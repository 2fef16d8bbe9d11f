"""3x3 convolutions of images whose pixels are doubled, on tensor cores, without the doubled image.

With U = doubling(X), P(U) W has each number of X in up to four taps of W. Summing those taps first leaves a quarter of the pixels:

    Y[:, i::2, j::2] = P(X) F[i, j]     four 2x2 filters, 16 / 36 of the multiplications
    L_X = P(L_Y) V^T                    one 4x4 filter with stride 2, the same number
    L_V = P(L_Y)^T X                    its gradient, of which L_W are sums

F and V are the same 16 sums of taps (`doubled_taps` in kernels/resampling.cu). They are float32 and rounded as operands are. All
functions take contiguous float32 arrays, and say whether they launched, as those of `tensor_convolution.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.cuda import tensor_convolution
from tinydiff.cuda.resampling import launch_vectors
from tinydiff.cuda.taps import Place, Taps, Turned

_PIXEL = Taps(
    (2, 2), (1, 1), (1, 1), (1, 1)
)  # of the output at the top left of 2 x 2; for the others one pixel further
_AROUND = Taps((4, 4), (2, 2), (1, 1), (1, 1))  # the outputs that see a pixel


def convolve(X: Any, W: Any, b: Any, Y: Any, precision: str) -> bool:
    """X (N, H, W, C), W (3, 3, C, K), b (K,) or None, Y (N, 2 H, 2 W, K)."""
    _, height, width, _ = X.shape
    place = Place(height, width, 2 * height, 2 * width, (2, 2))
    F = array_module(W).empty((4, 2, 2, *W.shape[2:]), np.float32)
    if not tensor_convolution.takes(X, F, (b, None, None), Y, _PIXEL, place, precision):
        return False
    sum_taps(W, F, by_pixel=True)
    return tensor_convolution.convolve(X, F, (b, None, None), Y, _PIXEL, place, precision)


def convolve_input_gradient(L_Y: Any, W: Any, L_X: Any, precision: str) -> bool:
    """L_Y (N, 2 H, 2 W, K), W (3, 3, C, K), L_X (N, H, W, C)."""
    place, none = Place(*L_X.shape[1:3], *L_X.shape[1:3]), (None, None, None)
    V = array_module(W).empty((4, 4, *W.shape[2:]), np.float32)
    if not tensor_convolution.takes(L_Y, V, none, L_X, _AROUND, place, precision):
        return False
    sum_taps(W, V)
    return tensor_convolution.convolve(L_Y, V, none, L_X, _AROUND, place, precision, Turned((0, 0), (-1, -1)))


def convolve_weight_gradient(X: Any, L_Y: Any, L_V: Any, precision: str) -> bool:
    """X (N, H, W, C), L_Y (N, 2 H, 2 W, K), L_V (4, 4, K, C)."""
    return tensor_convolution.convolve_weight_gradient(L_Y, X, L_V, _AROUND, precision)


def sum_taps(W: Any, V: Any, by_pixel: bool = False) -> None:
    """V (4, 4, C, K), or by_pixel (4, 2, 2, C, K), from W (3, 3, C, K)."""
    entries = W.shape[2] * W.shape[3]
    launch_vectors("doubled_taps", entries, [W, V], V.size, (entries, int(by_pixel)))


def sum_taps_backward(L_V: Any, L_W: Any) -> None:
    """L_W (3, 3, C, K) from L_V (4, 4, C, K)."""
    entries = L_W.shape[2] * L_W.shape[3]
    launch_vectors("doubled_taps_backward", entries, [L_V, L_W], L_W.size, (entries,))
