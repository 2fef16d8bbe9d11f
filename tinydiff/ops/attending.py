"""Attention.

It is (Vaswani et al., 2017, eq. 1) Y = P V, in which each row of P sums to 1:

    P = softmax(S)
    S = scale Q K^T             (if not mask)
    S = scale Q K^T + mask      (if mask)

    Q (..., L, D)    K (..., M, D)    V (..., M, E)    S, P (..., L, M)    Y (..., L, E).

The two products go back as those of the fully connected layer do, and in the softmax dp_i/ds_j = p_i (delta_ij - p_j):

    L_V = P^T L_Y,  L_P = L_Y V^T
    L_S = P * (L_P - d),  d = sum(P * L_P)      (over each row)
    L_Q = scale L_S K,  L_K = scale L_S^T Q,  L_mask = L_S

Without a mask P need not be kept: with z = log sum exp(S) of each row, P = exp(S - z) is computed again from Q and K (Dao et
al., 2022, 3.1). Since L_P is L_Y V^T and Y is P V, d is also the sum of L_Y * Y over each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, widened
from tinydiff.dispatch import accelerated_in_float32
from tinydiff.ops.arguments import as_tensor
from tinydiff.ops.broadcasting import unbroadcast
from tinydiff.ops.contraction import product
from tinydiff.ops.softmaxes import logsumexp_array, softmax_array, softmax_backward
from tinydiff.precision import emulated_by


class Attention(Function):
    """Saves z instead of P where there is no mask and nothing is broadcast."""

    gives_new = takes_half = True

    def forward(self, Q, K, V, mask, scale):
        self.scale = scale
        self.simple = mask is None and Q.shape[:-2] == K.shape[:-2] == V.shape[:-2]
        if self.simple:
            Y, z = attend(Q, K, V, scale)
            self.save(Q, K, V, z, Y)
            return Y
        Q, K, V = map(widened, (Q, K, V))
        P = softmax_array(_masked(product(Q * scale, K, transpose_b=True), mask), -1)
        self.save(Q, K, V, P, None)
        return product(P, V)

    def backward(self, L_Y):
        if self.simple:
            Q, K, V, z, Y = self.saved
            return *attend_backward(L_Y, Q, K, V, z, Y, self.scale, self.needs[:3]), None
        Q, K, V, P, _ = self.saved
        L_Y = widened(L_Y)
        L_Q = L_K = L_V = L_mask = None
        if self.needs[2]:
            L_V = unbroadcast(product(P, L_Y, transpose_a=True), V.shape)
        if self.needs[0] or self.needs[1] or self.needs[3]:
            L_S = softmax_backward(P, product(L_Y, V, transpose_b=True), -1)
            if self.needs[3]:
                L_mask = unbroadcast(L_S, self.shapes[3])
            L_S = L_S * self.scale
            if self.needs[0]:
                L_Q = unbroadcast(product(L_S, K), Q.shape)
            if self.needs[1]:
                L_K = unbroadcast(product(L_S, Q, transpose_a=True), K.shape)
        return L_Q, L_K, L_V, L_mask


def _attend_backward_by_products(
    L_Y: Any, Q: Any, K: Any, V: Any, z: Any, Y: Any, scale: float, needs: Sequence[bool] = (True, True, True)
) -> Any:
    """d from P and L_P: where products are rounded, sum(L_Y * Y) would be another number."""
    P = array_module(Q).exp(scale * product(Q, K, transpose_b=True) - z)
    L_S = softmax_backward(P, product(L_Y, V, transpose_b=True), -1)
    return _gradients(P, L_S, L_Y, Q, K, scale, needs)


@emulated_by()
@accelerated_in_float32
def attend(Q: Any, K: Any, V: Any, scale: float) -> Any:
    """(Y, z): Y = softmax(scale Q K^T) V for Q (..., L, D), K (..., M, D), V (..., M, E) of equal leading axes, and
    z = log sum exp(scale Q K^T) (..., L, 1)."""
    S = scale * product(Q, K, transpose_b=True)
    return product(softmax_array(S, -1), V), logsumexp_array(S, -1)


@emulated_by(_attend_backward_by_products)
@accelerated_in_float32
def attend_backward(
    L_Y: Any, Q: Any, K: Any, V: Any, z: Any, Y: Any, scale: float, needs: Sequence[bool] = (True, True, True)
) -> Any:
    """(L_Q, L_K, L_V) from L_Y and what `attend` took and gave; None for what `needs` does not ask for."""
    P = array_module(Q).exp(scale * product(Q, K, transpose_b=True) - z)
    L_S = P * (product(L_Y, V, transpose_b=True) - (L_Y * Y).sum(-1, keepdims=True))
    return _gradients(P, L_S, L_Y, Q, K, scale, needs)


def _gradients(P: Any, L_S: Any, L_Y: Any, Q: Any, K: Any, scale: float, needs: Sequence[bool]) -> Any:
    return (
        scale * product(L_S, K) if needs[0] else None,
        scale * product(L_S, Q, transpose_a=True) if needs[1] else None,
        product(P, L_Y, transpose_a=True) if needs[2] else None,
    )


def _masked(S: Any, mask: Any) -> Any:
    """S with the mask, which may be None: -inf where a boolean one forbids to attend, or plus another one."""
    if mask is None:
        return S
    xp = array_module(S)
    return xp.where(mask, S, S.dtype.type(-xp.inf)) if mask.dtype == bool else S + mask.astype(S.dtype, copy=False)


def attention(q: Any, k: Any, v: Any, mask: Any = None, scale: Any = None) -> Tensor:
    """softmax(scale q k^T + mask) v (Vaswani et al., 2017, eq. 1).

    q (..., L, D), k (..., M, D), v (..., M, E) -> (..., L, E); leading axes broadcast.
    scale: a number or a tensor of one element, which gets a gradient; 1/sqrt(D) if None.
    mask: broadcasts to (..., L, M). A boolean mask is True where a query may attend. A floating point mask is added and
        gets a gradient. A query that may attend to nothing gets zeros.

    ValueError where the shapes do not fit, TypeError for a mask of another type.
    """
    q, k, v = as_tensor(q), as_tensor(k), as_tensor(v)
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
    if min(q.ndim, k.ndim, v.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ValueError(f"attention: {shapes} do not fit; needed are (..., L, D), (..., M, D), (..., M, E)")
    if scale is None:
        scale = q.shape[-1] ** -0.5
    elif not isinstance(scale, int | float | np.generic):
        scale = as_tensor(scale)
        if scale.size != 1:
            raise ValueError(f"attention: scale must be one number, not of shape {scale.shape}")
        q, scale = q * scale.reshape(()), 1.0  # so that a gradient reaches it
    if mask is not None and not hasattr(mask, "dtype"):
        mask = np.asarray(mask)
    if mask is not None and mask.dtype.kind not in "bf":
        raise TypeError(
            f"attention: the mask must be boolean (True: attend) or floating point (added), not {mask.dtype}"
        )
    try:
        return Attention.apply(q, k, v, mask, scale=float(scale))
    except ValueError:
        shown = shapes if mask is None else f"{shapes} and mask {mask.shape}"
        raise ValueError(f"attention: the leading axes of {shown} do not broadcast") from None
