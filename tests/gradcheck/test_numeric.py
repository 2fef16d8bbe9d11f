"""tinydiff/gradcheck/numeric.py: slopes against closed forms, and bounds on their error that hold."""

import numpy as np
import pytest

from tinydiff.gradcheck import numeric

RNG = np.random.default_rng(5)
X, V, U = (RNG.normal(size=30) for _ in range(3))

SMOOTH = {  # values, derivatives
    "sin": (np.sin, np.cos),
    "exp": (np.exp, np.exp),
    "cube": (lambda x: x**3, lambda x: 3 * x**2),
    "narrow": (lambda x: np.tanh(30 * x), lambda x: 30 / np.cosh(30 * x) ** 2),
    "steep": (lambda x: np.exp(8 * x), lambda x: 8 * np.exp(8 * x)),
    "offset": (lambda x: 1e5 + np.sin(x), np.cos),
    "in float32": (lambda x: np.sin(x.astype(np.float32)).astype(float), np.cos),
}


def slope(f, method=numeric.along, **options):
    return method(lambda xs: [f(xs[0])], [X], [V], [f(X)], [U], **options)


@pytest.mark.parametrize("name", SMOOTH)
def test_differences_are_as_good_as_they_say(name):
    f, df = SMOOTH[name]
    found = slope(f)
    right = np.sum(U * df(X) * V)
    assert abs(found.value - right) <= found.error
    assert found.error <= (1e-2 if name == "in float32" else 1e-6) * found.size


@pytest.mark.parametrize("step", [1e-2, 1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("name", SMOOTH)
def test_the_bound_holds_for_any_step(name, step):
    f, df = SMOOTH[name]
    with np.errstate(over="ignore"):
        found = slope(f, numeric.differences, step=step)
    if found.error < 1e-2 * found.size:  # a step that is far too large shows in its bound
        assert abs(found.value - np.sum(U * df(X) * V)) <= found.error


def test_a_kink_is_not_trusted():
    def kinked(x):
        return np.abs(x - X[3])

    found = slope(kinked)
    assert not found.trusted
    assert found.error > 1e-3 * found.size


def test_a_kink_nearby_is_passed_at_a_smaller_step():
    found = slope(lambda x: np.abs(x - X[3] - 1e-6))
    assert found.trusted and "3e-07" in found.method


def test_a_function_that_does_not_change_has_slope_zero():
    found = numeric.along(lambda xs: [np.ones(30)], [X], [V], [np.ones(30)], [U])
    assert found.value == 0 and found.size == 0


def test_the_complex_step_is_exact():
    found = slope(lambda x: np.exp(x) / np.sqrt(np.sin(x) ** 3 + np.cos(x) ** 3 + 3), numeric.complex_step)
    s, c = np.sin(X), np.cos(X)
    g = s**3 + c**3 + 3
    right = np.exp(X) / np.sqrt(g) * (1 - (3 * s**2 * c - 3 * c**2 * s) / (2 * g))
    assert abs(found.value - np.sum(U * right * V)) <= 1e-15 * found.size * 10


@pytest.mark.parametrize("f", [np.abs, lambda x: x.real * 2, lambda x: x * np.conj(x)])
def test_what_is_not_holomorphic_is_refused(f):
    """Either at once, or because it disagrees with the differences."""
    coarse = slope(f)
    sharp = slope(f, numeric.sharpen, slope=coarse, dtype=np.float64)
    assert sharp.method != "complex step"


def test_the_adjoint_test_knows_affine_maps():
    A = RNG.normal(size=(30, 30))
    found = slope(lambda x: A @ x + 3, numeric.affine)
    assert abs(found.value - U @ (A @ V)) <= found.error
    assert found.error < 1e-12 * found.size * 30
    assert slope(lambda x: A @ x + 1e-9 * x * x, numeric.affine) is None


def test_columns_of_the_jacobian():
    A = RNG.normal(size=(6, 30))
    J = np.stack(list(numeric.columns(lambda xs: [np.tanh(A @ xs[0])], [X], 0, np.array([0, 7, 29]))), 1)
    np.testing.assert_allclose(J, ((1 - np.tanh(A @ X) ** 2)[:, None] * A)[:, [0, 7, 29]], atol=1e-8)


def test_powers_of_the_step():
    right = float(np.sum(U * 3 * X**2 * V))
    true, false = numeric.convergence(lambda xs: [xs[0] ** 3], [X], [V], [U], right, right * 1.1)
    assert true == pytest.approx(2, abs=0.05)
    assert false == pytest.approx(0, abs=0.3)
    true, _ = numeric.convergence(lambda xs: [xs[0] ** 2], [X], [V], [U], float(np.sum(U * 2 * X * V)), 0.0)
    assert np.isnan(true)  # differences of a parabola are exact
