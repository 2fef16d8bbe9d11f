"""Launches of the kernels in kernels/resampling.cu, which move entries of NHWC maps; all float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinydiff.cuda.launch import launch
from tinydiff.cuda.products import vector

SOURCE = "resampling.cu"
VARIANTS = tuple((SOURCE, {"VECTOR": n}) for n in (4, 1))


def launch_vectors(kernel: str, channels: int, arrays: Sequence[Any], size: int, sizes: Sequence[int]) -> None:
    """One thread for each `VECTOR` of `size` entries."""
    n = vector(channels, *(a for a in arrays if a is not None and a.dtype == np.float32))
    grid = (-(-size // (256 * n)), 1, 1)
    args = (*arrays, np.uint64(size // n), *map(np.int32, sizes))
    launch(SOURCE, kernel, grid, (256, 1, 1), args, defines={"VECTOR": n})
