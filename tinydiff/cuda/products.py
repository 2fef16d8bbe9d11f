"""Products of matrices by the kernels in kernels/matrix.cu; all float32.

Also what convolutions share with them: how a product is cut into tiles and parts (`Plan`), and what a call costs (`Cost`).
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from tinydiff.backend import address, array_module, widened
from tinydiff.cuda import occupancy, tensor
from tinydiff.cuda.flat import new_gradient
from tinydiff.cuda.launch import launch
from tinydiff.cuda.split_k import COUNTERS, counters_of_tile, cycles_of_adding, slots
from tinydiff.cuda.tensor import MULTIPROCESSORS
from tinydiff.precision import of_half

SLICE = 16  # TILE_K and, below, STAGES and the 8 x 8 entries of a thread, as in kernels/tile.cuh
STAGES = 3
KERNELS = ("matrix_product", "conv_forward", "conv_weight_gradient")  # that plans are made for
_TILES = ((128, 128), (64, 64), (64, 32))
_TURNS = (0, 1.8, 2.7, 3.35, 4)  # what 0 to 4 warps of a scheduler take together, if one alone never had to wait: 1
_MOST_PARTS = 512
LARGEST = 2**31 - 2**17  # that the kernels count in an int, with room for the last tile


class Cost(NamedTuple):
    """What a call takes at least: floating-point operations, and bytes of its arguments and results."""

    flops: int
    bytes: int


class Plan(NamedTuple):
    """A product of matrices in tiles of m x n entries, its inner axis in `parts`; floats moved at once from A and B."""

    m: int
    n: int
    parts: int
    vector_a: int
    vector_b: int

    @property
    def threads(self) -> int:
        return self.m * self.n // 64

    @property
    def defines(self) -> dict[str, int]:
        return {"TILE_M": self.m, "TILE_N": self.n, "VECTOR_A": self.vector_a, "VECTOR_B": self.vector_b}

    def tiles(self, M: int, N: int) -> int:
        return -(-M // self.m) * -(-N // self.n)

    def shared(self, by_rows: bool) -> int:
        """Bytes of dynamic shared memory, for slices of A that lie row by row or column by column."""
        a = self.m * (SLICE + 4) if by_rows else SLICE * (self.m + 4)
        return 4 * STAGES * (a + SLICE * (self.n + 4))


# Every plan that `plan` can make, but for the number of parts.
PLANS = (
    *(Plan(*tile, 1, 4, 4) for tile in _TILES),
    Plan(*_TILES[2], 1, 4, 1),
    Plan(*_TILES[1], 1, 1, 4),
    Plan(*_TILES[1], 1, 1, 1),
)


@functools.cache
def warps_held(m: int, n: int, vector_a: int = 4, vector_b: int = 4) -> int:
    """How many warps of tiles m x n a multiprocessor holds at once: the fewest of any of KERNELS."""
    return occupancy.least_warps(KERNELS, **Plan(m, n, 1, vector_a, vector_b).defines)


@functools.lru_cache(4096)
def plan(M: int, N: int, K: int, stack: int = 1, vector_a: int = 4, vector_b: int = 4) -> Plan:
    """How to multiply `stack` times (M, K) by (K, N): the plan that should take the fewest cycles.

    Each of a multiprocessor's 4 schedulers starts one multiplication for a warp in a cycle; with fewer than 4 warps it often
    has to wait. Small tiles occupy more schedulers but read more for each multiplication, and shared memory holds fewer warps
    of them. Parts of the inner axis occupy more, too, but have to be added. Plans that make a quarter to four rounds of
    blocks are considered. Arrays that cannot be moved 4 floats at once have one kind of tile each.
    """
    slices = -(-K // SLICE)
    tiles = _TILES if vector_a == vector_b == 4 else _TILES[2:] if vector_a == 4 else _TILES[1:2]
    best = None
    for m, n in tiles:
        warps, efficiency, held = m * n // 2048, {128: 0.8, 64: 0.7, 32: 0.55}[n], warps_held(m, n, vector_a, vector_b)
        blocks, places = stack * -(-M // m) * -(-N // n), MULTIPROCESSORS * held // warps
        # at least 4 slices each, 256 MiB for all
        most = max(1, min(_MOST_PARTS, slices // 4, 2**26 // max(1, blocks * m * n)))
        if blocks * counters_of_tile(most) > COUNTERS:
            most = 1
        rounds = (0, 0.25, 0.5, 1, 2, 3, 4)
        for parts in sorted({max(1, min(most, int(places * r / max(1, blocks)))) for r in rounds}):
            whole, rest = divmod(-(-blocks * parts // MULTIPROCESSORS) * warps, held)  # warps of one multiprocessor
            turns = whole * _TURNS[-(-held // 4)] + _TURNS[-(-rest // 4)]
            cycles = turns * 1024 * (-(-slices // parts) + 4) / efficiency  # 1024: of a warp's part of a slice
            cycles += cycles_of_adding(parts, m * n)
            if best is None or cycles < best[0]:
                best = cycles, Plan(m, n, parts, vector_a, vector_b)
    assert best is not None
    return best[1]


def vector(length: int, *arrays: Any) -> int:
    """How many floats can be moved at once from arrays (None: absent) with rows of a length: 4 or 1."""
    return 4 if length % 4 == 0 and all(a is None or address(a) % 16 == 0 for a in arrays) else 1


def matmul(
    A: Any,
    B: Any,
    transpose_a: bool = False,
    transpose_b: bool = False,
    bias: Any = None,
    scale: float = 1.0,
    gradient: bool = False,
    R: Any = None,
) -> Any:
    """Y = scale A B + 1 bias + R for A (..., M, K), B (..., K, N), bias (N,) or None -> (..., M, N).

    transpose_a: A is given as (..., K, M); transpose_b: B as (..., N, K). gradient: Y is that of a weight, see
    `flat.new_gradient`. R: like Y, in one piece, or None. Leading axes broadcast. Where they differ,
    arrays are copied to the full shape, unless one matrix without leading axes is used for all of the others.
    A and B are float32, or both of one type of 16 bits, as Y is then unless it is a gradient; bias is float32. NotImplemented for
    other dtypes and for vectors. ValueError for shapes that do not fit.
    """
    known = (
        A.dtype == B.dtype
        and (A.dtype == np.float32 or of_half(A.dtype))
        and (bias is None or bias.dtype == np.float32)
    )
    if min(A.ndim, B.ndim) < 2 or not known:
        return NotImplemented
    xp = array_module(A)
    if A.shape[:-2] != B.shape[:-2] and min(A.ndim, B.ndim) > 2:
        leading = np.broadcast_shapes(A.shape[:-2], B.shape[:-2])
        A, B = (xp.broadcast_to(X, (*leading, *X.shape[-2:])) for X in (A, B))
    if transpose_a and transpose_b:
        B, transpose_b = B.swapaxes(-1, -2), False
    A, B, bias = (None if a is None else xp.ascontiguousarray(a) for a in (A, B, bias))
    M, K = A.shape[-2:][::-1] if transpose_a else A.shape[-2:]
    L, N = B.shape[-2:][::-1] if transpose_b else B.shape[-2:]
    if K != L or (bias is not None and bias.shape != (N,)):
        raise ValueError(
            f"matmul: {A.shape} and {B.shape}{'' if bias is None else f' with bias {bias.shape}'} do not fit"
        )
    leading = A.shape[:-2] if A.ndim > 2 else B.shape[:-2]
    Y = new_gradient(xp, (*leading, M, N)) if gradient else xp.empty((*leading, M, N), A.dtype)
    stack, apart_a, apart_b = math.prod(leading), M * K * (A.ndim > 2), K * N * (B.ndim > 2)
    if not apart_b and not transpose_a:  # the rows of all A at once
        M, stack = M * stack, 1
    if max(M, N, K, stack * 2**15) > LARGEST:
        return NotImplemented
    if Y.size:
        _multiply(A, B, bias, R, Y, transpose_a, transpose_b, scale, (M, N, K, stack), (apart_a, apart_b))
    return Y


def _multiply(
    A: Any,
    B: Any,
    bias: Any,
    R: Any,
    Y: Any,
    transpose_a: bool,
    transpose_b: bool,
    scale: float,
    sizes: Any,
    apart: Any,
) -> None:
    if tensor.multiply(A, B, bias, Y, transpose_a, transpose_b, scale, sizes, apart, R):
        return
    if A.dtype != np.float32:
        wide = Y if Y.dtype == np.float32 else array_module(Y).empty(Y.shape, np.float32)
        R = None if R is None else widened(R)
        _multiply(widened(A), widened(B), bias, R, wide, transpose_a, transpose_b, scale, sizes, apart)
        if wide is not Y:
            Y[...] = wide
        return
    M, N, K, stack = sizes
    vectors = vector(M if transpose_a else K, A), vector(N, Y, bias, R, None if transpose_b else B)
    p = plan(M, N, K, stack, *vectors)
    defines = {**p.defines, "TRANSPOSED_A": int(transpose_a), "TRANSPOSED_B": int(transpose_b)}
    tiles = p.tiles(M, N)
    launch(
        "matrix.cu",
        "matrix_product",
        (tiles, stack, p.parts),
        (p.threads, 1, 1),
        (A, B, bias, R, Y, *slots(array_module(Y), p.parts, stack * tiles, p.m * p.n), *map(np.int32, (M, N, K)),
         *map(np.uint64, apart), np.float32(scale)),
        p.shared(by_rows=not transpose_a),
        defines,
    )  # fmt: skip


def matmul_cost(
    A: Any, B: Any, transpose_a: bool = False, transpose_b: bool = False, bias: Any = None, scale: float = 1.0,
    gradient: bool = False, R: Any = None,
) -> Cost:  # fmt: skip
    """The cost of `matmul` with the same arguments."""
    K, N = B.shape[-2:][::-1] if transpose_b else B.shape[-2:]
    entries = math.prod(np.broadcast_shapes(A.shape[:-2], B.shape[:-2])) * A.shape[-1 if transpose_a else -2] * N
    return Cost(2 * entries * K, 4 * (A.size + B.size + entries * (1 + (R is not None)) + (0 if bias is None else N)))


_TRANSPOSED = [{"TRANSPOSED_A": a, "TRANSPOSED_B": b} for a, b in ((0, 0), (0, 1), (1, 0))]
VARIANTS = tuple(("matrix.cu", {**p.defines, **transposed}) for p in PLANS for transposed in _TRANSPOSED)
