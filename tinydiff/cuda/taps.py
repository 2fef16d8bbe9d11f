"""Where the taps of a convolution read and write, as the kernels are told."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

Pair = tuple[int, int]  # along rows and columns


class Taps(NamedTuple):
    """Tap (r, s) of output pixel (p, q) reads pixel p stride + r dilation - padding, and columns likewise."""

    size: Pair
    stride: Pair
    dilation: Pair
    padding: Pair  # at the top and left


class Place(NamedTuple):
    """How the pixels of a product lie in Y: Ho x Wo of them in an image of height x width, at start, start + step, .."""

    Ho: int
    Wo: int
    height: int
    width: int
    step: Pair = (1, 1)
    start: Pair = (0, 0)


class Turned(NamedTuple):
    """Which taps of a filter a product takes, in reverse order: last, last - step, .."""

    last: Pair
    step: Pair


def taps_of(window: Any) -> Taps:
    """Those of a window."""
    top, left = (before for before, _ in window.padding)
    return Taps(window.size, window.stride, window.dilation, (top, left))


def gradient_products(window: Any, shape: tuple[int, ...]) -> Iterator[tuple[Taps, Place, Turned]]:
    """The convolutions of L_Y that together are L_X, of a shape (N, H, W, C).

    Output p reads pixel h of X through tap r where h + top = p stride + r dilation. So the same taps, r0, r0 + step,
    .., reach all pixels with the same remainder of (h + top) / stride, and a later tap belongs to an earlier output.
    Each such class of pixels is a convolution of L_Y with these taps in reverse order. With stride 1 there is one
    class.
    """
    for down in _classes(window, shape, 0):
        for across in _classes(window, shape, 1):
            yield (
                Taps(
                    (down.taps, across.taps),
                    (1, 1),
                    (down.dilation, across.dilation),
                    (-down.first_output, -across.first_output),
                ),
                Place(down.pixels, across.pixels, shape[1], shape[2], window.stride, (down.start, across.start)),
                Turned((down.last, across.last), (down.step, across.step)),
            )


class _Class(NamedTuple):
    """Along one axis, the pixels start, start + stride, .. of X, and the taps last, last - step, .. that reach them."""

    start: int
    pixels: int
    taps: int
    last: int
    step: int
    first_output: int  # that the last tap connects with the first pixel
    dilation: int  # outputs from one tap to the next


def _classes(window: Any, shape: tuple[int, ...], axis: int) -> Iterator[_Class]:
    stride, dilation, before = window.stride[axis], window.dilation[axis], window.padding[axis][0]
    common = math.gcd(stride, dilation)
    for start in range(min(stride, shape[1 + axis])):
        pixels = len(range(start, shape[1 + axis], stride))
        taps = [r for r in range(window.size[axis]) if (start + before - r * dilation) % stride == 0]
        last = taps[-1] if taps else 0
        first = (start + before - last * dilation) // stride
        yield _Class(start, pixels, len(taps), last, stride // common, first, dilation // common)
