"""tinydiff/gradcheck/report.py and diagnosis.py: what is said."""

import contextlib
import html
import itertools
import time

import numpy as np
import pytest

import tinydiff as td
from tinydiff import ops
from tinydiff.gradcheck import Diagnosis, Finding, GradientError, Report, evidence, gradcheck
from tinydiff.gradcheck.check import Check
from tinydiff.gradcheck.making import make_subject
from tinydiff.gradcheck.report import Verdict

RNG = np.random.default_rng(6)


def failure(fn, inputs, **options):
    with pytest.raises(GradientError) as caught:
        gradcheck(fn, inputs, **options)
    return caught.value.report


def test_the_worst_element():
    got, expected = np.zeros((2, 3)), np.zeros((2, 3))
    got[1, 2], expected[0, 1] = 5.0, np.nan
    finding = Finding("slopes", "x", "wrong", got=got, expected=expected)
    assert finding.worst == (1, 2)
    assert "worst element: x[1, 2]: analytic 5, numerical 0" in "\n".join(finding.lines())
    assert Finding("slopes", "x", "wrong").worst is None


def test_the_first_diagnosis_counts():
    report = Report("f", 0)
    assert report.diagnosis is None and report.ok
    report.findings.append(Finding("slopes", "x", "wrong", [Diagnosis("sign", "a"), Diagnosis("ratio", "b")]))
    assert report.diagnosis == "sign" and not report.ok
    assert Report("f", 0, findings=[Finding("slopes", "x", "wrong")]).diagnosis == "unknown"


class Scaled(td.Function):
    factor = 1.0

    def forward(self, X):
        self.save(X)
        return X * X

    def backward(self, L):
        return 2 * self.saved[0] * L * self.factor


@pytest.mark.parametrize(
    "factor, words",
    [
        (
            5.0,
            "is 5 times what it should be (5: the length of X along axis 1): a division by 5 is missing, as in a mean",
        ),
        (1 / 20, "is 1/20 of what it should be (20: the size of X): a factor 20 is missing"),
        (5**-0.5, "is 1/sqrt(5) of what it should be (5: the length of X along axis 1)"),
        (0.5, "is 1/2 of what it should be: a factor 2 is missing"),
        (-1.0, "the sign is wrong"),
        (
            -2.0,
            "is 2 times what it should be: a division by 2 is missing or a multiplication is too many, and its sign",
        ),
        (0.3, "is 0.3 times what it should be\n"),
        (1 + 1e-7, "a constant or an intermediate result in float32"),
        (0.0, "no gradient comes back"),
        (np.inf, "infinities or NaN"),
    ],
)
def test_numbers_are_named(factor, words):
    wrong = type("Wrong", (Scaled,), {"factor": factor})
    with np.errstate(invalid="ignore"):
        assert words in str(failure(wrong, [RNG.normal(size=(4, 5))]))


def test_one_infinite_element():
    wrong = type("Wrong", (Scaled,), {"factor": np.inf})
    assert failure(wrong, [np.array([2.0])]).diagnosis == "not-finite"


def test_convergence_is_told():
    wrong = type("Wrong", (td.Function,), {"forward": lambda self, X: np.sin(X), "backward": lambda self, L: L * 0.5})
    report = failure(wrong, [RNG.normal(size=(4, 5))])
    true, false = report.findings[0].convergence
    assert true == pytest.approx(2, abs=0.1) and abs(false) < 0.3
    assert "approach the numerical value as h^2.0, the analytic value not at all" in str(report)


class Wrong(td.Function):
    def forward(self, X):
        return np.tanh(X)

    def backward(self, L):
        return L


def test_of_several_operations_the_wrong_one_is_named_once():
    def network(x, w):
        return ops.mean(Wrong.apply(ops.linear(x, w)) * 3.0, 1)

    report = failure(network, [RNG.normal(size=(5, 4)), RNG.normal(size=(4, 3))])
    (finding,) = report.findings
    assert finding.input == "x, w"
    assert finding.culprit == ("Wrong", "X")
    assert finding.formula.op == "Wrong"
    assert "worst element: X[" in str(report) and "] of Wrong: analytic" in str(report)


