"""Source E: "Assignment 1: Normalizing Flows & Diffusion Models", Deep Generative Models course (2024)."""

import math

import numpy as np
import pytest

from tinydiff.diffusion import Diffusion, Schedule, gaussian
from tinydiff.random import Generator

S = Schedule.linear(50, 0.002, 0.4)


def test_e_1_1_a_product_of_two_gaussians(rng, covariance):
    m1, m2, C1, C2 = *rng.standard_normal((2, 4)), covariance(4), covariance(4)
    mean, cov = gaussian.product(m1, C1, m2, C2)
    P1, P2 = np.linalg.inv(C1), np.linalg.inv(C2)
    np.testing.assert_allclose(np.linalg.inv(cov), P1 + P2, rtol=1e-7)
    np.testing.assert_allclose(mean, np.linalg.solve(P1 + P2, P1 @ m1 + P2 @ m2), rtol=1e-7)
    x = rng.standard_normal((50, 4))
    rest = gaussian.log_prob(x, m1, C1) + gaussian.log_prob(x, m2, C2) - gaussian.log_prob(x, mean, cov)
    np.testing.assert_allclose(rest, gaussian.log_prob(m1, m2, C1 + C2), rtol=1e-8)


def test_e_1_1_b_change_of_variable(rng, covariance):
    A, B, x = rng.standard_normal((5, 3)), covariance(5), rng.standard_normal(5)
    mean, cov = gaussian.change_of_variable(x, A, B)
    P = np.linalg.inv(B)
    np.testing.assert_allclose(np.linalg.inv(cov), A.T @ P @ A, rtol=1e-7)
    np.testing.assert_allclose(mean, np.linalg.solve(A.T @ P @ A, A.T @ P @ x), rtol=1e-7)
    y = rng.standard_normal((50, 3))
    rest = gaussian.log_prob(x, y @ A.T, B) - gaussian.log_prob(y, mean, cov)
    np.testing.assert_allclose(rest, rest[0], rtol=1e-8, atol=1e-8)
    with pytest.raises(ValueError, match="full column rank"):
        gaussian.change_of_variable(x, A @ np.diag([1.0, 1.0, 0.0]), B)


def test_e_1_1_c_posterior_is_proportional_to_step_times_closed_form(rng):
    x, zt = rng.standard_normal((2, 1, 2))
    z = rng.standard_normal((60, 2))
    for t in (2, 25, 50):
        mean, variance = Diffusion(S).q_posterior(x, zt, t)
        product = gaussian.log_prob(zt, np.sqrt(1 - S.beta[t]) * z, variance=S.beta[t]) + gaussian.log_prob(
            z, np.sqrt(S.alpha_bar[t - 1]) * x, variance=S.one_minus_alpha_bar[t - 1]
        )
        rest = product - gaussian.log_prob(z, mean, variance=variance)
        np.testing.assert_allclose(rest, rest[0], rtol=1e-7, atol=1e-7)
        evidence = gaussian.log_prob(zt, np.sqrt(S.alpha_bar[t]) * x, variance=S.one_minus_alpha_bar[t])
        np.testing.assert_allclose(rest, evidence[0], rtol=1e-7, atol=1e-7)  # q(z_t | x), the constant of Bayes' rule


def test_e_1_1_d_posterior_by_change_of_variable_and_product(rng):
    x, zt = rng.standard_normal((2, 1, 3))
    for t in (2, 25, 50):
        step = gaussian.change_of_variable(zt, np.sqrt(1 - S.beta[t]) * np.eye(3), S.beta[t] * np.eye(3))
        np.testing.assert_allclose(step[0], zt / np.sqrt(1 - S.beta[t]), rtol=1e-9)
        np.testing.assert_allclose(step[1], S.beta[t] / (1 - S.beta[t]) * np.eye(3), rtol=1e-9, atol=1e-15)
        closed = np.sqrt(S.alpha_bar[t - 1]) * x, S.one_minus_alpha_bar[t - 1] * np.eye(3)
        mean, cov = gaussian.product(*step, *closed)
        expected, variance = Diffusion(S).q_posterior(x, zt, t)
        np.testing.assert_allclose(mean, expected, rtol=1e-9)
        np.testing.assert_allclose(cov, variance * np.eye(3), rtol=1e-9, atol=1e-15)


