import math

import numpy as np
import pytest

from tinydiff.autograd.tensor import Tensor
from tinydiff.diffusion import Diffusion, Schedule, gaussian

RNG = np.random.default_rng(0)


def covariance(D, *batch, rng=None):
    A = (rng or RNG).standard_normal((*batch, D, D + 2))
    return A @ A.swapaxes(-1, -2)


def naive_log_prob(x, m, C):
    """The formula as it is printed (source E, 1.1(a)), by inverse and determinant."""
    d = x - m
    return -0.5 * (len(m) * math.log(2 * math.pi) + math.log(np.linalg.det(C)) + d @ np.linalg.inv(C) @ d)


@pytest.mark.parametrize("D", [1, 2, 5])
def test_log_prob_is_the_printed_formula_and_integrates_to_1(D):
    m, C, x = RNG.standard_normal(D), covariance(D), RNG.standard_normal(D)
    assert gaussian.log_prob(x, m, C) == pytest.approx(naive_log_prob(x, m, C))
    if D == 1:
        grid, dx = np.linspace(-60, 60, 200001, retstep=True)
        assert np.exp(gaussian.log_prob(grid[:, None], m, C)).sum() * dx == pytest.approx(1, rel=1e-9)


def test_log_prob_is_the_change_of_variables_of_white_noise():
    """Source C, 20.2: z = sqrt(1 - beta) x + sqrt(beta) eps has the density of eps over sqrt(beta)^D."""
    beta, x, z = 0.3, RNG.standard_normal(4), RNG.standard_normal(4)
    eps = (z - math.sqrt(1 - beta) * x) / math.sqrt(beta)
    by_hand = gaussian.log_prob(eps, np.zeros(4), np.eye(4)) - 4 * math.log(math.sqrt(beta))
    assert gaussian.log_prob(z, math.sqrt(1 - beta) * x, variance=beta) == pytest.approx(by_hand)


def test_entropy_is_the_mean_of_minus_log_prob():
    m, C = RNG.standard_normal(3), covariance(3)
    x = m + RNG.standard_normal((40000, 3)) @ np.linalg.cholesky(C).T
    values = -gaussian.log_prob(x, m, C)
    assert abs(values.mean() - gaussian.entropy(C)) < 4.5 * values.std() / 200


@pytest.mark.parametrize("D", [1, 3, 6])
def test_kl_is_the_mean_log_ratio_and_not_symmetric(D):
    m1, m2, C1, C2 = *RNG.standard_normal((2, D)), covariance(D), covariance(D)
    x = m1 + RNG.standard_normal((40000, D)) @ np.linalg.cholesky(C1).T
    ratio = gaussian.log_prob(x, m1, C1) - gaussian.log_prob(x, m2, C2)
    assert abs(ratio.mean() - gaussian.kl(m1, C1, m2, C2)) < 4.5 * ratio.std() / 200
    inverse = np.linalg.inv(C2)
    printed = (
        np.log(np.linalg.det(C2) / np.linalg.det(C1)) - D + np.trace(inverse @ C1) + (m2 - m1) @ inverse @ (m2 - m1)
    )
    assert gaussian.kl(m1, C1, m2, C2) == pytest.approx(printed / 2, rel=1e-8)
    assert gaussian.kl(m1, C1, m2, C2) != pytest.approx(gaussian.kl(m2, C2, m1, C1), rel=1e-3)
    assert gaussian.kl(m1, C1, m1, C1) == pytest.approx(0, abs=1e-12)


def test_kl_is_never_negative():
    rng = np.random.default_rng(1)
    m1, m2 = rng.standard_normal((2, 500, 3))
    values = gaussian.kl(m1, covariance(3, 500, rng=rng), m2, covariance(3, 500, rng=rng))
    assert values.shape == (500,) and values.min() > 0


