"""From what a check has seen to a diagnosis: where a wrong gradient comes from, how large it is, what it looks like."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, is_array, to_numpy
from tinydiff.gradcheck import numeric, taps
from tinydiff.gradcheck.blame import blame
from tinydiff.gradcheck.check import Check, Raised, WrongShape, WrongSlope
from tinydiff.gradcheck.evidence import Evidence, unflat
from tinydiff.gradcheck.formula import Call, formula_in, formula_of, operations
from tinydiff.gradcheck.making import make_subject
from tinydiff.gradcheck.pairs import PairSubject
from tinydiff.gradcheck.patterns import PATTERNS
from tinydiff.gradcheck.report import Diagnosis, Finding, Formula, Report
from tinydiff.gradcheck.shares import missing_share
from tinydiff.gradcheck.slopes import settle
from tinydiff.gradcheck.source import source_of

MOST_EXPLAINED, MOST_OPS = 4, 60  # findings in a report, operations of fn that are checked alone


def explain(check: Check) -> None:
    """Gives the findings that a check has recorded their diagnoses.

    Wrong slopes that come from one operation become one finding; after MOST_EXPLAINED findings the others are left out.
    """
    if not check.symptoms:
        return
    found, check.report.findings = check.report.findings, []
    symptoms, check.symptoms = check.symptoms, {}
    source = _Source(check)
    for place, finding in enumerate(found):
        symptom = symptoms.get(place)
        if isinstance(symptom, WrongSlope):
            if len(check.report.findings) >= MOST_EXPLAINED or _is_known(check.report, finding, source.culprit):
                continue
            _explain_slope(check, finding, symptom.k, source)
        elif isinstance(symptom, WrongShape):
            finding.diagnoses = [_shape_diagnosis(symptom.shape, check.point[symptom.k].shape)]
            finding.formula = source.formula(symptom.k)
        elif isinstance(symptom, Raised):
            _explain_exception(check, finding, symptom, source)
        check.report.findings.append(finding)
    _name_the_line(check, source)


def _name_the_line(check: Check, source: _Source) -> None:
    """Says in the first finding which line of backward is wrong, where that can be told."""
    if not check.report.findings or check.quiet or source.culprit is not None:
        return
    if (found := blame(check)) is None:
        return
    first = check.report.findings[0]
    first.blame = found
    for finding in check.report.findings[1:]:
        finding.formula = None  # where the others end up, not where they go wrong
    if found.code != "unknown" and first.diagnoses and first.diagnoses[0].code in VAGUE:
        first.diagnoses.insert(0, Diagnosis(found.code, f"a slip in line {found.line}: {FIXED[found.code]}"))


# What says where a gradient is wrong, or how much, and not why.
GENERAL = {
    "unknown",
    "partial",
    "local-derivative",
    "missing",
    "mean-term",
    "variance-term",
    "direct-term",
    "misplaced",
    "mask",
}
# What tells less than a line and its mended form do.
VAGUE = {"unknown", "raises"}
FIXED = {
    "transposed": "an operand is transposed, or two are exchanged",
    "sign": "the sign of a term",
    "factor": "a factor or a power",
    "ratio": "a number, or a mean where a sum belongs",
    "missing": "a term is missing, or one too many",
    "local-derivative": "the local derivative",
    "axis": "a sum or mean over another axis",
    "operand": "another variable belongs there",
    "mask": "a comparison",
    "shifted": "an index is off by one",
    "flipped": "the order of a loop",
    "exchanged": "the order of the gradients that are returned",
    "overwritten": "an assignment where a sum belongs",
    "twice": "a sum where an assignment belongs",
    "broadcast": "a sum over a broadcast axis",
    "misplaced": "a factor in an index",
    "raises": "it raises",
}


def _is_known(report: Report, finding: Finding, culprit: _Culprit | None) -> bool:
    """Whether an earlier finding blames the same operation; it then names the input of this one too."""
    if culprit is None:
        return False
    for earlier in report.findings:
        if earlier.culprit == culprit.names:
            earlier.input = f"{earlier.input}, {finding.input}"
            return True
    return False


def _explain_slope(check: Check, finding: Finding, k: int, source: _Source) -> None:
    """Whose fault it is, or what backward's gradient looks like beside the right one."""
    if (culprit := source.culprit) is not None:
        finding.message += f"; in it, the gradient of {culprit.finding.input} of {culprit.op} is wrong by itself"
        finding.culprit, finding.array = culprit.names, culprit.finding.input
        finding.diagnoses, finding.formula = culprit.finding.diagnoses, culprit.finding.formula
        finding.got, finding.expected = culprit.finding.got, culprit.finding.expected
        return
    finding.formula = source.formula(k)
    try:
        evidence = Evidence.gather(check, k)
    except (ValueError, ArithmeticError) as error:  # fn has no values a little beside the point
        finding.diagnoses = [Diagnosis("unknown", f"the Jacobian could not be computed ({error})")]
        return
    finding.got, finding.expected = evidence.A[0], evidence.B[0]
    finding.diagnoses = diagnose(evidence)
    if finding.diagnoses[0].code in GENERAL and (share := source.share(evidence)) is not None:
        finding.diagnoses = [share]
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


