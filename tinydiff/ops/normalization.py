"""Group and layer normalisation.

Within each group of m elements, with mean u and variance v, the normalised input is Z = (X - u) / s, s = sqrt(v +
eps), and Y = Z w + b with a weight and a bias for each channel. As u and v depend on every element of the group,

    L_Z = L_Y w
    L_X = (L_Z - mean(L_Z) - Z mean(L_Z Z)) / s        (means over the group)
    L_w = sum(L_Y Z),  L_b = sum(L_Y)                  (sums over everything but the channel)

The second term comes through the mean, the third through the variance (Ioffe and Szegedy, 2015, section 3, for another
choice of groups; Wu and He, 2018, for this one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module
from tinydiff.cpu.blas import long_rows
from tinydiff.dispatch import accelerated
from tinydiff.machine.threads import share_blocks
from tinydiff.machine.workspaces import prepared, workspace
from tinydiff.ops.arguments import as_real, as_tensor, check_number

_ROW = 1 << 11  # numbers in a row that is broadcast, at most: half or twice as many are 2 to 4 % slower
_WHOLE = 1 << 13  # numbers of a small image: to write it as one row takes less time than to broadcast shorter ones,
_PIXELS = 64  # but only as long as the row has few pixels
_BUFFER = 1 << 13  # numbers in NumPy's buffer: rows that fill it are not copied into it
_SMALL = 1 << 18  # numbers that are not worth a second thread: with half as many it made a call 1.5 times as long, as
# steps of 10 microseconds wait for the interpreter's lock more than they work


class GroupNorm(Function):
    """Saves its input alone: Z, and what SiLU was applied to, are cheaper to compute again than to keep."""

    gives_new = widens_half = True

    def forward(self, X, w, b, groups, eps, silu=False):
        self.groups, self.silu = groups, silu
        Y, self.mean, self.scale = group_normalize(X, w, b, groups, eps, silu)
        self.save(X, w, b)
        return Y

    def backward(self, L_Y):
        X, w, b = self.saved
        return group_normalize_backward(L_Y, X, self.mean, self.scale, w, b, self.groups, self.silu, self.needs)


@accelerated
def group_normalize(X: Any, w: Any, b: Any, groups: int, eps: float, silu: bool = False) -> tuple[Any, Any, Any]:
    """Y = Z w + b, or the SiLU of that, with the mean u and the scale r = 1/s of each group, both (N, groups).

    X (N, ..., C), w and b (C,) or None. For SiLU, with h = (Z w + b) / 2, Y = 2 h sigmoid(2 h) = h (1 + tanh(h)).
    """
    layout = _layout(X, w, b, groups)
    xp, Y = layout.xp, layout.xp.empty(X.shape, layout.dtype)
    mean, scale = xp.zeros((2, len(X), groups), layout.dtype)
    w, b = layout.affine(w, b, 0.5 if silu else 1)

    def some(X: Any, Y: Any, mean: Any, scale: Any) -> None:
        x, D = layout.rows(X), layout.rows(Y)
        H = layout.scratch("H", D.shape)
        # With the mean k of the group's first row, the mean d of D = X - k is small, however far from 0 the numbers
        # are, so that mean(D^2) - d^2 is safe: if the row is a share q of the group, d^2 <= variance / q.
        k = layout.group_means(x[:, :1], layout.of_row)
        xp.subtract(x, layout.brief_row(layout.channels(k)), out=D)
        xp.multiply(D, D, out=H)
        d, r = layout.group_means(D, layout.of_image), layout.group_means(H, layout.of_image)
        r -= d * d
        xp.maximum(r, 0, out=r)
        r += eps
        xp.sqrt(r, out=r)
        xp.reciprocal(r, out=r)
        xp.add(k, d, out=mean)
        scale[...] = r
        factor, shift = layout.channels(r), layout.channels(d)
        factor *= w
        shift *= factor
        xp.subtract(b, shift, out=shift)
        xp.multiply(D, layout.brief_row(factor), out=H)
        xp.add(H, layout.brief_row(shift), out=H if silu else D)
        if silu:
            xp.tanh(H, out=D)
            D += 1
            D *= H

    layout.share(some, X, Y, mean, scale)
    return Y, mean, scale


@accelerated
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
) -> tuple[Any, Any, Any]:
    """(L_X, L_w, L_b), None where not needed, from L_Y and what `group_normalize` took and gave.

    With D = X - u and the gradient L of A = Z w + b, L_X = L (w r) - (D r^2 mean(L w Z) + r mean(L w)): factors that
    are the same for all pixels are multiplied first. For SiLU, with h = A / 2 and p = 1 - tanh(h), L = L_Y (2 - p)
    (1 + h p) / 2.
    """
    layout = _layout(X, w, b, groups)
    xp, L_X = layout.xp, layout.xp.empty(X.shape, layout.dtype)
    L_w, L_b = xp.zeros((2, len(X), X.shape[-1]), layout.dtype)
    half = 0.5 if silu else 1
    w, b = layout.affine(w, b, half)

    def some(L_Y: Any, X: Any, L_X: Any, mean: Any, scale: Any, L_w: Any, L_b: Any) -> None:
        L, D = layout.rows(L_Y), layout.rows(L_X)
        H, S = layout.scratch("H", D.shape), layout.scratch("S", D.shape)
        r = layout.channels(scale)
        factor = layout.row(r * w)
        xp.subtract(layout.rows(X), layout.row(layout.channels(mean)), out=D)
        if silu:
            xp.multiply(D, factor, out=H)
            H += layout.row(b)
            xp.tanh(H, out=S)
            xp.subtract(1, S, out=S)
            H *= S
            H += 1
            xp.subtract(2, S, out=S)
            H *= S
            L = xp.multiply(H, L, out=H)  # twice the L above, as w is half of it
        L_b[...] = layout.channel_sums(L, layout.of_image)
        L_w[...] = layout.channel_sums(xp.multiply(L, D, out=S), layout.of_image)
        L_w *= r
        if needs[0]:
            along = layout.channels(layout.means(L_w * w, layout.of_image))
            along *= r * r
            D *= layout.row(along)
            D += layout.row(layout.channels(layout.means(L_b * w, layout.of_image)) * r)
            xp.subtract(xp.multiply(L, factor, out=H), D, out=D)

    layout.share(some, L_Y, X, L_X, mean, scale, L_w, L_b)
    return (
        L_X if needs[0] else None,
        half * L_w.sum(0) if needs[1] else None,
        half * L_b.sum(0) if needs[2] else None,
    )


class _Pixels(NamedTuple):
    """What sums are multiplied with: over n pixels with ones (1, n), and over the channels of a group with their equal
    shares (size,) in a mean over n pixels."""

    ones: Any
    shares: Any


class _Layout:
    """How group normalisation sees images X (n, ..., C) of P pixels and one dtype.

    As rows (n, rows, L) of several pixels each, since long rows are broadcast faster (`products.py`). Values of groups
    are arrays (n, groups), those of channels (n, C).

    An image alone takes 25 to 60 microseconds, most of which are those of starting some 35 operations on small arrays,
    so here is what costs least (measured): layouts are kept, with the memory that an image alone needs, so they belong
    to one thread; a product with a vector of equal shares is a mean over the few channels of a group in a quarter of the
    time of `mean`; `repeat` spreads values of groups in a third of that of broadcasting them.
    """

    def __init__(self, xp: Any, shape: tuple[int, ...], groups: int, dtype: Any, alone: bool) -> None:
        self.xp, self.dtype, self.alone = xp, dtype, alone
        self.C, self.groups, self.size = shape[-1], groups, shape[-1] // groups  # channels: all, those of a group
        pixels = math.prod(shape[:-1])
        self.repeat = _pixels_per_row(pixels, self.C, alone)
        self.lines, self.length = pixels // self.repeat, self.repeat * self.C
        self.of_image, self.of_row = (
            _Pixels(_ones(n, dtype, xp), xp.full(self.size, 1 / max(n * self.size, 1), dtype))
            for n in (pixels, self.repeat)
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
        row = self.xp.empty((len(values), self.repeat, self.C), self.dtype)
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
        """Sums over pixels, by products with ones, which are the fastest way to sum on the CPU: (n, rows, L) -> (n, C)."""
        if self.xp is not np:
            return rows.reshape(len(rows), -1, self.C).sum(1)
        if self.alone:  # a product of two matrices starts in half the time of one of stacks
            return of.ones.dot(rows.reshape(-1, self.C))
        n = len(rows)
        return (of.ones @ rows.reshape(n, -1, self.C)).reshape(n, self.C)

    def means(self, sums: Any, of: _Pixels) -> Any:
        """Means over groups from sums over pixels: (n, C) -> (n, groups)."""
        if self.xp is not np:
            return sums.reshape(-1, self.groups, self.size).sum(2) * of.shares[:1]
        return sums.reshape(-1, self.size).dot(of.shares).reshape(-1, self.groups)

    def group_means(self, rows: Any, of: _Pixels) -> Any:
        """(n, rows, L) -> (n, groups)."""
        return self.means(self.channel_sums(rows, of), of)

    def affine(self, w: Any, b: Any, factor: float) -> tuple[Any, Any]:
        """Weight and bias times the factor, as values of channels (1, C)."""
        w = self.xp.ones(self.C, self.dtype) if w is None else w
        b = self.xp.zeros(self.C, self.dtype) if b is None else b
        return w[None] * factor, b[None] * factor

    def scratch(self, name: str, shape: tuple[int, ...]) -> Any:
        """Memory for rows, "H" or "S"."""
        if not self.alone:
            return self._workspace(name, shape)
        if name not in self.scratch_alone:
            self.scratch_alone[name] = self._workspace(name, shape)
        return self.scratch_alone[name]

    def _workspace(self, name: str, shape: tuple[int, ...]) -> Any:
        return workspace(f"{name} of a normalisation", shape, self.dtype, self.xp)

    def share(self, work: Callable[..., None], X: Any, *others: Any) -> None:
        """work(X, *others) for blocks of images, spread over the threads; none for no numbers."""
        if self.alone:
            work(X, *others)
            return

        def some(images: slice) -> None:
            with long_rows(self.length if self.lines > 1 else 0):
                work(X[images], *(A[images] for A in others))

        if X.size:
            share_blocks(some, X, small=_SMALL)


def _ones(n: int, dtype: Any, xp: Any) -> Any:
    """(1, n); those of the CPU are the beginning of an array that a thread keeps for all sizes up to a power of 2."""
    return prepared(xp.ones, (1, 1 << n.bit_length()), dtype)[:, :n] if xp is np else xp.ones((1, n), dtype)


def _layout(X: Any, w: Any, b: Any, groups: int) -> _Layout:
    """The layout of X's images and of the widest dtype. Those of the CPU are kept; on a GPU, which may be one of several,
    they would keep arrays there."""
    xp, alone = array_module(X), len(X) == 1 and X.size > 0
    dtype = xp.result_type(*[a for a in (X, w, b) if a is not None])
    if xp is np:
        return prepared(_Layout, xp, X.shape[1:], groups, dtype, alone)
    return _Layout(xp, X.shape[1:], groups, dtype, alone)


@cache
def _pixels_per_row(pixels: int, channels: int, alone: bool) -> int:
    """All of a small image, else the largest divisor of the number of pixels with which a row has at most _ROW numbers.

    Of an image alone the smallest with which a row fills NumPy's buffer: what `long_rows` sets would be of no use then,
    which in a network takes 10 to 30 microseconds, and to write the longer rows takes 3.
    """
    if pixels <= _PIXELS and pixels * channels <= _WHOLE:
        return max(pixels, 1)
    if alone:
        least = -(-_BUFFER // max(channels, 1))
        return next((n for n in range(least, pixels) if pixels % n == 0), max(pixels, 1))
    most = min(pixels, max(1, _ROW // max(channels, 1)))
    return next((n for n in range(most, 1, -1) if pixels % n == 0), 1)


class LayerNorm(Function):
    """Normalisation over the last axis: each row is a group of its own, w and b stand for its columns."""

    widens_half = True

    def forward(self, X, w, b, eps):
        Z = X - X.mean(-1, keepdims=True)
        self.scale = 1 / array_module(X).sqrt((Z * Z).mean(-1, keepdims=True) + X.dtype.type(eps))
        Z *= self.scale
        self.save(Z, w)
        Y = Z if w is None else Z * w
        return Y if b is None else Y + b

    def backward(self, L_Y):
        Z, w = self.saved
        L_X = L_w = L_b = None
        if self.needs[0]:
            L_Z = L_Y if w is None else L_Y * w
            L_X = (L_Z - L_Z.mean(-1, keepdims=True) - Z * (L_Z * Z).mean(-1, keepdims=True)) * self.scale
        rows = tuple(range(L_Y.ndim - 1))
        if self.needs[1]:
            L_w = (L_Y * Z).sum(rows)
        if self.needs[2]:
            L_b = L_Y.sum(rows)
        return L_X, L_w, L_b


def group_norm(x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    """Group normalisation (Wu and He, 2018): x (N, ..., C), normalised over all axes but the first and within each of
    `groups` equal runs of channels, then times weight (C,) plus bias (C,). eps is added to the variance.

    ValueError where channels are not divisible by groups or weight and bias do not fit.
    """
    return _group_norm(x, groups, weight, bias, eps, silu=False)


def group_norm_silu(x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    """silu(group_norm(x, groups, weight, bias, eps)) in one operation, which keeps x alone for its backward pass."""
    return _group_norm(x, groups, weight, bias, eps, silu=True)


def _group_norm(x: Any, groups: int, weight: Any, bias: Any, eps: float, silu: bool) -> Tensor:
    x = as_real(x)
    if x.ndim < 2:
        raise ValueError(f"group_norm: x must be (N, ..., C), not of shape {x.shape}")
    check_number("group_norm", "groups", groups)
    check_number("group_norm", "eps", eps)
    if groups < 1 or x.shape[-1] % groups:
        raise ValueError(f"group_norm: the {x.shape[-1]} channels of x {x.shape} do not divide into {groups} groups")
    _check_affine("group_norm", x, weight, bias)
    return GroupNorm.apply(x, weight, bias, groups=groups, eps=eps, silu=silu)


def layer_norm(x: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    """Layer normalisation (Ba et al., 2016) over the last axis: x (..., C), weight and bias (C,) or None."""
    x = as_real(x)
    if x.ndim < 1:
        raise ValueError("layer_norm: x must have at least one axis")
    _check_affine("layer_norm", x, weight, bias)
    check_number("layer_norm", "eps", eps)
    return LayerNorm.apply(x, weight, bias, eps=eps)


def _check_affine(name: str, x: Tensor, weight: Any, bias: Any) -> None:
    for what, value in (("weight", weight), ("bias", bias)):
        if value is not None and as_tensor(value).shape != x.shape[-1:]:
            raise ValueError(
                f"{name}: {what} {as_tensor(value).shape} does not fit x {x.shape}; needed is {x.shape[-1:]}"
            )
