"""What the kernels for layers that share an input are run on."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from tinydiff.cuda import joint
from tinydiff.gradcheck.cases import Array, Check, Pairs, Run, double, held, normal
from tinydiff.gradcheck.half_cases import compared
from tinydiff.ops.fully_connected import linears_forward, linears_input_gradient, linears_weight_gradient
from tinydiff.precision import in_memory, rounded


def _layers(rng: np.random.Generator) -> Iterator[tuple[Array, list[Array], list[Any], list[Array]]]:
    """X (N, D), several W (D, M), b (M,) or None, L_Y (N, M), whose rows are whole pieces of 16 bytes in every precision."""
    for N, D, widths in ((72, 136, (24, 8)), (5, 264, (8, 136, 72)), (300, 8, (40, 8))):
        Ws, L_Ys = ([normal(rng, n, m) for m in widths] for n in (D, N))
        yield normal(rng, N, D), Ws, [None, *(normal(rng, m) for m in widths[1:])], L_Ys


def _rounded(rng: np.random.Generator, run: Run, precision: str) -> Pairs:
    """All ways, of rounded operands."""
    for X, Ws, bs, L_Ys in _layers(rng):
        held: Any = [[in_memory(a, precision) for a in each] for each in ([X], Ws, L_Ys)]
        (x,), ws, l_ys = ([double(rounded(a, precision)) for a in each] for each in ([X], Ws, L_Ys))
        for Y, w, b in zip(run(joint.forward, held[0][0], held[1], bs, precision), ws, bs, strict=True):
            yield compared(Y, x @ w + (0 if b is None else b), precision)
        L_X = sum(l_y @ w.T for l_y, w in zip(l_ys, ws, strict=True))
        yield compared(run(joint.input_gradient, held[2], held[1], precision), L_X, precision)
        for L_W, l_y in zip(run(joint.weight_gradients, held[0][0], held[2], precision), l_ys, strict=True):
            yield L_W, x.T @ l_y


IN_FLOAT32: dict[str, Check] = {
    "linears_forward": held(linears_forward, lambda rng: (layers[:3] for layers in _layers(rng))),
    "linears_input_gradient": held(linears_input_gradient, lambda rng: ((L_Ys, Ws) for _, Ws, _, L_Ys in _layers(rng))),
    "linears_weight_gradient": held(linears_weight_gradient, lambda rng: ((X, L_Ys) for X, _, _, L_Ys in _layers(rng))),
}
ON_TENSOR_CORES: dict[str, Check] = {
    precision: functools.partial(_rounded, precision=precision) for precision in ("tf32", "bf16", "fp16")
}
