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
from functools import cache, lru_cache
from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.function import Function
from tinydiff.kernels import accelerated
from tinydiff.ops.arguments import as_real, as_tensor
from tinydiff.tensor import Tensor
from tinydiff.workers import long_rows, share_blocks, workspace

_ROW = 1 << 11  # numbers in a row that is broadcast, at most: half or twice as many are 2 to 4 % slower
_WHOLE = 1 << 13  # numbers of a small image: to write it as one row takes less time than to broadcast shorter ones,
_PIXELS = 64  # but only as long as the row has few pixels
_BUFFER = 1 << 13  # numbers in NumPy's buffer: rows that fill it are not copied into it
_SMALL = 1 << 18  # numbers that are not worth a second thread: with half as many it made a call 1.5 times as long, as
# steps of 10 microseconds wait for the interpreter's lock more than they work


class GroupNorm(Function):
    """Saves its input alone: Z, and what SiLU was applied to, are cheaper to compute again than to keep."""

    gives_new = True

    def forward(self, X, w, b, groups, eps, silu=False):
        self.groups, self.silu = groups, silu
        Y, self.mean, self.scale = group_normalize(X, w, b, groups, eps, silu)
        self.save(X, w, b)
        return Y

    def backward(self, L_Y):
        X, w, b = self.saved
        return group_normalize_backward(L_Y, X, self.mean, self.scale, w, b, self.groups, self.silu, self.needs)


@accelerated("normalization.group_normalize")
def group_normalize(X: Any, w: Any, b: Any, groups: int, eps: float, silu: bool = False) -> tuple[Any, Any, Any]:
    """Y = Z w + b, or the SiLU of that, with the mean u and the scale r = 1/s of each group, both (N, groups).

    X (N, ..., C), w and b (C,) or None. For SiLU, with h = (Z w + b) / 2, Y = 2 h sigmoid(2 h) = h (1 + tanh(h)).
    """
    layout = _layout(X, w, b, groups)
    xp, Y = layout.xp, layout.xp.empty(X.shape, layout.dtype)
    mean, scale = xp.zeros((2, len(X), groups), layout.dtype)
    w, b = layout.affine(w, b, 0.5 if silu else 1)

    def some(images: slice) -> None:
        x, D = layout.rows(X[images]), layout.rows(Y[images])
        H = layout.scratch("H", D.shape)
        # With the mean k of the group's first row, the mean d of D = X - k is small, however far from 0 the numbers
        # are, so that mean(D^2) - d^2 is safe: if the row is a share q of the group, d^2 <= variance / q.
        k = layout.group_means(layout.channel_sums(x[:, :1]), layout.share_of_row)
        xp.subtract(x, layout.row(layout.channels(k)), out=D)
        xp.multiply(D, D, out=H)
        d = layout.group_means(layout.channel_sums(D))
        r = layout.group_means(layout.channel_sums(H))
        r -= d * d
        xp.maximum(r, 0, out=r)
        r += eps
        xp.sqrt(r, out=r)
        xp.reciprocal(r, out=r)
        mean[images], scale[images] = k + d, r
        factor, shift = layout.channels(r) * w, layout.channels(d)
        shift *= factor
        xp.subtract(b, shift, out=shift)
        xp.multiply(D, layout.row(factor), out=H)
        xp.add(H, layout.row(shift), out=H if silu else D)
        if silu:
            xp.tanh(H, out=D)
            D += 1
            D *= H

    layout.share(some, X)
    return Y, mean, scale


@accelerated("normalization.group_normalize_backward")
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

    def some(images: slice) -> None:
        L, D = layout.rows(L_Y[images]), layout.rows(L_X[images])
        H, S = layout.scratch("H", D.shape), layout.scratch("S", D.shape)
        r = layout.channels(scale[images])
        factor = layout.row(r * w)
        xp.subtract(layout.rows(X[images]), layout.row(layout.channels(mean[images])), out=D)
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
        sums, sums_Z = layout.channel_sums(L), layout.channel_sums(xp.multiply(L, D, out=S))
        sums_Z *= r
        L_b[images], L_w[images] = sums, sums_Z
        if needs[0]:
            along = layout.channels(layout.group_means(sums_Z * w))
            along *= r * r
            D *= layout.row(along)
            D += layout.row(layout.channels(layout.group_means(sums * w)) * r)
            xp.subtract(xp.multiply(L, factor, out=H), D, out=D)

    layout.share(some, X)
    return (
        L_X if needs[0] else None,
        half * L_w.sum(0) if needs[1] else None,
        half * L_b.sum(0) if needs[2] else None,
    )


