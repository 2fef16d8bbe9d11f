"""tinydiff/gradcheck/tools.py: derivatives as arrays."""

import numpy as np
import pytest

import tinydiff as td
from tinydiff.errors import InputError

RNG = np.random.default_rng(5)
X = RNG.normal(size=(3, 4))


def test_a_gradient():
    for x, scale in ((X, 1), (1e-4 * X, 1e-4), (1e5 * X, 1e5), (X.astype(np.float32), 1)):
        got = td.numerical_gradient(lambda x, s=scale: np.sum(np.sin(x / s)), x)
        np.testing.assert_allclose(got, np.cos(x.astype(float) / scale) / scale, rtol=2e-8, atol=1e-9 / scale)
        assert got.dtype == np.float64 and got.shape == (3, 4)
    assert td.numerical_gradient(lambda x: x**3, 2.0) == pytest.approx(12)
    np.testing.assert_allclose(td.numerical_gradient(lambda x: td.ops.sum(x * x), td.Tensor(X)), 2 * X, rtol=1e-9)
    np.testing.assert_allclose(td.numerical_gradient(lambda x: x @ x, np.zeros(3)), np.zeros(3), atol=1e-12)


def test_small_numbers_beside_large_ones_stay_in_the_domain():
    x = np.array([1e-3, 1.0, 100.0])
    np.testing.assert_allclose(td.numerical_gradient(lambda x: np.log(x).sum(), x), 1 / x, rtol=1e-6)


def test_jacobians_agree():
    W = RNG.normal(size=(4, 2))
    by_tape = td.jacobian(lambda x: td.ops.tanh(x @ W), X)
    by_differences = td.numerical_jacobian(lambda x: np.tanh(x @ W), X)
    assert by_tape.shape == by_differences.shape == (3, 2, 3, 4)
    np.testing.assert_allclose(by_tape, by_differences, rtol=1e-8, atol=1e-10)
    expected = np.zeros((3, 2, 3, 4))
    for n in range(3):
        expected[n, :, n] = (1 - np.tanh(X[n] @ W) ** 2)[:, None] * W.T
    np.testing.assert_allclose(by_tape, expected, rtol=1e-10)
    assert td.jacobian(lambda x: td.ops.sum(x), X).shape == (3, 4)
    assert td.jacobian(lambda x: td.Tensor(np.ones(2)), X).shape == (2, 3, 4)
    assert td.jacobian(lambda x: x * 2.0, np.float32(X)).dtype == np.float32


def test_a_step_of_ones_own():
    seen = []
    td.numerical_gradient(lambda x: seen.append(float(x)) or x * x, 1.0, step=0.5)
    assert sorted(set(seen)) == [0.0, 0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: td.numerical_gradient(lambda x: x, X), r"not \(3, 4\): see numerical_jacobian"),
        (lambda: td.numerical_gradient(lambda x: x, 2), "write 2.0, not 2"),
        (lambda: td.numerical_gradient(lambda x: x, 2.0, step=0), "step must be a number above 0, not 0"),
        (lambda: td.numerical_jacobian(lambda x: x * 1j, X), "real numbers, not complex128"),
        (lambda: td.jacobian(lambda x: np.ones(3), X), "must return a Tensor, not ndarray"),
        (lambda: td.jacobian(lambda x: x, np.arange(3)), "floating point numbers, not of int64"),
    ],
)
def test_bad_arguments(call, sentence):
    with pytest.raises(InputError, match=sentence):
        call()
