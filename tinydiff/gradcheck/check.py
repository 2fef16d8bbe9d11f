"""One subject at one point: are its gradients those that differences find?"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from tinydiff.backend import array_module, to_numpy
from tinydiff.errors import InputError
from tinydiff.gradcheck import numeric
from tinydiff.gradcheck.diagnosis import explain, explain_exception, explain_shape
from tinydiff.gradcheck.kinks import at_kink
from tinydiff.gradcheck.report import Diagnosis, Finding, Report, Verdict, as_host
from tinydiff.gradcheck.subject import Subject

MOST_SEPARATE = 8  # more arrays than this are first checked together, along one direction in all of them


class Check:
    """One subject at one point, with one draw of cotangents U (L_Y) and the gradients G (L_X) that backward gives."""

    def __init__(
        self, subject: Subject, ground: Subject, report: Report, dtype: np.dtype, rtol: float | None, atol: float
    ) -> None:
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
        self.centre: list[Any] = [None if y is None else y.astype(np.float64) for y in centre]
        self.step = numeric.STEP if self.ground_dtype == np.float64 else 1e-2
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
        self.culprit: Any = None  # the one operation that is wrong by itself, once it has been searched for
        self.searched = False
        self.draw()

    # What every probe needs

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
        """The outputs of what the differences are taken of, with 0 where the output is not finite at the point."""
        ys = self.ground.forward(self.grounded(arrays))
        return [y if f is None or f.all() else np.where(f, y, 0) for y, f in zip(ys, self.finite, strict=True)]

    def grounded(self, arrays: Sequence[Any]) -> list[Any]:
        """Copies in the precision in which the differences are taken; complex numbers stay what they are."""
        return [x.astype(self.ground_dtype) if x.dtype.kind == "f" else x for x in arrays]

    def vjp(self, U: Sequence[Any], point: Sequence[Any] | None = None, **options: Any) -> list[Any]:
        """Gradients at fresh copies of the point, in host memory and float64."""
        return [as_host(g) for g in self.subject.vjp(self.arrays(point), U, **options)]

    def arrays(self, point: Sequence[Any] | None = None) -> list[Any]:
        return [array_module(x).array(x, dtype=self.dtype, order="C") for x in (self.point if point is None else point)]

    def found(self, probe: str, k: int | None, message: str, *diagnoses: Diagnosis, **details: Any) -> Finding:
        finding = Finding(probe, None if k is None else self.names[k], message, list(diagnoses), **details)
        self.report.findings.append(finding)
        return finding

    def variant(self, args: list[Any]) -> Check:
        """A check of the same subject at other inputs, with a report of its own."""
        subject = self.subject.moved(args)
        ground = subject if self.ground is self.subject else self.ground.moved(args)
        return Check(
            subject, ground, Report(self.report.name, self.report.seed), self.dtype, self.asked_rtol, self.atol
        )

    # The test of the formula

    def settle(self, moves: int = 4) -> bool:
        """Purity and slopes, at other inputs if fn has a kink at these; True if all is well so far."""
        self.report.probes += ["repeat", "purity"]
        for attempt in range(moves + 1):
            self.gradients = purity(self)
            if self.report.findings:
                return False
            if not any(x.size for x in self.point) or not any(y.size for y in self.centre if y is not None):
                return True
            if self.slopes(last=attempt == moves):
                break
            at_kink(self)
            if self.report.findings:
                return False
            self.move(0.02 * (attempt + 1))
        if attempt:
            text = f"fn has no slope at the given inputs (a kink?): inputs moved by up to {3 * attempt}% were checked"
            self.report.notes.append(text)
        if "slopes" not in self.report.probes:
            self.report.probes.append("slopes")
        return not self.report.findings

    def holds(self) -> bool:
        """Settle in short: one backward pass, one direction in all arrays. True also where nothing can be said."""
        self.gradients = self.vjp(self.U)
        if not all(g is None or g.shape == x.shape for g, x in zip(self.gradients, self.point, strict=True)):
            return False
        verdict, _ = self.test([k for k, x in enumerate(self.point) if x.size], uphill=self.dtype != np.float64)
        return verdict is None or verdict.ok

    def move(self, by: float) -> None:
        """Takes another point nearby, where fn is finite."""
        for shrink in (1, 1, 0.3, 0.1, 0.01):
            point = [
                _rounded(
                    x + array_module(x).asarray(self.random(x.shape) * (by * shrink * numeric.scale_of(x))), self.dtype
                )
                for x in self.subject.point
            ]
            try:
                with np.errstate(all="ignore"):
                    centre = self.ground.forward(self.grounded(point))
            except (ValueError, ArithmeticError):
                continue
            if all(y is None or np.array_equal(np.isfinite(y), f) for y, f in zip(centre, self.finite, strict=True)):
                self.point, self.centre = point, [None if y is None else y.astype(np.float64) for y in centre]
                self.draw()
                return

    def slopes(self, last: bool) -> bool:
        """Tests <L_X, v> = <L_Y, J v> for every array. False if the differences tell nothing because of a kink here."""
        inputs = len(self.subject.checked)
        groups: list[list[int]] = []
        for part in (range(inputs), range(inputs, len(self.point))):
            groups += [[k] for k in part] if len(part) <= MOST_SEPARATE else [list(part)]
        verdicts, wrong = [], []
        for group in groups:
            tests = [group]
            while tests:
                members = [k for k in tests.pop() if self.point[k].size]
                if not members:
                    continue
                verdict, slope = self.test(members)
                if verdict is not None and verdict.ok and self.dtype != np.float64:
                    verdict, slope = self.test(members, uphill=True)
                if verdict is None:
                    if last:
                        self.inconclusive(members, slope)
                        continue
                    return False
                if not verdict.ok and len(members) > 1:
                    tests += [[k] for k in reversed(members)]
                    continue
                verdicts.append(verdict)
                if not verdict.ok:
                    wrong.append((members[0], verdict))
        self.report.verdicts = verdicts
        for k, verdict in wrong:
            explain(self, k, verdict)
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
        return Verdict(name, shape, bool(ok), claimed, slope.value, allowed, slope.method), slope

    def inconclusive(self, members: list[int], slope: numeric.Slope) -> None:
        self.found(
            "slopes",
            members[0],
            f"differences do not settle on a slope (best {slope.value:.4g} with an error of {slope.error:.1g})",
            Diagnosis("not-differentiable", "fn jumps, or computes too coarsely to be differentiated at these inputs"),
        )


def purity(check: Check) -> list[Any]:
    """Forward repeats its bits, inputs and cotangents keep theirs, backward repeats its bits. Returns the gradients."""
    again = check.ground.forward(check.grounded(check.point))
    for y, z, f in zip(check.centre, again, check.finite, strict=True):
        if y is not None and not np.array_equal(y[f], z.astype(np.float64)[f], equal_nan=True):
            text = "fn draws random numbers from somewhere: pass generator=, or it keeps state between calls"
            check.found("repeat", None, "two forward passes gave different outputs", Diagnosis("not-repeatable", text))
            return []
    if check.ground is not check.subject and not same_values(check, check.subject.forward(check.arrays()), check.rtol):
        text = "forward and the reference compute different functions, so their derivatives differ too"
        check.found("values", None, "forward gives other values than the reference", Diagnosis("forward", text))
        return []
    X, U = check.arrays(), [None if u is None else u.copy() for u in check.U]
    try:
        first = check.subject.vjp(X, U)
    except Exception as error:
        explain_exception(check, "backward", error)
        return []
    in_place = Diagnosis("in-place", "an operation writes into an array that is not its own; make a copy first")
    for k, (x, x0) in enumerate(zip(X, check.arrays(), strict=True)):
        if not same_bits(x, x0):
            check.found("purity", k, "was changed in place by forward or backward", in_place)
    for i, (u, u0) in enumerate(zip(U, check.U, strict=True)):
        if u is not None and not same_bits(u, u0):
            check.found("purity", None, f"backward changed the gradient of output {i} that it was given", in_place)
    second = check.subject.vjp(check.arrays(), [None if u is None else u.copy() for u in check.U])
    for k, (a, b) in enumerate(zip(first, second, strict=True)):
        if a is not None and a.shape != check.point[k].shape:
            explain_shape(check, k, a.shape)
        elif not same_bits(a, b):
            text = "backward draws random numbers, reads memory that it never wrote, or keeps state from an earlier run"
            check.found("repeat", k, "backward gave other bits when run again", Diagnosis("not-repeatable", text))
    return [as_host(g) for g in first]


def same_values(check: Check, ys: Sequence[Any], rtol: float) -> bool:
    """Whether outputs are those at the point, relative to the largest of them."""
    for y, c, f in zip(ys, check.centre, check.finite, strict=True):
        if y is not None and c is not None:
            gap = np.abs(np.asarray(y, np.float64) - c)[f].max(initial=0)
            if not gap <= rtol * np.abs(c).max(initial=0):
                return False
    return True


def same_bits(a: Any, b: Any) -> bool:
    return a is b or (a is not None and b is not None and to_numpy(a).tobytes() == to_numpy(b).tobytes())


def _norm(arrays: Sequence[Any]) -> float:
    return float(sum(np.sum(to_numpy(a) ** 2) for a in arrays if a is not None)) ** 0.5


def _rounded(x: Any, dtype: np.dtype) -> Any:
    """float64 holding values that the dtype can hold too."""
    return array_module(x).array(x.astype(dtype), dtype=np.float64)
