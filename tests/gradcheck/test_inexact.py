"""tinydiff/gradcheck/inexact.py: roundings of Python's numbers and of linear algebra accuse nobody, and hide no mistake."""

import math
import statistics

import numpy as np
import pytest

from tinydiff.gradcheck import GradientError, gradcheck, inexact, taps
from tinydiff.gradcheck.rounding import wrapped


def rng(seed=0):
    return np.random.default_rng(seed)


def entropy(z, y):
    """Binary cross-entropy with Python's floats."""
    loss, ps = 0.0, []
    for a, t in zip(z, y, strict=True):
        p = 1 / (1 + math.exp(-float(a)))
        loss -= t * math.log(p) + (1 - t) * math.log(1 - p)
        ps.append(p)
    return loss / len(ps), (ps, y)


def entropy_backward(g, cache):
    return g * np.array([p - t for p, t in zip(*cache, strict=True)]) / len(cache[0])


def standardised(x):
    mean, square = sum(x) / len(x), sum(v * v for v in x) / len(x)
    return np.array([(v - mean) / math.sqrt(square - mean * mean + 1e-5) for v in x])


def standardised_backward(g, x):
    s = np.sqrt(x.var() + 1e-5)
    y = (x - x.mean()) / s
    return (g - g.mean() - y * (g * y).mean()) / s


def spread(x):
    return statistics.fmean([v * v for v in x]) - statistics.fmean(list(x)) ** 2


def copied(x):
    h = np.zeros(len(x))
    h[:] = np.tanh(x)
    return np.log(1 - np.asarray(h))


def determinant(a):
    return math.log(abs(a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0]))


def solve(a, b):
    return np.linalg.solve(a, b)


def solve_backward(g, a, b):
    L_b = np.linalg.solve(a.T, g)
    return -np.outer(L_b, solve(a, b)), L_b


def near_singular(smallest):
    u, s, v = np.linalg.svd(rng(1).normal(size=(3, 3)))
    return (u * [s[0], s[1], smallest]) @ v


STRAINED = {
    "loop of math": (
        entropy,
        entropy_backward,
        [np.array([34.5, -36.0, 1.0, 35.2]), np.array([0.0, 1, 1, 0])],
        {"cache": True, "wrt": ["z"]},
    ),
    "naive standardisation": (standardised, standardised_backward, [rng().normal(size=6) + 1e7], {}),
    "statistics": (spread, lambda g, x: 2 * g * (x - x.mean()) / len(x), [rng().normal(size=5) + 1e8], {}),
    "copied into a plain array": (copied, lambda g, x: -g * (1 + np.tanh(x)), [np.array([17.5, -3.0, 17.9, 0.4])], {}),
    "logarithm of a determinant": (
        determinant,
        lambda g, a: g * np.linalg.inv(a).T,
        [np.outer([1.3, -0.4], [0.7, 2.1]) + rng().normal(size=(2, 2)) * 1e-14],
        {},
    ),
    "a system near singular": (solve, solve_backward, [near_singular(1e-13), rng().normal(size=3)], {}),
    "domain of math": (
        lambda x: [math.sqrt(1 - v * v) for v in x],
        lambda g, x: -np.asarray(g) * x / np.sqrt(1 - x * x),
        [np.array([0.9999999, -0.3, 1 - 1e-9])],
        {},
    ),
    "steps": (
        lambda x: np.array([int(100 * v) / 100 for v in x]),
        lambda g, x: 0 * g,
        [rng().normal(size=4) * 900],
        {},
    ),
}


@pytest.mark.parametrize("name", STRAINED)
def test_right_passes_are_not_called_wrong(name):
    forward, backward, inputs, options = STRAINED[name]
    try:
        gradcheck(forward, inputs, backward=backward, **options)
    except GradientError as error:
        assert error.report.diagnosis == "not-differentiable", error


@pytest.mark.parametrize("name", [name for name in STRAINED if name != "steps"])
def test_wrong_ones_do_not_pass(name):
    forward, backward, inputs, options = STRAINED[name]

    def tripled(g, *xs):
        got = backward(g, *xs)
        return tuple(3 * x for x in got) if isinstance(got, tuple) else 3 * got

    with pytest.raises(GradientError):
        gradcheck(forward, inputs, backward=tripled, **options)


def test_calmer_inputs_at_which_everything_vanishes_prove_nothing():
    def forward(x):
        return np.exp(-((1e3 * (x - x.mean())) ** 2)).sum()

    def backward(g, x):  # without the mean's part, and doubled
        d = x - x.mean()
        return -4e6 * g * d * np.exp(-((1e3 * d) ** 2))

    with pytest.raises(GradientError):
        gradcheck(forward, [rng().normal(size=5) * 1e-3 + 1e5], backward=backward)


def code_of(function):
    return {function: inexact.code_of(function, taps.sources([function])[function].node)}


def several(x, a, n):
    half = int(n / 2)
    total = 0.0
    for v in x[:half]:
        total += math.exp(v)
    parts = [w * 0.1 for w in x]
    return total, np.dot(a, a.T), sum(parts), max(parts), a[half:].mean(), half


def test_code_rounds_every_result_in_the_last_place_and_keeps_lengths():
    x, a = [0.3, 0.7, 0.2, 0.9], rng().normal(size=(4, 4))
    right = several(x, a, 4)
    seen = [set() for _ in right]
    for seed in range(8):
        with taps.exchanged(code_of(several), inexact.Roundings(rng(seed), lambda y, _: y)):
            got = several(x, a, 4)
        for values, y, z in zip(seen, got, right, strict=True):
            assert np.allclose(y, z, rtol=1e-14, atol=1e-14)
            values.add(np.asarray(y).tobytes())
    assert [len(values) > 1 for values in seen] == [True] * 5 + [False]
    assert several(x, a, 4)[0] == right[0]


def test_matrices_move_as_a_whole():
    a = wrapped(np.array([[1e8, 1.0], [0.0, 1e-9]]), rng())
    moved = inexact.moved(np.asarray(a), rng(), together=True) - np.asarray(a)
    assert moved[1, 0] == 0 and abs(moved[1, 1]) > 1e-10 and np.abs(moved).max() < 1e-7
    assert type(np.linalg.inv(a)) is type(a)


@pytest.mark.parametrize(
    ("function", "rounds"),
    [(math.exp, True), (sum, True), (statistics.fmean, True), (np.exp, True), (np.dot, True), (math.floor, False),
     (max, False), (len, False), (np.maximum, False), (np.concatenate, False), (print, False)],
)  # fmt: skip
def test_which_functions_round(function, rounds):
    assert inexact.rounds(function) == rounds
