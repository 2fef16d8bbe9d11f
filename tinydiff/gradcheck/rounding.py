"""How far rounding alone moves what a check compares: forward and backward again, each result moved by one last place.

Differences of a function that has lost its digits look exact: log(1 - p) with p = 1 - 2e-16 does not change at all along a
small step. So results are rounded at random, each to the next number above or below (Monte Carlo arithmetic: D. S. Parker,
"Monte Carlo Arithmetic: exploiting randomness in floating-point arithmetic", UCLA 1997). A sound pass changes in its last
places; one whose digits cancel changes as much as it is uncertain.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from tinydiff.backend import is_array, to_numpy
from tinydiff.gradcheck import numeric

RUNS = 6
SURE = 1000  # times the spread of two runs: a discrepancy so large is no rounding
AGREE = 1e-3  # of its size: a complex step that is as close has the same value
FINER = 1000  # times as short a step shows whether the differences agree with each other
MARGIN = 10  # times the spread of all runs: one so small may be

# These choose among numbers, or change a sign, and round nothing.
EXACT = {
    np.maximum, np.minimum, np.fmax, np.fmin, np.negative, np.positive, np.absolute, np.fabs, np.sign, np.copysign,
    np.floor, np.ceil, np.rint, np.trunc, np.conjugate, np.nextafter, np.spacing, np.ldexp,
}  # fmt: skip


class Rounded(np.ndarray):
    """An array whose results are moved by one last place up or down, at random; zero stays zero."""

    rng: np.random.Generator

    def __array_finalize__(self, source: Any) -> None:
        self.rng = getattr(source, "rng", None) or np.random.default_rng(0)

    def __getitem__(self, key: Any) -> Any:
        return wrapped(super().__getitem__(key), self.rng)  # an element is an array, too

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        if out is not None:
            options["out"] = tuple(_plain(a) for a in out)
        results = getattr(ufunc, method)(*map(_plain, inputs), **options)
        if method == "at":
            return None
        many = results if isinstance(results, tuple) else (results,)
        rounds = ufunc not in EXACT
        if out is not None:
            for a in options["out"]:
                if rounds and a is not None:
                    a[...] = _moved(a, self.rng)
            many = tuple(y if o is None else o for y, o in zip(many, out, strict=True))
        else:
            many = tuple(wrapped(_moved(y, self.rng) if rounds else y, self.rng) for y in many)
        return many if isinstance(results, tuple) else many[0]


def wrapped(a: Any, rng: np.random.Generator) -> Any:
    """A floating point array of NumPy as a Rounded one; anything else as it is."""
    if not isinstance(a, np.ndarray | np.floating | np.complexfloating) or a.dtype.kind not in "fc":
        return a
    view = np.asarray(a).view(Rounded)
    view.rng = rng
    return view


def _plain(a: Any) -> Any:
    return a.view(np.ndarray) if isinstance(a, Rounded) else a


def _moved(y: Any, rng: np.random.Generator) -> Any:
    kind = getattr(getattr(y, "dtype", None), "kind", "")
    if kind == "c":
        y = np.array(y)
        y.real, y.imag = _moved(y.real, rng), _moved(y.imag, rng)
        return y
    if kind != "f":
        return y
    up = rng.random(np.shape(y)) < 0.5
    with np.errstate(all="ignore"):
        return np.where(y == 0, y, np.nextafter(y, np.where(up, y.dtype.type(np.inf), y.dtype.type(-np.inf))))


def explains(check: Any, v: list[Any], slope: numeric.Slope, claimed: float) -> bool:
    """Whether rounding in forward and backward may be all that the two values of <L_X, v> differ by."""
    if not all(isinstance(x, np.ndarray) for x in check.point) or not np.isfinite(claimed):
        return False
    if _steps_are_too_long(check, v, slope, claimed):
        return True
    gap, spread = abs(claimed - slope.value), 0.0
    for run in range(RUNS):
        rng = np.random.default_rng([check.report.seed, run])
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                found = _numerical(check, v, slope, rng) - slope.value, _analytic(check, v, rng) - claimed
                spread = float(np.max(np.abs([spread, *found])))  # NaN, if one is
        except Exception:
            return False  # a pass that takes plain arrays only: nothing is known
        if not np.isfinite(spread):
            return True
        if run == 1 and spread * SURE < gap:
            return False
    return gap <= MARGIN * spread


def _steps_are_too_long(check: Any, v: list[Any], slope: numeric.Slope, claimed: float) -> bool:
    """Whether the complex step has backward's value where all differences leap over what fn does: log|x| near 0."""
    if slope.exact or check.ground_dtype != np.float64:
        return False
    try:
        sharp = numeric.complex_step(check.forward, check.point, v, check.centre, check.U)
    except Exception:
        return False
    if sharp is None or not abs(sharp.value - claimed) <= AGREE * sharp.size:
        return False
    # a norm of complex numbers drops the imaginary parts: then the complex step is false, and all differences agree
    finer = numeric.differences(check.forward, check.point, v, check.centre, check.U, slope.step / FINER)
    return not abs(finer.value - slope.value) <= 0.1 * max(slope.size, finer.size)


def _numerical(check: Any, v: list[Any], slope: numeric.Slope, rng: np.random.Generator) -> float:
    def forward(arrays: list[Any]) -> list[Any]:
        return check.forward([wrapped(x, rng) for x in arrays])

    if slope.method == "complex step":
        h = 1e-20
        ys = forward([x + (1j * h) * d for x, d in zip(check.point, v, strict=True)])
        return numeric.dot(check.U, [None if y is None else y.imag / h for y in ys])
    if slope.method == "adjoint test":
        one, none = forward(numeric.shifted(check.point, v, 1)), forward(check.point)
        return numeric.dot(check.U, [None if y is None else y - c for y, c in zip(one, none, strict=True)])
    return numeric.differences(forward, check.point, v, forward(check.point), check.U, slope.step).value


def _analytic(check: Any, v: list[Any], rng: np.random.Generator) -> float:
    U = [wrapped(u.copy(), rng) if is_array(u) else u for u in check.U]  # backward may write into them
    got = check.subject.vjp([wrapped(x, rng) for x in check.arrays()], U)
    return float(sum(np.vdot(to_numpy(g), to_numpy(d)) for g, d in zip(got, v, strict=True) if g is not None))
