"""Weights in 16 bits beside those in float32: the factors that products take where feature maps have 16 bits.

A weight's numbers of 16 bits are made where an operation first asks for them, and kept. They are made again where the weight
has changed, in the same place, since a CUDA graph may hold its address. An optimiser that has changed all weights makes them
in the same pass (`gathered_halves`, `renewed`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tinydiff import replay


class Half:
    """array: the numbers of `data` in 16 bits, as they were at version `count` of the weight."""

    __slots__ = ("array", "count", "data")

    def __init__(self, array: Any, data: Any, count: int) -> None:
        self.array, self.data, self.count = array, data, count


def of(x: Any, dtype: Any) -> Any:
    """The numbers of a tensor in the dtype. Those that were computed from others are rounded each time. So are averages that stand
    in the place of weights for a while: the weights' own are kept."""
    data = x.data
    if data.dtype == dtype:
        return data
    if x._node is not None:
        return data.astype(dtype)
    known = x._half
    if known is None or (known.array.dtype, known.array.shape) != (dtype, data.shape):
        known = x._half = Half(data.astype(dtype), data, x._version.count)
    elif known.data is not data:
        return data.astype(dtype)
    elif known.count != x._version.count:
        replay.counts(known, "count")
        known.array[...], known.count = data, x._version.count
    return known.array


def gathered_halves(weights: Sequence[Any], gathered: Callable[[list[Any]], tuple[Any, Any]]) -> list[Any] | None:
    """The memory in which the numbers of 16 bits of all weights lie, in pieces such as the weights', for an update of these that
    has been counted already and writes both; None where no weight has such numbers. gathered: `ops.optim.gathered`."""
    dtype = next((p._half.array.dtype for p in weights if p._half is not None), None)
    if dtype is None:
        return None
    for p in weights:
        if p._half is not None and p._half.count + 1 != p._version.count:  # and the update may be left out
            p._half.array[...] = p.data
    pieces, parts = gathered([p.data.astype(dtype) if p._half is None else p._half.array for p in weights])
    for p, part in zip(weights, parts, strict=True):
        if p._half is None or p._half.array is not part or p._half.data is not p.data:
            p._half = Half(part, p.data, p._version.count)
    return pieces


def renewed(weights: Sequence[Any]) -> None:
    """Notes that an update has written the numbers of 16 bits that `gathered_halves` found."""
    for p in weights:
        if p._half.count != p._version.count:
            replay.counts(p._half, "count")
            p._half.count = p._version.count
    replay.relies_on(lambda: [p._half.array for p in weights])


def renew(weights: Sequence[Any]) -> None:
    """Makes the numbers of 16 bits of all weights anew, where some have them: after an update, one weight after another."""
    for p in weights:
        if p._half is not None:
            of(p, p._half.array.dtype)
