"""What can be asked of a gradient where a function has a kink: a value between the slopes on both sides, and no NaN."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.backend import array_module, to_numpy
from tinydiff.gradcheck import numeric
from tinydiff.gradcheck.check import Check
from tinydiff.gradcheck.evidence import flat, unflat
from tinydiff.gradcheck.formula import operations
from tinydiff.gradcheck.pairs import PairSubject
from tinydiff.gradcheck.report import Diagnosis

ONE_SIDED_STEP = 1e-6  # in units of scale_of(x)
MOST_OUTPUTS = 4  # elements with a kink that are looked at along one direction


def at_kink(check: Check) -> None:
    """Looks at single outputs that have a kink at the point, along one direction in all inputs.

    A convention such as relu'(0) = 0 passes, a gradient given in full to each of several equal maxima does not. Of a
    function of several operations only a note is made: relu(x) - relu(-x) / 2 is beyond a rule for each of its parts.
    """
    for k, g in enumerate(check.gradients):
        if g is not None and np.isnan(g).any():
            at = ", ".join(str(int(i)) for i in np.argwhere(np.isnan(g))[0])
            text = "backward makes NaN where forward is finite: 0 times infinity, or 0 / 0"
            check.found("slopes", k, f"the gradient is NaN at [{at}]", Diagnosis("not-finite", text))
            return
    for draw in range(6):
        v = check.direction(range(len(check.point)))
        w = [abs(a) for a in v] if draw % 2 else v  # equal maxima show only where both move to the same side
        if (message := _beyond(check, w)) is not None:
            if _is_single(check):
                text = "where inputs are equal, or at a corner, the gradient is not between the slopes on both sides"
                check.found("kink", None, message, Diagnosis("kink", text))
            else:
                check.report.notes.append(message)
            return


def _is_single(check: Check) -> bool:
    """Whether fn is one operation: one Function, or a pair written by hand."""
    return isinstance(check.subject, PairSubject) or len(operations(check.subject.forward, check.arrays())) == 1


def _beyond(check: Check, v: list[Any]) -> str | None:
    """A sentence about the first output element whose gradient lies outside of its one-sided slopes along v."""
    centre = flat(check.centre)
    try:
        with np.errstate(all="ignore"):
            near, far = (_one_sided(check, v, centre, step) for step in (ONE_SIDED_STEP, 4 * ONE_SIDED_STEP))
    except (ValueError, ArithmeticError):
        return None
    left, right = near
    scale = float(np.median(np.abs(left) + np.abs(right))) or 1.0
    jump = np.abs(right - left)
    clear = np.abs(near - far).sum(0) <= 0.02 * jump  # noise and curvature are not kinks
    for i in np.flatnonzero(clear & (jump > 1e-2 * scale))[:MOST_OUTPUTS]:
        row = np.zeros(len(centre))
        row[i] = 1
        claimed = sum(float(np.vdot(g, to_numpy(w))) for g, w in zip(_vjp(check, row), v, strict=True) if g is not None)
        low, high = sorted((left[i], right[i]))
        if not low - 1e-3 * scale <= claimed <= high + 1e-3 * scale:
            return (
                f"at a kink of output element {i}, the gradient says a slope of {claimed:.4g}; on both sides it is "
                f"{left[i]:.4g} and {right[i]:.4g}"
            )
    return None


def _one_sided(check: Check, v: list[Any], centre: np.ndarray, step: float) -> np.ndarray:
    """The slopes of all output elements to the left and to the right: (2, elements)."""
    below, above = (flat(check.forward(numeric.shifted(check.point, v, s * step))) for s in (-1, 1))
    return np.stack([centre - below, above - centre]) / step


def _vjp(check: Check, row: np.ndarray) -> list[Any]:
    U = [None if u is None else array_module(u).asarray(u) for u in unflat(row, check)]
    return check.vjp(U)
