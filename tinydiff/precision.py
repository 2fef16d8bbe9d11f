"""What the operands of matrix products are rounded to on tensor cores.

    float32      24 bits      not rounded: the reference
    tf32         11 bits      float32 in memory; the last 13 bits are rounded away, ties away from zero
    bf16          8 bits      the upper half of a float32, ties to even
    fp16         11 bits      up to 65504, ties to even

Products of two such numbers are exact in float32, and sums are float32, so float64 on rounded operands is what a product
should give.
"""

from __future__ import annotations

from typing import Any

import numpy as np

PRECISIONS = ("float32", "tf32", "fp16", "bf16")
# What an operand is in memory, as NumPy knows it. It has no bf16, whose bits are whole numbers to it.
IN_MEMORY: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("float32"),
    "tf32": np.dtype("float32"),
    "fp16": np.dtype("float16"),
    "bf16": np.dtype("uint16"),
}


def rounded(x: Any, precision: str) -> Any:
    """x, a NumPy array of float32, rounded to a precision; float32."""
    if precision == "float32":
        return x
    if precision == "fp16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(x).view(np.uint32)
    if precision == "tf32":
        nearest = (bits + np.uint32(0x1000)) & ~np.uint32(0x1FFF)
    else:
        nearest = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & ~np.uint32(0xFFFF)
    return np.where(np.isnan(x), np.float32(np.nan), nearest.view(np.float32))


def in_memory(x: Any, precision: str) -> Any:
    """x, a NumPy array of float32, as operands of a precision lie in memory (`IN_MEMORY`)."""
    if precision == "bf16":
        return (rounded(x, "bf16").view(np.uint32) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        return x.astype(IN_MEMORY[precision])


def from_memory(x: Any) -> Any:
    """The float32 numbers of what `in_memory` gives."""
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32)
