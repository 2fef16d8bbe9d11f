"""Attention in blocks. One thread takes a block through all steps, in memory that it uses again.

Measured with AVX-512: a product with a transposed operand is slower than copying the transpose first. A column of ones added
to B adds a term to each row of A B^T without a pass over the result.
With AVX2 neither holds: scale A B^T for 4 x (256, 64) and (256, 64) takes 533 instead of 625 us, with a term 663 instead of
690; for 2 x (256, 256) and (256, 256) 838 instead of 1,053 and 862 instead of 1,084.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinydiff.cpu.blas import MULTIPLICATIONS_WORTH_A_THREAD, has_small_products, multiply, multiply_panels, panel_width
from tinydiff.machine.threads import BLOCK, count, share_blocks, share_tasks
from tinydiff.machine.workspaces import workspace

LARGEST_SAFE_LOGIT = 50  # neither overflows nor vanishes when exponentiated, so the maximum need not be subtracted


def attend(Q: Any, K: Any, V: Any, scale: float) -> Any:
    """Y and z. Each thread takes a few (L, M) matrices, or some rows of one. NotImplemented where leading axes or types
    differ, or there is nothing to attend to."""
    if not _fits(Q, K, V):
        return NotImplemented
    Y, z = np.empty((*Q.shape[:-1], V.shape[-1]), Q.dtype), np.empty((*Q.shape[:-1], 1), Q.dtype)
    q, k, v, y, zs = (_stack(X) for X in (Q, K, V, Y, z))

    def some(block: tuple[slice, slice]) -> None:
        items, _ = block
        P = _less(q[block], k[items], None, scale, "P")
        top: Any = 0
        if not (P.min() > -LARGEST_SAFE_LOGIT and P.max() < LARGEST_SAFE_LOGIT):
            top = P.max(-1, keepdims=True)
            P -= top
        np.exp(P, out=P)
        total = P @ np.ones((P.shape[-1], 1), P.dtype)
        part = multiply(P, v[items], out=y[block])
        part /= total
        np.add(np.log(total), top, out=zs[block])

    (n, L, D), (M, E) = q.shape, v.shape[1:]
    if n * L * M * (D + E) >= MULTIPLICATIONS_WORTH_A_THREAD:
        share_tasks(some, _blocks(n, L, M))
    else:
        some((slice(0, n), slice(0, L)))
    return Y, z


def attend_backward(
    L_Y: Any, Q: Any, K: Any, V: Any, z: Any, Y: Any, scale: float, needs: Sequence[bool] = (True, True, True)
) -> Any:
    """(L_Q, L_K, L_V), None where not needed. NotImplemented as by `attend`."""
    if not _fits(Q, K, V):
        return NotImplemented
    L_Q, L_K, L_V = (np.empty(X.shape, Q.dtype) if need else None for X, need in zip((Q, K, V), needs, strict=True))
    q, k, v, zs, y, l_y = (_stack(X) for X in (Q, K, V, z, Y, L_Y))
    l_q, l_k, l_v = (None if X is None else _stack(X) for X in (L_Q, L_K, L_V))

    def some(items: slice) -> None:
        P = _less(q[items], k[items], zs[items], scale, "P")
        np.exp(P, out=P)
        if l_v is not None:
            multiply(P.swapaxes(1, 2), l_y[items], out=l_v[items])
        if l_q is None and l_k is None:
            return
        d = np.einsum("nle,nle->nl", y[items], l_y[items])[..., None]
        scaled = _less(l_y[items], v[items], scale * d, scale, "L_S")
        scaled *= P  # scale L_S
        if l_q is not None:
            multiply(scaled, k[items], out=l_q[items])
        if l_k is not None:
            multiply(scaled.swapaxes(1, 2), q[items], out=l_k[items])

    share_blocks(some, q, Q.shape[-2] * K.shape[-2])
    return L_Q, L_K, L_V


def _fits(Q: Any, K: Any, V: Any) -> bool:
    """Whether nothing is broadcast, empty or of another type, so that stacks can be worked on."""
    alike = Q.dtype == K.dtype == V.dtype and Q.shape[:-2] == K.shape[:-2] == V.shape[:-2]
    return alike and Q.dtype.kind == "f" and Q.size > 0 and K.size > 0


def _blocks(n: int, L: int, M: int) -> list[tuple[slice, slice]]:
    """(matrices, rows of them) of the blocks of n matrices (L, M). Matrices are cut only where there are fewer than
    threads: each part has to transpose the keys again."""
    parts = -(-count() // n)
    rows = -(-L // (32 * parts)) * 32  # a multiple that suits `multiply`
    items = max(1, min(BLOCK // (L * M), -(-n // count())))
    return [(slice(i, i + items), slice(j, j + rows)) for i in range(0, n, items) for j in range(0, L, rows)]


def _less(A: Any, B: Any, c: Any, scale: float, name: str) -> Any:
    """scale A B^T - c for stacks A (n, L, D), B (n, M, D), c (n, L, 1) or None, in the workspace of that name.

    c becomes another column of A, with ones in the same column of B. Where the linear algebra library copies all operands,
    it transposes B meanwhile, and a pass subtracts c.
    """
    (n, L, D), M = A.shape, B.shape[1]
    if not has_small_products():
        scaled = np.multiply(A, A.dtype.type(scale), out=workspace("left", A.shape, A.dtype))
        out = np.matmul(scaled, B.swapaxes(1, 2), out=workspace(name, (n, L, M), A.dtype))
        return out if c is None else np.subtract(out, c, out=out)
    inner = D + (c is not None)
    width = panel_width(inner, M)
    right = workspace("right", (n, M // width, inner, width), A.dtype)
    np.multiply(B.reshape(n, M // width, width, D).swapaxes(2, 3), A.dtype.type(scale), out=right[:, :, :D])
    if c is not None:
        left = workspace("left", (n, L, inner), A.dtype)
        left[:, :, :D] = A
        np.negative(c, out=left[:, :, D:])
        right[:, :, D:] = 1
        A = left
    out = workspace(name, (n, L, M), A.dtype)
    return multiply(A, right[:, 0], out) if width == M else multiply_panels(A, right, out)


def _stack(X: Any) -> Any:
    """(..., L, D) as (n, L, D)."""
    return X.reshape(math.prod(X.shape[:-2]), *X.shape[-2:])