def test_right_operations_wrongly_joined_are_not_blamed():
    report = failure(lambda x: x * td.Tensor(x.data), [RNG.normal(size=(4, 5))])
    assert report.findings[0].culprit is None
    assert report.diagnosis == "ratio"


def test_large_arrays_are_sampled():
    """The wrong elements are among the sample, and the report does not speak of the rest."""

    class WrongAtOne(Wrong):
        def backward(self, L):
            L = L * (1 - np.tanh(self.saved[0]) ** 2)
            L[123, 45] += 1
            return L

        def forward(self, X):
            self.save(X)
            return np.tanh(X)

    report = failure(WrongAtOne, [RNG.normal(size=(200, 300))], skip=["sizes"])
    (finding,) = report.findings
    unknown = np.isnan(finding.expected)
    assert finding.worst == (123, 45)
    assert unknown.sum() > 59_000 and not unknown.all()
    assert "1 of 81 sampled elements are wrong, of 60000 in all" in str(report) and "?" not in str(report)


def test_work_is_counted_not_timed(monkeypatch):
    """The diagnosis, its numbers and the sampled elements are the same on a machine that is busy with something else."""
    args = [np.random.default_rng(1).normal(size=(9, 40)), np.random.default_rng(2).normal(size=(40, 3))]

    class WrongProduct(td.Function):
        def forward(self, X, W):
            self.save(X, W)
            return X @ W

        def backward(self, L_Y):
            X, W = self.saved
            return L_Y @ W.T, -X.T @ L_Y

    quiet = failure(WrongProduct, args)
    now = itertools.count(0, 3600)
    for clock in ("perf_counter", "monotonic", "time", "process_time", "thread_time"):
        monkeypatch.setattr(time, clock, lambda: float(next(now)))
    busy = failure(WrongProduct, args)
    assert quiet.diagnosis == "sign" and not np.isnan(quiet.findings[0].expected).any()
    assert str(busy) == str(quiet)
    np.testing.assert_array_equal(busy.findings[0].expected, quiet.findings[0].expected)


@pytest.mark.parametrize("most", [320, 299])
def test_a_jacobian_takes_bounded_work(monkeypatch, most):
    """Two forward passes for each column: all of them, or those of a sample and of a search for the worst elements."""
    passes = [0]

    class Counted(Wrong):
        def forward(self, X):
            passes[0] += 1
            return super().forward(X)

    monkeypatch.setattr(evidence, "MOST_COLUMNS", most)
    subject = make_subject(Counted, [RNG.normal(size=300)])
    check = Check(subject, subject, Report("counted", 0), np.dtype(float), None, 0.0)
    passes[0] = 0
    gathered = evidence.Evidence.gather(check, 0)
    taken, complete = passes[0], most == 320
    assert gathered.complete == complete == (gathered.claimed is not None)
    assert gathered.J.shape == (300, 300 if complete else evidence.MOST_KEPT)
    assert taken <= (2 * 300 + 4 if complete else 2 * (81 + 6) + 6 * 2 * 12 + 4)
    assert check.columns == gathered.known.sum()


def test_a_failing_check_costs_a_few_times_a_passing_one():
    calls = [0]

    def counted(x):
        calls[0] += 1
        return np.sin(x)

    for shape in ((5, 4), (22, 23), (100, 100)):
        counts = []
        for factor in (1, 2):
            calls[0] = 0
            with contextlib.suppress(GradientError):
                gradcheck(counted, [RNG.normal(size=shape)], backward=lambda L, x, f=factor: f * L * np.cos(x))
            counts.append(calls[0])
        assert counts[1] <= 20 * counts[0]


