"""What the operands of matrix products are rounded to on tensor cores.

    float32      24 bits      not rounded: the reference
    tf32         11 bits      float32 in memory; the last 13 bits are rounded away, ties away from zero
    bf16          8 bits      the upper half of a float32, ties to even
    fp16         11 bits      up to 65504, ties to even

What is held in what, by `TrainConfig.precision`:

                                                            float32     tf32                    fp16, bf16 (`mixed`)
    weights and their gradients, Adam's moments, averages   float32     float32                 float32
    biases, weights of normalisation, checkpoints           float32     float32                 float32
    first and last convolution, the time's way, the loss    float32     float32                 float32
    the other maps and their gradients, q, k, v             float32     float32                 16 bits
    the sum with a residual                                 float32     float32                 added in float32, rounded once
    operands of what tensor cores compute                   float32     rounded on their way    16 bits, also of weights
    sums, statistics, softmax, samplers                     float32     float32                 float32

The output of attention is rounded before it is added, too. In fp16 the loss is multiplied by a scale before gradients go back,
see `ops.optim.move_loss_scale`: its numbers reach from 6e-8 to 65504. bf16 has the range of float32 and needs none.

What the kernels for tensor cores do not take, such as rows that are no whole pieces of 16 bytes, is computed in float32, and
rounded where it is held in 16 bits. Products of two rounded numbers are exact in float32, and sums are float32, so float64 on
rounded operands is what a product should give. `emulated` has the CPU compute so, to study what training makes of it.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])

PRECISIONS = ("float32", "tf32", "fp16", "bf16")
# What an operand is in memory, as NumPy knows it. It has no bf16, whose bits are whole numbers to it.
IN_MEMORY: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("float32"),
    "tf32": np.dtype("float32"),
    "fp16": np.dtype("float16"),
    "bf16": np.dtype("uint16"),
}

_OF_DTYPE = {"f": "float32", "e": "fp16", "H": "bf16", "E": "bf16"}  # by NumPy's character; E is ml_dtypes' bfloat16


def precision_of(dtype: Any) -> str | None:
    """What the entries of an array are in memory, by its dtype: "float32", "fp16" or "bf16", the latter as uint16 or as
    ml_dtypes' bfloat16. None for other dtypes."""
    return _OF_DTYPE.get(dtype.char)


def half(precision: str) -> Any:
    """The dtype of arrays in which a network holds "fp16" or "bf16", None for the other precisions. That of bf16 is
    ml_dtypes', which CuPy takes as well; kernels see the bits of such arrays. ImportError where it is not installed."""
    if precision == "fp16":
        return np.dtype(np.float16)
    return np.dtype(importlib.import_module("ml_dtypes").bfloat16) if precision == "bf16" else None


def of_half(dtype: Any) -> str | None:
    """ "fp16" or "bf16" for the dtypes that `half` gives, None for others."""
    return precision_of(dtype) if dtype.char in "eE" else None


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


class _Mode(threading.local):
    emulated = "float32"
    held: Any = None  # the dtype of 16 bits in a block of `mixed`


_mode = _Mode()


@contextmanager
def mixed(precision: str) -> Iterator[None]:
    """A block in which this thread's networks hold their maps in 16 bits: "fp16" or "bf16"; other precisions hold float32.

    A `UNet` rounds the maps that its first convolution makes. From there on an operation whose first input has 16 bits gives a
    result of 16 bits, whatever else it takes, and its weights (`Function.weights`) are rounded for it. Gradients have the dtype
    of what they belong to: those of maps 16 bits, those of weights and biases float32. Sums are float32.

    That holds on CPU and GPU. On a CPU it is slow, and there to see what rounding does. ImportError where bf16 is asked for
    and ml_dtypes is not installed.
    """
    before, _mode.held = _mode.held, half(precision)
    try:
        yield
    finally:
        _mode.held = before


def held() -> Any:
    """The dtype of 16 bits in which maps are held in the present block of `mixed`, None for float32."""
    return _mode.held


# ---------------------------------------------------------------------------------------------------- emulation on the CPU


@contextmanager
def emulated(precision: str) -> Iterator[None]:
    """A block in which this thread's products of matrices and convolutions of float32 arrays on the CPU are those of tensor cores:
    their operands are rounded to a precision, their sums are float32.

        with emulated("bf16"):
            loss = diffusion.loss(unet, x0, generator)
            loss.backward()

    That holds for forward and backward passes inside the block: convolutions, fully connected layers, `matmul`, attention. It does
    not for `einsum`, which is not computed on tensor cores. Everything else is float32: inputs and outputs of operations, weights,
    gradients. Tensor cores take some shapes only; here all are rounded. An operation agrees with the kernels to float32's rounding.
    A network does so to that of the precision: a sum that differs by its last bit may be rounded to another number further on.

    precision: one of `PRECISIONS`; "float32" rounds nothing. ValueError for another.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"the precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    before, _mode.emulated = _mode.emulated, precision
    try:
        yield
    finally:
        _mode.emulated = before


def rounds_factors(function: F) -> F:
    """Decorates a function whose first two arguments are factors of products, arrays or sequences of them: inside of `emulated`
    it is given rounded ones."""

    @functools.wraps(function)
    def rounding(*args: Any, **kwargs: Any) -> Any:
        if _mode.emulated == "float32":
            return function(*args, **kwargs)
        A, B, *others = args
        return function(_factor(A), _factor(B), *others, **kwargs)

    return cast(F, rounding)


def emulated_by(products: Callable[..., Any] | None = None) -> Callable[[F], F]:
    """Decorates an accelerated function: inside of `emulated` another one of the same arguments computes it, whose products are
    made by functions that `rounds_factors` decorates. None: its definition."""

    def decorate(function: F) -> F:
        other = products or cast(Any, function).definition

        @functools.wraps(function)
        def chosen(*args: Any, **kwargs: Any) -> Any:
            return (function if _mode.emulated == "float32" else other)(*args, **kwargs)

        return cast(F, chosen)

    return decorate


def _factor(x: Any) -> Any:
    if isinstance(x, tuple | list):
        return [_factor(y) for y in x]
    return rounded(x, _mode.emulated) if isinstance(x, np.ndarray) and x.dtype == np.float32 else x
