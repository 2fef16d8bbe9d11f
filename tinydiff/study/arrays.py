"""What a trace keeps of an array: shape, type, size of its values, and the values themselves or some of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinydiff.backend import to_numpy, widened

_CHUNK = 1 << 16  # elements that are widened to float64 at a time
_SIDE = 16  # rows and columns of the sample of a large array


@dataclass(eq=False, repr=False)
class Summary:
    """An array as it was at one moment.

    norm: the Euclidean norm, NaN or infinite where an element is. low, high: the smallest and the largest finite value (NaN
    where there is none).
    non_finite: how many elements are NaN or infinite.
    values: all of them, or X[index] for `index`, such as "0, ::2, ::2, 0"; None where none were kept.
    """

    shape: tuple[int, ...]
    dtype: str
    norm: float
    low: float
    high: float
    non_finite: int
    values: np.ndarray | None
    index: str = ""

    def __repr__(self) -> str:
        bad = f", {self.non_finite} not finite" if self.non_finite else ""
        return f"Summary({self.shape} {self.dtype}, norm {self.norm:.3g}, {self.low:.3g} to {self.high:.3g}{bad})"

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * np.dtype(self.dtype).itemsize

    def equals(self, other: Summary) -> bool:
        """Whether both describe the same values, as far as they were kept."""
        mine, others = self.values, other.values
        return (
            (self.shape, self.dtype, self.index) == (other.shape, other.dtype, other.index)
            and repr((self.norm, self.low, self.high)) == repr((other.norm, other.low, other.high))
            and (mine is None) == (others is None)
            and (mine is None or others is None or np.array_equal(mine, others, equal_nan=mine.dtype.kind in "fc"))
        )


class Summarizer:
    """Summarizes arrays. It keeps all values of arrays with at most `each` elements, until they take `total` bytes
    together, and 16 x 16 elements of every other array. `partial` counts those others."""

    def __init__(self, each: int, total: int) -> None:
        self.each, self.left, self.partial = each, total, 0
        self._last: dict[int, Summary] = {}

    def __call__(self, array: Any) -> Summary:
        a = to_numpy(array) if hasattr(array, "dtype") else np.asarray(array)
        dtype, a = str(a.dtype), widened(a) if a.dtype.name == "bfloat16" else a
        norm, low, high, non_finite = _measure(a)
        if a.size <= self.each and (a.size <= _SIDE * _SIDE or a.nbytes <= self.left):
            values, index = np.array(a), ""
        else:
            part = _sample(a.shape)
            values, index = np.array(a[part]), ", ".join(map(_written, part))
        made = Summary(a.shape, dtype, norm, low, high, non_finite, values, index)
        before = self._last.get(id(array))
        if before is not None and before.equals(made):
            return before  # a weight, or the output of one operation that is the input of the next
        if index:
            self.partial += 1
        self.left -= values.nbytes
        self._last[id(array)] = made
        return made


def _measure(a: np.ndarray) -> tuple[float, float, float, int]:
    """Norm, smallest and largest finite value, number of elements that are not finite."""
    if a.dtype.kind not in "fiub" or not a.size:
        return (0.0 if not a.size else math.nan), math.nan, math.nan, 0
    flat, total, low, high, bad = a.reshape(-1), 0.0, math.inf, -math.inf, 0
    for start in range(0, a.size, _CHUNK):
        part = flat[start : start + _CHUNK].astype(np.float64)
        finite = np.isfinite(part)
        if not finite.all():
            bad += int(part.size - finite.sum())
            total += float(np.abs(part[~finite]).sum())  # NaN or infinity
            part = part[finite]
        if part.size:
            total += float(np.dot(part, part))
            low, high = min(low, float(part.min())), max(high, float(part.max()))
    return math.sqrt(total), low if low <= high else math.nan, high if low <= high else math.nan, bad


def _sample(shape: tuple[int, ...]) -> tuple[int | slice, ...]:
    """The index of at most 16 x 16 elements that show a large array: of images the first one's first channel, of others
    rows and columns at equal distances."""
    if len(shape) == 4 and shape[1] >= 8 and shape[2] >= 8:
        return 0, _every(shape[1]), _every(shape[2]), 0
    if len(shape) == 4:  # filters (R, S, C, K)
        return shape[0] // 2, shape[1] // 2, _every(shape[2]), _every(shape[3])
    return (*[0] * (len(shape) - 2), *map(_every, shape[-2:]))


def _every(n: int) -> slice:
    return slice(None, None, max(1, -(-n // _SIDE)))


def _written(part: int | slice) -> str:
    return str(part) if isinstance(part, int) else f"::{part.step}" if part.step > 1 else ":"