class _Culprit(NamedTuple):
    """An operation that is wrong by itself, and what a check of it alone found."""

    op: str
    finding: Finding

    @property
    def names(self) -> tuple[str, str | None]:
        """Those of the operation and of its input."""
        return self.op, self.finding.input


class _Source:
    """Where the gradients of a check come from: the operations that its forward pass applies."""

    def __init__(self, check: Check) -> None:
        self.check, self.arrays = check, check.arrays()

    @cached_property
    def calls(self) -> list[Call]:
        try:
            return operations(self.check.subject.forward, self.arrays)
        except Exception:
            return []

    @cached_property
    def culprit(self) -> _Culprit | None:
        """The first of several operations that is wrong by itself."""
        if isinstance(self.check.subject, PairSubject) or len(self.calls) == 1:
            return None
        seen: set[Any] = set()
        for call in self.calls:
            key = (call.function, tuple(getattr(a, "shape", None) for a in call.inputs), repr(call.options))
            if key in seen or len(seen) >= MOST_OPS:
                continue
            seen.add(key)
            if (finding := _alone(self.check, call)) is not None:
                return _Culprit(call.function.__name__, finding)
        return None

    def share(self, evidence: Evidence) -> Diagnosis | None:
        """Through which of forward's expressions a gradient is missing, of a pair written by hand."""
        subject = self.check.subject
        forward = taps.plain(subject.fn) if isinstance(subject, PairSubject) else None
        source = source_of(forward) if forward is not None else None
        if forward is None or source is None or self.check.ground is not subject:
            return None
        draws = [unflat(row, self.check) for row in evidence.rows]
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                return missing_share(self.check, evidence.k, forward, source, draws, evidence.A)
        except Exception:
            return None  # an explanation that cannot be had

    def formula(self, k: int) -> Formula | None:
        """The line that computes the gradient of array k, where fn is one operation or has a backward by hand."""
        subject = self.check.subject
        if isinstance(subject, PairSubject):
            if subject.backward is None:
                return None
            floating = [i for i, a in enumerate(subject.args) if is_array(a) and a.dtype.kind == "f"]
            return formula_in(subject.backward, floating.index(subject.checked[k]))
        if len(self.calls) != 1:
            return None
        places = [p for p, a in enumerate(self.calls[0].inputs) if a is self.arrays[k]]
        return formula_of(self.calls[0].function, places[0]) if places else None

    def formula_in_op(self, name: str, i: int) -> Formula | None:
        """The line that computes the gradient of input i of the operation named."""
        return next((formula_of(c.function, i) for c in self.calls if c.function.__name__ == name), None)


def _alone(check: Check, call: Call) -> Finding | None:
    """What a check of one operation at the inputs that it had finds, or None."""
    inputs = [np.asarray(a, np.float64) if isinstance(a, float) else a for a in call.inputs]
    try:
        subject = make_subject(call.function, inputs)
        subject.fn = lambda *xs: call.function.apply(*xs, **call.options)
        own = Check(subject, subject, Report(call.function.__name__, check.report.seed), check.dtype, None, 0.0)
        settle(own)
        explain(own)
    except Exception:
        return None
    return own.report.findings[0] if own.report.findings else None


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


def _explain_exception(check: Check, finding: Finding, raised: Raised, source: _Source) -> None:
    """What the exception looks like, by its text and by whether backward runs for square shapes."""
    if match := _TAPE_SHAPE.search(raised.text):
        got, shape = (tuple(int(n) for n in text.split(",") if n.strip()) for text in (match[2], match[4]))
        finding.diagnoses = [_shape_diagnosis(got, shape)]
        finding.formula = source.formula_in_op(match[1], int(match[3]))
        return
    code, text = "raises", "backward fails where forward works"
    if "read-only" in raised.text or "in place" in raised.text:
        code, text = "in-place", "backward writes into an array that is not its own: make a copy first"
    elif raised.empty:
        code, text = "size-0", "backward fails on an empty array that forward takes"
    elif issubclass(raised.error, ValueError | IndexError) and (right := _with_square_shapes(check)) is not None:
        if right:
            code = "square-only"
            text = "backward works only for square shapes, where two lengths that differ here are equal"
        else:
            code = "transposed"
            text = "backward runs only for square shapes, and is wrong there: an operand is transposed"
    finding.diagnoses = [Diagnosis(code, text)]


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
            settle(square, moves=0)
        except Exception:
            continue
        return square.report.ok
    return None


def _square(a: Any, n: int) -> Any:
    xp = array_module(a)
    cut = a[tuple(slice(0, n) for _ in a.shape)]
    return xp.array(cut)
