"""Draws of random numbers, by the kernels in kernels/noise.cu.

A draw starts from the state of a generator, (seed, stream, step, offset), to whose step and offset kernels add its clock
where it has one. Element j is what `Generator(*state)` would
draw as its j-th: words and uniforms with the same bits, normals to rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.backend import module_for
from tinydiff.cuda.draws import int32, launch_draw
from tinydiff.random import State


def words(n: int, state: State, device: str) -> Any:
    """The n words of a draw, uint32 (n,)."""
    return _draw("random_words", np.uint32, n, state, device)


def uniform(n: int, state: State, device: str) -> Any:
    """Uniform on [0, 1), float32 (n,)."""
    return _draw("random_uniform", np.float32, n, state, device)


def normal(n: int, state: State, device: str) -> Any:
    """Standard normals, float32 (n,)."""
    return _draw("random_normal", np.float32, n, state, device)


def _draw(kernel: str, dtype: Any, n: int, state: State, device: str) -> Any:
    out = module_for(device).empty(n, dtype)
    launch_draw(kernel, n, (out, int32(n)), state)
    return out
