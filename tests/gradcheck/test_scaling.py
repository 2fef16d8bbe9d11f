"""tinydiff/gradcheck/scaling.py: lengths that are written into backward, and what may not be taken for one."""

import numpy as np
import pytest
from homework import PAIRS

from tinydiff.gradcheck import GradientError, gradcheck

RNG = np.random.default_rng(6)
X = RNG.normal(size=(5, 3))
LABELS = np.array([0, 2, 1, 2, 0])


def mean(x):
    return x.mean()


def written_in(L, x):
    return np.full(x.shape, L / 15)


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_a_length_that_is_written_into_backward():
    with pytest.raises(GradientError) as caught:
        gradcheck(mean, [X], backward=written_in)
    report = caught.value.report
    assert report.diagnosis == "fixed-size" and report.findings[0].probe == "sizes"
    assert "with length 9 instead of 3" in str(report)


def test_all_axes_of_one_length_grow_together():
    seen = set()

    def forward(x, w):
        seen.add((x.shape, w.shape))
        return x @ w

    gradcheck(forward, [X, RNG.normal(size=(3, 4))], backward=lambda L, x, w: (L @ w.T, x.T @ L))
    assert {((15, 3), (3, 4)), ((5, 9), (9, 4)), ((5, 3), (3, 12))} <= seen


def test_a_length_from_the_surroundings_is_the_authors_business():
    """Where a script says N = 5, a backward pass that divides by N means that N."""
    n, total = 15, X.size
    assert (
        gradcheck(mean, [X], backward=lambda L, x: np.full(x.shape, L / n) if total else 0, skip=["reuse"]).ok is True
    )


def test_labels_from_the_surroundings():
    """Of a longer x only the first rows have labels: forward leaves the others out, backward never had to."""

    def loss(x):
        return -np.log(softmax(x)[np.arange(len(LABELS)), LABELS]).mean()

    def backward(L, x):
        d = softmax(x)
        d[np.arange(len(LABELS)), LABELS] -= 1
        return L * d / len(LABELS)

    assert gradcheck(loss, [X], backward=backward).ok


@pytest.mark.parametrize("targets", [np.eye(3)[LABELS], softmax(RNG.normal(size=(5, 3)))])
def test_rows_that_sum_to_one_stay_what_they_are(targets):
    def loss(x, y):
        return -(y * np.log(softmax(x))).sum()

    assert gradcheck(loss, [X, targets], wrt=["x"], backward=lambda L, x, y: L * (softmax(x) - y)).ok


def test_a_symmetric_matrix_stays_symmetric():
    a = X.T @ X + np.eye(3)
    assert gradcheck(lambda A: np.linalg.slogdet(A)[1], [a], backward=lambda L, A: L * np.linalg.inv(A)).ok


def test_what_forward_does_not_use_is_not_judged():
    def first(x, n):
        return x[:3].sum()

    def backward(L, x, n):
        return L * np.array([1.0, 1, 1, 0, 0])[:, None] * np.ones(3) if len(x) == 5 else L * np.ones(x.shape)

    assert gradcheck(first, [X, 4], backward=backward).ok


@pytest.mark.parametrize("seed", [282, 324, 427])
def test_sums_that_saturate_a_function_where_they_are_longer_accuse_nobody(seed):
    """log(1 - p) with p close to 1: at three times the length, forward rounds too coarsely to be differentiated."""
    pair = next(pair for pair in PAIRS if pair.name == "logistic regression")
    inputs = pair.inputs(np.random.default_rng(seed))
    assert gradcheck(pair.forward, inputs, backward=pair.backward, seed=seed, **pair.options).ok