def test_e_1_2_a_kl_of_gaussians(rng, covariance, agrees):
    m1, m2, C1, C2 = *rng.standard_normal((2, 3)), covariance(3), covariance(3)
    kl = gaussian.kl(m1, C1, m2, C2)
    x = m1 + rng.standard_normal((40000, 3)) @ np.linalg.cholesky(C1).T
    agrees(gaussian.log_prob(x, m1, C1) - gaussian.log_prob(x, m2, C2), kl)
    P = np.linalg.inv(C2)
    log_dets = math.log(np.linalg.det(C2) / np.linalg.det(C1))
    assert kl == pytest.approx((log_dets - 3 + np.trace(P @ C1) + (m2 - m1) @ P @ (m2 - m1)) / 2)


def test_e_1_2_b_kl_of_the_reverse_step_with_fixed_variance(rng):
    """The final expression is L_{t-1} of the bound."""
    n = 4
    x = rng.uniform(-0.9, 0.9, (3, n))
    for variance in ("beta", "posterior"):
        d = Diffusion(S, variance=variance, clip_x0=False)
        bound, g = d.vlb(lambda z, t: 0.4 * z, x, Generator(8)), Generator(8)
        for t in range(1, S.T + 1):
            zt = d.q_sample(x, t, g.normal(x.shape, np.float64))
            if t == 1:
                continue
            f = d.reverse(0.4 * zt, zt, t).mean
            v1, v2 = S.posterior_variance[t], S.beta[t] if variance == "beta" else S.posterior_variance[t]
            ab, before = S.alpha_bar[t], S.alpha_bar[t - 1]
            delta = (
                (1 - before) / (1 - ab) * np.sqrt(1 - S.beta[t]) * zt + S.beta[t] * np.sqrt(before) / (1 - ab) * x - f
            )
            kl = (n * math.log(v2) - n * math.log(v1) - n + v1 / v2 * n + (delta**2).sum(1) / v2) / 2
            np.testing.assert_allclose(bound.L_t[:, t - 1], kl / n / math.log(2), rtol=1e-6, atol=1e-12)


def test_e_1_2_b_diagonal_form_for_learned_variance(rng):
    n, t = 3, 30
    d = Diffusion(S, variance="learned", clip_x0=False)
    x, v = rng.uniform(-0.9, 0.9, (2, n)), np.array([-0.8, 0.1, 0.9])
    bound = d.vlb(lambda z, t: np.concatenate([0.4 * z, 0 * z + v], -1), x, Generator(8), t=[t])
    zt = d.q_sample(x, t, Generator(8, 0, 0, (t - 1) * -(-x.size // 4)).normal(x.shape, np.float64))
    f = (v + 1) / 2
    variances = S.beta[t] ** f * S.posterior_variance[t] ** (1 - f)
    mean, posterior = d.q_posterior(x, zt, t)
    model_mean = d.q_posterior_from_eps(0.4 * zt, zt, t)[0]
    kl = gaussian.kl(mean, posterior * np.eye(n), model_mean, np.diag(variances))
    np.testing.assert_allclose(bound.L_t[:, t - 1], kl / n / math.log(2), rtol=1e-7)


def test_e_1_2_c_the_posterior_is_the_target_and_the_direction_matters(rng, agrees):
    """KL(q || P) and KL(P || q) of one reverse step differ; the bound holds the first."""
    d, t, n = Diffusion(S), 20, 2
    x, zt = rng.uniform(-0.9, 0.9, (1, n)), rng.standard_normal((1, n))
    mean, v1 = d.q_posterior(x, zt, t)
    f, v2 = mean + 0.3, 2 * S.beta[t]
    forward = gaussian.kl(mean, None, f, None, variance=(v1, v2)).item()
    backward = gaussian.kl(f, None, mean, None, variance=(v2, v1)).item()
    assert backward > 1.5 * forward
    z = mean + math.sqrt(v1) * rng.standard_normal((40000, n))
    agrees(gaussian.log_prob(z, mean, variance=v1) - gaussian.log_prob(z, f, variance=v2), forward)
