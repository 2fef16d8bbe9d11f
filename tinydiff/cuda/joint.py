"""Layers that share an input, one launch each way for up to `LAYERS` of them, by kernels/joint.cu in float32 and by
kernels/tensor_joint.cu on tensor cores. Each function returns None where they do not take the arrays.

Matrices are X (M, D), W_i (D, N_i), L_Y_i (M, N_i), of one dtype. All rows must be whole pieces of 16 bytes. precision: what
`precision.IN_MEMORY` has for that dtype; None for that of `tensor.of`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tinydiff.autograd import waiting
from tinydiff.backend import address, array_module
from tinydiff.cuda import products, tensor
from tinydiff.cuda.flat import new_gradient
from tinydiff.cuda.launch import launch
from tinydiff.cuda.source import LAYERS
from tinydiff.cuda.split_k import COUNTERS, counters_of_tile, slots
from tinydiff.precision import IN_MEMORY, precision_of

SOURCE, TENSOR_SOURCE = "joint.cu", "tensor_joint.cu"
MOST_TILES = 65535  # of CUDA's grids, along y


class _Way(NamedTuple):
    """How a product is computed: source and macros, threads of a block, bytes of shared memory, the tile and the parts."""

    source: str
    defines: Any
    threads: int
    shared: int
    m: int
    n: int
    parts: int


def forward(X: Any, Ws: Sequence[Any], bs: Sequence[Any], precision: str | None = None) -> list[Any] | None:
    """Y_i = X W_i + 1 b_i, b_i (N_i,) float32 or None: of the dtype of X."""
    X, Ws, bs = _whole(X), [*map(_whole, Ws)], [*map(_whole, bs)]
    precision = _taken(precision, X, Ws, [X.shape[1], *(W.shape[1] for W in Ws)])
    if precision is None or any(b is not None and (b.dtype != np.float32 or address(b) % 16) for b in bs):
        return None
    Ys = [array_module(X).empty((len(X), W.shape[1]), X.dtype) for W in Ws]
    sizes = len(X), X.shape[1]
    if not _side_by_side("joint_forward", precision, X, (Ws, bs, Ys), sizes, by_rows=True):
        return None
    return Ys


def weight_gradients(X: Any, L_Ys: Sequence[Any], precision: str | None = None) -> list[Any] | None:
    """L_W_i = X^T L_Y_i, float32."""
    X, L_Ys = _whole(X), [*map(_whole, L_Ys)]
    precision = _taken(precision, X, L_Ys, [X.shape[1], *(L_Y.shape[1] for L_Y in L_Ys)])
    sizes = X.shape[1], len(X)
    if precision is None or -(-sizes[0] // 64) > MOST_TILES:
        return None
    L_Ws = [new_gradient(array_module(X), (X.shape[1], L_Y.shape[1])) for L_Y in L_Ys]
    if any(address(L_W) % 16 for L_W in L_Ws):
        return None
    if not _side_by_side("joint_weight_gradient", precision, X, (L_Ys, L_Ws), sizes, by_rows=False):
        return None
    return L_Ws


def input_gradient(L_Ys: Sequence[Any], Ws: Sequence[Any], precision: str | None = None) -> Any:
    """L_X = sum_i L_Y_i W_i^T, and what waits there: of the dtype of L_Y_i, rounded once."""
    L_Ys, Ws = [*map(_whole, L_Ys)], [*map(_whole, Ws)]
    M, D = len(L_Ys[0]), len(Ws[0])
    precision = _taken(precision, L_Ys[0], [*L_Ys[1:], *Ws], [D, *(L_Y.shape[1] for L_Y in L_Ys)])
    if precision is None:
        return None
    xp, dtype = array_module(Ws[0]), L_Ys[0].dtype
    L_X = waiting.claim((M, D), dtype)
    for at in range(0, len(Ws), LAYERS):
        some, before = slice(at, at + LAYERS), L_X
        widths = [W.shape[1] for W in Ws[some]]
        way = _way(precision, (M, D, sum(widths)), dtype, True)
        depth = products.SLICE if precision == "float32" else tensor.SLICE // dtype.itemsize
        tiles, slices = -(-M // way.m) * -(-D // way.n), sum(-(-n // depth) for n in widths)
        if tiles * counters_of_tile(way.parts) > COUNTERS or way.parts > slices:
            way = way._replace(parts=1)
        if L_X is None or at == 0:
            L_X = xp.empty((M, D), dtype)  # what waits must not be changed
        args = (*padded(L_Ys[some]), *padded(Ws[some]), *numbers(widths), before, L_X)
        memory = slots(xp, way.parts, tiles, way.m * way.n)
        _launch("joint_input_gradient", (tiles, 1, way.parts), way, (*args, *memory, *map(np.int32, (M, D, slices))))
    return L_X


def _side_by_side(
    kernel: str, precision: str, X: Any, each: Sequence[Sequence[Any]], sizes: tuple[int, int], by_rows: bool
) -> bool:
    """Whether a kernel with a tile for each layer's columns was launched. each: for each of its parameters that layers have, those
    arrays, first B_i (K, N_i). sizes: M and K."""
    M, K = sizes
    for at in range(0, len(each[0]), LAYERS):
        some = [arrays[at : at + LAYERS] for arrays in each]
        widths = [B.shape[1] for B in some[0]]
        way = _way(precision, (M, sum(widths), K), X.dtype, by_rows)
        across, down = sum(-(-n // way.n) for n in widths), -(-M // way.m)
        if across * down * counters_of_tile(way.parts) > COUNTERS:
            way = way._replace(parts=1)
        if down > MOST_TILES:
            return False
        memory = slots(array_module(X), way.parts, across * down, way.m * way.n)
        args = (X, *(a for arrays in some for a in padded(arrays)), *numbers(widths), *memory)
        _launch(kernel, (across, down, way.parts), way, (*args, np.int32(M), np.int32(K)))
    return True


def _launch(kernel: str, grid: tuple[int, int, int], way: _Way, args: tuple[Any, ...]) -> None:
    kernel = kernel if way.source == SOURCE else f"tensor_{kernel}"
    launch(way.source, kernel, grid, (way.threads, 1, 1), args, way.shared, way.defines)


def _way(precision: str, sizes: tuple[int, int, int], dtype: Any, by_rows: bool) -> _Way:
    """The plan for a product (M, K) (K, N), sizes M, N, K."""
    if precision == "float32":
        p = products.plan(*sizes, 1, 4, 4)._replace(vector_a=4, vector_b=4)
        return _Way(SOURCE, p.defines, p.threads, p.shared(by_rows), p.m, p.n, p.parts)
    q = tensor.plan(*sizes, 1, dtype.itemsize)
    return _Way(TENSOR_SOURCE, defines(q.m, q.n, precision), q.threads, q.shared, q.m, q.n, q.parts)


def defines(m: int, n: int, precision: str) -> dict[str, Any]:
    """The macros of kernels/tensor_joint.cu."""
    result = "float32" if precision == "tf32" else precision
    return {"PRECISION": precision.upper(), "RESULT": result.upper(), "TILE_M": m, "TILE_N": n}


def _taken(precision: str | None, first: Any, others: Sequence[Any], lengths: Sequence[int]) -> str | None:
    """The precision of the products of these matrices, with rows of these lengths; None where no kernel takes them."""
    name = precision or tensor.of(first)
    if name is None or precision_of(first.dtype) != precision_of(IN_MEMORY[name]):
        return None
    chunk = 16 // IN_MEMORY[name].itemsize
    arrays = (first, *others)
    fits = all(a.ndim == 2 and a.dtype == first.dtype and a.size and address(a) % 16 == 0 for a in arrays)
    fits = fits and not any(length % chunk for length in lengths)
    return name if fits and max(map(max, (a.shape for a in arrays))) + sum(lengths) <= products.LARGEST else None


def _whole(a: Any) -> Any:
    return None if a is None else array_module(a).ascontiguousarray(a)


def padded(arrays: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments for EACH(type*, name) of a kernel."""
    return (*arrays, *[None] * (LAYERS - len(arrays)))


def numbers(widths: Sequence[int]) -> tuple[Any, ...]:
    """The arguments for EACH(int, name)."""
    return (*map(np.int32, widths), *[np.int32(0)] * (LAYERS - len(widths)))


VARIANTS: Sequence[tuple[Any, ...]] = (
    *((SOURCE, p.defines) for p in products.PLANS if p.vector_a == p.vector_b == 4),
    *(
        (TENSOR_SOURCE, defines(*tile, name), tensor.OLDEST)
        for name in ("tf32", "bf16", "fp16")
        for tile in tensor.TILES
    ),
)
