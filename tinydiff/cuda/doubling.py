"""Filters of a 3x3 convolution that sees an image with its pixels doubled, as they act on the image itself, by the kernels in
kernels/doubling.cu, which derive them. Arrays are contiguous; filters are float32, fp16 or bf16, their gradients float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.cuda.launch import launch
from tinydiff.cuda.source import precision_of_elements

SOURCE = "doubling.cu"
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    (SOURCE, {}),
    *((SOURCE, {"PRECISION": precision}) for precision in ("BF16", "FP16")),
)


def filters_of_parities(W: Any) -> Any:
    """V (2, 2, 2, 2, C, K) from W (3, 3, C, K): V[a, b] are the filters (2, 2, C, K) of output pixels (2 p + a, 2 q + b)."""
    V = array_module(W).empty((2, 2, 2, 2, *W.shape[2:]), W.dtype)
    size = W[0, 0].size
    launch(
        SOURCE,
        "filters_of_parities",
        (-(-size // 256), 1, 16),
        (256, 1, 1),
        (W, V, np.int32(size)),
        defines=precision_of_elements(W),
    )
    return V


def turned_filters(W: Any) -> Any:
    """T (4, 4, K, C) from W (3, 3, C, K): the filters of the convolution with stride 2 that L_X is of L_Y."""
    T = array_module(W).empty((4, 4, *W.shape[:1:-1]), W.dtype)
    _sum_taps(W, T)
    return T


def sum_gradient(L_T: Any, L_W: Any) -> None:
    """L_W (3, 3, C, K) of L_T (4, 4, K, C), the gradient of `turned_filters`."""
    _sum_taps(L_T, L_W)


def _sum_taps(A: Any, B: Any) -> None:
    n, (rows, columns) = B.shape[0], A.shape[2:]
    grid, sizes = (-(-columns // 32), -(-rows // 32), n * n), map(np.int32, (n, rows, columns))
    launch(SOURCE, "sum_taps_turned", grid, (32, 8, 1), (A, B, *sizes), defines=precision_of_elements(A))
