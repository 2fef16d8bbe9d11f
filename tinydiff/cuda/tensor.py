"""Products of matrices on tensor cores (sm_80 on), by the kernel in kernels/tensor_product.cu; sums are float32.

`precision` has the products and convolutions of a thread use tensor cores: float32 operands, rounded to TF32 on the way. `product`
takes operands of any precision of `tinydiff.precision` as they lie in memory; for convolutions see `tensor_convolution.py`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from tinydiff.backend import address, array_module, compute_capability
from tinydiff.cuda import occupancy
from tinydiff.cuda.launch import launch
from tinydiff.cuda.split_k import COUNTERS, counters_of_tile, cycles_of_adding, slots
from tinydiff.precision import IN_MEMORY, of_half, precision_of

SOURCE = "tensor_product.cu"
OLDEST = 80  # architecture with these instructions
MULTIPROCESSORS = 132  # an H100's: plans are the same for every GPU, so every GPU adds in the same order
STAGES, SLICE = 4, 64  # as in kernels/tensor.cuh: slices in shared memory, and bytes of K in one
MOST_PARTS = 64
_LEAST_SLICES = 6  # of a part: fewer would spend most of their time on filling the pipeline

KERNELS = "tensor_product", "tensor_convolution", "tensor_weight_gradient"  # that plans are made for, each in a file
SOURCES = tuple(f"{kernel}.cu" for kernel in KERNELS)

# Of each tile: the cycles in which a multiprocessor multiplies a slice of one block while it holds as many as fit. Predicted from
# the machine code for an H100 (tensor cores, issue slots and shared memory, whichever takes longest), with operands of 16
# bits and TF32; the same for gradients of filters, which have more instructions.
TILES = {
    (128, 256): (826, 826, 826, 858),
    (256, 128): (826, 826, 826, 878),
    (128, 128): (413, 413, 413, 444),
    (64, 64): (192, 230, 220, 322),
}


class Plan(NamedTuple):
    """A product in tiles of m x n entries, its inner axis in `parts`."""

    m: int
    n: int
    parts: int

    @property
    def threads(self) -> int:
        return self.m * self.n // (128 if self.m * self.n >= 128 * 128 else 32)

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory: 96 KiB at most, which every GPU from sm_80 on has."""
        return STAGES * SLICE * (self.m + self.n)

    def tiles(self, M: int, N: int) -> int:
        return -(-M // self.m) * -(-N // self.n)


@functools.cache
def blocks_held(m: int, n: int, bytes_each: int, of_filters: bool = False) -> int:
    """How many blocks of tiles m x n a multiprocessor holds at once: the fewest of any kernel for operands of some bytes."""
    kernels, precisions = KERNELS[2:] if of_filters else KERNELS[:2], ("TF32",) if bytes_each == 4 else ("BF16", "FP16")
    warps = occupancy.least_warps(kernels, TILE_M=m, TILE_N=n, PRECISION=precisions)
    return 32 * warps // Plan(m, n, 1).threads


@functools.lru_cache(4096)
def plan(M: int, N: int, K: int, stack: int = 1, bytes_each: int = 4, of_filters: bool = False) -> Plan:
    """How to multiply `stack` times (M, K) by (K, N) with operands of some bytes: the plan that should take the fewest cycles.

    of_filters: the product is the gradient of filters. Parts are considered up to one round of blocks.
    """
    slices, best = -(-K * bytes_each // SLICE), None
    for (m, n), each_block in TILES.items():
        held = blocks_held(m, n, bytes_each, of_filters)
        cycles = [held * c for c in each_block]
        tiles = max(1, stack * -(-M // m) * -(-N // n))
        places = MULTIPROCESSORS * held
        most = min(
            MOST_PARTS, slices // _LEAST_SLICES, places // tiles, COUNTERS // (counters_of_tile(MOST_PARTS) * tiles)
        )
        for parts in range(1, max(1, most) + 1):
            each, full, rest = -(-slices // parts) + STAGES, *divmod(tiles * parts, places)
            alone = -(-rest // MULTIPROCESSORS) / held  # of a multiprocessor's blocks, in the last round
            time = cycles[2 * of_filters + (bytes_each == 4)] * each * (full + (min(1.0, 1.3 * alone) if rest else 0))
            time += cycles_of_adding(parts, m * n)
            if best is None or time < best[0]:
                best = time, Plan(m, n, parts)
    assert best is not None
    return best[1]


class _Mode(threading.local):
    precision = "float32"


_mode = _Mode()


@contextmanager
def precision(name: str) -> Iterator[None]:
    """A block in which this thread's products of float32 matrices, and its convolutions, are computed in a precision,
    "float32" or "tf32"; where the kernels for it do not take the arrays, in float32. ValueError for another name."""
    if name not in ("float32", "tf32"):
        raise ValueError(f"the precision of float32 arrays is float32 or tf32, not {name!r}")
    before, _mode.precision = _mode.precision, name
    try:
        yield
    finally:
        _mode.precision = before


def chosen() -> str:
    """The precision of this thread's products: that of the present block of `precision`, "float32" outside of any."""
    return _mode.precision


def of(X: Any) -> str | None:
    """The precision in which products of X and its like are computed: for arrays of 16 bits their own, None on GPUs that have no
    such tensor cores; for others that of this thread."""
    name = of_half(X.dtype)
    if name is None:
        return _mode.precision
    return name if isinstance(X, np.ndarray) or compute_capability() >= OLDEST else None


def multiply(
    A: Any, B: Any, bias: Any, Y: Any, transpose_a: bool, transpose_b: bool, scale: float, sizes: Any, apart: Any,
    R: Any = None,
) -> bool:  # fmt: skip
    """Whether the product was launched: in the precision `of` the arrays, if that is one for tensor cores and they take them."""
    name = of(A)
    return name not in (None, "float32") and product(
        A, B, bias, Y, transpose_a, transpose_b, scale, sizes, apart, str(name), R
    )


def product(
    A: Any, B: Any, bias: Any, Y: Any, transpose_a: bool, transpose_b: bool, scale: float, sizes: Any, apart: Any,
    precision: str, R: Any = None,
) -> bool:  # fmt: skip
    """Y = scale A B + 1 bias + R for a stack of contiguous matrices: whether it was launched, else nothing is done.

    A (M, K) or transposed (K, M), B (K, N) or transposed (N, K), not both transposed, as `precision.IN_MEMORY` says; Y (M, N)
    float32 or as they are; bias (N,) float32 or None; R like Y, or Y itself, or None. sizes: M, N, K and how many matrices Y
    has. apart: entries from one matrix of A and of B to the next, 0 where there is one. Their rows must be whole pieces of
    16 bytes.
    """
    (M, N, K, stack), dtype = sizes, IN_MEMORY[precision]
    chunk = 16 // dtype.itemsize
    rows = (M if transpose_a else K, K if transpose_b else N, N)
    if any(length % chunk for length in rows) or any(x is not None and address(x) % 16 for x in (A, B, bias, R, Y)):
        return False
    assert A.dtype == B.dtype and precision_of(A.dtype) == precision_of(dtype)
    p = plan(M, N, K, stack, dtype.itemsize)
    tiles = p.tiles(M, N)
    launch(
        SOURCE,
        "tensor_product",
        (tiles, stack, p.parts),
        (p.threads, 1, 1),
        (A, B, bias, R, Y, *slots(array_module(Y), p.parts, stack * tiles, p.m * p.n), *map(np.int32, (M, N, K)),
         *map(np.uint64, apart), np.float32(scale)),
        p.shared,
        defines(p, precision, "float32" if Y.dtype == np.float32 else precision, transpose_a, transpose_b),
    )  # fmt: skip
    return True


def defines(p: Plan, precision: str, result: str, transpose_a: bool, transpose_b: bool) -> Mapping[str, Any]:
    """The macros of the kernel for a plan, its operands and its result."""
    return {
        "PRECISION": precision.upper(),
        "RESULT": result.upper(),
        "TILE_M": p.m,
        "TILE_N": p.n,
        "TRANSPOSED_A": int(transpose_a),
        "TRANSPOSED_B": int(transpose_b),
    }


_RESULTS = (("tf32", ("float32",)), ("bf16", ("bf16", "float32")), ("fp16", ("fp16", "float32")))
VARIANTS = tuple(
    (SOURCE, defines(Plan(*tile, 1), precision, result, a, b), OLDEST)
    for precision, results in _RESULTS
    for result in results
    for tile in TILES
    for a, b in ((False, False), (False, True), (True, False))
)