def test_product_is_the_product_of_the_densities_up_to_its_constant():
    m1, m2, C1, C2 = *RNG.standard_normal((2, 4)), covariance(4), covariance(4)
    mean, cov = gaussian.product(m1, C1, m2, C2)
    x = 3 * RNG.standard_normal((50, 4))
    both = gaussian.log_prob(x, m1, C1) + gaussian.log_prob(x, m2, C2)
    constant = gaussian.log_prob(m1, m2, C1 + C2)
    np.testing.assert_allclose(both, gaussian.log_prob(x, mean, cov) + constant, rtol=1e-9)
    precision = np.linalg.inv(C1) + np.linalg.inv(C2)
    np.testing.assert_allclose(cov @ precision, np.eye(4), atol=1e-9)
    np.testing.assert_array_equal(cov, cov.T)


@pytest.mark.parametrize("columns", [1, 2, 4])
def test_change_of_variable_is_the_same_function_of_y_up_to_its_constant(columns):
    A, B, x = RNG.standard_normal((4, columns)), covariance(4), RNG.standard_normal(4)
    mean, cov = gaussian.change_of_variable(x, A, B)
    y = 2 * RNG.standard_normal((50, columns))
    difference = gaussian.log_prob(x, y @ A.T, B) - gaussian.log_prob(y, mean, cov)
    np.testing.assert_allclose(difference, difference[0], rtol=1e-8, atol=1e-8)
    inverse = np.linalg.inv(B)
    np.testing.assert_allclose(cov, np.linalg.inv(A.T @ inverse @ A), rtol=1e-8)
    np.testing.assert_allclose(mean, cov @ A.T @ inverse @ x, rtol=1e-8)


def test_change_of_variable_keeps_its_digits_where_the_normal_equations_lose_them():
    """Columns that differ by 1e-7: A^T A has condition 1e14, A itself only 1e7."""
    A = np.array([[1.0, 1.0], [0.0, 1e-7], [0.0, 0.0]])
    y = np.array([0.3, -0.7])
    mean, _ = gaussian.change_of_variable(A @ y, A, np.eye(3))
    np.testing.assert_allclose(mean, y, rtol=1e-7)


def test_the_posterior_is_change_of_variable_times_product():
    """Source E, 1.1(c, d): q(x_{t-1} | x_t, x_0) from q(x_t | x_{t-1}) and q(x_{t-1} | x_0); the third derivation."""
    s = Schedule.linear(40, 0.01, 0.4)
    x0, xt = RNG.standard_normal((2, 1, 5))
    for t in (2, 20, 40):
        A = np.sqrt(1 - s.beta[t]) * np.eye(5)
        m1, C1 = gaussian.change_of_variable(xt, A, s.beta[t] * np.eye(5))
        C2 = (1 - s.alpha_bar[t - 1]) * np.eye(5)
        mean, cov = gaussian.product(m1, C1, np.sqrt(s.alpha_bar[t - 1]) * x0, C2)
        expected, variance = Diffusion(s).q_posterior(x0, xt, t)
        np.testing.assert_allclose(mean, expected, rtol=1e-9)
        np.testing.assert_allclose(cov, variance * np.eye(5), rtol=1e-9, atol=1e-15)


def test_isotropic_is_the_full_covariance_in_short():
    m1, m2, x = RNG.standard_normal((3, 7, 3))
    v1, v2 = RNG.uniform(0.1, 3, (2, 7))
    C1, C2 = (v[:, None, None] * np.eye(3) for v in (v1, v2))
    same = np.testing.assert_allclose
    same(gaussian.log_prob(x, m1, variance=v1), gaussian.log_prob(x, m1, C1))
    same(gaussian.entropy(variance=v1, dim=3), gaussian.entropy(C1))
    same(gaussian.kl(m1, None, m2, None, variance=(v1, v2)), gaussian.kl(m1, C1, m2, C2))
    mean, variance = gaussian.product(m1, None, m2, None, variance=(v1, v2))
    full_mean, full_cov = gaussian.product(m1, C1, m2, C2)
    same(mean, full_mean)
    same(variance[:, None, None] * np.eye(3), full_cov, atol=1e-15)
    A = RNG.standard_normal((3, 2))
    for ours, full in zip(
        gaussian.change_of_variable(x, A, variance=v1), gaussian.change_of_variable(x, A, C1), strict=True
    ):
        same(ours, full, rtol=1e-9)


