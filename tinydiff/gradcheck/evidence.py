"""What is known about one wrong gradient: backward's and the right one for several cotangents, and the Jacobian."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tinydiff.backend import array_module, is_array, to_numpy
from tinydiff.gradcheck import numeric
from tinydiff.gradcheck.formula import Call, recorded
from tinydiff.gradcheck.locate import sample
from tinydiff.gradcheck.numeric import largest

if TYPE_CHECKING:
    from tinydiff.gradcheck.check import Check

# Larger Jacobians are sampled. Work is counted, not timed, so that a diagnosis is the same on every machine.
MOST_WORK = 10**8  # numbers that the passes for one Jacobian read and write: about a second
MOST_ROWS = 768  # backward passes, one for each element of the outputs
MOST_COLUMNS, FEWEST_COLUMNS = 320, 48  # of a Jacobian; of that of an array that is sampled
MOST_OF_ALL = 480  # of the Jacobians for all findings together: a failing check takes at most 20 times a passing one
MOST_NUMBERS, MOST_KEPT = 4 * 10**6, 16  # in a Jacobian that is kept: 32 MB; columns of it where the array is sampled
CALL = 1000  # numbers that are read in the time that an operation takes to begin
CLOSE = 1e-5


@dataclass
class Evidence:
    """A (M, *shape) are backward's gradients of array k for M cotangents, B the right ones: B = u J.

    J (outputs, columns) is by differences, with the elements of all outputs one after another; `columns` are the
    elements of the array that it is by. `known` says which elements of B are known (the others are NaN): those, and
    more where J would be too large to be kept. `rows` (M, outputs) are the cotangents in that order. `work` is that of
    one forward pass.
    """

    check: Check
    k: int
    J: np.ndarray
    columns: np.ndarray
    known: np.ndarray
    rows: np.ndarray
    A: np.ndarray
    B: np.ndarray
    work: int

    @classmethod
    def gather(cls, check: Check, k: int) -> Evidence:
        x = check.point[k]
        work = _work(check)
        draws = [check.U, *(_redrawn(check) for _ in range(2))]
        rows = np.stack([flat(U) for U in draws])
        A = np.stack([_gradient(check, U, k) for U in draws])
        left = MOST_OF_ALL - check.columns
        most = min(MOST_COLUMNS, MOST_WORK // (2 * work), left)
        elements = np.arange(x.size)
        if x.size > most:
            elements = sample(check, k, draws, A, max(FEWEST_COLUMNS, min(most, 81)))
        check.columns += len(elements)
        kept = len(elements) if len(elements) == x.size else MOST_KEPT
        kept = min(kept, len(elements), max(4, MOST_NUMBERS // rows.shape[1]))
        J = np.empty((rows.shape[1], kept))
        B = np.full((len(draws), x.size), np.nan)
        for i, column in enumerate(numeric.columns(check.forward, check.point, k, elements, check.step)):
            B[:, elements[i]] = rows @ column
            if i < kept:
                J[:, i] = column
        known = np.zeros(x.shape, bool)
        known.reshape(-1)[elements] = True
        return cls(check, k, J, elements[:kept], known, rows, A, B.reshape(A.shape), work)

    @property
    def complete(self) -> bool:
        return self.J.shape[1] == self.x.size

    @property
    def x(self) -> np.ndarray:
        return to_numpy(self.check.point[self.k])

    @property
    def outputs(self) -> list[np.ndarray]:
        return [y for y in self.check.centre if y is not None]

    @cached_property
    def scale(self) -> float:
        return max(largest(self.A[:, self.known]), largest(self.B[:, self.known])) or 1.0

    @cached_property
    def tolerance(self) -> float:
        return max(CLOSE, 10 * self.check.rtol)

    @cached_property
    def E(self) -> np.ndarray:
        return self.A - self.B

    @cached_property
    def wrong(self) -> np.ndarray:
        """Which elements are wrong for any of the cotangents; False where not known."""
        return self.known & np.any(~(np.abs(self.E) <= self.tolerance * self.scale), axis=0)

    def is_close(self, A: np.ndarray, B: np.ndarray) -> bool:
        """Whether two stacks of gradients agree wherever the second is known."""
        if not self.complete:
            seen = self.known & ~np.isnan(B).any(0) if B.shape == self.B.shape else ~np.isnan(B).any(0)
            if not (seen & self.wrong).any():
                return False
            A, B = A[:, seen], B[:, seen]
        gap = np.abs(A - B)
        size = max(largest(A), largest(B))
        return size > 0 and bool(np.all(gap <= self.tolerance * size))

    def of(self, rows: np.ndarray) -> np.ndarray:
        """The right gradients for other cotangents (M, outputs), NaN where not known."""
        B = np.full((len(rows), self.x.size), np.nan)
        B[:, self.columns] = rows @ self.J
        return B.reshape(len(rows), *self.x.shape)

    def at(self, j: int, value: np.ndarray) -> bool:
        """Whether A is the right gradient where array j has another value, tested along one direction."""
        check = self.check
        xp = array_module(check.point[j])
        point = [xp.asarray(value) if i == j else x for i, x in enumerate(check.point)]
        v = check.direction([self.k])
        try:
            with np.errstate(all="ignore"):
                pair = [check.forward(numeric.shifted(point, v, s * check.step)) for s in (-1, 1)]
            Jv = (flat(pair[1]) - flat(pair[0])) / (2 * check.step)
        except (ValueError, ArithmeticError, IndexError):
            return False
        right = self.rows @ Jv
        claimed = np.array([np.vdot(a, to_numpy(v[self.k])) for a in self.A])
        size = max(largest(right), largest(claimed))
        return size > 0 and bool(np.all(np.abs(right - claimed) <= 0.1 * self.tolerance * size))

    def gradient(self, row: np.ndarray) -> np.ndarray:
        """Backward's gradient for a cotangent."""
        return _gradient(self.check, unflat(row, self.check), self.k)

    @cached_property
    def claimed(self) -> np.ndarray | None:
        """The Jacobian as backward has it, by one backward pass per output element; None where that is too many."""
        count = self.J.shape[0]
        each = 3 * self.work  # forward, and backward for inputs and weights
        if not self.complete or count > min(MOST_ROWS, MOST_WORK // each) or count * self.x.size > MOST_NUMBERS:
            return None
        J = np.empty((count, self.x.size))
        for i in range(count):
            row = np.zeros(count)
            row[i] = 1
            J[i] = self.gradient(row).reshape(-1)
        return J


def _work(check: Check) -> int:
    """How many numbers one forward pass reads and writes, with CALL for each operation."""
    calls: list[Call] = []
    with recorded(calls):
        outputs = check.forward(check.point)
    arrays = [a for call in calls for a in call.inputs] if calls else check.point
    return CALL * max(1, len(calls)) + sum(a.size for a in (*arrays, *outputs) if is_array(a))


def flat(arrays: Sequence[Any]) -> np.ndarray:
    """All arrays as one vector; None is left out."""
    return np.concatenate([np.ravel(to_numpy(a)).astype(np.float64) for a in arrays if a is not None])


def unflat(row: np.ndarray, check: Check) -> list[Any]:
    """The vector as arrays in the shapes of the outputs."""
    parts: list[Any] = []
    start = 0
    for y, u in zip(check.centre, check.U, strict=True):
        if y is None:
            parts.append(None)
            continue
        part = row[start : start + y.size].reshape(y.shape).astype(check.dtype)
        parts.append(array_module(u).asarray(part))
        start += y.size
    return parts


def _redrawn(check: Check) -> list[Any]:
    return [
        None if u is None else array_module(u).asarray((check.random(u.shape) * (to_numpy(u) != 0)).astype(u.dtype))
        for u in check.U
    ]


def _gradient(check: Check, U: Sequence[Any], k: int) -> np.ndarray:
    g = check.vjp(U)[k]
    return np.zeros(check.point[k].shape) if g is None else g


def subsets(shape: tuple[int, ...], most: int = 2) -> list[tuple[int, ...]]:
    """Sets of one to `most` axes that are longer than 1."""
    long = [a for a, n in enumerate(shape) if n > 1]
    return [s for count in range(1, most + 1) for s in itertools.combinations(long, count)]


def axes_text(axes: tuple[int, ...]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else "axes " + " and ".join(map(str, axes))
