"""Launches of the kernels in kernels/noise.cu. Each makes random numbers where it needs them, from a generator's
state."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.cuda.launch import launch
from tinydiff.random import State

VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (("noise.cu", {}),)

THREADS = 256  # of a block; each has four elements


def launch_draw(kernel: str, n: int, args: tuple[Any, ...], state: State, advance: Any = None) -> None:
    """Launches a kernel of noise.cu for n elements; after its own arguments it takes those of a draw.

    advance: uint32 (2,) on the device, what to add to step and offset, so that a captured graph can be replayed for one step
    after another; None for nothing.
    """
    seed, stream, step, offset = state
    draw = np.uint64(seed), np.uint32(stream), np.uint32(step), np.uint64(offset), advance
    launch("noise.cu", kernel, (blocks(n), 1, 1), (THREADS, 1, 1), (*args, *draw))


def blocks(n: int) -> int:
    """Blocks for n elements."""
    return -(-n // (4 * THREADS))


def int32(n: int) -> np.int32:
    """A number of elements as the kernels take it; ValueError where it does not fit."""
    if n > 2**31 - 4 * THREADS:
        raise ValueError(f"a kernel makes noise for fewer than 2**31 elements, not {n}")
    return np.int32(n)
