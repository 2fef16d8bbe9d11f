"""Attention."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module
from tinydiff.cpu.blas import SHARED, multiply, multiply_panels, panel_width
from tinydiff.dispatch import accelerated
from tinydiff.machine.threads import BLOCK, count, share_blocks, share_tasks
from tinydiff.machine.workspaces import workspace
from tinydiff.ops.arguments import as_tensor
from tinydiff.ops.broadcasting import unbroadcast
from tinydiff.ops.contraction import product
from tinydiff.ops.softmaxes import softmax_array, softmax_backward

_SAFE = 50  # logits of this size neither overflow nor vanish when exponentiated, so the maximum need not be taken off


class Attention(Function):
    """Y = P V with P = softmax(S), S = scale Q K^T + mask; Q (..., L, D), K (..., M, D), V (..., M, E).

    Backward goes the same way in reverse: L_V = P^T L_Y, L_P = L_Y V^T, L_S by the softmax,
    L_Q = scale L_S K, L_K = scale L_S^T Q, L_mask = L_S.
    """

    gives_new = widens_half = True

    def forward(self, Q, K, V, mask, scale):
        self.scale = scale
        self.simple = mask is None and _alike(Q, K, V)
        if self.simple:
            Y, P = attend(Q, K, V, scale)
            self.save(Q, K, V, P, Y)
            return Y
        S = product(Q * scale, K, transpose_b=True)
        if mask is not None:
            xp = array_module(Q)
            S = xp.where(mask, S, S.dtype.type(-xp.inf)) if mask.dtype == bool else S + mask.astype(S.dtype, copy=False)
        P = softmax_array(S, -1)
        self.save(Q, K, V, P, None)
        return product(P, V)

    def backward(self, L_Y):
        Q, K, V, P, Y = self.saved
        if self.simple:
            return *attend_backward(L_Y, Q, K, V, P, Y, self.scale), None
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


@accelerated
def attend(Q: Any, K: Any, V: Any, scale: float) -> tuple[Any, Any]:
    """Y = softmax(scale Q K^T) V for Q (..., L, D), K (..., M, D), V (..., M, E) of equal leading axes.

    Also returns z = log sum exp(S) (..., L, 1): P is not kept but computed again in backward, as exp(S - z) (Dao et al.,
    2022, 3.1). Each thread takes a few (L, M) matrices, or some rows of one, through all steps, in memory that it uses
    again.
    """
    xp = array_module(Q)
    Y, z = xp.empty((*Q.shape[:-1], V.shape[-1]), Q.dtype), xp.empty((*Q.shape[:-1], 1), Q.dtype)
    q, k, v, y, zs = (_stack(X) for X in (Q, K, V, Y, z))

    def some(block: tuple[slice, slice]) -> None:
        items, _ = block
        P = _less(q[block], k[items], None, scale, "P")
        top = 0
        if xp is not np or not (P.min() > -_SAFE and P.max() < _SAFE):
            top = P.max(-1, keepdims=True)
            P -= top
        xp.exp(P, out=P)
        total = P @ xp.ones((P.shape[-1], 1), P.dtype)
        part = multiply(P, v[items], out=y[block])
        part /= total
        xp.add(xp.log(total), top, out=zs[block])

    (n, L, D), (M, E) = q.shape, v.shape[1:]
    if xp is np and n * L * M * (D + E) >= SHARED:
        share_tasks(some, _blocks(n, L, M))
    else:
        some((slice(0, n), slice(0, L)))
    return Y, z


def _blocks(n: int, L: int, M: int) -> list[tuple[slice, slice]]:
    """(matrices, rows of them) of the blocks of n matrices (L, M). Matrices are cut only where there are fewer than
    threads: each part has to transpose the keys again."""
    parts = -(-count() // n)
    rows = -(-L // (32 * parts)) * 32  # a multiple that suits `multiply`
    items = max(1, min(BLOCK // (L * M), -(-n // count())))
    return [(slice(i, i + items), slice(j, j + rows)) for i in range(0, n, items) for j in range(0, L, rows)]


@accelerated
def attend_backward(L_Y: Any, Q: Any, K: Any, V: Any, z: Any, Y: Any, scale: float) -> tuple[Any, Any, Any]:
    """(L_Q, L_K, L_V) from L_Y and what `attend` took and gave.

    L_S = P * (L_P - d) with d = sum(P L_P) over a row, which is sum(Y L_Y) as well, since Y = P V and L_P = L_Y V^T.
    """
    xp = array_module(Q)
    L_Q, L_K, L_V = xp.empty(Q.shape, Q.dtype), xp.empty(K.shape, Q.dtype), xp.empty(V.shape, Q.dtype)
    q, k, v, zs, y, l_y, l_q, l_k, l_v = (_stack(X) for X in (Q, K, V, z, Y, L_Y, L_Q, L_K, L_V))

    def some(items: slice) -> None:
        P = _less(q[items], k[items], zs[items], scale, "P")
        xp.exp(P, out=P)
        multiply(P.swapaxes(1, 2), l_y[items], out=l_v[items])
        d = xp.einsum("nle,nle->nl", y[items], l_y[items])[..., None]
        scaled = _less(l_y[items], v[items], scale * d, scale, "L_S")
        scaled *= P  # scale L_S
        multiply(scaled, k[items], out=l_q[items])
        multiply(scaled.swapaxes(1, 2), q[items], out=l_k[items])

    share_blocks(some, q, Q.shape[-2] * K.shape[-2])
    return L_Q, L_K, L_V


def _alike(Q: Any, K: Any, V: Any) -> bool:
    """Whether nothing is broadcast, empty or of another type, so that `attend` can work on stacks."""
    return (
        Q.shape[:-2] == K.shape[:-2] == V.shape[:-2]
        and Q.dtype == K.dtype == V.dtype
        and Q.dtype.kind == "f"
        and Q.size > 0
        and K.size > 0
    )


def _less(A: Any, B: Any, c: Any, scale: float, name: str) -> Any:
    """scale A B^T - c for stacks A (n, L, D), B (n, M, D), c (n, L, 1) or None, in the workspace of that name.

    c costs no pass over the result: it becomes one more column of A, with ones beside it in B.
    """
    xp, (n, L, D), M = array_module(A), A.shape, B.shape[1]
    inner = D + (c is not None)
    width = panel_width(inner, M) if xp is np else M
    # B^T is written out: products with a matrix that is transposed on the way are slower.
    right = workspace("right", (n, M // width, inner, width), A.dtype, xp)
    xp.multiply(B.reshape(n, M // width, width, D).swapaxes(2, 3), A.dtype.type(scale), out=right[:, :, :D])
    if c is not None:
        left = workspace("left", (n, L, inner), A.dtype, xp)
        left[:, :, :D] = A
        xp.negative(c, out=left[:, :, D:])
        right[:, :, D:] = 1
        A = left
    out = workspace(name, (n, L, M), A.dtype, xp)
    return multiply(A, right[:, 0], out) if width == M else multiply_panels(A, right, out)


def _stack(X: Any) -> Any:
    """(..., L, D) as (n, L, D)."""
    return X.reshape(math.prod(X.shape[:-2]), *X.shape[-2:])


def attention(q: Any, k: Any, v: Any, mask: Any = None, scale: Any = None) -> Tensor:
    """softmax(scale q k^T + mask) v (Vaswani et al., 2017, eq. 1).

    q (..., L, D), k (..., M, D), v (..., M, E) -> (..., L, E); leading axes broadcast. scale: a number or a tensor of one
    element, 1/sqrt(D) if None. mask, broadcasting to (..., L, M): boolean, True where attended, or floating point, added; a
    query that may attend to nothing gets zeros. Scale and mask get gradients too. ValueError where the shapes do not fit,
    TypeError for a mask of another type.
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
