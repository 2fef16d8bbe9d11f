"""How much work an operation is.

FLOPs are those of the products of matrices in the plain definition: of convolutions, fully connected layers, matmul,
einsum and attention. A multiplication with an addition counts as two. Passes over single elements (sums, activations,
normalisation) count as none, because the memory limits them: see the bytes. A fast algorithm may need fewer FLOPs.

Bytes are those of the arrays that a pass takes and gives, each read or written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Counts = tuple[int, int]  # of the forward pass, of the backward pass


def count_flops(op: Any, arrays: Sequence[Any], results: Sequence[Any], needs: Sequence[bool]) -> Counts:
    """The FLOPs of an operation's forward and backward pass.

    arrays, results: what forward took and gave. needs: which inputs get a gradient.
    """
    count = _COUNTS.get(type(op).__name__)
    return (0, 0) if count is None else count(op, arrays, results, needs)


def _linear(op: Any, arrays: Any, results: Any, needs: Any) -> Counts:
    product = 2 * results[0].size * arrays[1].shape[0]
    return product, product * (needs[0] + needs[1])


def _linears(op: Any, arrays: Any, results: Any, needs: Any) -> Counts:
    products = [2 * Y.size * W.shape[0] for Y, W in zip(results, arrays[1::2], strict=True)]
    backward = sum(p * (needs[0] + need) for p, need in zip(products, needs[1::2], strict=True))
    return sum(products), backward


def _convolution(op: Any, arrays: Any, results: Any, needs: Any) -> Counts:
    W = arrays[1]
    product = 2 * results[0].size * math.prod(W.shape[:3])  # for each number of Y: R S C / groups
    return product, product * (needs[0] + needs[1])


def _transposed(op: Any, arrays: Any, results: Any, needs: Any) -> Counts:
    X, W = arrays[:2]
    product = 2 * X.size * math.prod(W.shape[:3])  # each number of X goes to R S C / groups
    return product, product * (needs[0] + needs[1])


def _matmul(op: Any, arrays: Any, results: Any, needs: Any) -> Counts:
    product = 2 * results[0].size * arrays[0].shape[-1]
    return product, product * (needs[0] + needs[1])


def _einsum(op: Any, arrays: Any, results: Any, needs: Any) -> Counts:
    lengths = {
        c: n for letters, A in zip(op.operands, arrays, strict=True) for c, n in zip(letters, A.shape, strict=True)
    }
    product = 2 * math.prod(lengths.values()) * (len(arrays) - 1)
    return product, product * sum(needs)


def _attention(op: Any, arrays: Any, results: Any, needs: Any) -> Counts:
    Q, K, V = arrays[:3]
    rows = results[0].size // max(V.shape[-1], 1)
    scores, mix = 2 * rows * K.shape[-2] * Q.shape[-1], 2 * rows * K.shape[-2] * V.shape[-1]
    to_scores = needs[0] or needs[1] or needs[3]
    again = scores if op.simple else 0  # P is computed again from Q and K
    return scores + mix, again + mix * (to_scores + needs[2]) + scores * (needs[0] + needs[1])


_COUNTS: dict[str, Callable[[Any, Any, Any, Any], Counts]] = {
    "Linear": _linear,
    "Linears": _linears,
    "Conv2d": _convolution,
    "UpsampleConv2d": _convolution,
    "ConvTranspose2d": _transposed,
    "Matmul": _matmul,
    "Einsum": _einsum,
    "Attention": _attention,
}
