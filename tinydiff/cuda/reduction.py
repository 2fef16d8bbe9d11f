"""Sums, by the kernels in kernels/optimizer.cu; all float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.cuda import updates


def sum_of_squares(x: Any) -> Any:
    """|x|^2 of x (n,), as an array (). NotImplemented for other dtypes than float32 and for 2**31 elements."""
    if x.dtype != np.float32 or x.size > updates.MOST_ELEMENTS:
        return NotImplemented
    return updates.launch_squared_norm(array_module(x).ascontiguousarray(x))
