"""Attention: on tensor cores by one kernel each way (`tensor_attention.py`), where they take the arrays in the precision of the
thread or of the arrays; else in float32, by the kernels in kernels/attention.cu and products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.cuda import products, tensor, tensor_attention
from tinydiff.cuda.softmax_rows import softmax_backward_to, softmax_to


def attend(Q: Any, K: Any, V: Any, scale: float) -> Any:
    """Y = P V with P = softmax(scale Q K^T): Q (..., L, D), K (..., M, D), V (..., M, E) of equal leading axes, float32.

    Also returns z = log sum exp(scale Q K^T) (..., L, 1), from which the backward pass computes P again. NotImplemented
    for other dtypes, unless tensor cores take them, where the leading axes differ and where there is nothing to attend to.
    """
    if (made := tensor_attention.attend(Q, K, V, scale, tensor.of(Q) or "float32")) is not None:
        return made
    if not _fits(Q, K, V):
        return NotImplemented
    P = products.matmul(Q, K, transpose_b=True, scale=scale)
    z = array_module(Q).empty((*P.shape[:-1], 1), np.float32)
    softmax_to(P, P, z)
    return products.matmul(P, V), z


def attend_backward(
    L_Y: Any, Q: Any, K: Any, V: Any, z: Any, Y: Any, scale: float, needs: Sequence[bool] = (True, True, True)
) -> Any:
    """(L_Q, L_K, L_V) from L_Y and what `attend` took and gave; None for what `needs` does not ask for:

    P = exp(scale Q K^T - z), L_V = P^T L_Y, L_P = L_Y V^T, L_S by the softmax, L_Q = scale L_S K, L_K = scale L_S^T Q.
    """
    if (
        any(needs)
        and (made := tensor_attention.attend_backward(L_Y, Q, K, V, z, scale, needs, tensor.of(Q) or "float32"))
        is not None
    ):
        return made
    if not _fits(Q, K, V) or L_Y.dtype != np.float32:
        return NotImplemented
    if not any(needs):
        return None, None, None
    P = products.matmul(Q, K, transpose_b=True, scale=scale)
    L_S = products.matmul(L_Y, V, transpose_b=True)
    softmax_backward_to(P, z, L_S, P if needs[2] else None, L_S)  # the logits become P, L_P becomes L_S
    return (
        products.matmul(L_S, K, scale=scale) if needs[0] else None,
        products.matmul(L_S, Q, transpose_a=True, scale=scale) if needs[1] else None,
        products.matmul(P, L_Y, transpose_a=True) if needs[2] else None,
    )


def _fits(Q: Any, K: Any, V: Any) -> bool:
    alike = Q.dtype == K.dtype == V.dtype == np.float32 and Q.shape[:-2] == K.shape[:-2] == V.shape[:-2]
    return alike and Q.size > 0 and K.size > 0
