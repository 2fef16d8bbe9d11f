"""How far rounding alone moves what a check compares: forward and backward again, each result moved by one last place.

Differences of a function that has lost its digits look exact: log(1 - p) with p = 1 - 2e-16 does not change at all along a
small step. So results are rounded at random, each to the next number above or below (Monte Carlo arithmetic: D. S. Parker,
"Monte Carlo Arithmetic: exploiting randomness in floating-point arithmetic", UCLA 1997). A sound pass changes in its last
places; one whose digits cancel changes as much as it is uncertain.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinydiff.backend import is_array, to_numpy
from tinydiff.gradcheck import inexact, numeric, taps

RUNS = 6
SURE, SURER = 1000, 100_000  # times the spread of two runs, or of one: a discrepancy so large is no rounding
AGREE = 1e-3  # of its size: a complex step that is as close has the same value
FINER = 1000  # times as short a step shows whether the differences agree with each other
MARGIN = 10  # times the spread of all runs: one so small may be
WILD = 1e-4  # of the size of fn's values: what no rounding, but only too long a step leaves in a fourth difference


class Rounded(np.ndarray):
    """An array whose results are moved by one last place up or down, at random; zero stays zero."""

    rng: np.random.Generator

    def __array_finalize__(self, source: Any) -> None:
        self.rng = getattr(source, "rng", None) or np.random.default_rng(0)

    def __getitem__(self, key: Any) -> Any:
        return wrapped(super().__getitem__(key), self.rng)  # an element is an array, too

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if inexact.is_of_matrices(func):  # the result is right for a matrix that is as near
            args = [inexact.moved(_plain(a), self.rng, together=True) for a in args]
            results = func(*args, **kwargs)
        else:
            results = super().__array_function__(func, types, args, kwargs)
            if not inexact.rounds(func):
                return results
        if isinstance(results, tuple):
            parts = [wrapped(inexact.moved(_plain(y), self.rng), self.rng) for y in results]
            return type(results)(*parts) if hasattr(results, "_fields") else tuple(parts)
        return wrapped(inexact.moved(_plain(results), self.rng), self.rng)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        if out is not None:
            options["out"] = tuple(_plain(a) for a in out)
        results = getattr(ufunc, method)(*map(_plain, inputs), **options)
        if method == "at":
            return None
        many = results if isinstance(results, tuple) else (results,)
        rounds = inexact.rounds(ufunc)
        if out is not None:
            for a in options["out"]:
                if rounds and a is not None:
                    a[...] = inexact.moved(a, self.rng)
            many = tuple(y if o is None else o for y, o in zip(many, out, strict=True))
        else:
            many = tuple(wrapped(inexact.moved(y, self.rng) if rounds else y, self.rng) for y in many)
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


def explains(check: Any, v: list[Any], slope: numeric.Slope, claimed: float) -> bool:
    """Whether rounding in forward and backward may be all that the two values of <L_X, v> differ by."""
    if not all(isinstance(x, np.ndarray) for x in check.point) or not np.isfinite(claimed):
        return False
    if _steps_are_too_long(check, v, slope, claimed) or _is_staircase(check, v, slope, claimed):
        return True
    codes = _codes(check)
    for keep, used in ((wrapped, codes), (_as_it_is, codes), (wrapped, {})):
        with contextlib.suppress(Exception):  # a pass that takes plain arrays only, or does not stand the changed code
            return _is_spread(check, v, slope, claimed, keep, used)
        if not codes:
            break
    return False  # nothing is known


def _is_spread(
    check: Any, v: list[Any], slope: numeric.Slope, claimed: float, keep: Callable[..., Any], codes: Any
) -> bool:
    """Whether the two values come out as far apart from run to run as they are from each other."""
    gap, spread = abs(claimed - slope.value), 0.0
    for run in range(RUNS):
        rng = np.random.default_rng([check.report.seed, run])
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            with taps.exchanged(codes, inexact.Roundings(rng, keep)):  # type: ignore[arg-type]
                found = (
                    _numerical(check, v, slope, lambda x: keep(x, rng), rng) - slope.value,  # noqa: B023
                    _analytic(check, v, lambda x: keep(x, rng)) - claimed,  # noqa: B023
                )
            spread = float(np.max(np.abs([spread, *found])))  # NaN, if one is
        if not np.isfinite(spread):
            return True
        if (run == 1 and spread * SURE < gap) or spread * SURER < gap:
            return False
    return gap <= MARGIN * spread


def _as_it_is(a: Any, rng: np.random.Generator) -> Any:
    return a


def _codes(check: Any) -> taps.Codes:
    """The functions of the user that the passes run, each with code that moves what it computes."""
    if check.rounded_codes is None:
        check.rounded_codes = {}
        with contextlib.suppress(Exception), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            U = [u.copy() if is_array(u) else u for u in check.U]  # backward may write into them
            run = taps.functions_run(lambda: (check.forward(check.point), check.vjp(U)))
            for f, source in taps.sources(run).items():
                if (code := inexact.code_of(f, source.node)) is not None:
                    check.rounded_codes[f] = code
    return check.rounded_codes


def _steps_are_too_long(check: Any, v: list[Any], slope: numeric.Slope, claimed: float) -> bool:
    """Whether all differences leap over what fn does: log|x| near 0. Either fourth differences, which for a smooth function
    are nothing but rounding, are as large as the values, or the complex step has backward's value."""
    if slope.exact or check.ground_dtype != np.float64:
        return False
    natural = numeric.norm_of_products(check.U, check.centre)
    if not slope.trusted and slope.error * slope.step > 10 * WILD * natural:
        return True
    try:
        sharp = numeric.complex_step(check.forward, check.point, v, check.centre, check.U)
    except Exception:
        return False
    if sharp is None or not abs(sharp.value - claimed) <= AGREE * sharp.size:
        return False
    # a norm of complex numbers drops the imaginary parts: then the complex step is false, and all differences agree
    finer = numeric.differences(check.forward, check.point, v, check.centre, check.U, slope.step / FINER)
    return not abs(finer.value - slope.value) <= 0.1 * max(slope.size, finer.size)


