"""Convolutions with 3x3 filters and stride 1, and their gradients, by Winograd's filtering.

Measured on 2 cores with AVX-512 and OpenBLAS 0.3.31, against convolutions by blocks of patches:
- The transforms cost about as much as products with 16 channels. Below 16 on either side they lost (images of 28x28), and for
  outputs of 1, 2 or 5 pixels squared, whose tiles stick out so far that less than half of the multiplications are saved.
- Where there is little to do: with 64 channels it took 0.74 of the time for 4 tiles, as much for 8; in a network as much for 4
  even where transformed filters are kept, whose memory it spares. Large filters that meet 4 tiles only (256 channels, one
  image of 8x8) cost more to transform than is won.
- With few tiles, to transform the filters takes a third of the time of a convolution; to compare them with the last ones a
  tenth of that.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tinydiff.autograd.tape import is_recording
from tinydiff.cpu.blas import MULTIPLICATIONS_OF_A_SMALL_PRODUCT, has_small_products
from tinydiff.cpu.patches import result_type
from tinydiff.cpu.winograd.plan import Panel, Plan
from tinydiff.cpu.winograd.tiles import aligned
from tinydiff.cpu.winograd.transforms import TRANSFORMS, transform_filters, transform_filters_back
from tinydiff.machine import threads
from tinydiff.machine.threads import share
from tinydiff.machine.workspaces import prepared
from tinydiff.ops.windows import Window

Array = np.ndarray
Size = tuple[int, int]
Terms = Sequence[Array | None]  # b (K,), E (N, K) and R (N, Ho, Wo, K), what is added to a convolution
NO_TERMS: Terms = (None, None, None)

OUTPUTS = 4  # of a tile along one axis, from OUTPUTS + 2 inputs
CHANNELS_WORTH_TRANSFORMS = 16  # on either side
TILES_WORTH_TRANSFORMS = 4
MULTIPLICATIONS_LEFT_TO_PATCHES = 1 << 14  # tiles C K for one frequency, at most
PAIRS_WORTH_TRANSFORMS = 1 << 14  # of channels C K, at most, for an image of so few tiles
TILES_WORTH_KEPT_FILTERS = 64  # at most
PAIRS_OF_KEPT_FILTERS = 1 << 13  # of channels C K, at most
CONVOLUTIONS_WITH_KEPT_FILTERS = 128  # in each thread, at most: 200 MB


def convolve(X: Any, W: Any, b: Any, window: Window, groups: int = 1, E: Any = None, R: Any = None) -> Any:
    """Y = P W + 1 b + E + R."""
    size = window.output_size(X.shape)
    if not _fits(window, groups) or not is_faster(X, W, size, gradient=False):
        return NotImplemented
    if result_type(X, W, b, E, R) != X.dtype:
        return NotImplemented
    return _filtered(X, W, (b, E, R), size, window.before)


def convolve_input_gradient(L_Y: Any, W: Any, shape: tuple[int, ...], window: Window, groups: int = 1) -> Any:
    """L_X = patches^T(L_Y W^T), as a convolution with the filters turned by 180 degrees."""
    size, turned = (shape[1], shape[2]), window.turned
    if turned is None or not _fits(turned, groups) or not is_faster(L_Y, W.swapaxes(2, 3), size):
        return NotImplemented
    return _filtered(L_Y, W, NO_TERMS, size, turned.before, turned=True)


def convolve_weight_gradient(X: Any, L_Y: Any, shape: tuple[int, ...], window: Window, groups: int = 1) -> Any:
    """L_W = P^T L_Y."""
    if not _fits(window, groups) or not is_faster(X, L_Y, (L_Y.shape[1], L_Y.shape[2])):
        return NotImplemented
    return _weight_gradient(X, L_Y, window.before)


def upsample_convolve(X: Any, W: Any, b: Any) -> Any:
    """The 3x3 convolution of X with its pixels doubled, from X itself."""
    size = 2 * X.shape[1], 2 * X.shape[2]
    if not is_faster(X, W, size) or (b is not None and b.dtype != X.dtype):
        return NotImplemented
    return _filtered(X, W, (b, None, None), size, (1, 1), "UP")


def upsample_convolve_input_gradient(L_Y: Any, W: Any) -> Any:
    """L_X, the sums over the doubled pixels, from L_Y itself."""
    _, height, width, _ = L_Y.shape
    if not is_faster(L_Y, W.swapaxes(2, 3), (height, width)):
        return NotImplemented
    return _filtered(L_Y, W, NO_TERMS, (height // 2, width // 2), (1, 1), "UP_GRADIENT", turned=True)


def upsample_convolve_weight_gradient(X: Any, L_Y: Any) -> Any:
    """L_W of the convolution that sees the doubled pixels."""
    if not is_faster(X, L_Y, (L_Y.shape[1], L_Y.shape[2])):
        return NotImplemented
    return _weight_gradient(X, L_Y, (1, 1), "UP")


def _fits(window: Window, groups: int) -> bool:
    return groups == 1 and (window.size, window.stride, window.dilation) == ((3, 3), (1, 1), (1, 1))


def is_faster(X: Array, other: Array, output_size: Size, gradient: bool = True) -> bool:
    """Whether a convolution, or its weight gradient, is computed here. other: the array of weights, or L_Y, with K
    channels last.

    float64 never is, so gradient checks see the definition. Tiles that extend beyond the image are wasted work, so less
    than half of the multiplications may be saved. Few channels do not pay for the transforms and their rounding. Few
    tiles do not pay for those of large filters, except in gradients, where other algorithms have to turn the filters
    first.
    """
    if not X.dtype == other.dtype == np.float32:
        return False
    (Ho, Wo), C, K = output_size, X.shape[-1], other.shape[-1]
    tiles_of_an_image = -(-Ho // OUTPUTS) * -(-Wo // OUTPUTS)
    tiles, points = len(X) * tiles_of_an_image, (OUTPUTS + 2) ** 2
    if min(C, K) < CHANNELS_WORTH_TRANSFORMS or tiles < TILES_WORTH_TRANSFORMS:
        return False
    if tiles * C * K <= MULTIPLICATIONS_LEFT_TO_PATCHES or 9 * Ho * Wo < 2 * points * tiles_of_an_image:
        return False
    if not gradient and len(X) == 1 and tiles == TILES_WORTH_TRANSFORMS and C * K > PAIRS_WORTH_TRANSFORMS:
        return False
    return enabled()


def enabled() -> bool:
    """False if the environment variable TINYDIFF_WINOGRAD is 0. Convolutions are then computed by other algorithms:
    slower, with rounding errors that are 2 to 4 times smaller."""
    return os.environ.get("TINYDIFF_WINOGRAD", "1") != "0"


def _filtered(
    X: Array, W: Array, terms: Terms, size: Size, before: Size, transform: str = "F4", turned: bool = False
) -> Array:
    """X (N, H, W, C) with filters W (3, 3, C, K), plus terms -> (N, *size, K), all float32.

    before: rows above and columns left of X that the first tile reads. turned: the filters are W (3, 3, K, C) turned by 180
    degrees, which lead from outputs to inputs.
    """
    X, W = np.ascontiguousarray(X), np.ascontiguousarray(W)
    Y = np.empty((len(X), *size, W.shape[2 if turned else 3]), np.float32)
    use = "turned" if turned else "forward"
    plan = prepared(Plan, transform, X.shape, size, before, Y.shape[3], threads.count(), use)

    # in training filters change at every step
    few = plan.tiles <= TILES_WORTH_KEPT_FILTERS and W.size <= 9 * PAIRS_OF_KEPT_FILTERS
    kept = _recent.transformed(W, transform, turned) if few and not is_recording() else None

    def filters(panels: list[Panel]) -> Iterator[Array]:
        """Transformed filters (F F, 1, C, k) of the panels, with names of their own if they are used again."""
        for i, (k, _, _) in enumerate(panels):
            name = "U" if plan.once else f"U {i}"
            U = (
                transform_filters(W, k, plan.transform.G, turned, plan.transposed, name)
                if kept is None
                else kept[..., k]
            )
            yield U[:, None]

    of_all = None if plan.by_filters or plan.once else [*filters(plan.steps[0][0].panels)]

    def work(parts: Sequence[list[Any]]) -> None:
        for steps in parts:
            panels = steps[0][0].panels
            Us = of_all or (filters(panels) if plan.once else [*filters(panels)])
            for step, read, write in steps:
                for images in step.blocks:
                    read(images)
                    for U, panel in zip(Us, step.panels, strict=True):
                        for V, M in panel.products:
                            np.matmul(V, U, out=M)
                    write(images)

    share(work, [[(step, step.reader.on(X), step.other.on(Y, *terms)) for step in steps] for steps in plan.steps])
    return Y


def _weight_gradient(X: Array, L_Y: Array, before: Size, transform: str = "F4") -> Array:
    """L_W (3, 3, C, K) from X (N, H, W, C) and L_Y (N, Ho, Wo, K), all float32; sums over images in order."""
    (_, Ho, Wo, K), C = L_Y.shape, X.shape[3]
    X, L_Y = np.ascontiguousarray(X), np.ascontiguousarray(L_Y)
    plan = prepared(Plan, transform, X.shape, (Ho, Wo), before, K, threads.count(), "gradient")
    G_T, total = np.ascontiguousarray(plan.transform.G.T), np.zeros((3, 3, C, K), np.float32)

    def work(parts: Sequence[list[Any]]) -> Array:
        own = total if plan.by_filters or parts[0] is bound[0] else np.zeros_like(total)
        for steps in parts:
            for step, read, read_gradient in steps:
                for images in step.blocks:
                    read(images)
                    read_gradient(images)
                    for k, L_M, _ in step.panels:
                        own[..., k] += transform_filters_back(_multiply_transposed(step.V, L_M), G_T)
        return own

    bound = [[(step, step.reader.on(X), step.other.on(L_Y)) for step in steps] for steps in plan.steps]
    for own in share(work, bound):
        if own is not total:
            total += own
    return total


class _Recent(threading.local):
    """The transformed filters of a thread's last small convolutions.

    Where nothing is recorded, as when samples are drawn, the filters are mostly those of the last time.
    """

    def __init__(self) -> None:
        self.filters: OrderedDict[Any, tuple[Array, Array]] = OrderedDict()

    def transformed(self, W: Array, transform: str, turned: bool) -> Array:
        """U of all filters W, a C-contiguous array: (F F, C, K)."""
        key = W.__array_interface__["data"][0], W.shape, transform, turned
        before, U = self.filters.pop(key, (None, None))
        if before is None or U is None or not (before == W).all():
            U = transform_filters(W, slice(0, W.shape[2 if turned else 3]), TRANSFORMS[transform].G, turned)
            before, U = W.copy(), U.copy()
        self.filters[key] = before, U  # the last one used comes last
        if len(self.filters) > CONVOLUTIONS_WITH_KEPT_FILTERS:
            self.filters.popitem(last=False)
        return U


_recent = _Recent()


def _multiply_transposed(V: Array, Z: Array) -> Array:
    """V^T (F F, C, T) times Z (F F, T, k), in products of equal numbers of channels."""
    (F, T, C), k = V.shape, Z.shape[2]
    D = prepared(aligned, "L_U", (F,), C * k).reshape(F, C, k)
    if not has_small_products():
        return np.matmul(V.swapaxes(1, 2), Z, out=D)
    c = C
    while c > 16 and c % 2 == 0 and c * T * k > MULTIPLICATIONS_OF_A_SMALL_PRODUCT:
        c //= 2
    if c * T * k > MULTIPLICATIONS_OF_A_SMALL_PRODUCT:
        c = C
    np.matmul(V.reshape(F, T, C // c, c).transpose(0, 2, 3, 1), Z[:, None], out=D.reshape(F, C // c, c, k))
    return D
