"""tinydiff/gradcheck/locate.py and rerun.py: where a gradient is wrong; what it must be."""

import numpy as np

from tinydiff.gradcheck import Report
from tinydiff.gradcheck.check import Check
from tinydiff.gradcheck.locate import sample, worst_elements
from tinydiff.gradcheck.making import make_subject
from tinydiff.gradcheck.rerun import Rerun, Truth

X = np.random.default_rng(2).normal(size=(20, 30))
AT = [3 * 30 + 4, 17 * 30 + 29]


def backward(g, x):
    d = g * np.cos(x)
    d.reshape(-1)[AT] += 1.0
    return d


def check_of(backward):
    subject = make_subject(np.sin, [X], None, backward, False, None, ())
    return Check(subject, subject, Report("f", 0), np.dtype(float), None, 0.0)


def test_the_wrong_elements_are_found_in_few_evaluations():
    check = check_of(backward)
    calls, forward = [], check.forward
    check.forward = lambda *a: calls.append(1) or forward(*a)
    A = np.stack(check.subject.vjp(check.arrays(), check.U))
    assert sorted(worst_elements(check, 0, [check.U], A)) == sorted(AT)
    assert len(calls) < 150  # one by one it would be 1200
    chosen = sample(check, 0, [check.U], A, 100)
    assert sorted(chosen[:2]) == sorted(AT) and len(set(chosen)) == len(chosen) <= 102


def test_right_gradients_and_wrong_ones():
    check = check_of(backward)
    truth = Truth(check, check.U)
    right = check.U[0] * np.cos(X)
    assert truth.wrong([right], [X]) == set() and truth.wrong([right + 1e-4], [X]) == {0}
    assert truth.wrong(None, [X]) == truth.wrong([right.T], [X]) == {0}
    rerun = Rerun(check)
    assert truth.wrong(rerun.gradients({}), [X]) == {0} and rerun.functions() == [backward]
