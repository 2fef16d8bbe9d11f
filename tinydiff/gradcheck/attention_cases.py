"""Attention on tensor cores against float64 on rounded operands, P and L_S being operands too. Q, K and V are views."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tinydiff.cuda import tensor_attention
from tinydiff.gradcheck.cases import Check, Pairs, Run, double, normal
from tinydiff.precision import from_memory, in_memory, rounded

# Relative to a number: the distance to the next number of a precision, and the error of rounding a result to it.
STEP = {"tf32": 2**-10, "fp16": 2**-10, "bf16": 2**-7}
RESULT = {"tf32": 0.0, "fp16": 2**-11, "bf16": 2**-8}


class Truth(NamedTuple):
    """What a result should be in float64, and how far it may be from that in addition to what float32 loses.

    An entry of P or L_S that differs in float32's last place may be rounded to the next number of a precision. That happens to one
    in a thousand, so to hardly more than one of those that a result adds up. The result is rounded, too.
    """

    value: Any
    allowed: Any

    def beside(self, ours: Any) -> Any:
        """Of the numbers that differ from `ours` by as much as is allowed, the nearest to what it should be."""
        ours = double(ours if ours.dtype == np.float32 else from_memory(ours))
        return np.clip(self.value, ours - self.allowed, ours + self.allowed)


def truths(Q: Any, K: Any, V: Any, L_Y: Any, scale: float, precision: str) -> dict[str, Truth]:
    """Of z, Y, L_Q, L_K and L_V, for arrays of float32."""

    def turned(X: Any) -> Any:
        return X.swapaxes(-1, -2)

    def product(W: Any, B: Any, factor: float = 1.0) -> Truth:
        """factor W B with W rounded."""
        value = factor * (double(rounded(W.astype(np.float32), precision)) @ B)
        largest = np.zeros_like(value)  # of the terms
        for j in range(W.shape[-1]):
            np.maximum(largest, np.abs(W[..., j, None] * B[..., None, j, :]), out=largest)
        lost = 2.0**-22 * np.abs(S).max() * (np.abs(W) @ np.abs(B))  # by P = exp(S - z), as float32 has S
        return Truth(value, factor * (STEP[precision] * largest + lost) + RESULT[precision] * np.abs(value))

    q, k, v, l_y = (double(rounded(X, precision)) for X in (Q, K, V, L_Y))
    S = scale * q @ turned(k)
    top = S.max(-1, keepdims=True)
    z = top + np.log(np.exp(S - top).sum(-1, keepdims=True))
    P, L_P = np.exp(S - z), l_y @ turned(v)
    L_S = P * (L_P - (P * L_P).sum(-1, keepdims=True))
    return {
        "z": Truth(z, np.zeros_like(z)),
        "Y": product(P, v),
        "L_Q": product(L_S, k, scale),
        "L_K": product(turned(L_S), q, scale),
        "L_V": product(turned(P), l_y),
    }


# Leading axes, queries, keys, channels of Q and K, channels of V, what is added to all logits: slices of keys and a remainder, all
# of them, several tiles, and logits of which exp(-z) is infinite.
FEW = (((), 49, 49, 32, 32, 0), ((2, 2), 5, 64, 24, 72, 0), ((), 5, 9, 8, 8, -100))
MANY = (((2,), 65, 196, 40, 16, 0),)


def _attention(rng: np.random.Generator, run: Run, precision: str, sizes: Any) -> Pairs:
    for (Q, K, V, L_Y), scale in _arrays(rng, sizes):
        expected = truths(Q, K, V, L_Y, scale, precision)
        Q, K, V = (_beside_others(in_memory(X, precision)) for X in (Q, K, V))
        L_Y = in_memory(L_Y, precision)
        Y, z = run(tensor_attention.attend, Q, K, V, scale, precision)
        gradients = run(tensor_attention.attend_backward, L_Y, Q, K, V, z, scale, (True,) * 3, precision)
        for truth, ours in zip(expected.values(), (z, Y, *gradients), strict=True):
            yield truth.beside(ours), truth.value


def _arrays(rng: np.random.Generator, sizes: Any) -> Iterator[tuple[Any, float]]:
    for stack, L, M, D, E, added in sizes:
        Q, K, V, L_Y = (normal(rng, *stack, *shape) for shape in ((L, D), (M, D), (M, E), (L, E)))
        scale = 2 * D**-0.5
        if added:
            Q[..., 0], K[..., 0] = 8, np.round(added / 8 / scale)
        yield (Q, K, V, L_Y), scale


def _beside_others(X: Any) -> Any:
    """X as the first columns of a larger array, as q, k and v may lie side by side. The others are NaN."""
    whole = np.zeros((*X.shape[:-1], X.shape[-1] + 16 // X.itemsize), X.dtype)
    whole.view(np.uint8)[...] = 255
    whole[..., : X.shape[-1]] = X
    return whole[..., : X.shape[-1]]


CHECKS: dict[str, Check] = {
    f"{precision}, {name} keys": functools.partial(_attention, precision=precision, sizes=sizes)
    for precision in ("tf32", "bf16", "fp16")
    for name, sizes in (("64", FEW), ("256", MANY))
}
