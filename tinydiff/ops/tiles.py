"""Images as overlapping tiles, and small matrices applied to both axes of each tile: the transforms of `winograd.py`.

A tile has `taps` pixels along an axis, and the next one starts `step` pixels later. `Reader` computes m d m^T for the tiles
d of images, `Writer` puts tiles m e m^T together to images. Between the two stand "frequencies", arrays (F, F, T, C): entry
(f, g) of all T tiles in all C channels. The tiles of a block of n images are ordered by row of tiles, image and column, so
that a row of tiles of all n images is one contiguous line, and a transform is a stack of products of its tiny matrix with
long lines, along both axes.

Measured on 2 cores with AVX-512 and OpenBLAS 0.3.31:
- Products of a 6x6 matrix with lines of 512 to 24,000 numbers run at 80 GFLOP/s a core. Above 10^6 multiplications OpenBLAS
  packs its operands and takes 2 to 4 times as long; sums of scaled arrays take 4 times as long.
- They slow down to 50 GFLOP/s if lines begin off the 64 bytes of a vector, or at multiples of 4 KiB from each other, where
  they share the cache's sets: hence `aligned`.
- Pixels are copied as opaque items of all their channels, with 32 channels 2 times as fast as copies of numbers.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from tinydiff.workers import workspace

Array = np.ndarray

_RUN = 24_000  # numbers in a line of one product: 6 * 6 * _RUN stays below 10^6 multiplications
_PAD = 112  # numbers between two lines


class Axis(NamedTuple):
    """`tiles` tiles along an axis; tile i has the pixels step i - before + 0, 1, .. taps - 1, 0 outside of the image."""

    tiles: int
    step: int
    before: int = 0

    def part(self, tiles: slice) -> Axis:
        """Some of the tiles. Of these, `before` may be negative."""
        return Axis(tiles.stop - tiles.start, self.step, self.before - self.step * tiles.start)

    def spans(self, taps: int, size: int) -> list[Span]:
        """The taps that lie within an image of this size for the same tiles."""
        return _spans(self, taps, size)


class Span(NamedTuple):
    """Some taps of some tiles, and the pixel that is the first tile's first."""

    taps: slice
    tiles: slice
    pixel: int


