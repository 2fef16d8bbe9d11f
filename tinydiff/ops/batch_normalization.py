"""Batch normalisation (Ioffe and Szegedy, 2015).

The m rows of X (m, C) are examples, or the pixels of all images. Each channel is normalised by its mean and variance over them:

    u = mean(X),  v = mean((X - u)^2),  s = sqrt(v + eps)        (means over the rows)
    Z = (X - u) / s,  Y = Z * w + b

As in group normalisation, u and v depend on every row:

    L_Z = L_Y * w                                                (if w)
    L_Z = L_Y                                                    (if not w)
    L_X = (L_Z - mean(L_Z) - Z * mean(L_Z * Z)) / s              (means over the rows)
    L_w = sum(L_Y * Z),  L_b = sum(L_Y)                          (sums over the rows)

As w is the same in each row, mean(L_Z) is w L_b / m and mean(L_Z Z) is w L_w / m.
"""

from __future__ import annotations

import math
from typing import Any

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module
from tinydiff.ops import arithmetic
from tinydiff.ops.arguments import as_real, as_tensor, check_number
from tinydiff.ops.fully_connected import sum_rows


class BatchNorm(Function):
    """Y, and the mean u and variance v of each channel (C,), which running averages follow.

    u and v are outputs like Y: a loss that depends on them adds L_u / m + 2 (X - u) L_v / m to L_X.
    """

    gives_new = widens_half = True

    def forward(self, X, w, b, eps):
        D, u = _centred(X)
        v = sum_rows(D * D) / len(D)
        self.scale = 1 / array_module(X).sqrt(v + X.dtype.type(eps))
        self.save(X, w)
        D *= self.scale
        Y = D if w is None else D * w
        return (Y if b is None else Y + b).reshape(X.shape), u, v

    def backward(self, L_Y, L_u, L_v):
        X, w = self.saved
        D, _ = _centred(X)
        L, Z, m = L_Y.reshape(D.shape), D * self.scale, len(D)
        L_w, L_b = sum_rows(L * Z), sum_rows(L)
        L_X = None
        if self.needs[0]:
            factor = self.scale if w is None else w * self.scale
            L_X = factor * (L - L_b / m - Z * (L_w / m)) + (L_u + 2 * D * L_v) / m
            L_X = L_X.reshape(X.shape)
        return L_X, L_w if self.needs[1] else None, L_b if self.needs[2] else None


def _centred(X: Any) -> tuple[Any, Any]:
    """X (..., C) as rows less their mean, and the mean (C,)."""
    rows = X.reshape(math.prod(X.shape[:-1]), X.shape[-1])
    u = sum_rows(rows) / len(rows)
    D = rows - u
    error = sum_rows(D) / len(rows)  # the rounding error of a mean far from 0
    D -= error
    return D, u + error


def batch_norm(
    x: Any, weight: Any = None, bias: Any = None, mean: Any = None, variance: Any = None, eps: float = 1e-5
) -> Tensor:
    """Batch normalisation (Ioffe and Szegedy, 2015, alg. 1): x (..., C) -> the same shape, with mean 0 and variance 1 in
    each channel, over all axes but the last.

    weight, bias: (C,). The result is multiplied by weight, then bias is added; None leaves one out.
    mean, variance: (C,), what to normalise by in place of x's own, as trained networks do (alg. 2); both or neither.
    eps: a number, added to the variance before its root is taken.

    ValueError where weight, bias, mean or variance do not fit, or a channel of x has no element or only one: it has no
    variance. TypeError where eps is not a number.
    """
    if mean is None and variance is None:
        return normalize_batch(x, weight, bias, eps)[0]
    if mean is None or variance is None:
        raise ValueError("batch_norm: give both mean and variance, or neither")
    x = as_real(x)
    _check(x, eps, weight=weight, bias=bias, mean=mean, variance=variance)
    root = arithmetic.sqrt(as_tensor(variance) + eps)
    y = (x - mean) / root if weight is None else (x - mean) * (weight / root)
    return y if bias is None else y + bias


def normalize_batch(x: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> tuple[Tensor, Tensor, Tensor]:
    """(batch_norm(x, weight, bias, eps=eps), x's mean, its variance), the latter (C,)."""
    x = as_real(x)
    _check(x, eps, weight=weight, bias=bias)
    if (m := math.prod(x.shape[:-1])) < 2:
        raise ValueError(f"batch_norm: x {x.shape} has {m} element{'' if m == 1 else 's'} in a channel; needed are 2")
    return BatchNorm.apply(x, weight, bias, eps=float(eps))


def _check(x: Tensor, eps: Any, **values: Any) -> None:
    check_number("batch_norm", "eps", eps)
    if x.ndim < 2:
        raise ValueError(f"batch_norm: x must be (N, ..., C), not of shape {x.shape}")
    for what, value in values.items():
        if value is not None and as_tensor(value).shape != x.shape[-1:]:
            raise ValueError(
                f"batch_norm: {what} {as_tensor(value).shape} does not fit x {x.shape}; needed is {x.shape[-1:]}"
            )
