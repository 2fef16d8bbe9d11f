"""Group normalisation in blocks of images that stay in a core's cache, with SiLU.

Measured on cores with AVX-512, NumPy 2.4:
- Rows of 2,048 numbers broadcast fastest; half or twice as many are 2 to 4 % slower. An image of up to 8,192 numbers is
faster as
  one row, but only if it has few pixels.
- With 2^17 numbers a second thread made a call take 1.5 times as long: steps of 10 microseconds wait for the
interpreter's
  lock more than they work.
- A single image takes 25 to 60 microseconds, most of them to start some 35 operations on small arrays. So layouts are
kept,
  with the memory for a single image; a layout therefore belongs to one thread. A product with a vector of equal shares
  averages over the few channels of a group in a quarter of the time of `mean`. `repeat` spreads values of groups in a
  third of the time of broadcasting.
- `long_rows` takes 10 to 30 microseconds for a single image in a network. A row that fills NumPy's buffer is not copied
into it,
  so it needs no `long_rows`; it takes 3 microseconds more to write.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from tinydiff.cpu.blas import long_rows
from tinydiff.machine.threads import share_blocks
from tinydiff.machine.workspaces import prepared, workspace

NUMBERS_OF_A_ROW = 1 << 11  # that is broadcast, at most
NUMBERS_OF_ONE_ROW_IMAGES, PIXELS_OF_ONE_ROW_IMAGES = 1 << 13, 64  # of images that are one row, at most
NUMBERS_THAT_FILL_THE_BUFFER = 1 << 13  # of NumPy
NUMBERS_WORTH_A_THREAD = 1 << 18


def group_normalize(X: Any, w: Any, b: Any, groups: int, eps: float, silu: bool = False, dropout: Any = None) -> Any:
    """Y, means (N, groups) and scales (N, groups). NotImplemented for no numbers and for dropout.

    For SiLU, with h = (Z w + b) / 2, Y = 2 h s(2 h) = h (1 + tanh(h)).
    """
    if not X.size or dropout is not None:
        return NotImplemented
    layout = _layout(X, w, b, groups)
    Y = np.empty(X.shape, layout.dtype)
    mean, scale = np.empty((2, len(X), groups), layout.dtype)
    w, b = layout.affine(w, b, 0.5 if silu else 1)

    def some(X: Any, Y: Any, mean: Any, scale: Any) -> None:
        x, D = layout.rows(X), layout.rows(Y)
        H = layout.scratch("H", D.shape)
        # With the mean k of the group's first row, the mean d of D = X - k is small, however far from 0 the numbers
        # are, so mean(D^2) - d^2 is safe: if the row is a share q of the group, d^2 <= variance / q.
        k = layout.group_means(x[:, :1], layout.of_row)
        np.subtract(x, layout.brief_row(layout.channels(k)), out=D)
        np.multiply(D, D, out=H)
        d, r = layout.group_means(D, layout.of_image), layout.group_means(H, layout.of_image)
        r -= d * d
        np.maximum(r, 0, out=r)
        r += eps
        np.sqrt(r, out=r)
        np.reciprocal(r, out=r)
        np.add(k, d, out=mean)
        scale[...] = r
        factor, shift = layout.channels(r), layout.channels(d)
        factor *= w
        shift *= factor
        np.subtract(b, shift, out=shift)
        np.multiply(D, layout.brief_row(factor), out=H)
        np.add(H, layout.brief_row(shift), out=H if silu else D)
        if silu:
            np.tanh(H, out=D)
            D += 1
            D *= H

    layout.share(some, X, Y, mean, scale)
    return Y, mean, scale


def group_normalize_backward(
    L_Y: Any,
    X: Any,
    mean: Any,
    scale: Any,
    w: Any,
    b: Any,
    groups: int,
    silu: bool,
    needs: Sequence[bool] = (True, True, True),
    dropout: Any = None,
) -> Any:
    """(L_X, L_w, L_b), None where not needed. NotImplemented for no numbers and for dropout.

    With D = X - u, r = 1/s and the gradient L of A = Z w + b, L_X = L (w r) - (D r^2 mean(L w Z) + r mean(L w)): factors that
    are the same for all pixels are multiplied first. For SiLU, with h = A / 2 and p = 1 - tanh(h), L = L_Y (2 - p)
    (1 + h p) / 2.
    """
    if not X.size or dropout is not None:
        return NotImplemented
    layout = _layout(X, w, b, groups)
    L_X = np.empty(X.shape, layout.dtype)
    L_w, L_b = np.empty((2, len(X), X.shape[-1]), layout.dtype)
    half = 0.5 if silu else 1
    w, b = layout.affine(w, b, half)

    def some(L_Y: Any, X: Any, L_X: Any, mean: Any, scale: Any, L_w: Any, L_b: Any) -> None:
        L, D = layout.rows(L_Y), layout.rows(L_X)
        H, S = layout.scratch("H", D.shape), layout.scratch("S", D.shape)
        r = layout.channels(scale)
        factor = layout.row(r * w)
        np.subtract(layout.rows(X), layout.row(layout.channels(mean)), out=D)
        if silu:
            np.multiply(D, factor, out=H)
            H += layout.row(b)
            np.tanh(H, out=S)
            np.subtract(1, S, out=S)
            H *= S
            H += 1
            np.subtract(2, S, out=S)
            H *= S
            L = np.multiply(H, L, out=H)  # twice the L above, because w is half of it
        L_b[...] = layout.channel_sums(L, layout.of_image)
        L_w[...] = layout.channel_sums(np.multiply(L, D, out=S), layout.of_image)
        L_w *= r
        if needs[0]:
            along = layout.channels(layout.means(L_w * w, layout.of_image))
            along *= r * r
            D *= layout.row(along)
            D += layout.row(layout.channels(layout.means(L_b * w, layout.of_image)) * r)
            np.subtract(np.multiply(L, factor, out=H), D, out=D)

    layout.share(some, L_Y, X, L_X, mean, scale, L_w, L_b)
    return (
        L_X if needs[0] else None,
        half * L_w.sum(0) if needs[1] else None,
        half * L_b.sum(0) if needs[2] else None,
    )


class _Pixels(NamedTuple):
    """Factors of sums: ones (1, n) for sums over n pixels, and the equal shares (size,) of a group's channels in a
    mean over n pixels."""

    ones: Any
    shares: Any


class _Layout:
    """How group normalisation sees images X (n, ..., C) of P pixels and one dtype.

    They are rows (n, rows, L) of several pixels each, because long rows broadcast faster (`blas.py`). Values of groups
    are arrays (n, groups), values of channels (n, C).
    """

    def __init__(self, shape: tuple[int, ...], groups: int, dtype: Any, alone: bool) -> None:
        self.dtype, self.alone = dtype, alone
        self.C, self.groups, self.size = shape[-1], groups, shape[-1] // groups  # channels: all, those of a group
        pixels = math.prod(shape[:-1])
        self.repeat = _pixels_per_row(pixels, self.C, alone)
        self.lines, self.length = pixels // self.repeat, self.repeat * self.C
        self.of_image, self.of_row = (
            _Pixels(_ones(n, dtype), np.full(self.size, 1 / (n * self.size), dtype)) for n in (pixels, self.repeat)
        )
        if alone:
            self.row_alone = self._workspace("row", (1, self.repeat, self.C))
            self.row_alone_flat = self.row_alone.reshape(1, 1, self.length)
            self.scratch_alone: dict[str, Any] = {}

    def rows(self, X: Any) -> Any:
        """(n, ..., C) as (n, rows, L)."""
        return X.reshape(-1, self.lines, self.length)

    def row(self, values: Any) -> Any:
        """Values of channels as a row (n, 1, L) for all pixels."""
        row = np.empty((len(values), self.repeat, self.C), self.dtype)
        row[...] = values[:, None]
        return row.reshape(-1, 1, self.length)

    def brief_row(self, values: Any) -> Any:
        """The same, valid until the next such row."""
        if not self.alone:
            return self.row(values)
        self.row_alone[...] = values
        return self.row_alone_flat

    def channels(self, values: Any) -> Any:
        """Values of groups as values of channels."""
        return values.repeat(self.size, 1)

    def channel_sums(self, rows: Any, of: _Pixels) -> Any:
        """Sums over pixels, (n, rows, L) -> (n, C), as products with ones, which are the fastest sums."""
        if self.alone:  # a product of two matrices starts in half the time of one of stacks
            return of.ones.dot(rows.reshape(-1, self.C))
        n = len(rows)
        return (of.ones @ rows.reshape(n, -1, self.C)).reshape(n, self.C)

    def means(self, sums: Any, of: _Pixels) -> Any:
        """Means over groups from sums over pixels: (n, C) -> (n, groups)."""
        return sums.reshape(-1, self.size).dot(of.shares).reshape(-1, self.groups)

    def group_means(self, rows: Any, of: _Pixels) -> Any:
        """(n, rows, L) -> (n, groups)."""
        return self.means(self.channel_sums(rows, of), of)

    def affine(self, w: Any, b: Any, factor: float) -> tuple[Any, Any]:
        """Weight and bias times the factor, as values of channels (1, C)."""
        w = np.ones(self.C, self.dtype) if w is None else w
        b = np.zeros(self.C, self.dtype) if b is None else b
        return w[None] * factor, b[None] * factor

    def scratch(self, name: str, shape: tuple[int, ...]) -> Any:
        """Memory for rows, "H" or "S"."""
        if not self.alone:
            return self._workspace(name, shape)
        if name not in self.scratch_alone:
            self.scratch_alone[name] = self._workspace(name, shape)
        return self.scratch_alone[name]

    def _workspace(self, name: str, shape: tuple[int, ...]) -> Any:
        return workspace(f"{name} of a normalisation", shape, self.dtype)

    def share(self, work: Callable[..., None], X: Any, *others: Any) -> None:
        """work(X, *others) for blocks of images, which the threads share."""
        if self.alone:
            work(X, *others)
            return

        def some(images: slice) -> None:
            with long_rows(self.length if self.lines > 1 else 0):
                work(X[images], *(A[images] for A in others))

        share_blocks(some, X, small=NUMBERS_WORTH_A_THREAD)


def _ones(n: int, dtype: Any) -> Any:
    """(1, n), the beginning of an array that a thread keeps for all sizes up to a power of 2."""
    return prepared(np.ones, (1, 1 << n.bit_length()), dtype)[:, :n]


def _layout(X: Any, w: Any, b: Any, groups: int) -> _Layout:
    """The layout of X's images and of the widest dtype."""
    dtype = np.result_type(*[a for a in (X, w, b) if a is not None])
    return prepared(_Layout, X.shape[1:], groups, dtype, len(X) == 1)


@cache
def _pixels_per_row(pixels: int, channels: int, alone: bool) -> int:
    """All pixels of a small image, else the largest divisor of their number with which a row is short enough. For a
    single image, the smallest with which a row fills NumPy's buffer."""
    if pixels <= PIXELS_OF_ONE_ROW_IMAGES and pixels * channels <= NUMBERS_OF_ONE_ROW_IMAGES:
        return pixels
    if alone:
        least = -(-NUMBERS_THAT_FILL_THE_BUFFER // channels)
        return next((n for n in range(least, pixels) if pixels % n == 0), pixels)
    most = min(pixels, max(1, NUMBERS_OF_A_ROW // channels))
    return next((n for n in range(most, 1, -1) if pixels % n == 0), 1)
