"""Upsampling of NHWC maps, by the kernels in kernels/resampling.cu; float32, fp16 or bf16, in which sums are float32."""

from __future__ import annotations

from typing import Any

from tinydiff.backend import array_module
from tinydiff.cuda.resampling import launch_vectors
from tinydiff.precision import precision_of


def repeat_pixels(X: Any, factor: tuple[int, int]) -> Any:
    """Every pixel of X (N, H, W, C) as 2 x 2 pixels -> (N, 2 H, 2 W, C). NotImplemented for other factors and dtypes."""
    if precision_of(X.dtype) is None or factor != (2, 2):
        return NotImplemented
    xp, (N, H, W, C) = array_module(X), X.shape
    X, Y = xp.ascontiguousarray(X), xp.empty((N, 2 * H, 2 * W, C), X.dtype)
    launch_vectors("upsample", C, [X, Y], X.size, (N * H, W, C))
    return Y


def sum_pixel_blocks(L_Y: Any, factor: tuple[int, int]) -> Any:
    """L_X (N, H, W, C), the sums of the 2 x 2 pixels of L_Y (N, 2 H, 2 W, C). NotImplemented for other factors
    and dtypes."""
    if precision_of(L_Y.dtype) is None or factor != (2, 2):
        return NotImplemented
    xp, (N, H, W, C) = array_module(L_Y), L_Y.shape
    L_Y, L_X = xp.ascontiguousarray(L_Y), xp.empty((N, H // 2, W // 2, C), L_Y.dtype)
    launch_vectors("upsample_backward", C, [L_Y, L_X], L_X.size, (N * (H // 2), W // 2, C))
    return L_X
