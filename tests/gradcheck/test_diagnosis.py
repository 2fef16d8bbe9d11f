"""tinydiff/gradcheck/diagnosis.py: what a check has seen is explained afterwards."""

import numpy as np
import pytest

import tinydiff as td
from tinydiff import ops
from tinydiff.gradcheck.check import Check, Raised, WrongShape, WrongSlope
from tinydiff.gradcheck.diagnosis import MOST_EXPLAINED, explain
from tinydiff.gradcheck.making import make_subject
from tinydiff.gradcheck.report import Report
from tinydiff.gradcheck.slopes import settle

RNG = np.random.default_rng(8)


def settled(fn, inputs, backward=None):
    """A check that has asked its first questions, and has not been explained."""
    subject = make_subject(fn, inputs, backward=backward)
    check = Check(subject, subject, Report("fn", 0), np.dtype(np.float64), None, 0.0)
    assert not settle(check)
    return check


def arrays(count, shape=(3, 4)):
    return [RNG.normal(size=shape) for _ in range(count)]


def sines(*xs):
    return sum(np.sin(x) for x in xs)


def doubled(L, *xs):
    """The gradients of sines, each wrong by a factor of its own."""
    return tuple((k + 2) * L * np.cos(x) for k, x in enumerate(xs))


class Doubled(td.Function):
    def forward(self, X, Y):
        return X + Y

    def backward(self, L):
        return L, 2 * L


def test_a_check_only_records():
    check = settled(sines, arrays(2), doubled)
    assert [f.input for f in check.report.findings] == ["input 0", "input 1"]
    assert all(f.diagnoses == [] and f.formula is None and f.got is None for f in check.report.findings)
    assert check.symptoms == {0: WrongSlope(0), 1: WrongSlope(1)}


def test_findings_are_explained_once():
    check = settled(sines, arrays(2), doubled)
    explain(check)
    assert [f.diagnoses[0].code for f in check.report.findings] == ["ratio", "ratio"]
    first, second = check.report.findings
    assert "np.cos(x)" in first.blame.text and "np.cos(x)" in first.formula.text and second.formula is None
    text = str(check.report)
    explain(check)
    assert str(check.report) == text and not check.symptoms


def test_after_the_first_findings_the_others_are_left_out():
    check = settled(sines, arrays(MOST_EXPLAINED + 2), doubled)
    assert len(check.report.findings) == MOST_EXPLAINED + 2
    explain(check)
    assert [f.input for f in check.report.findings] == [f"input {k}" for k in range(MOST_EXPLAINED)]
    assert sum(not v.ok for v in check.report.verdicts) == MOST_EXPLAINED + 2


def test_findings_of_one_operation_become_one():
    check = settled(lambda x, y, z: ops.exp(Doubled.apply(x, y * z) * 0.1), arrays(3))
    assert [f.input for f in check.report.findings] == ["y", "z"]
    explain(check)
    (finding,) = check.report.findings
    assert finding.input == "y, z" and finding.culprit == ("Doubled", "Y")
    assert finding.message.endswith("; in it, the gradient of Y of Doubled is wrong by itself")
    assert finding.diagnoses[0].code == "ratio" and finding.formula.text == "2 * L"


def test_an_array_without_a_slope_keeps_its_diagnosis_and_its_place():
    def fn(x, y):
        return np.sin(1e9 * np.abs(x)), np.sin(y)

    check = settled(fn, arrays(2), lambda L, M, x, y: (0 * L, 2 * M * np.cos(y)))
    assert [f.input for f in check.report.findings] == ["x", "y"] and check.symptoms == {1: WrongSlope(1)}
    explain(check)
    assert [f.diagnoses[0].code for f in check.report.findings] == ["not-differentiable", "ratio"]


def test_shapes_are_recorded_beside_what_else_is_wrong():
    def backward(L, x, y):
        x += 1
        return L, L.T

    check = settled(lambda x, y: x + y, arrays(2), backward)
    assert check.symptoms == {1: WrongShape(1, (4, 3))}
    explain(check)
    assert [f.diagnoses[0].code for f in check.report.findings] == ["in-place", "transposed"]
    assert [f.message for f in check.report.findings][1] == "the gradient has shape (4, 3), the input (3, 4)"


@pytest.mark.parametrize(
    "backward, kind, code",
    [
        (lambda L, x, w: {}["cache"], KeyError, "raises"),
        (lambda L, x, w: (L @ w, x.T @ L), ValueError, "transposed"),
        (lambda L, x, w: (L @ w.T, np.add(x.T @ L, np.zeros_like(x.T @ x))), ValueError, "square-only"),
        (lambda L, x, w: np.broadcast_to(L, L.shape).__setitem__(0, 1), ValueError, "in-place"),
    ],
)
def test_what_backward_raises_is_recorded_as_text(backward, kind, code):
    """The exception itself would keep its frames, and all arrays in them, alive."""
    check = settled(lambda x, w: x @ w, [RNG.normal(size=(5, 4)), RNG.normal(size=(4, 3))], backward)
    (symptom,) = check.symptoms.values()
    assert isinstance(symptom, Raised) and symptom.error is kind and isinstance(symptom.text, str)
    explain(check)
    assert [f.diagnoses[0].code for f in check.report.findings] == [code]
