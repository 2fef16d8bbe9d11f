"""Batches of images gathered from a data set that lies on the device as bytes, by the kernel in kernels/batch.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.cuda.draws import THREADS, blocks
from tinydiff.cuda.launch import launch

VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (("batch.cu", {}),)

MOST_ELEMENTS = 2**31 - 4 * THREADS  # of a batch, which the kernel counts in an int


def gather_batch(images: Any, indices: Any, mirrored: Any = None) -> Any:
    """See `tinydiff.data.pixels.gather_batch`. mirrored may be uint8, too. NotImplemented for other dtypes and for batches
    that a kernel cannot count."""
    size = len(indices) * images[:1].size
    flags = mirrored if mirrored is None or mirrored.dtype != np.bool_ else mirrored.view(np.uint8)
    if images.dtype != np.uint8 or indices.dtype != np.int64 or size > MOST_ELEMENTS:
        return NotImplemented
    xp = array_module(images)
    images, indices, flags = (None if a is None else xp.ascontiguousarray(a) for a in (images, indices, flags))
    X = xp.empty((len(indices), *images.shape[1:]), np.float32)
    sizes = (np.int32(n) for n in (size, *images.shape[1:]))
    launch("batch.cu", "gather_batch", (blocks(size), 1, 1), (THREADS, 1, 1), (images, indices, flags, X, *sizes))
    return X
