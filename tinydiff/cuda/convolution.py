"""Convolutions of NHWC images, by the kernels in kernels/convolution.cu; all float32. In a block of `tensor.precision`, and for
arrays of 16 bits, tensor cores are asked first.

`convolve`, `convolve_input_gradient` and `convolve_weight_gradient` are fast versions of those in
tinydiff/ops/convolution.py, which define what is computed. They take any window with one group of channels. They return
NotImplemented for groups, other dtypes, arrays of 16 bits that tensor cores do not take, and images of 2^14 pixels or more
along an axis. So do those for doubled pixels, which never see the doubled image: kernels/doubling.cu tells why.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinydiff.autograd import waiting
from tinydiff.backend import array_module, widened
from tinydiff.cuda import tensor, tensor_convolution
from tinydiff.cuda.doubling import filters_of_parities, sum_gradient, turned_filters
from tinydiff.cuda.flat import new_gradient
from tinydiff.cuda.fully_connected import sum_rows, sum_rows_cost
from tinydiff.cuda.launch import launch
from tinydiff.cuda.products import LARGEST, PLANS, Cost, Plan, plan, vector
from tinydiff.cuda.split_k import slots
from tinydiff.cuda.sums import sum_columns, takes
from tinydiff.cuda.taps import Place, Taps, gradient_products, taps_of
from tinydiff.ops.convolution import DOUBLING
from tinydiff.precision import of_half

SOURCE = "convolution.cu"
VARIANTS = tuple((SOURCE, p.defines) for p in PLANS)


def convolve(X: Any, W: Any, b: Any, window: Any, groups: int = 1, E: Any = None, R: Any = None) -> Any:
    """Y = P W + 1 b + E[:, None, None] + R: X (N, H, W, C), W (R, S, C, K), b (K,) or None, E (N, K) or None, R like Y or
    None -> Y (N, Ho, Wo, K)."""
    if not _takes(groups, window, X.shape, (X, W, R), (b, E)):
        return NotImplemented
    xp, (Ho, Wo) = array_module(X), window.output_size(X.shape)
    Y = xp.empty((X.shape[0], Ho, Wo, W.shape[3]), X.dtype)
    X, W, b, E, R = (None if a is None else xp.ascontiguousarray(a) for a in (X, W, b, E, R))
    taps, place, added = taps_of(window), Place(Ho, Wo, Ho, Wo), (b, E, R)
    if tensor_convolution.convolve(X, W, added, Y, taps, place, tensor.of(X)):
        return Y
    if X.dtype != np.float32:
        return NotImplemented
    _forward(X, W, added, Y, taps, place)
    return Y


def convolve_input_gradient(L_Y: Any, W: Any, shape: tuple[int, ...], window: Any, groups: int = 1) -> Any:
    """L_X = patches^T(L_Y W^T): L_Y (N, Ho, Wo, K), W (R, S, C, K) -> L_X of the given shape (N, H, W, C)."""
    if not _takes(groups, window, shape, (L_Y, W)):
        return NotImplemented
    xp, (_, S, C, K) = array_module(L_Y), W.shape
    L_Y, W, L_X = xp.ascontiguousarray(L_Y), xp.ascontiguousarray(W), xp.empty(shape, L_Y.dtype)
    there = _waiting(L_Y, shape)
    if tensor_convolution.convolve_input_gradient(L_Y, W, L_X, window, tensor.of(L_Y), there):
        return L_X
    if L_Y.dtype != np.float32:
        return NotImplemented
    for taps, place, turned in gradient_products(window, shape):
        count = math.prod(taps.size)
        T = W if not count else xp.empty((*taps.size, K, C), np.float32)
        p = _plan(shape[0] * place.Ho * place.Wo, C, count * K, K, L_Y, T, (None, None, there), L_X)
        launch(
            SOURCE,
            "conv_turn",
            (-(-C // 32), -(-K // 32), count),
            (32, 8, 1),
            (W, T, *map(np.int32, (S, C, K, taps.size[1], *turned.last, *turned.step))),
            defines=p.defines,
        )
        _forward(L_Y, T, (None, None, there), L_X, taps, place)
    return L_X


def convolve_weight_gradient(X: Any, L_Y: Any, shape: tuple[int, ...], window: Any, groups: int = 1) -> Any:
    """L_W = P^T L_Y: X (N, H, W, C), L_Y (N, Ho, Wo, K) -> L_W of the given shape (R, S, C, K)."""
    if not _takes(groups, window, X.shape, (X, L_Y)) or math.prod(shape) > LARGEST:
        return NotImplemented
    xp, (R, S, C, K), (N, Ho, Wo, _) = array_module(X), shape, L_Y.shape
    X, L_Y, L_W = xp.ascontiguousarray(X), xp.ascontiguousarray(L_Y), new_gradient(xp, shape)
    taps = taps_of(window)
    if tensor_convolution.convolve_weight_gradient(X, L_Y, L_W, taps, tensor.of(X)):
        return L_W
    X, L_Y = widened(X), widened(L_Y)
    p = plan(R * S * C, K, N * Ho * Wo, 1, vector(C, X), vector(K, L_Y, L_W))
    tiles, sizes = p.tiles(R * S * C, K), (*X.shape, K, R, S, Ho, Wo, *taps.stride, *taps.dilation, *taps.padding)
    launch(
        SOURCE,
        "conv_weight_gradient",
        (tiles, 1, p.parts),
        (p.threads, 1, 1),
        (X, L_Y, L_W, *slots(xp, p.parts, tiles, p.m * p.n), *map(np.int32, sizes)),
        p.shared(by_rows=False),
        p.defines,
    )
    return L_W


def upsample_convolve(X: Any, W: Any, b: Any) -> Any:
    """The 3x3 convolution of X with its pixels doubled: X (N, H, W, C), W (3, 3, C, K), b (K,) or None ->
    (N, 2 H, 2 W, K). The outputs of each parity are a convolution of X with 2 x 2 taps."""
    N, height, width, C = X.shape
    if not _takes(1, DOUBLING, (N, 2 * height, 2 * width, C), (X, W), (b,)):
        return NotImplemented
    xp = array_module(X)
    X, W, b = (None if a is None else xp.ascontiguousarray(a) for a in (X, W, b))
    Y = xp.empty((N, 2 * height, 2 * width, W.shape[3]), X.dtype)
    V, added = filters_of_parities(W), (b, None, None)
    taps, place = Taps((2, 2), (1, 1), (1, 1), (1, 1)), Place(height, width, 2 * height, 2 * width, (2, 2))
    if tensor_convolution.convolve(X, V.reshape(4, *V.shape[2:]), added, Y, taps, place, tensor.of(X)):
        return Y
    if X.dtype != np.float32:
        return NotImplemented
    for down, across in ((0, 0), (0, 1), (1, 0), (1, 1)):
        seen = taps._replace(padding=(1 - down, 1 - across))
        _forward(X, V[down, across], added, Y, seen, place._replace(start=(down, across)))
    return Y


def upsample_convolve_input_gradient(L_Y: Any, W: Any) -> Any:
    """L_Y (N, 2 H, 2 W, K), W (3, 3, C, K) -> L_X (N, H, W, C): a convolution of L_Y with stride 2."""
    if not _takes(1, DOUBLING, L_Y.shape, (L_Y, W)):
        return NotImplemented
    T = turned_filters(array_module(W).ascontiguousarray(W))
    shape = len(L_Y), L_Y.shape[1] // 2, L_Y.shape[2] // 2, W.shape[2]
    return convolve(L_Y, T, None, DOUBLING, R=_waiting(L_Y, shape))


def upsample_convolve_weight_gradient(X: Any, L_Y: Any) -> Any:
    """X (N, H, W, C), L_Y (N, 2 H, 2 W, K) -> L_W (3, 3, C, K): from the weight gradient of that convolution."""
    C, K = X.shape[3], L_Y.shape[3]
    if not _takes(1, DOUBLING, L_Y.shape, (X, L_Y)):
        return NotImplemented
    L_W = new_gradient(array_module(X), (3, 3, C, K))
    L_T = convolve_weight_gradient(L_Y, X, (4, 4, K, C), DOUBLING)
    if L_T is NotImplemented:
        return L_T
    sum_gradient(L_T, L_W)
    return L_W


def sum_pixels(X: Any) -> Any:
    """The sum over the pixels of each image, X (N, H, W, C) -> (N, C). NotImplemented for other shapes and dtypes."""
    if X.ndim != 4:
        return NotImplemented
    N, H, W, C = X.shape
    return sum_rows(X.reshape(N, H * W, C))


def sum_pixels_and_images(X: Any) -> Any:
    """The sum over the pixels of each image, and that over all images: X (N, H, W, C) -> (N, C) and (C,), in one launch.
    NotImplemented for other shapes and dtypes, and where there is nothing to sum."""
    if X.ndim != 4 or not takes(X) or not X.size:
        return NotImplemented
    N, H, W, C = X.shape
    L_b = new_gradient(array_module(X), (C,))
    L_E = sum_columns(X.reshape(N, H * W, C), L_b)
    return L_E if L_E is NotImplemented else (L_E, L_b)


def convolve_cost(X: Any, W: Any, b: Any, window: Any, groups: int = 1, E: Any = None, R: Any = None) -> Cost:
    """The cost of `convolve` with the same arguments, counting taps that fall outside of the images."""
    outputs = X.shape[0] * math.prod(window.output_size(X.shape)) * W.shape[3]
    added = sum(a.size for a in (b, E, R) if a is not None)
    return Cost(2 * outputs * math.prod(W.shape[:3]), 4 * (X.size + W.size + outputs + added))


def convolve_input_gradient_cost(L_Y: Any, W: Any, shape: tuple[int, ...], window: Any, groups: int = 1) -> Cost:
    """The cost of `convolve_input_gradient`."""
    return Cost(2 * L_Y.size * math.prod(W.shape[:3]), 4 * (L_Y.size + W.size + math.prod(shape)))


def convolve_weight_gradient_cost(X: Any, L_Y: Any, shape: tuple[int, ...], window: Any, groups: int = 1) -> Cost:
    """The cost of `convolve_weight_gradient`."""
    return Cost(2 * L_Y.size * math.prod(shape[:3]), 4 * (X.size + L_Y.size + math.prod(shape)))


def sum_pixels_cost(X: Any) -> Cost:
    """The cost of `sum_pixels`."""
    return sum_rows_cost(X.reshape(len(X), X.shape[1] * X.shape[2], X.shape[3]))


def _forward(X: Any, W: Any, added: Any, Y: Any, taps: Taps, place: Place) -> None:
    """Launches conv_forward; X (N, H, W, C) and W (taps, C, K) contiguous."""
    (N, H, W_, C), K, (Ho, Wo) = X.shape, Y.shape[3], place[:2]
    M, inner = N * Ho * Wo, math.prod(taps.size) * C
    p = _plan(M, K, inner, C, X, W, added, Y)
    tiles, memory = p.tiles(M, K), slots(array_module(X), p.parts, p.tiles(M, K), p.m * p.n)
    sizes = (N, H, W_, C, K, *taps.size, Ho, Wo, *taps.stride, *taps.dilation, *taps.padding)
    launch(
        SOURCE,
        "conv_forward",
        (tiles, 1, p.parts),
        (p.threads, 1, 1),
        (X, W, *added, Y, *memory, *map(np.int32, (*sizes, place.height, place.width, *place.step, *place.start))),
        p.shared(by_rows=True),
        p.defines,
    )


def _plan(M: int, K: int, inner: int, C: int, X: Any, W: Any, added: Any, Y: Any) -> Plan:
    return plan(M, K, inner, 1, vector(C, X), vector(K, W, Y, *added))


def _waiting(L_Y: Any, shape: tuple[int, ...]) -> Any:
    """What waits where L_X goes, claimed, or None. For float32 alone: 16 bits may still turn out not to be taken."""
    return waiting.claim(shape) if L_Y.dtype == np.float32 else None


def _takes(groups: int, window: Any, shape: tuple[int, ...], maps: Any, rest: Any = ()) -> bool:
    """Whether all is float32, or maps and filters of one type of 16 bits, in one group, and small enough for the kernels'
    counters, which are int or short."""
    Ho, Wo = window.output_size(shape)
    outputs = (s * n for s, n in zip(window.stride, (Ho, Wo), strict=True))
    taps = (d * r for d, r in zip(window.dilation, window.size, strict=True))
    furthest = max(*shape[1:3], *outputs, *taps, *(abs(p) for pair in window.padding for p in pair))
    pixels = shape[0] * max(math.prod(shape[1:3]), Ho * Wo)
    dtype = maps[0].dtype
    whole = groups == 1 and (dtype == np.float32 or of_half(dtype) is not None)
    whole = whole and all(a is None or a.dtype == dtype for a in maps)
    whole = whole and all(a is None or a.dtype == np.float32 for a in rest)
    return whole and furthest < 2**14 and pixels < 2**30
