"""One flat piece of memory for many arrays. A network has hundreds of weights, most of them small, and a launch for
each would cost more than the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinydiff.autograd import places
from tinydiff.backend import address, array_module

# Arrays start at a multiple of this many elements: kernels read 16 bytes at once where an array starts at a multiple of 16,
# and a cache line has 128.
ELEMENTS_BETWEEN_STARTS = 32


def join(arrays: Sequence[Any]) -> tuple[Any, list[Any]]:
    """A flat array that holds the given arrays, of one dtype, one after another, and views of it that replace them.

    Each starts at a multiple of `ELEMENTS_BETWEEN_STARTS`, with zeros in the gaps. Arrays that are already joined in
    this way are returned unchanged; others are copied.
    """
    flat = _joined(arrays)
    if flat is not None:
        return flat, list(arrays)
    flat = array_module(arrays[0]).zeros(size(arrays), arrays[0].dtype)
    views = part(flat, arrays)
    for view, a in zip(views, arrays, strict=True):
        view[...] = a
    return flat, views


def part(flat: Any, arrays: Sequence[Any]) -> list[Any]:
    """The parts of a flat array that `join` gives to arrays of such shapes, as views."""
    starts = _starts(arrays)[:-1]
    return [flat[start : start + a.size].reshape(a.shape) for a, start in zip(arrays, starts, strict=True)]


def size(arrays: Sequence[Any]) -> int:
    """How many elements `join` needs for arrays of such shapes."""
    return _starts(arrays)[-1]


def new_gradient(xp: Any, shape: Sequence[int]) -> Any:
    """An array of arbitrary content for the gradient of a weight, float32: its place in the flat array of all gradients
    where it has one, see `tinydiff.autograd.places`."""
    place = places.claim(shape)
    return xp.empty(shape, np.float32) if place is None else place


def _starts(arrays: Sequence[Any]) -> list[int]:
    """Where each array starts in the flat one, and that one's size."""
    step = ELEMENTS_BETWEEN_STARTS
    return np.cumsum([0, *(-(-a.size // step) * step for a in arrays)]).tolist()


def _joined(arrays: Sequence[Any]) -> Any:
    """The flat array that consists of the arrays in their order, or None."""
    flat = arrays[0].base
    starts = _starts(arrays)
    if flat is None or flat.ndim != 1 or flat.dtype != arrays[0].dtype or flat.size != starts[-1]:
        return None
    for a, start in zip(arrays, starts[:-1], strict=True):
        place = address(flat) + start * a.itemsize
        if a.base is not flat or not a.flags.c_contiguous or (a.size and address(a) != place):
            return None
    return flat
