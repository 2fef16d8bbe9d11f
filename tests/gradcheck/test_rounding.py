"""tinydiff/gradcheck/rounding.py: forward functions whose digits cancel accuse nobody, and mistakes in them are still found."""

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.gradcheck import GradientError, gradcheck
from tinydiff.gradcheck.rounding import wrapped


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def loss(w, X, y):
    p = sigmoid(X @ w)
    return -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)), (X, y, p)


def loss_backward(g, cache):
    X, y, p = cache
    return g * X.T @ (p - y) / len(y)


def data(seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=4), rng.normal(size=(6, 4)) * 9, (rng.random(6) < 0.5).astype(float)]


def distances(A, B):
    return np.sqrt((A**2).sum(1)[:, None] + (B**2).sum(1) - 2 * A @ B.T)


def distances_backward(g, A, B):
    D = A[:, None] - B
    L_D = (g / np.sqrt((D**2).sum(2)))[..., None] * D
    return L_D.sum(1), -L_D.sum(0)


RNG = np.random.default_rng(3)
STRAINED = {
    "logarithm of 1 - tanh²": (lambda x: np.log(1 - np.tanh(x) ** 2), lambda g, x: -2 * g * np.tanh(x), [RNG.normal(size=9) * 7]),
    "(exp(x) - 1) / x": (
        lambda x: (np.exp(x) - 1) / x,
        lambda g, x: g * (np.exp(x) / x - (np.exp(x) - 1) / x**2),
        [RNG.normal(size=6) * 1e-8],
    ),
    "distances by expansion": (distances, distances_backward, [RNG.normal(size=(4, 3)) + 1e5, RNG.normal(size=(5, 3)) + 1e5]),
    "difference of squares": (lambda x: ((x + 1) ** 2 - (x - 1) ** 2) / 4, lambda g, x: g * 1.0, [RNG.normal(size=5) * 1e8]),
    "logarithm of a determinant": (
        lambda a: np.log((a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0]) ** 2) / 2,
        lambda g, a: g * np.linalg.inv(a).T,
        [np.outer([1.3, -0.4], [0.7, 2.1]) + RNG.normal(size=(2, 2)) * 1e-10],
    ),
}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 2, 3, 11])
def test_a_saturated_sigmoid_accuses_nobody(seed):
    report = gradcheck(loss, data(seed), backward=loss_backward, cache=True, wrt=["w"])
    assert report.ok


@pytest.mark.parametrize("name", STRAINED)
def test_where_digits_cancel_calmer_inputs_are_checked(name):
    forward, backward, inputs = STRAINED[name]
    try:
        report = gradcheck(forward, inputs, backward=backward)
    except GradientError as error:
        assert error.report.diagnosis == "not-differentiable"
        assert "NOT DECIDED" in error.report.summary and "WRONG" not in str(error)
        assert "calmer inputs" in str(error)
    else:
        assert any("calmer ones were checked" in note for note in report.notes)


def test_inputs_that_are_all_alike_are_moved_where_digits_cancel():
    """Differences at this minimum are rounding alone, which looks like a slope with this seed. Calmer inputs would no longer be
    alike."""
    report = gradcheck(lambda x: ops.mse_loss(x, np.ones((4, 5))), [np.ones((4, 5))], seed=905)
    assert any("too coarsely" in note and "inputs moved by" in note for note in report.notes)
    assert not any("calmer" in note or "kink" in note for note in report.notes)


@pytest.mark.parametrize("name", STRAINED)
def test_a_mistake_is_found_there_too(name):
    forward, backward, inputs = STRAINED[name]

    def doubled(g, *xs):
        got = backward(g, *xs)
        return tuple(2 * x for x in got) if isinstance(got, tuple) else 2 * got

    with pytest.raises(GradientError):
        gradcheck(forward, inputs, backward=doubled)


def test_a_mistake_in_a_saturated_loss_is_found():
    with pytest.raises(GradientError) as caught:
        gradcheck(loss, data(2), backward=lambda g, c: len(c[1]) * loss_backward(g, c), cache=True, wrt=["w"])
    assert "WRONG" in caught.value.report.summary


def test_rounding_moves_the_last_place_and_no_more():
    x = wrapped(np.linspace(-2.0, 2.0, 101), np.random.default_rng(0))
    for y, right in ((x * 3 + 1, np.asarray(x) * 3 + 1), (np.exp(x), np.exp(np.asarray(x)))):
        gap = np.abs(np.asarray(y) - right)
        assert 0 < gap.max() < 1e-14
    assert np.array_equal(np.maximum(x, 0), np.maximum(np.asarray(x), 0))
    assert not np.asarray(0 * x).any()
    y = np.zeros(101)
    np.add(x, 1, out=y)
    assert type(y) is np.ndarray and 0 < np.abs(y - np.asarray(x) - 1).max() < 1e-14


def test_a_norm_held_fixed_is_wrong_although_the_complex_step_agrees():
    def cosine(a, b):
        return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

    def backward(g, a, b):
        return (g / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))[:, None] * b

    with pytest.raises(GradientError, match="WRONG"):
        gradcheck(cosine, [RNG.normal(size=(5, 3)), RNG.normal(size=(5, 3))], wrt=["a"], backward=backward)


def test_a_backward_that_writes_into_its_gradient_keeps_the_checks_own():
    def backward(g, x):
        g *= 2 * x
        return g

    with pytest.raises(GradientError, match="returns are right"):
        gradcheck(lambda x: x**2, [RNG.normal(size=5)], backward=backward)
    with pytest.raises(GradientError, match="returns are wrong"):
        gradcheck(lambda x: x**3, [RNG.normal(size=5)], backward=backward)
