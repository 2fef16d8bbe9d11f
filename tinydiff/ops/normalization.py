"""Group and layer normalisation.

The elements of each group are normalised by their mean u and variance v; each channel has a weight and a bias:

    u = mean(X),  v = mean((X - u)^2),  s = sqrt(v + eps)        (means over the group)
    Z = (X - u) / s,  A = Z * w + b

Y is A, or the SiLU of A. As u and v depend on every element of the group,

    L_A = L_Y                                                    (if not silu)
    L_A = L_Y * (S + A * S * (1 - S)),  S = sigmoid(A)           (if silu)
    L_Z = L_A * w                                                (if w)
    L_Z = L_A                                                    (if not w)
    L_X = (L_Z - mean(L_Z) - Z * mean(L_Z * Z)) / s              (means over the group)
    L_w = sum(L_A * Z),  L_b = sum(L_A)                          (sums over everything but the channel)

The second term of L_X comes through the mean, the third through the variance (Ioffe and Szegedy, 2015, section 3, for another
choice of groups; Wu and He, 2018, for this one).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, device_of
from tinydiff.dispatch import accelerated_in_float32
from tinydiff.ops.activation import silu_backward, silu_forward
from tinydiff.ops.arguments import as_real, as_tensor, channels_first, check_number
from tinydiff.ops.broadcasting import masked
from tinydiff.random import Generator


class GroupNorm(Function):
    """Saves its input alone. Z, the input of SiLU and dropout's mask are cheaper to compute again than to keep."""

    adds_waiting = gives_new = takes_half = True

    def forward(self, X, w, b, groups, eps, silu=False, dropout=None):
        """dropout: (p, generator), or None for none."""
        self.dropout = None if dropout is None else (dropout[0], dropout[1].advance(X.size))
        self.groups, self.silu = groups, silu
        Y, self.mean, self.scale = group_normalize(X, w, b, groups, eps, silu, self.dropout)
        self.save(X, w, b)
        return Y

    def backward(self, L_Y):
        X, w, b = self.saved
        known = self.mean, self.scale, w, b, self.groups, self.silu, self.needs, self.dropout
        return group_normalize_backward(L_Y, X, *known)


@accelerated_in_float32
def group_normalize(X: Any, w: Any, b: Any, groups: int, eps: float, silu: bool = False, dropout: Any = None) -> Any:
    """(Y, u, 1/s): Y = Z w + b, or the SiLU of that, and the mean u and scale 1/s of each group, both (N, groups).

    X (N, ..., C); w and b (C,), or None for 1 and 0. Groups without elements have mean and variance 0. dropout: (p, state of
    a generator), to drop elements of Y as `ops.dropout` does, or None.
    """
    G = _by_group(_widest(X, w, b), groups)
    u = _mean(G)
    u += _mean(G - u)  # rounding errors of a mean far from 0
    scale = 1 / array_module(X).sqrt(_mean((G - u) ** 2) + eps)
    A = _affine(((G - u) * scale).reshape(X.shape), w, b)
    return _dropped(silu_forward(A) if silu else A, dropout), u[:, 0, :, 0], scale[:, 0, :, 0]


@accelerated_in_float32
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
    """(L_X, L_w, L_b) from L_Y and what `group_normalize` took and gave; None for what `needs` does not ask for.

    L_Y first passes back through dropout, whose mask is drawn again, and SiLU, to Z w + b.
    """
    L_Y = _dropped(L_Y, dropout)
    u, scale = mean[:, None, :, None], scale[:, None, :, None]
    G = (_by_group(_widest(X, w, b), groups) - u) * scale
    Z = G.reshape(X.shape)
    if silu:
        L_Y = silu_backward(L_Y, _affine(Z, w, b))
    all_but_channels = tuple(range(X.ndim - 1))
    L_w = (L_Y * Z).sum(all_but_channels) if needs[1] else None
    L_b = L_Y.sum(all_but_channels) if needs[2] else None
    if not needs[0]:
        return None, L_w, L_b
    L_Z = _by_group(L_Y if w is None else L_Y * w, groups)
    L_X = (L_Z - _mean(L_Z) - G * _mean(L_Z * G)) * scale
    return L_X.reshape(X.shape), L_w, L_b