@lru_cache(1024)
def _spans(axis: Axis, taps: int, size: int) -> list[Span]:
    spans, start, tiles = [], 0, (0, 0)
    for tap in range(taps + 1):
        first = max(0, -(-(axis.before - tap) // axis.step))
        end = min(axis.tiles, -(-(axis.before + size - tap) // axis.step)) if tap < taps else -1
        if (first, end) != tiles:
            if tiles[0] < tiles[1]:
                spans.append(Span(slice(start, tap), slice(*tiles), axis.step * tiles[0] + start - axis.before))
            start, tiles = tap, (first, end)
    return spans


class Reader:
    """m d m^T for the tiles d of X (N, H, W, C), a C-contiguous array, in blocks of n images; m is (F, taps)."""

    def __init__(self, name: str, m: Array, X: Array, vertical: Axis, horizontal: Axis, n: int) -> None:
        (F, taps), (N, H, W, C) = m.shape, X.shape
        line, height = n * horizontal.tiles * C, vertical.step * (vertical.tiles - 1) + taps
        # pixels[s, i, :, j] is pixel s of the j-th tile in row i of the padded images
        pixels, half = aligned(f"pixels of {name}", (taps,), height * line), aligned("half", (F,), height * line)
        pixels[...] = 0
        self.m, self.pixels, self.half = m, _runs(pixels), _runs(half)
        (f, item), step = half.strides, vertical.step
        self.windows = _view(half, (F, vertical.tiles, taps, line), (f, step * line * item, line * item, item))
        self.copies = []
        inside = slice(max(0, vertical.before), max(0, min(vertical.before + H, height)))
        above = max(0, -vertical.before)  # rows of the images before the first of the tiles
        to, pixel = _items(pixels.reshape(taps, height, n, horizontal.tiles, C)), _items(X)
        image, row, column = pixel.strides
        for tap, tile, first in horizontal.spans(taps, W):
            shape = (tap.stop - tap.start, inside.stop - inside.start, N, tile.stop - tile.start)
            source = _view(pixel[:, above:, first:], shape, (column, row, image, horizontal.step * column))
            self.copies.append((to[tap, inside, :, tile], source))

    def read(self, images: slice, V: Array) -> None:
        """The block's tiles, transformed, to V (F, F, rows, n, columns, C), whose last three axes are contiguous."""
        for to, source in self.copies:
            to[...] = source[:, :, images]
        np.matmul(self.m, self.pixels, out=self.half)
        np.matmul(self.m, self.windows, out=_lines(V).transpose(1, 2, 0, 3))


class Writer:
    """Y (N, Ho, Wo, K) of the tiles m e m^T, plus terms, in blocks of n images; m is (step, F)."""

    def __init__(
        self, m: Array, Y: Array, rows: int, columns: int, n: int, b: Array | None, E: Array | None, R: Array | None
    ) -> None:
        (p, F), (N, Ho, Wo, K) = m.shape, Y.shape
        size, bias = rows * n * columns * K, b is not None or E is not None
        # half[q, f] is frequency f along the row of pixels q of each tile; a bias is one frequency more, of weight 1
        half, pixels = aligned("half and bias", (p, F + 1), size), aligned("pixels", (p, p), size)
        self.first, self.second = m, np.concatenate([m, np.ones((p, 1), m.dtype)], 1) if bias else m
        self.half_out = half[:, :F].reshape(p, F, rows, -1).transpose(1, 2, 0, 3)
        self.half, self.pixels = _runs(half[:, : F + bias]), _runs(pixels)
        self.Y, self.b, self.E, self.R = Y, b, E, R
        self.bias = half[:, F].reshape(p, rows, n, columns, K)
        if b is not None:
            self.bias[...] = b
        self.copies = []
        tile, pixel = _items(pixels.reshape(p, p, rows, n, columns, K)), _items(Y)
        image, row, column = pixel.strides
        for a, i, top in Axis(rows, p).spans(p, Ho):
            for c, j, left in Axis(columns, p).spans(p, Wo):
                shape = (N, i.stop - i.start, a.stop - a.start, j.stop - j.start, c.stop - c.start)
                to = _view(pixel[:, top:, left:], shape, (image, p * row, row, p * column, column))
                self.copies.append((to, tile[a, c, i, :, j].transpose(3, 2, 0, 4, 1)))

    def write(self, M: Array, images: slice) -> None:
        """The block's images from M (F, F, rows, n, columns, K), whose last three axes are contiguous."""
        if self.E is not None:
            e = self.E[images] if self.b is None else self.E[images] + self.b
            self.bias[...] = e[:, None]
        np.matmul(self.first, _lines(M).transpose(1, 2, 0, 3), out=self.half_out)
        np.matmul(self.second, self.half, out=self.pixels)
        for to, tile in self.copies:
            to[images] = tile
        if self.R is not None:
            self.Y[images] += self.R[images]


def aligned(name: str, shape: tuple[int, ...], line: int) -> Array:
    """A workspace (*shape, line) whose lines begin at multiples of 64 bytes, some of them apart."""
    stride = -(-line // 16) * 16 + _PAD
    memory = workspace(name, (math.prod(shape) * stride + 16,))
    offset = -memory.__array_interface__["data"][0] % 64
    strides = [4 * stride * math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return np.ndarray((*shape, line), np.float32, memory, offset, (*strides, 4))


def frequencies(name: str, F: int, rows: int, images: int, columns: int, channels: int) -> Array:
    """A workspace (F, F, rows, images, columns, channels) for `Reader` and `Writer`."""
    return aligned(name, (F, F), rows * images * columns * channels).reshape(F, F, rows, images, columns, channels)


def multiply_lines(m: Array, X: Array, out: Array) -> None:
    """m (p, q) times X (..., q, L), in runs that OpenBLAS does not pack."""
    np.matmul(m, _runs(X), out=_runs(out))


def _lines(V: Array) -> Array:
    """(F, F, rows, n, columns, C) as (F, F, rows, n columns C), without a copy."""
    return V.reshape(*V.shape[:3], math.prod(V.shape[3:]))


def _runs(X: Array) -> Array:
    """(..., q, L) as (..., L / run, q, run), with runs that a product takes at once."""
    L, count = X.shape[-1], max(1, -(-X.shape[-1] // _RUN))
    while L % count:
        count += 1
    return X.reshape(*X.shape[:-1], count, L // count).swapaxes(-2, -3)


def _items(X: Array) -> Array:
    """(..., C) as (...) of opaque items: copies of them are memory moves of all channels at once."""
    return X.view(f"V{X.shape[-1] * X.itemsize}")[..., 0]


def _view(X: Array, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    return np.lib.stride_tricks.as_strided(X, shape, strides)
