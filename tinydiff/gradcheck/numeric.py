"""Derivatives by evaluating a function only, each with a bound on its own error.

Three ways, from the most widely usable to the most exact:

- central differences at two steps h and 2h, extrapolated, in float64. Their error has two parts: truncation, seen in
  what the two steps disagree about (it falls with h^2; a kink or a jump between the points does not let it), and the
  rounding of fn itself, seen in the fourth difference of the five values, where a smooth function leaves h^4 f''''.
- for a map that is affine in an input, one difference at a step of 1 is exact but for rounding (the adjoint test).
- for code that also takes complex numbers, Im f(x + ih v) / h at h = 1e-20 subtracts nothing and so loses nothing
  (Squire and Trapp, "Using complex variables to estimate derivatives of real functions", SIAM Review 40, 1998).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinydiff.backend import array_module, to_numpy

EPS = float(np.finfo(np.float64).eps)
# Steps are in units of scale_of(x), the size of what is moved.
STEP, SINGLE_STEP = 1e-5, 1e-2  # where fn computes in float64, and where it takes float32 alone
# Smaller steps pass between kinks, larger ones rise above the noise of a function that computes in float32.
OTHER_STEPS = (3e-7, 1e-3, 1e-2, 1e-9)

Forward = Callable[[list[Any]], list[Any]]


@dataclass
class Slope:
    """<u, J v>: its value, a bound on its error, its natural size, how it was found; `Jv` has one array per output."""

    value: float
    error: float
    size: float
    Jv: list[Any]
    method: str
    exact: bool = False
    step: float = STEP

    @property
    def trusted(self) -> bool:
        return bool(np.isfinite(self.value)) and self.error <= 1e-6 * self.size


def as_host(a: Any) -> np.ndarray | None:
    """In host memory and float64."""
    return None if a is None else np.asarray(to_numpy(a), np.float64)


def largest(a: np.ndarray) -> float:
    """The largest magnitude among the finite entries; 0 where there is none."""
    finite = np.abs(a[np.isfinite(a)])
    return float(finite.max(initial=0))


def dot(U: Sequence[Any], V: Sequence[Any]) -> float:
    """The sum of the products of two lists of arrays; None counts as zero."""
    return sum(float(np.vdot(to_numpy(u), v)) for u, v in zip(U, V, strict=True) if u is not None and v is not None)


def norm_of_products(U: Sequence[Any], V: Sequence[Any]) -> float:
    """The root of the summed squares of u v, the size that a sum of u v with random signs has."""
    pairs = zip(U, V, strict=True)
    return float(sum(np.sum((to_numpy(u) * v) ** 2) for u, v in pairs if u is not None and v is not None)) ** 0.5


def along(forward: Forward, point: list[Any], direction: list[Any], centre: list[Any], U: list[Any]) -> Slope:
    """The best slope of <u, fn> along a direction by differences; exact ones are tried by `sharpen`."""
    slopes = []
    for step in (STEP, *OTHER_STEPS):
        slope = differences(forward, point, direction, centre, U, step)
        if slope.trusted:
            return slope
        slopes.append(slope)
    # a step in which a coarse function does not change at all says nothing if it does change in another
    moving = [s for s in slopes if s.size > 0]
    return min(moving or slopes, key=lambda s: s.error)


def differences(
    forward: Forward, point: list[Any], direction: list[Any], centre: list[Any], U: list[Any], step: float
) -> Slope:
    """Central differences with steps h and 2h: (4 D(h) - D(2h)) / 3."""
    with np.errstate(all="ignore"):
        near = [forward(shifted(point, direction, k * step)) for k in (-1, 1)]
        far = [forward(shifted(point, direction, k * step)) for k in (-2, 2)]
        Jv: list[Any] = []
        gaps: list[Any] = []
        noise = 0.0
        for c, b, d, a, e, u in zip(centre, *near, *far, U, strict=True):
            if c is None:
                Jv.append(None)
                gaps.append(None)
                continue
            D1, D2 = (d - b) / (2 * step), (e - a) / (4 * step)
            Jv.append((4 * D1 - D2) / 3)
            gaps.append(D1 - D2)
            fourth = (a + e) - 4 * (b + d) + 6 * c
            spread = float(np.mean(fourth**2) / 70) ** 0.5 if c.size else 0.0
            sigma = max(spread, resolution(d) * float(np.max(np.abs(c), initial=0)))
            noise += (sigma * float(np.linalg.norm(to_numpy(u)))) ** 2 if u is not None else 0.0
        error = 10 * noise**0.5 / step + 0.02 * norm_of_products(U, gaps)
        method = f"central differences, steps {step:g} and {2 * step:g}"
        slope = Slope(dot(U, Jv), error, norm_of_products(U, Jv), Jv, method, step=step)
    if not np.isfinite(slope.value + slope.error + slope.size):
        slope.error = np.inf
    return slope


def resolution(y: np.ndarray) -> float:
    """The relative rounding error of results: float32's where all numbers are float32's, whatever their dtype."""
    return float(np.finfo(np.float32).eps) if np.array_equal(y, y.astype(np.float32)) else EPS


def sharpen(
    forward: Forward, point: list[Any], direction: list[Any], centre: list[Any], U: list[Any], slope: Slope, dtype: Any
) -> Slope:
    """The slope by a method that is exact to rounding (of the dtype that fn computes in), where fn allows one and it
    agrees with the differences."""
    eps = float(np.finfo(dtype).eps)
    for method in (complex_step, affine) if eps == EPS else (affine,):
        try:
            sharp = method(forward, point, direction, centre, U, eps)
        except Exception:
            continue  # fn does not take complex numbers, or not so large a step
        if sharp is None:
            continue
        # where every difference left the domain there is nothing to agree with: it can then acquit, not accuse
        if not np.isfinite(slope.value) or abs(sharp.value - slope.value) <= slope.error + 1e-6 * slope.size:
            return sharp
    return slope


def complex_step(
    forward: Forward, point: list[Any], direction: list[Any], centre: list[Any], U: list[Any], eps: float = EPS
) -> Slope | None:
    """Im fn(x + ih v) / h, or None where fn dropped the imaginary part on its way."""
    h = 1e-20
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("error")
        ys = forward([x + (1j * h) * v for x, v in zip(point, direction, strict=True)])
    Jv: list[Any] = []
    for y, c in zip(ys, centre, strict=True):
        if c is None:
            Jv.append(None)
            continue
        if y.dtype.kind != "c" or not np.allclose(y.real, c, rtol=1e-10, atol=1e-300):
            return None
        Jv.append(y.imag / h)
    size = norm_of_products(U, Jv)
    return Slope(dot(U, Jv), 1e3 * eps * size, size, Jv, "complex step", exact=True)


def affine(
    forward: Forward, point: list[Any], direction: list[Any], centre: list[Any], U: list[Any], eps: float = EPS
) -> Slope | None:
    """fn(x + v) - fn(x), or None where fn(x + 2v) shows that fn is not affine along v."""
    with np.errstate(all="ignore"):
        one, two = (forward(shifted(point, direction, k)) for k in (1, 2))
        Jv: list[Any] = []
        noise = 0.0
        for c, a, b, u in zip(centre, one, two, U, strict=True):
            if c is None:
                Jv.append(None)
                continue
            J, bend = a - c, b - 2 * a + c
            top = max(float(np.max(np.abs(x), initial=0)) for x in (a, b, c))
            spread = float(np.mean(bend**2) / 6) ** 0.5 if c.size else 0.0
            if not np.max(np.abs(bend), initial=0) <= 1e3 * eps * top:
                return None
            Jv.append(J)
            noise += (max(spread, eps * top) * float(np.linalg.norm(to_numpy(u)))) ** 2 if u is not None else 0.0
    return Slope(dot(U, Jv), 10 * noise**0.5, norm_of_products(U, Jv), Jv, "adjoint test", exact=True)


def columns(
    forward: Forward, point: list[Any], k: int, elements: np.ndarray, step: float = STEP
) -> Iterator[np.ndarray]:
    """Columns of the Jacobian of all outputs, one after another, by elements of array k: (outputs' elements,) each."""
    x = point[k]
    scale = scale_of(x)
    xp = array_module(x)
    for j in elements:
        values = []
        with np.errstate(all="ignore"):
            for sign in (-1, 1):
                moved = xp.array(x, order="C")
                moved.reshape(-1)[int(j)] += sign * step * scale
                values.append(forward([moved if i == k else y for i, y in enumerate(point)]))
            parts = [np.ravel(b - a) / (2 * step * scale) for a, b in zip(*values, strict=True) if a is not None]
        yield np.concatenate(parts)


def convergence(forward: Forward, point: list[Any], direction: list[Any], U: list[Any], slope: float, claimed: float):
    """The powers of h with which the differences approach the slope, and what backward claims it is: 2 for what is true
    (where fn bends at all: nan if not), 0 for what is false."""
    errors = []
    with np.errstate(all="ignore"):
        for h in (2e-2, 1e-2):
            a, b = (forward(shifted(point, direction, k * h)) for k in (-1, 1))
            D = dot(U, [None if x is None else (y - x) / (2 * h) for x, y in zip(a, b, strict=True)])
            errors.append((abs(D - slope), abs(D - claimed)))
        (far, wrong_far), (near, wrong_near) = errors
        floor = 1e-9 * abs(slope) + 1e-300
        power = float(np.log2(far / near)) if near > floor else float("nan")
        return power, float(np.log2(wrong_far / wrong_near)) if wrong_near > floor else float("nan")


def shifted(point: list[Any], direction: list[Any], by: float) -> list[Any]:
    """x + by v."""
    return [x + by * v for x, v in zip(point, direction, strict=True)]


def scale_of(x: Any) -> float:
    """The length by which steps in x are measured: its largest element, at least 0.1."""
    return max(float(to_numpy(abs(x)).max(initial=0)), 0.1)