def _dropped(Y: Any, dropout: Any) -> Any:
    """Y times dropout's mask; dropout: (p, state), or None for Y itself."""
    if dropout is None:
        return Y
    p, state = dropout
    kept = Generator(*state).uniform(Y.shape, device=device_of(Y)) >= p
    return masked(kept, Y * Y.dtype.type(1 / (1 - p)))


def _widest(X: Any, w: Any, b: Any) -> Any:
    """X in the widest type of the three."""
    return X.astype(array_module(X).result_type(*(a for a in (X, w, b) if a is not None)), copy=False)


def _by_group(X: Any, groups: int) -> Any:
    """(N, ..., C) as (N, pixels, groups, C / groups)."""
    N, *size, C = X.shape
    return X.reshape(N, math.prod(size), groups, C // groups)


def _mean(G: Any) -> Any:
    """The means over groups (N, 1, groups, 1) of what `_by_group` gave, 0 where there are no elements."""
    return G.sum((1, 3), keepdims=True) / max(1, G.shape[1] * G.shape[3])


def _affine(Z: Any, w: Any, b: Any) -> Any:
    """Z w + b."""
    A = Z if w is None else Z * w
    return A if b is None else A + b


class LayerNorm(Function):
    """Normalisation over the last axis: each row is a group; w and b have an entry for each column."""

    widens_half = True

    def forward(self, X, w, b, eps):
        Z = X - X.mean(-1, keepdims=True)
        self.scale = 1 / array_module(X).sqrt((Z * Z).mean(-1, keepdims=True) + X.dtype.type(eps))
        Z *= self.scale
        self.save(Z, w)
        return _affine(Z, w, b)

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
    """Group normalisation (Wu and He, 2018, eq. 1): x (N, ..., C) -> the same shape, with mean 0 and variance 1 in each
    group.

    groups: a group is one of `groups` equal runs of channels, over all axes but the first.
    weight, bias: (C,). The result is multiplied by weight, then bias is added; None leaves one out.
    eps: a number, added to the variance before its root is taken.

    ValueError where channels are not divisible by groups or weight and bias do not fit. TypeError where groups or eps
    is not a number.
    """
    return _group_norm(x, groups, weight, bias, eps)


def group_norm_silu(
    x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, dropout: Any = None
) -> Tensor:
    """silu(group_norm(x, groups, weight, bias, eps)) in one operation, which keeps x alone for its backward pass.

    dropout: (p, generator), for ops.dropout of that, with the same draws and without a mask in memory; None for none.
    """
    return _group_norm(x, groups, weight, bias, eps, silu=True, dropout=dropout)


def _group_norm(x: Any, groups: int, weight: Any, bias: Any, eps: float, **options: Any) -> Tensor:
    x = as_real(x)
    if x.ndim < 2:
        raise ValueError(f"group_norm: x must be (N, ..., C), not of shape {x.shape}")
    check_number("group_norm", "groups", groups)
    check_number("group_norm", "eps", eps)
    if groups < 1 or x.shape[-1] % groups:
        takes = None if weight is None else as_tensor(weight).size
        hint = channels_first(x.shape, lambda n: groups > 0 and n % groups == 0 and takes in (None, n))
        raise ValueError(
            f"group_norm: the {x.shape[-1]} channels of x {x.shape} do not divide into {groups} groups{hint}"
        )
    _check_affine("group_norm", x, weight, bias)
    return GroupNorm.apply(x, weight, bias, groups=groups, eps=float(eps), **options)


def layer_norm(x: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    """Layer normalisation (Ba et al., 2016, eq. 3): x (..., C) -> the same shape, with mean 0 and variance 1 along the
    last axis.

    weight, bias: (C,). The result is multiplied by weight, then bias is added; None leaves one out.
    eps: a number, added to the variance before its root is taken.

    ValueError where weight and bias do not fit, TypeError where eps is not a number.
    """
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
                f"{channels_first(x.shape, as_tensor(value).size)}"
            )
