"""Launches of the kernels in kernels/resampling.cu, which move entries of NHWC maps; all float32, fp16 or bf16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinydiff.backend import address
from tinydiff.cuda.launch import launch
from tinydiff.cuda.source import precision_of_elements

SOURCE = "resampling.cu"
VARIANTS = (
    *((SOURCE, {"VECTOR": n}) for n in (4, 1)),
    *((SOURCE, {"VECTOR": n, "PRECISION": precision}) for precision in ("BF16", "FP16") for n in (1, 8)),
)


def launch_vectors(kernel: str, channels: int, arrays: Sequence[Any], size: int, sizes: Sequence[int]) -> None:
    """One thread for each `VECTOR` of `size` entries of the first array, the dtype of whose entries is that of all maps."""
    whole = 16 // arrays[0].itemsize
    maps = (a for a in arrays if a is not None and a.dtype == arrays[0].dtype)
    n = 1 if channels % whole or any(address(a) % 16 for a in maps) else whole
    grid = (-(-size // (256 * n)), 1, 1)
    args = (*arrays, np.uint64(size // n), *map(np.int32, sizes))
    launch(SOURCE, kernel, grid, (256, 1, 1), args, defines={"VECTOR": n, **precision_of_elements(arrays[0])})
