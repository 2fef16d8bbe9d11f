"""Sums of the columns of matrices, float32, by the kernels in kernels/sums.cu. Matrices are float32, fp16 or bf16."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.cuda.flat import new_gradient
from tinydiff.cuda.joint import numbers, padded
from tinydiff.cuda.launch import launch
from tinydiff.cuda.products import LARGEST
from tinydiff.cuda.source import LAYERS, precision_of_elements
from tinydiff.cuda.split_k import COUNTERS, counters
from tinydiff.cuda.tensor import MULTIPROCESSORS
from tinydiff.precision import precision_of

SOURCE = "sums.cu"
COLUMNS = 32  # that a block has
THREADS = (COLUMNS, 8, 1)


def takes(X: Any) -> bool:
    """Whether the kernels take the numbers of an array, and count so far."""
    return precision_of(X.dtype) is not None and max(X.shape, default=0) <= LARGEST


def sum_columns(L_Y: Any, total: Any = None) -> Any:
    """The sums of the columns of L_Y (M, K) -> (K,), or of each of several matrices (N, M, K) -> (N, K); total, (K,) or None,
    receives the sums of these. NotImplemented for other shapes and dtypes."""
    if L_Y.ndim not in (2, 3) or not takes(L_Y):
        return NotImplemented
    xp, (M, K), N = array_module(L_Y), L_Y.shape[-2:], math.prod(L_Y.shape[:-2])
    across = -(-K // COLUMNS)
    slabs = _slabs(M, across * N)
    waited_for = slabs > 1 or total is not None
    if N > 65535 or (waited_for and (N + 1) * across > COUNTERS):
        return NotImplemented
    Y = new_gradient(xp, (K,)) if L_Y.ndim == 2 else xp.empty((N, K), np.float32)
    arrived = counters(xp, (N + 1) * across) if waited_for else None
    numbers_ = map(np.int32, (M, K, -(-M // slabs)))
    args = (xp.ascontiguousarray(L_Y), Y, total, _parts(xp, across * N, slabs), arrived, *numbers_)
    launch(SOURCE, "column_sums", (across, N, slabs), THREADS, args, defines=precision_of_elements(L_Y))
    return Y


def sum_columns_of_each(L_Ys: Sequence[Any]) -> list[Any] | None:
    """The sums of the columns of several matrices (M, K_i) of one dtype -> (K_i,), up to `LAYERS` of them in a launch. None where
    the kernel does not take them."""
    first = L_Ys[0]
    alike = all(X.ndim == 2 and X.size and X.dtype == first.dtype and len(X) == len(first) for X in L_Ys)
    if not alike or not all(map(takes, L_Ys)) or sum(-(-X.shape[1] // COLUMNS) for X in L_Ys) > COUNTERS:
        return None
    xp, M = array_module(first), len(first)
    L_Ys, Ys = [*map(xp.ascontiguousarray, L_Ys)], [new_gradient(xp, X.shape[1:]) for X in L_Ys]
    for at in range(0, len(L_Ys), LAYERS):
        some = slice(at, at + LAYERS)
        widths = [X.shape[1] for X in L_Ys[some]]
        across = sum(-(-n // COLUMNS) for n in widths)
        slabs = _slabs(M, across)
        memory = _parts(xp, across, slabs), None if slabs == 1 else counters(xp, across)
        args = (
            *padded(L_Ys[some]),
            *padded(Ys[some]),
            *numbers(widths),
            *memory,
            np.int32(M),
            np.int32(-(-M // slabs)),
        )
        launch(SOURCE, "joint_column_sums", (across, 1, slabs), THREADS, args, defines=precision_of_elements(first))
    return Ys


def _slabs(rows: int, tiles: int) -> int:
    """How many blocks share the rows of each tile of columns."""
    return max(1, min(1024, -(-rows // 64), -(-8 * MULTIPROCESSORS // max(1, tiles))))


def _parts(xp: Any, tiles: int, slabs: int) -> Any:
    return None if slabs == 1 else xp.empty((tiles * slabs, COLUMNS), np.float32)


VARIANTS: Sequence[tuple[str, dict[str, str]]] = tuple(
    (SOURCE, defines) for defines in ({}, {"PRECISION": "BF16"}, {"PRECISION": "FP16"})
)
