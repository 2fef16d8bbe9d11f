"""Source C: D. M. Konopatzki, solutions to Bishop & Bishop, "Deep Learning: Foundations and Concepts", chapter 20."""

import math

import numpy as np
import pytest

from tinydiff.diffusion import Diffusion, Schedule, gaussian

S = Schedule.linear()


def step(mean, cov, t):
    """Mean and covariance after one forward step, from the step's action on points (it is affine) and its noise."""
    d, D = Diffusion(S), len(mean)
    A = d.q_step(np.eye(D), t, np.zeros((D, D))).T
    B = d.q_step(np.zeros((D, D)), t, np.eye(D)).T
    return A @ mean, A @ cov @ A.T + B @ B.T


def test_c_20_1_a_step_shrinks_the_mean_and_moves_the_covariance_towards_the_identity(rng, covariance):
    mean, cov = rng.standard_normal(3), covariance(3)
    for t in (1, 500, 1000):
        after, moved = step(mean, cov, t)
        assert np.linalg.norm(after) == pytest.approx(math.sqrt(1 - S.beta[t]) * np.linalg.norm(mean))
        np.testing.assert_allclose(moved - np.eye(3), (1 - S.beta[t]) * (cov - np.eye(3)), rtol=1e-9, atol=1e-12)


def test_c_20_2_density_of_the_first_step_by_change_of_variables(rng):
    x, z = rng.standard_normal((2, 5, 4))
    beta = S.beta[1]
    eps = (z - math.sqrt(1 - beta) * x) / math.sqrt(beta)
    density = gaussian.log_prob(z, math.sqrt(1 - beta) * x, variance=beta)
    np.testing.assert_allclose(density, gaussian.log_prob(eps, np.zeros(4), np.eye(4)) - 2 * math.log(beta), rtol=1e-12)
    np.testing.assert_allclose(Diffusion(S).q_step(x, 1, eps), z, rtol=1e-12)


def test_c_20_3_density_of_an_affine_image(rng, covariance):
    """a X + b ~ N(a mu + b, a^2 C)."""
    C, mu, b, y = covariance(3), *rng.standard_normal((3, 3))
    for a in (0.3, -2.0):
        expected = gaussian.log_prob((y - b) / a, mu, C) - 3 * math.log(abs(a))
        assert gaussian.log_prob(y, a * mu + b, a * a * C) == pytest.approx(expected)


def test_c_20_3_density_of_step_t_by_change_of_variables(rng):
    x, z = rng.standard_normal((2, 5, 4))
    for t in (1, 100, 1000):
        ab = math.prod(1 - S.beta[1 : t + 1])
        noise = gaussian.log_prob(z - math.sqrt(ab) * x, np.zeros(4), (1 - ab) * np.eye(4))
        eps = (z - math.sqrt(ab) * x) / math.sqrt(1 - ab)
        np.testing.assert_allclose(Diffusion(S).q_sample(x, t, eps), z, rtol=1e-9)
        np.testing.assert_allclose(gaussian.log_prob(z, np.sqrt(S.alpha_bar[t]) * x, variance=1 - ab), noise, rtol=1e-9)


def test_c_20_3_induction_step():
    for t in (1, 500, 999):
        variance = (1 - S.beta[t + 1]) * S.one_minus_alpha_bar[t] + S.beta[t + 1]
        assert variance == pytest.approx(1 - S.alpha_bar[t + 1], rel=1e-12)
        assert S.alpha_bar[t + 1] == pytest.approx((1 - S.beta[t + 1]) * S.alpha_bar[t])


def test_c_20_4_x_T_tends_to_white_noise(rng):
    assert S.alpha_bar[-1] == pytest.approx(4.036e-5, rel=1e-3)
    x = rng.uniform(-1, 1, (5, 4))
    kl = [
        gaussian.kl(
            np.sqrt(S.alpha_bar[t]) * x, None, np.zeros(4), None, variance=(S.one_minus_alpha_bar[t], 1.0)
        ).max()
        for t in range(100, 1001, 100)
    ]
    assert np.all(np.diff(kl) < 0) and kl[-1] < 1e-4


def test_c_20_5_covariance_of_independent_sums(rng, covariance, agrees):
    C, E = covariance(2), covariance(2)
    a, b = (rng.standard_normal((40000, 2)) @ np.linalg.cholesky(M).T for M in (C, E))
    agrees((a + b)[:, :, None] * (a + b)[:, None, :], C + E)
    agrees((3 * a)[:, :, None] * (3 * a)[:, None, :], 9 * C)


def test_c_20_6_unit_variance_stays(rng, agrees):
    x = rng.choice([-1.0, 1.0], (40000, 2))  # mean 0, covariance I, and not Gaussian
    for t in (1, 300, 1000):
        z = Diffusion(S).q_sample(x, t, rng.standard_normal(x.shape))
        agrees(z, 0)
        agrees(z[:, :, None] * z[:, None, :], np.eye(2))
    np.testing.assert_allclose(step(np.zeros(2), np.eye(2), 700)[1], np.eye(2), atol=1e-12)


def test_c_20_8_log_p_is_the_lower_bound_plus_a_kl(rng):
    """ln p(x) = L(w) + KL(q || p(z | x)), for a discrete latent and any q."""
    joint = rng.dirichlet(np.ones(12)).reshape(3, 4)  # p(x, z)
    for x in range(3):
        q, p_x = rng.dirichlet(np.ones(4)), joint[x].sum()
        lower = np.sum(q * np.log(joint[x] / q))
        assert lower + np.sum(q * np.log(q / (joint[x] / p_x))) == pytest.approx(math.log(p_x), abs=1e-14)
        assert lower < math.log(p_x)


def test_c_20_8_for_gaussians(rng, covariance):
    """The same with x = z + noise: p(z | x) is a product of Gaussians, p(x) its factor of proportion."""
    C, N, m, x, mq, Q = (
        covariance(3),
        covariance(3),
        *rng.standard_normal((2, 3)),
        rng.standard_normal(3),
        covariance(3),
    )
    posterior = gaussian.product(x, N, m, C)
    log_p = gaussian.log_prob(x, m, C + N)
    # E_q of ln p(x | z) + ln p(z) - ln q(z); -E_q ln N(z; a, A) = H(q) + KL(q || N(a, A))
    lower = -(gaussian.entropy(Q) + gaussian.kl(mq, Q, x, N)) - gaussian.kl(mq, Q, m, C)
    assert lower + gaussian.kl(mq, Q, *posterior) == pytest.approx(log_p)
