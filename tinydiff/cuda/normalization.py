"""Group normalisation with SiLU and dropout in one pass, forward and backward (kernels/normalization.cu).

Feature maps and their gradients are float32, fp16 or bf16; weights, their gradients and statistics are float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tinydiff import backend
from tinydiff.autograd import waiting
from tinydiff.backend import address, array_module
from tinydiff.cuda.draws import draw_arguments
from tinydiff.cuda.flat import new_gradient
from tinydiff.cuda.launch import launch
from tinydiff.cuda.source import precision_of_elements
from tinydiff.precision import precision_of

SOURCE = "normalization.cu"
VARIANTS = (
    *((SOURCE, {"VECTOR": n}) for n in (4, 1)),
    *((SOURCE, {"VECTOR": n, "PRECISION": precision}) for precision in ("BF16", "FP16") for n in (1, 8)),
)

_THREADS = 256  # of a block, at most
_ENOUGH = 4096  # elements that keep a block busy
_WHOLE = 64  # bytes of neighbouring channels, which memory delivers at once
_LEAST = 32  # and the least that it does not waste
_ROOM = 75 << 10  # bytes of shared memory for a block: three of them fit into a multiprocessor of an H100


class _Layout(NamedTuple):
    """How a launch divides (N, P, C): see kernels/normalization.cu. Sizes are in elements."""

    vector: int
    slab: int
    columns: int
    threads: int
    tiled: bool
    shared: int  # bytes


def group_normalize(X: Any, w: Any, b: Any, groups: int, eps: float, silu: bool = False, dropout: Any = None) -> Any:
    """Y = M silu(Z w + b) of X (N, ..., C), in X's dtype, and what Z = (X - mean) scale was made with: mean and
    scale = 1 / sqrt(variance + eps), both (N, groups) float32. M is dropout's mask.

    X float32, fp16 or bf16 (`precision.precision_of`). w and b (C,) float32 may be None. dropout: (p, state of the generator
    that draws the mask), None for none. NotImplemented for other dtypes, and where a group has more than 256 vectors of 16
    bytes of channels, or more than 256 channels that are not whole vectors.
    """
    xp = array_module(X)
    if not _taken(X, X, w, b) or (layout := _layout(X, groups, 1)) is None:
        return NotImplemented
    X, w, b = _aligned(X), _contiguous(w), _contiguous(b)
    N, P, C = _sizes(X)
    Y, mean, scale = xp.empty_like(X), xp.empty((N, groups), np.float32), xp.empty((N, groups), np.float32)
    args = (X, w, b, Y, mean, scale, *_numbers(P, C, C // groups, layout), np.float32(eps))
    _launch("group_norm_forward", layout, N, C, args, silu, dropout)
    return Y, mean, scale


def group_normalize_backward(
    L_Y: Any,
    X: Any,
    mean: Any,
    scale: Any,
    w: Any,
    b: Any,
    groups: int,
    silu: bool,
    needs: Sequence[bool] = (True, True, True),
    dropout: Any = None,
) -> Any:
    """(L_X, L_w, L_b), with None for what `needs` does not ask for; arguments as in `group_normalize`. L_Y and L_X are of X's
    dtype, L_w and L_b float32."""
    xp = array_module(X)
    if not _taken(X, L_Y, w, b) or (layout := _layout(X, groups, 2)) is None:
        return NotImplemented
    L_Y, X, w, b = _aligned(L_Y), _aligned(X), _contiguous(w), _contiguous(b)
    N, P, C = _sizes(X)
    L_X, there = (xp.empty_like(X), waiting.claim(X.shape, X.dtype)) if needs[0] else (None, None)
    sums = xp.empty((2, N, C), np.float32) if needs[1] or needs[2] else None
    args = (L_Y, X, mean, scale, w, b, there, L_X, sums, *_numbers(P, C, C // groups, layout))
    if any(needs):
        _launch("group_norm_backward", layout, N, C, args, silu, dropout)
    if sums is None:
        return L_X, None, None
    L_w = new_gradient(xp, (C,)) if needs[1] else None
    L_b = new_gradient(xp, (C,)) if needs[2] else None
    args = (sums, L_w, L_b, np.int32(N), np.int32(C))
    launch(SOURCE, "sum_over_images", (-(-C // 32), 2, 1), (256, 1, 1), args, defines=_defines(X, layout))
    return L_X, L_w, L_b


def _launch(kernel: str, layout: _Layout, N: int, C: int, args: tuple[Any, ...], silu: bool, dropout: Any) -> None:
    p, state = (0.0, (0, 0, 0, 0)) if dropout is None else dropout
    args = (*args, np.int32(silu), np.float32(p), np.float32(1 / (1 - p)), *draw_arguments(state))
    grid, block = (N * -(-C // layout.slab), 1, 1), (layout.threads, 1, 1)
    launch(SOURCE, kernel, grid, block, args, layout.shared, _defines(args[0], layout))


def _defines(X: Any, layout: _Layout) -> dict[str, Any]:
    return {"VECTOR": layout.vector, **precision_of_elements(X)}


def _numbers(P: int, C: int, D: int, layout: _Layout) -> tuple[np.int32, ...]:
    """P, C, D, slab, columns, tiled as the kernels take them."""
    return tuple(np.int32(n) for n in (P, C, D, layout.slab, layout.columns, layout.tiled))


def _layout(X: Any, groups: int, tiles: int) -> _Layout | None:
    """How to divide X, of which `tiles` arrays of its kind are kept in shared memory where they fit; None where a group
    has too many channels."""
    _, P, C = _sizes(X)
    return _divide(P, C, C // groups, tiles, _shared_memory(X), X.itemsize)


@functools.cache
def _divide(P: int, C: int, D: int, tiles: int, memory: int, bytes_each: int = 4) -> _Layout | None:
    # The order of addition depends on neither the number of images nor the GPU: an image rounds alike in any batch.
    vector = 1 if C % (16 // bytes_each) else 16 // bytes_each
    if not D:
        return None
    unit = math.lcm(D, vector)
    slab, least = (-(-sector // bytes_each // unit) * unit for sector in (_WHOLE, _LEAST))
    pixel = tiles * bytes_each  # bytes of shared memory for a channel of one
    if pixel * P * slab > _ROOM >= pixel * P * least:
        slab = least
    while P * slab < _ENOUGH and slab < C and 2 * slab <= _THREADS * vector:
        slab *= 2
    slab = min(slab, C)
    columns = 1 << (slab // vector - 1).bit_length()
    if columns > _THREADS:
        return None
    rows = 1 << (-(-P // 4) - 1).bit_length() if P else 1
    threads = min(max(columns * rows, 32), _THREADS)
    partials = threads // 32 if columns < 32 else threads // columns
    tile, sums = -(-pixel * P * slab // 16) * 16, 4 * (partials * slab + 4 * slab)
    tiled = tile <= _ROOM and 2 * (tile + sums + 1024) <= memory  # at least two blocks work at a time
    return _Layout(vector, slab, columns, threads, tiled, tile * tiled + sums)


def _shared_memory(x: Any) -> int:
    """The bytes of shared memory of a multiprocessor where the array is, as far as a block can have them."""
    return 227 << 10 if isinstance(x, np.ndarray) else _of_gpu(x.device.id)


@functools.cache
def _of_gpu(device: int) -> int:
    cupy = backend.cupy()
    assert cupy is not None
    return cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"]


def _sizes(X: Any) -> tuple[int, int, int]:
    N, *size, C = X.shape
    return N, math.prod(size), C


def _taken(X: Any, L_Y: Any, w: Any, b: Any) -> bool:
    """Whether the kernels take arrays of these dtypes."""
    single = all(a is None or a.dtype == np.float32 for a in (w, b))
    return single and L_Y.dtype == X.dtype and precision_of(X.dtype) is not None


def _contiguous(x: Any) -> Any:
    """The array in one piece, or None."""
    return None if x is None else array_module(x).ascontiguousarray(x)


def _aligned(x: Any) -> Any:
    """The array in one piece, from a multiple of 16 bytes on, so that 16 can be read at once."""
    x = _contiguous(x)
    return x.copy() if address(x) % 16 else x
