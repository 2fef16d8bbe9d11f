"""Launches of the kernels in kernels/noise.cu. Each makes random numbers where it needs them, from a generator's
state."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.cuda.launch import launch
from tinydiff.random import State

VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (("noise.cu", {}),)

THREADS = 256  # of a block; each has four elements


def launch_draw(kernel: str, n: int, args: tuple[Any, ...], state: State) -> None:
    """Launches a kernel of noise.cu for n elements; after its own arguments it takes those of a draw."""
    launch("noise.cu", kernel, (blocks(n), 1, 1), (THREADS, 1, 1), (*args, *draw_arguments(state)))


def draw_arguments(state: State) -> tuple[Any, ...]:
    """A generator's state as kernels take it: seed, stream, step, offset and its clock, None for none."""
    seed, stream, step, offset, *clock = state
    return np.uint64(seed), np.uint32(stream), np.uint32(step), np.uint64(offset), clock[0] if clock else None


def blocks(n: int) -> int:
    """Blocks for n elements."""
    return -(-n // (4 * THREADS))


def int32(n: int) -> np.int32:
    """A number of elements as the kernels take it; ValueError where it does not fit."""
    if n > 2**31 - 4 * THREADS:
        raise ValueError(f"a kernel makes noise for fewer than 2**31 elements, not {n}")
    return np.int32(n)
