"""Reading the arguments of public operations."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, is_float


def as_tensor(x: Any) -> Tensor:
    """The tensor itself, or a new one of an array, a number or a list."""
    return x if isinstance(x, Tensor) else Tensor(x)


def as_array(x: Any) -> Any:
    """The plain array of a tensor; anything else unchanged."""
    return x.data if isinstance(x, Tensor) else x


def as_real(x: Any) -> Tensor:
    """A tensor of floating point numbers; integers become float64, as in NumPy's functions."""
    x = as_tensor(x)
    return x if is_float(x.dtype, or_complex=True) else Tensor(x.data.astype("float64"))


def check_number(name: str, what: str, value: Any) -> None:
    """TypeError unless the value is a plain number: a tensor in its place would get no gradient."""
    if not isinstance(value, int | float | np.generic):
        raise TypeError(f"{name}: {what} must be a number, not {type(value).__name__}")


def largest_divisor(n: int, most: int) -> int:
    """The largest divisor of n >= 1 that is at most `most` >= 1: groups that would do for n channels."""
    return max(d for d in range(1, min(n, most) + 1) if n % d == 0)


def channels_first(shape: Any, channels: Any) -> str:
    """What to write where images (N, C, H, W) were given, for the end of a sentence; "" unless axis 1 is the one that fits.

    channels: how many channels fit, or a function that tells whether a number fits."""
    fits = channels if callable(channels) else lambda n: n == channels
    if len(shape) != 4 or fits(shape[3]) or not fits(shape[1]):
        return ""
    return "; images are (N, H, W, C) here, and these look like (N, C, H, W): write x.transpose(0, 2, 3, 1)"


def add_bias(Y: Any, b: Any) -> Any:
    """Y + b, in place in the array Y unless b has the wider dtype. Y must be the caller's own."""
    if b.dtype != Y.dtype and array_module(Y).result_type(Y, b) != Y.dtype:
        return Y + b
    Y += b
    return Y


def normalize_axis(name: str, axis: int, ndim: int) -> int:
    """The axis counted from 0; ValueError if there is none."""
    if not isinstance(axis, int | np.integer) or isinstance(axis, bool):
        raise TypeError(f"{name}: axis must be an int, not {axis!r}")
    if not -ndim <= axis < ndim:
        raise ValueError(f"{name}: axis {axis} is out of range for {ndim} dimensions")
    return int(axis) % ndim


def normalize_axes(name: str, axis: Any, ndim: int) -> tuple[int, ...]:
    """The axes counted from 0, of None (all), an int or a tuple; ValueError if one is missing or named twice."""
    if axis is None:
        return tuple(range(ndim))
    axes = tuple(normalize_axis(name, a, ndim) for a in (axis if isinstance(axis, tuple | list) else (axis,)))
    if len(set(axes)) != len(axes):
        raise ValueError(f"{name}: an axis is named twice in {axis}")
    return axes


def pair(name: str, what: str, value: Any, least: int) -> tuple[int, int]:
    """(height, width) of an int or a pair of ints, each at least `least`."""
    if type(value) is int and value >= least:
        return value, value
    values = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(values) != 2 or any(not isinstance(v, int | np.integer) or v < least for v in values):
        raise ValueError(f"{name}: {what} must be an int or a pair of ints of at least {least}, not {value!r}")
    return int(values[0]), int(values[1])


def as_parameters(name: str, parameters: Iterable[Tensor]) -> list[Tensor]:
    """The leaves that an optimiser is given, as a list. TypeError or ValueError for anything else."""
    if isinstance(parameters, Tensor):
        raise TypeError(f"{name} takes a list of tensors, such as module.parameters(), not one tensor")
    found = list(parameters)
    if not found:
        raise ValueError(f"{name} got no parameters")
    for i, p in enumerate(found):
        frozen = isinstance(p, Tensor) and type(p) is not Tensor  # a Parameter; a plain tensor is a mistake
        if not isinstance(p, Tensor) or p._node is not None or not (p.requires_grad or frozen):
            raise TypeError(f"{name} takes tensors made with requires_grad=True; number {i} is not one")
    if not any(p.requires_grad for p in found):
        raise TypeError(f"{name} got frozen weights only: set requires_grad = True on those to be learned")
    if len({id(p) for p in found}) != len(found):
        raise ValueError(f"{name} got a parameter twice")
    return found


def as_positive(name: str, what: str, value: Any, below: float = math.inf) -> float:
    """A number of at least 0 and less than `below`, as a float. ValueError for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < below:
        limit = "finite" if below == math.inf else f"below {below}"
        raise ValueError(f"{name}: {what} must be a number of at least 0 and {limit}, not {value!r}")
    return number
