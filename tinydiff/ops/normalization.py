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
from typing import Any

from tinydiff.backend import array_module
from tinydiff.function import Function
from tinydiff.kernels import accelerated
from tinydiff.ops.arguments import as_real, as_tensor
from tinydiff.ops.products import ROW
from tinydiff.tensor import Tensor
from tinydiff.workers import long_rows, share_blocks, workspace


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
    layout = _Layout(X, w, b, groups)
    xp, Y = layout.xp, layout.xp.empty(X.shape, layout.dtype)
    mean, scale = xp.empty((2, len(X), groups), layout.dtype)
    w, b = layout.affine(w, b, 0.5 if silu else 1)

    def some(images: slice) -> None:
        x, y = layout.rows(X[images]), layout.rows(Y[images])
        D, H = layout.scratch("D", x.shape), layout.scratch("H", x.shape)
        # With the mean k of the group's first row, the mean d of D = X - k is small, however far from 0 the numbers
        # are, so that mean(D^2) - d^2 is safe: if the row is a share q of the group, d^2 <= variance / q.
        k = layout.group_mean(layout.channel_sum(x[:, :1]), 1)
        xp.subtract(x, layout.row(k), out=D)
        xp.multiply(D, D, out=H)
        d, square = layout.group_mean(layout.channel_sum(D)), layout.group_mean(layout.channel_sum(H))
        r = 1 / xp.sqrt(xp.maximum(square - d * d, 0) + layout.dtype.type(eps))
        mean[images], scale[images] = (k + d)[:, :, 0], r[:, :, 0]
        xp.multiply(D, layout.row(r * w), out=H)
        xp.add(H, layout.row(b - d * r * w), out=H if silu else y)
        if silu:
            xp.tanh(H, out=y)
            y += 1
            y *= H

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

    With D = X - u and the gradient L of A = Z w + b, L_X = L (w r) - D r^2 mean(L w Z) - r mean(L w): factors that are
    the same for all pixels are multiplied first. For SiLU, with h = A / 2 and p = 1 - tanh(h), L = L_Y (2 - p)
    (1 + h p) / 2.
    """
    layout = _Layout(X, w, b, groups)
    xp, L_X = layout.xp, layout.xp.empty(X.shape, layout.dtype)
    L_w, L_b = xp.empty((2, len(X), groups, X.shape[-1] // groups), layout.dtype)
    half = 0.5 if silu else 1
    w, b = layout.affine(w, b, half)

    def some(images: slice) -> None:
        L, D = layout.rows(L_Y[images]), layout.rows(L_X[images])
        H, S = layout.scratch("D", D.shape), layout.scratch("H", D.shape)
        r = scale[images, :, None]
        xp.subtract(layout.rows(X[images]), layout.row(mean[images, :, None]), out=D)
        if silu:
            xp.multiply(D, layout.row(r * w), out=H)
            H += layout.row(b)
            xp.tanh(H, out=S)
            xp.subtract(1, S, out=S)
            H *= S
            H += 1
            xp.subtract(2, S, out=S)
            H *= S
            L = xp.multiply(H, L, out=H)  # twice the L above, as w is half of it
        sums, sums_D = layout.channel_sum(L), layout.channel_sum(xp.multiply(L, D, out=S)) * r
        L_b[images], L_w[images] = half * sums, half * sums_D
        if needs[0]:
            D *= layout.row(-r * r * layout.group_mean(sums_D * w))
            D += xp.multiply(L, layout.row(r * w), out=H)
            D -= layout.row(r * layout.group_mean(sums * w))

    layout.share(some, X)
    return (
        L_X if needs[0] else None,
        L_w.sum(0).reshape(-1) if needs[1] else None,
        L_b.sum(0).reshape(-1) if needs[2] else None,
    )


class _Layout:
    """How group normalisation sees images X (N, ..., C) of P pixels.

    As rows (N, rows, L) of several pixels each, since long rows are broadcast faster (`products.py`). As values of
    channels (N, groups, C / groups) or of groups (N, groups, 1).
    """

    def __init__(self, X: Any, w: Any, b: Any, groups: int) -> None:
        self.xp = array_module(X)
        self.dtype = self.xp.result_type(*(a for a in (X, w, b) if a is not None))
        self.channels = groups, X.shape[-1] // groups
        pixels, self.C = math.prod(X.shape[1:-1]), X.shape[-1]
        self.repeat = _pixels_per_row(pixels, self.C)
        self.lines = pixels // self.repeat
        self.ones = self.xp.ones((1, pixels), self.dtype)

    def rows(self, X: Any) -> Any:
        """(n, ..., C) as (n, rows, L)."""
        return X.reshape(len(X), self.lines, self.repeat * self.C)

    def row(self, values: Any) -> Any:
        """Values of channels or groups as a row (n, 1, L) for all pixels."""
        row = self.xp.empty((len(values), self.repeat, *self.channels), self.dtype)
        row[...] = values[:, None]
        return row.reshape(len(values), 1, self.repeat * self.C)

    def channel_sum(self, rows: Any) -> Any:
        """Sums over pixels, by products with ones, which are the fastest way to sum: (n, rows, L) -> (n, *channels)."""
        X = rows.reshape(len(rows), rows.shape[1] * self.repeat, self.C)
        return (self.ones[:, : X.shape[1]] @ X).reshape(len(X), *self.channels)

    def group_mean(self, sums: Any, lines: int | None = None) -> Any:
        """Means over groups of as many rows as there are, or `lines`, from sums over pixels: -> (n, groups, 1)."""
        lines = self.lines if lines is None else lines
        return sums.sum(2, keepdims=True) / max(lines * self.repeat * self.channels[1], 1)

    def affine(self, w: Any, b: Any, factor: float) -> tuple[Any, Any]:
        """Weight and bias times the factor as values of channels."""
        w = self.xp.ones(self.C, self.dtype) if w is None else w
        b = self.xp.zeros(self.C, self.dtype) if b is None else b
        return tuple((self.dtype.type(factor) * a).reshape(1, *self.channels) for a in (w, b))

    def scratch(self, name: str, shape: tuple[int, ...]) -> Any:
        return workspace(name, shape, self.dtype, self.xp)

    def share(self, work: Callable[[slice], None], X: Any) -> None:
        """work(images) for blocks of images, spread over the threads."""

        def some(images: slice) -> None:
            with long_rows(self.repeat * self.C):
                work(images)

        share_blocks(some, X)


@cache
def _pixels_per_row(pixels: int, channels: int) -> int:
    """The largest divisor of the number of pixels with which a row has at most ROW numbers."""
    most = min(pixels, max(1, ROW // channels))
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
