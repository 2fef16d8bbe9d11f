"""Images as overlapping tiles, and small matrices applied to both axes of each tile, as Winograd's filtering does.

A tile has `taps` pixels along an axis, and the next one starts `step` pixels later. `Reader` computes m d m^T for the tiles
d of images, `Writer` puts tiles m e m^T together to images. Between the two stand "frequencies", arrays (F, F, T, C): entry
(f, g) of all T tiles in all C channels. The tiles of a block of n images are ordered by row of tiles, image and column. So
a row of tiles of all n images is one contiguous line, and a transform is a stack of products of its tiny matrix with long
lines, along both axes.

Measured on 2 cores with AVX-512 and OpenBLAS 0.3.31:
- Products of a 6x6 matrix with lines of 512 to 24,000 numbers run at 80 GFLOP/s a core. Above 10^6 multiplications OpenBLAS
  packs its operands and takes 2 to 4 times as long; sums of scaled arrays take 4 times as long.
- They slow down to 50 GFLOP/s if lines begin off the 64 bytes of a vector, or at multiples of 4 KiB from each other, where
  they share the cache's sets; `aligned` avoids both.
- Pixels are copied as opaque items of all their channels. With 32 channels that is twice as fast as copying numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from tinydiff.machine.workspaces import workspace

Array = np.ndarray

NUMBERS_OF_A_RUN = 24_000  # of a line in one product, at most: 6 * 6 of them stay below 10^6 multiplications
NUMBERS_BETWEEN_LINES = 112
_SINGLE = np.dtype(np.float32)


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
        return _spans(self, taps, size)[0]

    def gaps(self, taps: int, size: int) -> list[tuple[slice, slice]]:
        """(taps, tiles) of all pixels outside of the image."""
        return _spans(self, taps, size)[1]


class Span(NamedTuple):
    """Some taps of some tiles, and the pixel that is the first tile's first."""

    taps: slice
    tiles: slice
    pixel: int


