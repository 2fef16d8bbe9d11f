"""Attention on tensor cores (sm_80 on), a kernel forward and two backward, by kernels/tensor_attention.cu; sums and softmax are
float32.

P = softmax(scale Q K^T) is not written to memory: each block of threads has whole rows of it, of up to 256 keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinydiff.backend import address, array_module
from tinydiff.cuda.launch import launch
from tinydiff.cuda.tensor import OLDEST, SLICE
from tinydiff.cuda.tensor import STAGES as _STAGES
from tinydiff.precision import IN_MEMORY

SOURCE = "tensor_attention.cu"
ROWS = 64  # of P that a block has
COLUMNS = (64, 256)  # that it has of each: TILE_N
_WARP = 32 * 64  # entries of P that a warp has


def threads(columns: int) -> int:
    """Of a block with so many columns of P."""
    return ROWS * columns // _WARP * 32


def shared(columns: int, bytes_each: int) -> int:
    """Bytes of dynamic shared memory: for slices of two operands, or for P and slices of one."""
    both = _STAGES * (ROWS + columns) * SLICE
    return max(both, ROWS * columns * bytes_each + (2 if bytes_each == 4 else 4) * columns * SLICE)


def defines(columns: int, precision: str) -> Mapping[str, Any]:
    """The macros of the source."""
    result = "float32" if precision == "tf32" else precision
    return {"PRECISION": precision.upper(), "RESULT": result.upper(), "TILE_N": columns}


def takes(Q: Any, K: Any, V: Any, precision: str, columns: int) -> bool:
    """Whether kernels can be launched for Q (..., L, D), K (..., M, D), V (..., M, E) of equal leading axes and `columns` columns
    of P: as `precision.IN_MEMORY` says, rows of whole pieces of 16 bytes, few columns, something of everything."""
    if precision not in IN_MEMORY or precision == "float32":
        return False
    chunk, rows = 16 // IN_MEMORY[precision].itemsize, math.prod(Q.shape[:-1])
    return (
        all(_lies(X, precision) for X in (Q, K, V))
        and Q.shape[:-2] == K.shape[:-2] == V.shape[:-2]
        and not any(length % chunk for length in (Q.shape[-1], V.shape[-1]))
        and min(Q.size, K.size, V.size) > 0
        and columns <= COLUMNS[-1]
        and rows + ROWS < 2**31
    )


def _lies(X: Any, precision: str) -> bool:
    return X.dtype == IN_MEMORY[precision] or (precision == "bf16" and X.dtype.name == "bfloat16")


def attend(Q: Any, K: Any, V: Any, scale: float, precision: str) -> Any:
    """(Y, z): Y = softmax(scale Q K^T) V (..., L, E) as the operands are in memory, and z = log sum exp(scale Q K^T) (..., L, 1)
    float32. None where `takes` says no."""
    if not takes(Q, K, V, precision, K.shape[-2]):
        return None
    xp = array_module(Q)
    Y, z = xp.empty((*Q.shape[:-1], V.shape[-1]), Q.dtype), xp.empty((*Q.shape[:-1], 1), np.float32)
    arrays, numbers = _operands(Q, K, V, scale)
    _launch("attention_forward", Q, K.shape[-2], Q.shape[-2], precision, (*arrays, Y, z, *numbers))
    return Y, z


def attend_backward(
    L_Y: Any, Q: Any, K: Any, V: Any, z: Any, scale: float, needs: Sequence[bool], precision: str
) -> Any:
    """(L_Q, L_K, L_V) as the operands are in memory, None for what `needs` does not ask for. None alone where `takes` says no:
    queries are columns of P as well."""
    queries, keys = Q.shape[-2], K.shape[-2]
    columns = max(queries, keys)
    if not takes(Q, K, V, precision, columns) or not _lies(L_Y, precision):
        return None
    xp = array_module(Q)
    L_Q, L_K, L_V = (xp.empty(X.shape, X.dtype) if need else None for X, need in zip((Q, K, V), needs, strict=True))
    arrays, numbers = _operands(Q, K, V, scale)
    arrays = (*arrays, _aligned(xp.ascontiguousarray(L_Y)), xp.ascontiguousarray(z))
    d = None
    if needs[0] or needs[1]:
        d = xp.empty(z.shape, np.float32)
        _launch("attention_queries_gradient", Q, columns, queries, precision, (*arrays, d, L_Q, *numbers))
    if needs[1] or needs[2]:
        _launch("attention_keys_gradient", Q, columns, keys, precision, (*arrays, d, L_K, L_V, *numbers))
    return L_Q, L_K, L_V


def _launch(kernel: str, Q: Any, columns: int, rows: int, precision: str, args: tuple[Any, ...]) -> None:
    n = next(n for n in COLUMNS if columns <= n)
    blocks = math.prod(Q.shape[:-2]) * -(-rows // ROWS)
    each = IN_MEMORY[precision].itemsize
    launch(SOURCE, kernel, (blocks, 1, 1), (threads(n), 1, 1), args, shared(n, each), defines(n, precision))


def _operands(Q: Any, K: Any, V: Any, scale: float) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The arrays that kernels read, and the numbers that end their arguments."""
    arrays, apart, rows = zip(*map(_strided, (Q, K, V)), strict=True)
    sizes = map(np.int32, (Q.shape[-2], *V.shape[-2:-1], Q.shape[-1], V.shape[-1]))
    return arrays, (*sizes, *map(np.uint64, (*apart, *rows)), np.float32(scale))


def _strided(X: Any) -> tuple[Any, int, int]:
    """X, and how many entries its matrices and their rows are apart. A view of some columns of a larger array, as of q, k and v
    side by side, is read where it is; what lies otherwise is copied."""
    size, (rows, columns) = X.dtype.itemsize, X.shape[-2:]
    if X.flags.c_contiguous:
        return _aligned(X), rows * columns, columns
    apart = X.strides[-3] if X.ndim == 3 else 0
    whole = all(s % 16 == 0 and s >= 0 for s in (apart, X.strides[-2], address(X)))
    if X.ndim > 3 or X.strides[-1] != size or not X.strides[-2] or not whole:
        return _strided(array_module(X).ascontiguousarray(X))
    apart, row = apart // size, X.strides[-2] // size
    reach = (math.prod(X.shape[:-2]) - 1) * apart + (rows - 1) * row + columns
    flat = array_module(X).lib.stride_tricks.as_strided(X, (reach,), (size,))
    return flat, apart, row


def _aligned(X: Any) -> Any:
    """X, copied if it does not begin at a multiple of 16 bytes."""
    return X.copy() if address(X) % 16 else X


VARIANTS = tuple((SOURCE, defines(n, precision), OLDEST) for precision in ("tf32", "bf16", "fp16") for n in COLUMNS)
