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
from typing import Any

from tinydiff.backend import array_module
from tinydiff.function import Function
from tinydiff.ops.arguments import add_bias, as_real, as_tensor
from tinydiff.tensor import Tensor


class GroupNorm(Function):
    """X (N, ..., C) as (N, P, C) with P pixels. Everything that is the same for all pixels of a channel is computed on
    (N, 1, C) or (N, G, C/G) arrays; sums over pixels are products with a row of ones, which matmul does at full
    speed."""

    def forward(self, X, w, b, groups, eps):
        N, *size, C = X.shape
        X3 = X.reshape(N, math.prod(size), C)
        self.groups, self.count = groups, X3.shape[1] * C // groups
        Z = X3 - self._group_mean(_pixel_sum(X3))
        variance = self._group_mean(_pixel_sum(Z * Z))
        self.scale = 1 / array_module(X).sqrt(variance + X.dtype.type(eps))  # 1 / s: (N, 1, C)
        Z *= self.scale
        if any(self.needs):
            self.save(Z, w)
        Y = Z.copy() if w is None and b is not None else Z if w is None else Z * w
        if b is not None:
            Y = add_bias(Y, b)
        return Y.reshape(X.shape)

    def backward(self, L_Y):
        Z, w = self.saved
        L_Y = L_Y.reshape(Z.shape)
        L_X = L_w = L_b = None
        sums = _pixel_sum(L_Y)  # (N, 1, C)
        product = L_Y * Z
        sums_Z = _pixel_sum(product)
        if self.needs[0]:
            weight = 1 if w is None else w
            # (L_Y w - mean - Z mean_Z) / s with every factor that is constant over pixels taken together first
            L_X = _multiply(Z, -self._group_mean(sums_Z * weight) * self.scale, out=product)
            L_X += L_Y * (weight * self.scale)
            L_X -= self._group_mean(sums * weight) * self.scale
            L_X = L_X.reshape(self.shapes[0])
        if self.needs[1]:
            L_w = sums_Z.sum((0, 1))
        if self.needs[2]:
            L_b = sums.sum((0, 1))
        return L_X, L_w, L_b

    def _group_mean(self, sums: Any) -> Any:
        """From sums over pixels (N, 1, C) to means over groups, repeated for each channel: (N, 1, C)."""
        N, _, C = sums.shape
        means = sums.reshape(N, self.groups, C // self.groups).sum(2, keepdims=True) / max(self.count, 1)
        return array_module(sums).broadcast_to(means, (N, self.groups, C // self.groups)).reshape(N, 1, C)


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


def _pixel_sum(X: Any) -> Any:
    """The sum over pixels: (N, P, C) -> (N, 1, C)."""
    return array_module(X).ones((1, X.shape[1]), X.dtype) @ X


def _multiply(a: Any, b: Any, out: Any) -> Any:
    return array_module(a).multiply(a, b, out=out)


def group_norm(x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    """Group normalisation (Wu and He, 2018): x (N, ..., C), normalised over all axes but the first and within each of
    `groups` equal runs of channels, then times weight (C,) plus bias (C,). eps is added to the variance.

    ValueError where channels are not divisible by groups or weight and bias do not fit.
    """
    x = as_real(x)
    if x.ndim < 2:
        raise ValueError(f"group_norm: x must be (N, ..., C), not of shape {x.shape}")
    if groups < 1 or x.shape[-1] % groups:
        raise ValueError(f"group_norm: the {x.shape[-1]} channels of x {x.shape} do not divide into {groups} groups")
    _check_affine("group_norm", x, weight, bias)
    return GroupNorm.apply(x, weight, bias, groups=groups, eps=eps)


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
