"""One subject at one point: what every question to it needs, and a record of what was seen."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from tinydiff.backend import array_module, to_numpy
from tinydiff.errors import InputError
from tinydiff.gradcheck import numeric, rounding
from tinydiff.gradcheck.report import Diagnosis, Finding, Report, Verdict
from tinydiff.gradcheck.source import raised_at
from tinydiff.gradcheck.structure import is_structured
from tinydiff.gradcheck.subject import Subject


class WrongSlope(NamedTuple):
    """The gradient of array k is not the one that differences find."""

    k: int


class WrongShape(NamedTuple):
    """The gradient of array k has another shape than the array."""

    k: int
    shape: tuple[int, ...]


class Raised(NamedTuple):
    """Backward raised where forward works. empty: only for arrays with an axis of length 0."""

    error: type[Exception]
    text: str
    empty: bool = False


Symptom = WrongSlope | WrongShape | Raised


class Check:
    """One subject at one point, with one draw of cotangents U (L_Y) and the gradients G (L_X) that backward gives."""

    def __init__(
        self,
        subject: Subject,
        ground: Subject,
        report: Report,
        dtype: np.dtype,
        rtol: float | None,
        atol: float,
        strict: bool = False,
    ) -> None:
        """strict: what is wrong only at sizes that nobody asked about is an error, not a note."""
        self.strict = strict
        self.given_names: dict[str, str] = {}  # a variable of backward: that of forward whose gradient it holds
        self.subject, self.ground, self.report, self.dtype = subject, ground, report, dtype
        self.rng = np.random.default_rng(report.seed)
        self.atol, self.eps = atol, float(np.finfo(dtype).eps)
        self.point = [_rounded(x, dtype) for x in subject.point]
        self.names = subject.names
        self.ground_dtype = np.dtype(np.float64)
        try:
            centre = ground.forward([x.copy() for x in self.point])
        except (TypeError, ValueError):
            if dtype == np.float64:
                raise
            self.ground_dtype = dtype  # a kernel that takes float32 alone
            centre = ground.forward(self.grounded(self.point))
        if any(y is not None and y.dtype.kind == "c" for y in centre):
            raise InputError(
                f"{report.name} returns complex numbers; only functions with real values have such gradients"
            )
        self.centre: list[Any] = [None if y is None else y.astype(np.float64) for y in centre]
        self.step = numeric.STEP if self.ground_dtype == np.float64 else numeric.SINGLE_STEP
        n = sum(x.size for x in self.point) + sum(y.size for y in self.centre if y is not None)
        self.asked_rtol = rtol
        self.rtol = rtol if rtol is not None else (self.eps * max(n, 1) ** 0.5) ** 0.5
        report.tolerance = (
            f"rtol {self.rtol:.1e}" + (f" = sqrt(eps sqrt(n)), n = {n} elements" if rtol is None else "")
            + f", atol {atol:g}, plus the measured error of the differences; a hundredth of rtol where those are exact"
        )  # fmt: skip
        if not any(y is not None for y in self.centre):
            raise InputError(f"{report.name} returns nothing in floating point, so it has no gradient")
        self.finite: list[Any] = [None if y is None else np.isfinite(y) for y in self.centre]
        lost = sum(int((~f).sum()) for f in self.finite if f is not None)
        if lost and any(x.size for x in self.point):
            if not any(f.any() for f in self.finite if f is not None):
                raise InputError(f"{report.name} has no finite value at these inputs")
            report.notes.append(f"{lost} elements of the output are not finite; they are left out")
        self.gradients: list[Any] = [None] * len(self.point)
        self.symptoms: dict[int, Symptom] = {}  # of findings that wait for an explanation, by their place in the report
        self.cause: Exception | None = None  # what backward raised first
        self.quiet = False  # no line of source is looked for
        self.coarse = False  # whether rounding may be all that a gradient and the differences differ by here
        self.rounded_codes: Any = None  # functions of the passes with code that rounds at random, when it is needed
        self.columns = 0  # of Jacobians, computed so far for explanations
        self.draw()

    def draw(self) -> None:
        """New cotangents; zero where an output is not finite, as masked logarithms are."""
        self.centre = [
            y if f is None or f.all() else np.where(f, y, 0) for y, f in zip(self.centre, self.finite, strict=True)
        ]
        xp = array_module(self.point[0])
        self.U = [
            None if y is None else xp.asarray((self.random(y.shape) * f).astype(self.dtype))
            for y, f in zip(self.centre, self.finite, strict=True)
        ]

    def random(self, shape: tuple[int, ...]) -> np.ndarray:
        """Random signs times 0.5..1.5: no element is so small that an error in its place would hide."""
        return np.asarray(self.rng.choice([-1.0, 1.0], shape) * self.rng.uniform(0.5, 1.5, shape))

    def direction(self, only: Collection[int], uphill: bool = False) -> list[Any]:
        """A random direction in the given arrays, each in its own scale; zero in the others.

        uphill: with the gradient's signs, so that nothing cancels and a small error common to all elements shows.
        """
        directions = []
        for k, (x, g) in enumerate(zip(self.point, self.gradients, strict=True)):
            v = self.random(x.shape) * (numeric.scale_of(x) if k in only else 0)
            directions.append(array_module(x).asarray(np.copysign(v, g) if uphill and g is not None else v))
        return directions

    def forward(self, arrays: list[Any]) -> list[Any]:
        """The outputs of what the differences are taken of, with 0 where the output is not finite at the point. Where a step
        leaves fn's domain, and fn raises as math.log does, they are NaN, as those of np.log would be."""
        try:
            ys = self.ground.forward(self.grounded(arrays))
        except (ValueError, ArithmeticError):
            ys = [None if y is None else np.full(y.shape, np.nan) for y in self.centre]
        return [y if f is None or f.all() else np.where(f, y, 0) for y, f in zip(ys, self.finite, strict=True)]

    def grounded(self, arrays: Sequence[Any]) -> list[Any]:
        """Copies in the precision in which the differences are taken; complex numbers stay what they are."""
        return [x.astype(self.ground_dtype) if x.dtype.kind == "f" else x for x in arrays]

    def vjp(self, U: Sequence[Any], point: Sequence[Any] | None = None, **options: Any) -> list[Any]:
        """Gradients at fresh copies of the point, in host memory and float64."""
        return [numeric.as_host(g) for g in self.subject.vjp(self.arrays(point), U, **options)]

    def arrays(self, point: Sequence[Any] | None = None) -> list[Any]:
        return [array_module(x).array(x, dtype=self.dtype, order="C") for x in (self.point if point is None else point)]

    def found(self, probe: str, k: int | None, message: str, *diagnoses: Diagnosis, **details: Any) -> None:
        """Adds a finding to the report."""
        name = None if k is None else self.names[k]
        self.report.findings.append(Finding(probe, name, message, list(diagnoses), **details))

    def seen(self, probe: str, message: str, symptom: Symptom) -> None:
        """Adds a finding that has no diagnosis yet: it is made of the symptom when the check is done."""
        self.symptoms[len(self.report.findings)] = symptom
        self.found(probe, None if isinstance(symptom, Raised) else symptom.k, message)

    def raised(self, probe: str, what: str, error: Exception, empty: bool = False) -> None:
        """The same for a backward pass that raised."""
        at = f" ({place})" if (place := raised_at(error)) else ""
        message = f"{what} raised {type(error).__name__}: {error}{at}"
        self.cause = self.cause or error
        self.seen(probe, message, Raised(type(error), str(error), empty))

    def variant(self, args: list[Any]) -> Check:
        """A check of the same subject at other inputs, with a report of its own."""
        subject = self.subject.moved(args)
        ground = subject if self.ground is self.subject else self.ground.moved(args)
        return Check(
            subject, ground, Report(self.report.name, self.report.seed), self.dtype, self.asked_rtol, self.atol
        )

    def move(self, by: float) -> None:
        """Takes another point nearby, where fn is finite."""
        for shrink in (1, 1, 0.3, 0.1, 0.01):
            point = [
                _rounded(
                    x + array_module(x).asarray(self.random(x.shape) * (by * shrink * numeric.scale_of(x))), self.dtype
                )
                for x in self.subject.point
            ]
            if self.take(point):
                return

    def calm(self, attempt: int) -> bool:
        """Takes inputs at which fewer digits cancel: smaller ones, then ones of ordinary size. False where fn has none.

        Arrays with a structure that the gradient may rely on, such as rows that sum to 1, stay what they are.
        """
        point = []
        for x in self.subject.point:
            if is_structured(to_numpy(x)) and x.size > 1:
                point.append(_rounded(x, self.dtype))
                continue
            ordinary = np.copysign(self.rng.uniform(0.1, 0.9, x.shape), to_numpy(x))
            calmer = (0.3 * x, 0.03 * x, ordinary, 0.1 * ordinary)[attempt]
            point.append(_rounded(array_module(x).asarray(calmer), self.dtype))
        return self.take(point)

    def take(self, point: list[Any]) -> bool:
        """Goes to another point if fn is finite wherever it was."""
        try:
            with np.errstate(all="ignore"):
                centre = self.ground.forward(self.grounded(point))
        except (ValueError, ArithmeticError):
            return False
        if not all(y is None or np.array_equal(np.isfinite(y), f) for y, f in zip(centre, self.finite, strict=True)):
            return False
        self.point, self.centre = point, [None if y is None else y.astype(np.float64) for y in centre]
        self.draw()
        return True

    def test(self, members: list[int], uphill: bool = False) -> tuple[Verdict | None, numeric.Slope]:
        """The verdict on some arrays together, None if the differences do not settle."""
        v = self.direction(members, uphill)
        slope = numeric.along(self.forward, self.point, v, self.centre, self.U)
        gradients = {k: g for k in members if (g := self.gradients[k]) is not None}
        terms = [g * to_numpy(v[k]) for k, g in gradients.items()]
        claimed = float(sum(t.sum() for t in terms))
        size = max(slope.size, float(sum(np.sum(t**2) for t in terms)) ** 0.5)
        natural = numeric.norm_of_products(self.U, self.centre)
        rtol = self.rtol
        settled = slope.error <= 1e-3 * size or slope.error <= 1e-6 * natural
        slope = numeric.sharpen(self.forward, self.point, v, self.centre, self.U, slope, self.ground_dtype)
        if slope.exact:
            size = size if np.isfinite(size) else slope.size
            if self.dtype == self.ground_dtype and self.asked_rtol is None:
                rtol *= 1e-2
            settled |= abs(claimed - slope.value) <= rtol * size
        if not settled:
            return None, slope
        allowed = rtol * size + slope.error + self.atol
        if slope.size == 0:  # fn does not depend on these arrays: what is left is the rounding of backward
            allowed += self.eps**0.5 * _norm(self.U) * _norm(v)
        name = self.names[members[0]] if len(members) == 1 else f"{len(members)} arrays"
        shape = self.point[members[0]].shape if len(members) == 1 else (sum(self.point[k].size for k in members),)
        ok = np.isfinite(claimed) and abs(claimed - slope.value) <= allowed
        if not ok and rounding.explains(self, v, slope, claimed):
            self.coarse = True
            return None, slope
        return Verdict(name, shape, bool(ok), claimed, slope.value, allowed, slope.method), slope


def same_values(check: Check, ys: Sequence[Any], rtol: float) -> bool:
    """Whether outputs are those at the point, relative to the largest of them."""
    for y, c, f in zip(ys, check.centre, check.finite, strict=True):
        if y is not None and c is not None:
            gap = np.abs(np.asarray(y, np.float64) - c)[f].max(initial=0)
            if not gap <= rtol * np.abs(c).max(initial=0):
                return False
    return True


def _norm(arrays: Sequence[Any]) -> float:
    return float(sum(np.sum(to_numpy(a) ** 2) for a in arrays if a is not None)) ** 0.5


def _rounded(x: Any, dtype: np.dtype) -> Any:
    """float64 holding values that the dtype can hold too."""
    return array_module(x).array(x.astype(dtype), dtype=np.float64)