def _is_staircase(check: Any, v: list[Any], slope: numeric.Slope, claimed: float) -> bool:
    """Whether fn is flat and jumps, as int(100 x) / 100 does: backward's 0 and the slope across many jumps are both right."""
    if claimed != 0 or slope.exact or slope.trusted:
        return False
    if any(y is not None and y.size and numeric.resolution(y) > numeric.EPS for y in check.centre):
        return False  # flat because it computes in float32
    return numeric.differences(check.forward, check.point, v, check.centre, check.U, min(numeric.OTHER_STEPS)).size == 0


def _numerical(
    check: Any, v: list[Any], slope: numeric.Slope, keep: Callable[[Any], Any], rng: np.random.Generator
) -> float:
    def forward(arrays: Sequence[Any]) -> list[Any]:
        steps = (x is not y and d.any() for x, y, d in zip(arrays, check.point, v, strict=True))  # x + h v is rounded
        return check.forward([keep(inexact.moved(x, rng) if m else x) for x, m in zip(arrays, steps, strict=True)])

    if slope.method == "complex step":
        h = 1e-20
        ys = forward([x + (1j * h) * d for x, d in zip(check.point, v, strict=True)])
        return numeric.dot(check.U, [None if y is None else y.imag / h for y in ys])
    if slope.method == "adjoint test":
        one, none = forward(numeric.shifted(check.point, v, 1)), forward(check.point)
        return numeric.dot(check.U, [None if y is None else y - c for y, c in zip(one, none, strict=True)])
    return numeric.differences(forward, check.point, v, forward(check.point), check.U, slope.step).value


def _analytic(check: Any, v: list[Any], keep: Callable[[Any], Any]) -> float:
    U = [keep(u.copy()) if is_array(u) else u for u in check.U]  # backward may write into them
    got = check.subject.vjp([keep(x) for x in check.arrays()], U)
    return float(sum(np.vdot(to_numpy(g), to_numpy(d)) for g, d in zip(got, v, strict=True) if g is not None))