def test_singular_covariances_are_refused_also_where_rounding_hides_it():
    rng = np.random.default_rng(2)
    for _ in range(50):
        A = rng.standard_normal((4, 3))
        with pytest.raises(ValueError, match="not positive definite"):
            gaussian.entropy(A @ A.T)
    assert gaussian.entropy(np.diag([1.0, 1e-30])) == pytest.approx(1 + math.log(2 * math.pi) + math.log(1e-30) / 2)


def test_leading_axes_broadcast():
    x, m, C = RNG.standard_normal((6, 1, 3)), RNG.standard_normal((4, 3)), covariance(3, 4)
    values = gaussian.log_prob(x, m, C)
    assert values.shape == (6, 4) and values.dtype == np.float64
    assert values[2, 3] == pytest.approx(naive_log_prob(x[2, 0], m[3], C[3]))
    assert gaussian.kl(m, C, m[:1], C[0]).shape == (4,)
    mean, cov = gaussian.product(m, C, m[0], C[0])
    assert mean.shape == (4, 3) and cov.shape == (4, 3, 3)
    mean, cov = gaussian.change_of_variable(x, RNG.standard_normal((3, 2)), C)
    assert mean.shape == (6, 4, 2) and cov.shape[-2:] == (2, 2)
    as_float32 = gaussian.log_prob(Tensor(x.astype(np.float32)), m.tolist(), C)
    assert as_float32.dtype == np.float64
    np.testing.assert_allclose(as_float32, values, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: gaussian.log_prob(np.zeros(2), np.zeros(2), np.diag([1.0, -1.0])), "not positive definite"),
        (lambda: gaussian.log_prob(np.zeros(2), np.zeros(2), [[1.0, 2.0], [2.0, 1.0]]), "not positive definite"),
        (lambda: gaussian.log_prob(np.zeros(2), np.zeros(2), np.ones((2, 2))), "not positive definite"),
        (lambda: gaussian.entropy(np.outer([1, 0.1, 0.3], [1, 0.1, 0.3])), "not positive definite"),
        (lambda: gaussian.entropy(np.full((2, 2), np.nan)), "not positive definite"),
        (lambda: gaussian.log_prob(np.zeros(2), np.zeros(2), [[1, 0.5], [0, 1]]), "not symmetric"),
        (lambda: gaussian.log_prob(np.zeros(2), np.zeros(3), np.eye(3)), r"one D, not x \(2,\) and mean \(3,\)"),
        (lambda: gaussian.log_prob(np.zeros(2), np.zeros(2), np.eye(3)), r"\(..., 2, 2\), not \(3, 3\)"),
        (lambda: gaussian.log_prob(np.zeros(2), np.zeros(2), 1.0), "give variance=v"),
        (lambda: gaussian.log_prob(np.zeros(2), np.zeros(2)), "neither"),
        (lambda: gaussian.log_prob(np.zeros(2), np.zeros(2), np.eye(2), variance=1.0), "both"),
        (lambda: gaussian.log_prob(np.zeros(2), np.zeros(2), variance=0.0), "must be positive, not 0"),
        (lambda: gaussian.entropy(variance=1.0), "needs dim="),
        (lambda: gaussian.kl(np.zeros(2), None, np.zeros(2), None, variance=1.0), r"variance=\(v1, v2\)"),
        (lambda: gaussian.kl(np.zeros(2), np.eye(2), np.zeros(2), None), "two covariances"),
        (lambda: gaussian.product(np.zeros(2), np.diag([1.0, -1]), np.zeros(2), 3 * np.eye(2)), "positive definite"),
        (lambda: gaussian.change_of_variable(np.zeros(3), np.ones((3, 2)), np.eye(3)), "full column rank"),
        (lambda: gaussian.change_of_variable(np.zeros(3), np.zeros((3, 1)), np.eye(3)), "full column rank"),
        (lambda: gaussian.change_of_variable(np.zeros(2), np.ones((2, 3)), np.eye(2)), "more columns than rows"),
        (lambda: gaussian.change_of_variable(np.zeros(2), np.ones((3, 1)), np.eye(2)), r"A must be \(2, K\)"),
    ],
)
def test_misuse_is_answered_with_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
