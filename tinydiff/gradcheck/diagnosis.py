"""From a wrong gradient to a finding: where it comes from, how large it is, what it looks like."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, is_array, to_numpy
from tinydiff.gradcheck import numeric
from tinydiff.gradcheck.evidence import Evidence
from tinydiff.gradcheck.formula import Call, formula_in, formula_of, recorded
from tinydiff.gradcheck.patterns import PATTERNS
from tinydiff.gradcheck.report import Diagnosis, Finding, Formula, Report, Verdict
from tinydiff.gradcheck.subject import PairSubject, make_subject

if TYPE_CHECKING:
    from tinydiff.gradcheck.check import Check

MOST_EXPLAINED, MOST_OPS = 4, 60


def explain(check: Check, k: int, verdict: Verdict) -> None:
    """Adds a finding about array k, whose slope is wrong."""
    if len(check.report.findings) >= MOST_EXPLAINED:
        return
    message = (
        f"the gradient is wrong: along a random direction {verdict.backward:.6g} instead of {verdict.differences:.6g}"
    )
    culprit, formula = _origin(check, k)
    same = [f for f in check.report.findings if culprit is not None and f.culprit == (culprit.op, culprit.input)]
    if same:
        same[0].input = f"{same[0].input}, {check.names[k]}"
        return
    finding = check.found("slopes", k, message, formula=formula)
    if culprit is not None:
        finding.message += f"; in it, the gradient of {culprit.input} of {culprit.op} is wrong by itself"
        finding.culprit = culprit.op, culprit.input
        finding.diagnoses, finding.formula = culprit.finding.diagnoses, culprit.finding.formula
        finding.got, finding.expected = culprit.finding.got, culprit.finding.expected
        finding.array = culprit.input
        return
    try:
        evidence = Evidence.gather(check, k)
    except (ValueError, ArithmeticError) as error:  # fn has no values a little beside the point
        finding.diagnoses = [Diagnosis("unknown", f"the Jacobian could not be computed ({error})")]
        return
    finding.got, finding.expected = evidence.A[0], evidence.B[0]
    finding.diagnoses = diagnose(evidence)
    if check.ground_dtype != np.float64:
        return
    v = check.direction([k])
    slope = numeric.along(check.forward, check.point, v, check.centre, check.U)
    claimed = float(np.vdot(evidence.A[0], to_numpy(v[k])))
    true, false = numeric.convergence(check.forward, check.point, v, check.U, slope.value, claimed)
    finding.convergence = true, false


def diagnose(evidence: Evidence) -> list[Diagnosis]:
    """The first two patterns that fit, the most specific first."""
    found = []
    with np.errstate(all="ignore"):
        for pattern in PATTERNS:
            if (diagnosis := pattern(evidence)) is not None:
                found.append(diagnosis)
                if len(found) == 2 or diagnosis.code in DECISIVE:
                    break
    share = evidence.wrong.sum() / max(evidence.known.sum(), 1)
    return found or [Diagnosis("unknown", f"none of the known patterns; {100 * share:.0f}% of the elements are wrong")]


DECISIVE = {"not-finite", "zero", "small", "ignores-upstream", "sign", "ratio", "exchanged", "transposed"}


class _Culprit:
    def __init__(self, op: str, finding: Finding) -> None:
        self.op, self.finding, self.input = op, finding, finding.input


def _origin(check: Check, k: int) -> tuple[_Culprit | None, Formula | None]:
    """The one operation among several that is wrong by itself, or the line of the only one there is."""
    subject = check.subject
    if isinstance(subject, PairSubject):
        floating = [i for i, a in enumerate(subject.args) if is_array(a) and a.dtype.kind == "f"]
        return None, formula_in(subject.backward, floating.index(subject.checked[k]))
    calls: list[Call] = []
    arrays = check.arrays()
    try:
        with recorded(calls):
            subject.forward(arrays)
    except Exception:
        return None, None
    if len(calls) == 1:
        places = [p for p, a in enumerate(calls[0].inputs) if a is arrays[k]]
        return None, formula_of(calls[0].function, places[0]) if places else None
    if not check.searched:
        check.searched, check.culprit = True, _culprit(check, calls)
    return check.culprit, None


def _culprit(check: Check, calls: list[Call]) -> _Culprit | None:
    """The first operation that is wrong by itself."""
    seen: set[Any] = set()
    for call in calls:
        key = (call.function, tuple(getattr(a, "shape", None) for a in call.inputs), repr(call.options))
        if key in seen or len(seen) >= MOST_OPS:
            continue
        seen.add(key)
        if (finding := _alone(check, call)) is not None:
            return _Culprit(call.function.__name__, finding)
    return None


def is_single(check: Check) -> bool:
    """Whether fn is one operation: one Function, or a pair written by hand."""
    if isinstance(check.subject, PairSubject):
        return True
    calls: list[Call] = []
    with recorded(calls):
        check.subject.forward(check.arrays())
    return len(calls) == 1


def _alone(check: Check, call: Call) -> Finding | None:
    """What a check of one operation at the inputs that it had finds, or None."""
    inputs = [np.asarray(a, np.float64) if isinstance(a, float) else a for a in call.inputs]
    try:
        subject = make_subject(call.function, inputs)
        subject.fn = lambda *xs: call.function.apply(*xs, **call.options)
        own = type(check)(subject, subject, Report(call.function.__name__, check.report.seed), check.dtype, None, 0.0)
        own.settle()
    except Exception:
        return None
    return own.report.findings[0] if own.report.findings else None


def explain_shape(check: Check, k: int, got: tuple[int, ...], probe: str = "purity") -> None:
    """Adds a finding about a gradient of the wrong shape."""
    shape = check.point[k].shape
    message = f"the gradient has shape {got}, the input {shape}"
    check.found(probe, k, message, _shape_diagnosis(got, shape), formula=_origin(check, k)[1])


def _shape_diagnosis(got: tuple[int, ...], shape: tuple[int, ...]) -> Diagnosis:
    if got != shape and sorted(got) == sorted(shape):
        return Diagnosis("transposed", "the gradient is transposed: a .T is missing or too many")
    try:
        whole = np.broadcast_shapes(got, shape)
    except ValueError:
        whole = None
    if whole == got:
        text = "the input was broadcast in forward, and backward does not sum over the axes along which it was repeated"
        return Diagnosis("broadcast", text)
    if whole == shape:
        return Diagnosis("broadcast", "backward sums over axes along which the input was not repeated, or drops one")
    return Diagnosis("shape", "the gradient must have the input's shape")


_TAPE_SHAPE = re.compile(r"(\w+)\.backward returned a gradient of shape \((.*?)\) for input (\d+) of shape \((.*?)\)")


def explain_exception(check: Check, what: str, error: Exception, code: str = "raises", probe: str = "purity") -> None:
    """Adds a finding about a backward pass that raised."""
    message = f"{what} raised {type(error).__name__}: {error}"
    if match := _TAPE_SHAPE.search(str(error)):
        got, shape = (tuple(int(n) for n in text.split(",") if n.strip()) for text in (match[2], match[4]))
        formula = _formula_in_tape(check, match[1], int(match[3]))
        check.found(probe, None, message, _shape_diagnosis(got, shape), formula=formula)
    elif "read-only" in str(error) or "in place" in str(error):
        text = "backward writes into an array that is not its own: make a copy first"
        check.found(probe, None, message, Diagnosis("in-place", text))
    elif code == "size-0":
        check.found(probe, None, message, Diagnosis(code, "backward fails on an empty array that forward takes"))
    elif isinstance(error, ValueError | IndexError) and (verdict := _with_square_shapes(check)) is not None:
        if verdict:
            text = "backward works only for square shapes, where two lengths that differ here are equal"
            check.found(probe, None, message, Diagnosis("square-only", text))
        else:
            text = "backward runs only for square shapes, and is wrong there: an operand is transposed"
            check.found(probe, None, message, Diagnosis("transposed", text))
    else:
        check.found(probe, None, message, Diagnosis(code, "backward fails where forward works"))


def _formula_in_tape(check: Check, name: str, i: int) -> Formula | None:
    calls: list[Call] = []
    try:
        with recorded(calls):
            check.subject.forward(check.arrays())
    except Exception:
        return None
    return next((formula_of(c.function, i) for c in calls if c.function.__name__ == name), None)


def _with_square_shapes(check: Check) -> bool | None:
    """Cuts all axes to one length: None if backward raises still, else whether its gradients are right then."""
    arrays = [a for a in check.subject.args if is_array(a) or isinstance(a, Tensor)]
    lengths = [n for a in arrays for n in a.shape if n > 1]
    if not lengths:
        return None
    for n in sorted({min(lengths), *lengths}):
        args = [_square(a, n) if is_array(a) else a for a in check.subject.args]
        if any(len(set(a.shape)) > 1 for a in args if is_array(a)):
            continue
        try:
            square = check.variant(args)
            square.vjp(square.U)
            square.settle(moves=0)
        except Exception:
            continue
        return square.report.ok
    return None


def _square(a: Any, n: int) -> Any:
    xp = array_module(a)
    cut = a[tuple(slice(0, n) for _ in a.shape)]
    return xp.array(cut)