@lru_cache(1024)
def _spans(axis: Axis, taps: int, size: int) -> tuple[list[Span], list[tuple[slice, slice]]]:
    spans, gaps, start, tiles = [], [], 0, (0, 0)
    for tap in range(taps + 1):
        first = min(axis.tiles, max(0, -(-(axis.before - tap) // axis.step)))
        end = max(first, min(axis.tiles, -(-(axis.before + size - tap) // axis.step))) if tap < taps else -1
        if (first, end) != tiles:
            run = slice(start, tap)
            if tiles[0] < tiles[1]:
                spans.append(Span(run, slice(*tiles), axis.step * tiles[0] + start - axis.before))
            outside = (slice(0, tiles[0]), slice(tiles[1], axis.tiles))
            gaps += [(run, tile) for tile in outside if start < tap and tile.start < tile.stop]
            start, tiles = tap, (first, end)
    return spans, gaps


class Reader:
    """m d m^T for the tiles d of some channels of X (N, H, W, C), a C-contiguous array, in blocks of n images, to V (F, F,
    rows, n, columns, c), whose last three axes are contiguous; m is (F, taps)."""

    def __init__(
        self, name: str, m: Array, shape: Sequence[int], vertical: Axis, horizontal: Axis, channels: slice, V: Array
    ) -> None:
        (F, taps), (N, H, W, C), n, c = m.shape, shape, V.shape[3], V.shape[5]
        line, height = n * horizontal.tiles * c, vertical.step * (vertical.tiles - 1) + taps
        pixels, half = (
            _Place(f"pixels of {name}", (taps,), height * line),
            _Place(f"half of {name}", (F,), height * line),
        )
        self.m, self.pixels, self.half = m, runs(pixels.array()), runs(half.array())
        self.windows = half.view((F, vertical.tiles, taps, line), (4 * vertical.step * line, 4 * line, 4))
        self.V = _lines(V).transpose(1, 2, 0, 3)
        # to[s, i, :, j] is pixel s of the j-th tile in row i of the padded images, all its channels as one opaque item
        self.item, pixel = np.dtype(f"V{4 * c}"), 4 * c
        to = pixels.view((taps, height, n, horizontal.tiles), (4 * line, pixel * horizontal.tiles, pixel), self.item)
        top, bottom = max(0, vertical.before), max(0, min(vertical.before + H, height))
        inside = slice(top, bottom)
        self.nothing = np.zeros((), self.item)
        self.outside = [to[:, rows] for rows in (slice(0, top), slice(bottom, height)) if rows.start < rows.stop]
        self.outside += [to[tap, inside, :, tile] for tap, tile in horizontal.gaps(taps, W)]
        image, row, column = 4 * H * W * C, 4 * W * C, 4 * C
        first = max(0, -vertical.before) * row + 4 * channels.start  # of the rows and channels of the images
        strides = column, row, image, horizontal.step * column
        self.copies = []
        for tap, tile, left in horizontal.spans(taps, W) if top < bottom else ():
            into = to[tap, inside, :, tile]
            self.copies.append((into, (*into.shape[:2], N, into.shape[3]), first + left * column, strides))

    def on(self, X: Array) -> Callable[[slice], None]:
        """A function that reads some images of X, as many as a block has."""
        copies = [(to, np.ndarray(shape, self.item, X, offset, strides)) for to, shape, offset, strides in self.copies]
        for pixels in self.outside:
            pixels[...] = self.nothing

        def read(images: slice) -> None:
            for to, source in copies:
                to[...] = source[:, :, images]
            np.matmul(self.m, self.pixels, out=self.half)
            np.matmul(self.m, self.windows, out=self.V)

        return read


class Writer:
    """Some channels and some rows of tiles of Y (N, Ho, Wo, K), a C-contiguous array, from tiles m e m^T in blocks of n
    images of M (F, F, rows, n, columns, k), whose last three axes are contiguous; m is (step, F)."""

    def __init__(self, name: str, m: Array, shape: Sequence[int], rows: slice, channels: slice, M: Array) -> None:
        (p, F), (N, Ho, Wo, K), (*_, tiles, n, columns, k) = m.shape, shape, M.shape
        size = tiles * n * columns * k
        # half[q, f] is frequency f along the row of pixels q of each tile; a bias is one frequency more, of weight 1
        half, pixels = aligned(f"half and bias of {name}", (p, F + 1), size), _Place(f"pixels of {name}", (p, p), size)
        self.M, self.half = _lines(M).transpose(1, 2, 0, 3), half[:, :F].reshape(p, F, tiles, -1).transpose(1, 2, 0, 3)
        self.bias = half[:, F].reshape(p, tiles, n, columns, k)
        self.m, self.m_bias = m, np.concatenate([m, np.ones((p, 1), m.dtype)], 1)
        self.without, self.with_bias, self.pixels = runs(half[:, :F]), runs(half), runs(pixels.array())
        self.here = slice(None), slice(rows.start * p, min(rows.stop * p, Ho)), slice(None), channels
        self.item, pixel = np.dtype(f"V{4 * k}"), 4 * k
        image, row, column = 4 * Ho * Wo * K, 4 * Wo * K, 4 * K
        tile = pixels.view((p, p, tiles, n, columns), (pixel * n * columns, pixel * columns, pixel), self.item)
        strides, start = (image, p * row, row, p * column, column), self.here[1].start * row + 4 * channels.start
        self.copies = []
        for a, i, top in Axis(tiles, p).spans(p, self.here[1].stop - self.here[1].start):
            for c, j, left in Axis(columns, p).spans(p, Wo):
                source = tile[a, c, i, :, j].transpose(3, 2, 0, 4, 1)
                self.copies.append((source, (N, *source.shape[1:]), start + top * row + left * column, strides))

    def on(self, Y: Array, b: Array | None, E: Array | None, R: Array | None) -> Callable[[slice], None]:
        """A function that writes some images of Y, as many as a block has, plus terms b (K,), E (N, K), R like Y or
        None."""
        copies = [
            (np.ndarray(shape, self.item, Y, offset, strides), tile) for tile, shape, offset, strides in self.copies
        ]
        *_, channels = self.here
        m, half = (self.m, self.without) if b is None and E is None else (self.m_bias, self.with_bias)
        if b is not None and E is None:
            self.bias[...] = b[channels]
        elif E is not None:
            E = E[:, channels] if b is None else E[:, channels] + b[channels]

        def write(images: slice) -> None:
            if E is not None:
                self.bias[...] = E[images, None]
            np.matmul(self.m, self.M, out=self.half)
            np.matmul(m, half, out=self.pixels)
            for to, tile in copies:
                to[images] = tile
            if R is not None:
                Y[self.here][images] += R[self.here][images]

        return write


class _Place:
    """Where a workspace of lines has its lines: at multiples of 64 bytes, some with a gap between them."""

    def __init__(self, name: str, shape: tuple[int, ...], line: int) -> None:
        stride = -(-line // 16) * 16 + NUMBERS_BETWEEN_LINES
        self.memory = workspace(name, (math.prod(shape) * stride + 16,))
        self.offset = -self.memory.__array_interface__["data"][0] % 64
        self.shape = (*shape, line)
        self.strides = tuple(4 * stride * math.prod(shape[i + 1 :]) for i in range(len(shape)))  # from line to line

    def array(self) -> Array:
        return self.view(self.shape, (4,))

    def view(self, shape: tuple[int, ...], within: tuple[int, ...], dtype: np.dtype = _SINGLE) -> Array:
        """The lines as arrays with these strides within them."""
        return np.ndarray(shape, dtype, self.memory, self.offset, (*self.strides, *within))


def aligned(name: str, shape: tuple[int, ...], line: int) -> Array:
    """A workspace (*shape, line) whose lines begin at multiples of 64 bytes, some with a gap between them."""
    return _Place(name, shape, line).array()


def frequencies(name: str, F: int, rows: int, images: int, columns: int, channels: int) -> Array:
    """A workspace (F, F, rows, images, columns, channels) for `Reader` and `Writer`."""
    return aligned(name, (F, F), rows * images * columns * channels).reshape(F, F, rows, images, columns, channels)


def _lines(V: Array) -> Array:
    """(F, F, rows, n, columns, C) as (F, F, rows, n columns C), without a copy."""
    return V.reshape(*V.shape[:3], math.prod(V.shape[3:]))


def runs(X: Array) -> Array:
    """Lines (..., q, L) as (..., L / run, q, run), with runs that a product takes at once, before OpenBLAS packs them."""
    L, count = X.shape[-1], max(1, -(-X.shape[-1] // NUMBERS_OF_A_RUN))
    while L % count:
        count += 1
    return X.reshape(*X.shape[:-1], count, L // count).swapaxes(-2, -3)


def items(X: Array) -> Array:
    """(..., C) as (...) of opaque items: copying one moves all channels at once."""
    return X.view(f"V{X.shape[-1] * X.itemsize}")[..., 0]
