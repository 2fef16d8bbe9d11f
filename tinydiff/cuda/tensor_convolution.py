"""Convolutions on tensor cores (sm_80 on), by the kernels in kernels/tensor_convolution.cu and tensor_weight_gradient.cu.

`cuda/convolution.py` asks for them, with float32 arrays in the precision of `tensor.precision`. All functions take operands of
any precision of `tinydiff.precision` as they lie in memory, and say whether they launched: where not, nothing is done. They
take pixels of whole slices of channels, 16 in TF32 and 32 in 16 bits, and filters in whole pieces of 16 bytes; see each.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinydiff.backend import address, array_module
from tinydiff.cuda import tensor
from tinydiff.cuda.launch import launch
from tinydiff.cuda.split_k import slots
from tinydiff.cuda.taps import Place, Taps, Turned, gradient_products
from tinydiff.cuda.tensor import OLDEST, SLICE, TILES, Plan
from tinydiff.precision import IN_MEMORY, precision_of

SOURCE, WEIGHT_GRADIENT = "tensor_convolution.cu", "tensor_weight_gradient.cu"
_MOST_TAPS = 15  # along an axis: a bit each


def convolve(
    X: Any, W: Any, added: Any, Y: Any, taps: Taps, place: Place, precision: str | None, turned: Turned | None = None
) -> bool:
    """Y = P W + 1 b + E + R for contiguous arrays: X (images, H, W, C) and W (R, S, C, N), or (R, S, N, C) of which some taps
    are turned, or (4, R, S, C, N), filters for each pixel of 2 x 2 in Y; added: b (N,), E (images, N), both float32, and R
    like Y, each may be None; Y (images, height, width, N) float32 for TF32, else as X is. C in whole slices, N in whole pieces
    of 16 bytes."""
    if not takes(X, W, added, Y, taps, place, precision):
        return False
    (images, height, width, C), N, filters = X.shape, Y.shape[3], len(W) if W.ndim == 5 else 1
    M = images * place.Ho * place.Wo
    p = tensor.plan(M, N, math.prod(taps.size) * C, filters, X.itemsize)
    tiles = p.tiles(M, N)
    sizes = (images, height, width, C, N, *taps.size, place.Ho, place.Wo, *taps.stride, *taps.dilation, *taps.padding)
    S, (last, step) = W.shape[-3], turned or ((0, 0), (0, 0))
    order = (last[0] * S + last[1], step[0] * S, step[1])  # the first tap, from it to those below and to the right
    launch(
        SOURCE,
        "tensor_convolution",
        (tiles, filters, p.parts),
        (p.threads, 1, 1),
        (X, W, *added, Y, *slots(array_module(Y), p.parts, filters * tiles, p.m * p.n), *map(np.int32, (*sizes, *order)),
         *map(np.int32, (place.height, place.width, *place.step, *place.start))),
        p.shared,
        defines(p, str(precision), backward=turned is not None),
    )  # fmt: skip
    return True


def takes(X: Any, W: Any, added: Any, Y: Any, taps: Taps, place: Place, precision: str | None) -> bool:
    """Whether `convolve` would launch."""
    images, height, width, C = X.shape
    if not _takes(precision, taps, C, Y.shape[3], X, W, Y, *added) or C % (SLICE // X.itemsize):
        return False
    down, right = (s * n + abs(c) for s, n, c in zip(taps.stride, place[:2], taps.padding, strict=True))
    return ((images * height + down) * width + right) * C < 2**31  # where patches begin, in entries, is an int


def convolve_input_gradient(L_Y: Any, W: Any, L_X: Any, window: Any, precision: str | None, there: Any = None) -> bool:
    """L_X = patches^T(L_Y W^T) for contiguous arrays: L_Y (images, Ho, Wo, K), W (R, S, C, K), L_X (images, H, W, C) float32
    for TF32, else as L_Y is; there, like L_X or None, is added. K in whole slices, C in whole pieces of 16 bytes."""
    return all(
        convolve(L_Y, W, (None, None, there), L_X, *product[:2], precision, product[2])
        for product in gradient_products(window, L_X.shape)
    )


def convolve_weight_gradient(X: Any, L_Y: Any, L_W: Any, taps: Taps, precision: str | None) -> bool:
    """L_W = P^T L_Y for contiguous arrays: X (images, H, W, C), L_Y (images, Ho, Wo, K), L_W (R, S, C, K) float32. C and K in
    whole pieces of 16 bytes."""
    (images, height, width, C), (_, Ho, Wo, K) = X.shape, L_Y.shape
    if not _takes(precision, taps, C, K, X, L_Y, L_W) or C % (16 // X.itemsize):
        return False
    M = math.prod(taps.size) * C
    p = tensor.plan(M, K, images * Ho * Wo, 1, X.itemsize, True)
    tiles = p.tiles(M, K)
    sizes = (images, height, width, C, K, *taps.size, Ho, Wo, *taps.stride, *taps.dilation, *taps.padding)
    launch(
        WEIGHT_GRADIENT,
        "tensor_weight_gradient",
        (tiles, 1, p.parts),
        (p.threads, 1, 1),
        (X, L_Y, L_W, *slots(array_module(L_W), p.parts, tiles, p.m * p.n), *map(np.int32, sizes)),
        p.shared,
        gradient_defines(p, str(precision)),
    )
    return True


def _takes(precision: str | None, taps: Taps, C: int, N: int, X: Any, other: Any, *rest: Any) -> bool:
    """Whether there are kernels for a precision and for arrays of these sizes, at these addresses."""
    if precision in (None, "float32") or not C or max(taps.size) > _MOST_TAPS:
        return False
    assert X.dtype == other.dtype and precision_of(X.dtype) == precision_of(IN_MEMORY[precision])
    return not N % (16 // X.itemsize) and not any(a is not None and address(a) % 16 for a in (X, other, *rest))


def defines(p: Plan, precision: str, backward: bool) -> dict[str, Any]:
    """The macros of the kernel for a plan, its operands and their order."""
    result = "FLOAT32" if precision == "tf32" else precision.upper()
    return {**gradient_defines(p, precision), "RESULT": result, "BACKWARD": int(backward)}


def gradient_defines(p: Plan, precision: str) -> dict[str, Any]:
    """The macros of the kernel for filters' gradients."""
    return {"PRECISION": precision.upper(), "TILE_M": p.m, "TILE_N": p.n}


_PLANS = [(Plan(*tile, 1), precision) for precision in ("tf32", "bf16", "fp16") for tile in TILES]
VARIANTS = (
    *((SOURCE, defines(*each, backward), OLDEST) for each in _PLANS for backward in (False, True)),
    *((WEIGHT_GRADIENT, gradient_defines(*each), OLDEST) for each in _PLANS),
)