class _Layout:
    """How group normalisation sees images X (n, ..., C) of P pixels and one dtype.

    As rows (n, rows, L) of several pixels each, since long rows are broadcast faster (`products.py`). Values of groups
    are arrays (n, groups), those of channels (n, C).

    An image alone takes 30 to 60 microseconds, most of which are those of starting some 35 operations on small arrays,
    so here is what costs least (measured): layouts are kept; a product with a vector of equal shares is a mean over the
    few channels of a group in a quarter of the time of `mean`; `repeat` spreads values of groups in a third of that of
    broadcasting them.
    """

    def __init__(self, xp: Any, shape: tuple[int, ...], groups: int, dtype: Any, alone: bool) -> None:
        self.xp, self.dtype = xp, dtype
        self.pixels, self.C = math.prod(shape[:-1]), shape[-1]
        self.size = self.C // groups  # channels of a group
        self.repeat = _pixels_per_row(self.pixels, self.C, alone)
        self.lines = self.pixels // self.repeat
        self.long = not alone and self.lines > 1  # rows for `long_rows`
        self.ones = xp.ones((1, self.pixels), dtype)
        self.share_of_row = xp.full(self.size, 1 / max(self.repeat * self.size, 1), dtype)
        self.share_of_image = xp.full(self.size, 1 / max(self.pixels * self.size, 1), dtype)

    def rows(self, X: Any) -> Any:
        """(n, ..., C) as (n, rows, L)."""
        return X.reshape(len(X), self.lines, self.repeat * self.C)

    def row(self, values: Any) -> Any:
        """Values of channels as a row (n, 1, L) for all pixels."""
        row = self.xp.empty((len(values), self.repeat, self.C), self.dtype)
        row[...] = values[:, None]
        return row.reshape(len(values), 1, self.repeat * self.C)

    def channels(self, values: Any) -> Any:
        """Values of groups as values of channels."""
        return values.repeat(self.size, 1)

    def channel_sums(self, rows: Any) -> Any:
        """Sums over pixels, by products with ones, which are the fastest way to sum: (n, rows, L) -> (n, C)."""
        n, pixels = len(rows), rows.shape[1] * self.repeat
        if n == 1:  # a product of two matrices starts in half the time of one of stacks
            return self.ones[:, :pixels].dot(rows.reshape(pixels, self.C))
        return (self.ones[:, :pixels] @ rows.reshape(n, pixels, self.C)).reshape(n, self.C)

    def group_means(self, sums: Any, share: Any = None) -> Any:
        """Means over groups, of the whole image or of a row, from sums over its pixels: (n, C) -> (n, groups)."""
        share = self.share_of_image if share is None else share
        return sums.reshape(-1, self.size).dot(share).reshape(len(sums), -1)

    def affine(self, w: Any, b: Any, factor: float) -> tuple[Any, Any]:
        """Weight and bias times the factor, as values of channels (1, C)."""
        w = self.xp.ones(self.C, self.dtype) if w is None else w
        b = self.xp.zeros(self.C, self.dtype) if b is None else b
        return w[None] * factor, b[None] * factor

    def scratch(self, name: str, shape: tuple[int, ...]) -> Any:
        return workspace(name, shape, self.dtype, self.xp)

    def share(self, work: Callable[[slice], None], X: Any) -> None:
        """work(images) for blocks of images, spread over the threads; none for no numbers."""

        def some(images: slice) -> None:
            with long_rows(self.repeat * self.C):
                work(images)

        if X.size:
            share_blocks(some if self.long else work, X, small=_SMALL)


_known_layout = lru_cache(maxsize=128)(_Layout)


def _layout(X: Any, w: Any, b: Any, groups: int) -> _Layout:
    """The layout of X's images and of the widest dtype. Those of the CPU are kept; on a GPU, which may be one of several,
    they would keep arrays there."""
    xp = array_module(X)
    dtype = xp.result_type(*[a for a in (X, w, b) if a is not None])
    return (_known_layout if xp is np else _Layout)(xp, X.shape[1:], groups, dtype, len(X) == 1)


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
    return LayerNorm.apply(x, weight, bias, eps=eps)


def _check_affine(name: str, x: Tensor, weight: Any, bias: Any) -> None:
    for what, value in (("weight", weight), ("bias", bias)):
        if value is not None and as_tensor(value).shape != x.shape[-1:]:
            raise ValueError(
                f"{name}: {what} {as_tensor(value).shape} does not fit x {x.shape}; needed is {x.shape[-1:]}"
            )