@pytest.mark.parametrize("columns", [1, 1000])
def test_the_worst_element_is_found_by_halving(columns):
    """One wrong element of many, in the time that a few passes take."""
    x = RNG.normal(size=(200_000 // columns, columns))

    def backward(L, x):
        d = L * (x > 0)
        d[7, columns // 2] += 0.5
        return d

    report = failure(lambda x: np.maximum(x, 0), [x], backward=backward)
    assert report.findings[0].worst == (7, columns // 2)


def test_a_backward_pass_that_raises():
    class Raises(Wrong):
        def backward(self, L):
            raise KeyError("cache")

    report = failure(Raises, [RNG.normal(size=(4, 5))])
    assert report.diagnosis == "raises" and "KeyError" in str(report)


@pytest.mark.parametrize(
    "backward, code",
    [
        (lambda L, x, b: (L, L), "broadcast"),
        (lambda L, x, b: (L.T, L.sum(0)), "transposed"),
        (lambda L, x, b: (L[:2], L.sum(0)), "shape"),
        (lambda L, x, b: (L, L.sum()), "broadcast"),
    ],
)
def test_wrong_shapes(backward, code):
    report = failure(lambda x, b: x + b, [RNG.normal(size=(4, 5)), RNG.normal(size=5)], backward=backward)
    assert report.diagnosis == code


def test_the_first_line_says_what_is_wrong():
    """pytest's summary shows the name of the error, as short as it is imported, and the first line of its message."""
    assert GradientError.__module__ == "tinydiff"
    with pytest.raises(GradientError) as caught:
        gradcheck(
            lambda x: np.tanh(x), [RNG.normal(size=4)], backward=lambda L, x: -L * (1 - np.tanh(x) ** 2), name="tanh"
        )
    assert str(caught.value).splitlines()[0].startswith("gradcheck tanh: WRONG (gradient of x): the sign is wrong")


def test_standard_words_are_used():
    right = gradcheck(lambda x: np.tanh(x), [RNG.normal(size=4)], backward=lambda L, x: L * (1 - np.tanh(x) ** 2))
    for word in ("analytic", "numerical", "relative error", "tolerance"):
        assert word in str(right)
    verdict = right.verdicts[0]
    assert 0 <= verdict.relative_error <= verdict.tolerance < 1e-6


def test_a_passing_check_shows_one_line_in_a_notebook():
    report = gradcheck(ops.linear, [RNG.normal(size=(5, 4)), RNG.normal(size=(4, 3))])
    assert repr(report).count("\n") == 0 and "no error found" in repr(report) and "gradients of x, w" in repr(report)
    assert str(report).count("\n") > 2


def test_of_two_lambdas_in_a_line_backwards_is_shown():
    report = failure(lambda x: x * x, [RNG.normal(size=4)], backward=lambda L, x: 3 * L * x)
    assert report.findings[0].formula.text == "3 * L * x"
    pair = (lambda x: np.sin(x), lambda L, x: L * np.sin(x))
    assert failure(pair[0], [RNG.normal(size=4)], backward=pair[1]).findings[0].formula.text == "L * np.sin(x)"


def test_where_backward_raised():
    def backward(L, x):
        return {}["dx"]

    with pytest.raises(GradientError, match=r"KeyError: 'dx' \(.*test_report.py:\d+\)") as caught:
        gradcheck(np.sin, [RNG.normal(size=4)], backward=backward)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_notebook_shows_a_line_or_the_whole_message():
    verdict = Verdict("x", (2,), True, 1.0, 1.0, 1e-9, "complex step")
    fine = Report("<lambda>", 0, verdicts=[verdict])._repr_html_()
    assert fine.startswith("<code>gradcheck &lt;lambda&gt;: no error found") and "\n" not in fine
    wrong = Report("<lambda>", 0, verdicts=[verdict], findings=[Finding("slopes", "x", "a < b")])
    assert html.unescape(wrong._repr_html_()).endswith(f">{wrong}</pre>") and "a &lt; b" in wrong._repr_html_()
