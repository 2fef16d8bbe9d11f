"""Slips in sources B to E: what is printed fails, and what is correct holds. In the order of the README's table."""

import math

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.diffusion import Diffusion, Schedule, gaussian
from tinydiff.random import Generator

S = Schedule.linear(40, 0.005, 0.4)
T = 20  # the step at which formulas are compared


def same(a, b):
    return bool(np.allclose(a, b, rtol=1e-9, atol=1e-12))


# --- B ---


def test_b_eq_6_the_product_begins_at_alpha_1():
    """There is no alpha_0; with tinydiff's alpha_0 = 1, and with no other, the printed line is right too."""
    assert S.alpha[0] == 1
    assert same(S.alpha_bar[T], math.prod(S.alpha[1 : T + 1]))
    assert not same(S.alpha_bar[T], (1 - S.beta[1]) * math.prod(S.alpha[1 : T + 1]))


def test_b_bound_holds_in_expectation_only():
    """x_0 and x_1 of two states: q(x_1 | x_0) = (1/2, 1/2), p(x_0, x_1) for the given x_0 = (0.4, 0.1)."""
    q, p = np.array([0.5, 0.5]), np.array([0.4, 0.1])
    pointwise = np.log(q / p)
    assert pointwise[0] < -math.log(p.sum()) < pointwise[1]  # printed: below both
    assert q @ pointwise > -math.log(p.sum())


def test_b_L_0_is_minus_log_p():
    bound = Diffusion(S).vlb(lambda x, t: x, np.zeros((2, 3)) + 1 / 255, Generator(0))
    assert np.all(bound.L_0 > 0)  # of a probability; log p would be negative
    assert same(bound.total, bound.L_T + bound.L_t[:, 1:].sum(1) + bound.L_0)
    assert not same(bound.total, bound.L_T + bound.L_t[:, 1:].sum(1) - bound.L_0)


def test_b_first_posterior_mean_has_alpha_t(rng):
    x0, xt = rng.standard_normal((2, 1, 3))
    mean, _ = Diffusion(S).q_posterior(x0, xt, T)
    a, ab, before, beta = S.alpha[T], S.alpha_bar[T], S.alpha_bar[T - 1], S.beta[T]
    of_x0 = np.sqrt(before) * beta / (1 - ab) * x0
    assert same(mean, of_x0 + np.sqrt(a) * (1 - before) / (1 - ab) * xt)
    assert not same(mean, of_x0 + np.sqrt(ab) * (1 - before) / (1 - ab) * xt)


def test_b_break_up_is_under_the_root():
    assert same(np.sqrt(S.alpha_bar[T]), np.sqrt(S.alpha_bar[T - 1] * S.alpha[T]))
    assert not same(np.sqrt(S.alpha_bar[T]), np.sqrt(S.alpha_bar[T - 1]) * S.alpha[T])


def test_b_L_t_has_a_constant_and_variance_sigma_squared(rng):
    d = Diffusion(S, variance="beta", clip_x0=False)
    x0 = rng.uniform(-0.9, 0.9, (1, 4))
    eps = Generator(1, 0, 0, T - 1).normal(x0.shape, np.float64)  # vlb's noise of step T: 4 numbers are a block
    kl = d.vlb(lambda x, t: 0 * x, x0, Generator(1), t=[T]).L_t[0, T - 1] * math.log(2)
    weight, constant = d.eps_error_weight(T)
    assert same(kl, weight * np.mean(eps**2) + constant) and not same(kl, weight * np.mean(eps**2))
    exact = Diffusion(S, variance="posterior", clip_x0=False)
    kl = exact.vlb(lambda x, t: 0 * x, x0, Generator(1), t=[T]).L_t[0, T - 1] * math.log(2)
    assert same(kl, exact.eps_error_weight(T)[0] * np.mean(eps**2))  # sigma_t^2 is not always beta_t
    assert not same(kl, weight * np.mean(eps**2) + constant)


def test_b_L_simple_shows_the_model_x_t(rng):
    x0, eps = rng.uniform(-1, 1, (2, 3)), rng.standard_normal((2, 3))
    seen = []
    Diffusion(S).loss(lambda x, t: seen.append(x) or 0 * x, x0, None, t=T, eps=eps)
    assert same(seen[0], np.sqrt(S.alpha_bar[T]) * x0 + np.sqrt(1 - S.alpha_bar[T]) * eps)
    assert not same(seen[0], np.sqrt(S.alpha[T]) * x0 + np.sqrt(1 - S.alpha_bar[T]) * eps)


# --- C ---


def test_c_20_1_nothing_shrinks_that_is_there_already():
    zeros = Diffusion(S).q_step(np.zeros((1, 3)), T, np.zeros((1, 3)))
    assert np.linalg.norm(zeros) == 0  # not strictly smaller than the norm of a mean of 0
    assert same((1 - S.beta[T]) * np.eye(3) + S.beta[T] * np.eye(3), np.eye(3))  # nor is I nearer to I


def test_c_20_2_the_density_has_a_determinant(rng):
    x = rng.standard_normal(3)
    density = np.exp(gaussian.log_prob(x, np.zeros(3), np.eye(3)))
    assert same(density, np.exp(-x @ x / 2) / np.sqrt((2 * np.pi) ** 3 * np.linalg.det(np.eye(3))))
    assert np.shape((2 * np.pi) ** 3 * np.eye(3)) == (3, 3)  # printed: a matrix under the root


@pytest.mark.filterwarnings("ignore:alpha_bar_T is")
def test_c_20_4_alpha_bar_tends_to_0_only_if_the_betas_add_up_to_infinity():
    halves = Schedule.from_betas(0.5 ** np.arange(1, 54))  # each in (0, 1), their sum is 1
    assert halves.alpha_bar[-1] == pytest.approx(0.2887880950866)
    slow = Schedule.from_betas(1 / np.arange(2.0, 2002))  # the sum is infinite: alpha_bar_T = 1 / (T + 1)
    assert slow.alpha_bar[-1] == pytest.approx(1 / 2001)


# --- D ---


def test_d_bars_are_lost(rng):
    a, ab, before, beta = S.alpha[T], S.alpha_bar[T], S.alpha_bar[T - 1], S.beta[T]
    x0, eps = rng.standard_normal((2, 1, 3))
    d = Diffusion(S)
    xt = d.q_sample(x0, T, eps)
    assert same(xt, np.sqrt(ab) * x0 + np.sqrt(1 - ab) * eps) and not same(xt, np.sqrt(a) * x0 + np.sqrt(1 - a) * eps)
    mean, variance = d.q_posterior_from_eps(eps, xt, T)
    assert same(variance, (1 - before) / (1 - ab) * beta)
    assert not same(variance, (1 - S.alpha[T - 1]) / (1 - a) * beta)
    assert same(mean, (xt - (1 - a) / np.sqrt(1 - ab) * eps) / np.sqrt(a))
    assert not same(mean, (xt - (1 - a) / np.sqrt(1 - a) * eps) / np.sqrt(a))


def test_d_beta_is_a_variance(rng, agrees):
    noise = Diffusion(S).q_step(np.zeros((40000, 1)), T, rng.standard_normal((40000, 1)))
    agrees(noise**2, S.beta[T])  # beta_t is sigma^2, not sigma
    assert abs(np.mean(noise**2) - S.beta[T] ** 2) > S.beta[T] / 2


def test_d_weights_stand_on_the_right_in_tinydiff(rng):
    X, W = rng.standard_normal((5, 3)), rng.standard_normal((3, 2))
    assert same(ops.linear(X, W).data, X @ W)
    with pytest.raises(ValueError):
        ops.linear(X, W.T)


# --- E ---


def test_e_1_1_d_the_step_as_a_function_of_the_earlier_point(rng):
    """N(z_{t-1}; z_t / sqrt(1 - beta), beta / (1 - beta) I) is q(z_t | z_{t-1}), not q(z_{t-1} | z_t), which depends
    on the data."""
    beta = S.beta[T]
    zt, z = rng.standard_normal((1, 1)), rng.standard_normal((20, 1))
    step = gaussian.log_prob(zt, np.sqrt(1 - beta) * z, variance=beta)
    mean, cov = gaussian.change_of_variable(zt, np.sqrt(1 - beta) * np.eye(1), variance=beta)
    rest = step - gaussian.log_prob(z, mean, cov)
    assert same(rest, rest[0])
    for variance in (0.1, 4.0):  # x_0 ~ N(0, variance): Bayes' rule gives the reverse step, another one for each
        before = S.alpha_bar[T - 1] * variance + 1 - S.alpha_bar[T - 1]
        rest = step + gaussian.log_prob(z, [0.0], variance=before) - gaussian.log_prob(z, mean, cov)
        assert not same(rest, rest[0])


def test_e_1_1_d_sign_in_the_precision():
    beta, before = S.beta[T], S.alpha_bar[T - 1]
    assert same((1 - beta) * (1 - before) + beta, 1 - before - beta + beta * before + beta)
    assert not same((1 - beta) * (1 - before) + beta, 1 - before - beta - beta * before + beta)
    assert same(1 - before * (1 - beta), 1 - S.alpha_bar[T])


def test_e_1_2_a_intermediate_lines(rng, covariance, agrees):
    m1, m2, C1, C2 = *rng.standard_normal((2, 2)), covariance(2), covariance(2)
    x = m1 + rng.standard_normal((40000, 2)) @ np.linalg.cholesky(C1).T
    P1, P2 = np.linalg.inv(C1), np.linalg.inv(C2)
    log_det = math.log(np.linalg.det(C2) / np.linalg.det(C1))
    square1, square2 = (((x - m) @ P * (x - m)).sum(1) for m, P in ((m1, P1), (m2, P2)))
    ratio = gaussian.log_prob(x, m1, C1) - gaussian.log_prob(x, m2, C2)
    assert same(ratio, (log_det - square1 + square2) / 2)
    assert not same(ratio, (log_det - square1 / 2 + square2 / 2) / 2)  # printed: 1/2 twice
    assert not same(ratio, log_det - square1 + square2)  # printed: and then not at all
    d = x[:, :, None] - m2[:, None]
    outer = d @ d.swapaxes(1, 2)
    assert same(np.trace(P2 @ outer, axis1=1, axis2=2), square2)
    inner = (d.swapaxes(1, 2) @ d)[:, 0, 0]
    assert not same(np.trace(P2) * inner, square2)  # printed: tr[C^-1 (x - m)^T (x - m)]
    second = x[:, :, None] * x[:, None]
    agrees(second, np.outer(m1, m1) + C1)
    assert not same(np.outer(m1, m1) + np.trace(C1), np.outer(m1, m1) + C1)
    kl, gap = gaussian.kl(m1, C1, m2, C2), m2 - m1
    assert same(kl, (log_det - 2 + np.trace(P2 @ C1) + gap @ P2 @ gap) / 2)
    moments = np.trace((P2 - P1) @ (np.outer(m1, m1) + C1)) + 2 * m1 @ (P1 @ m1 - P2 @ m2)
    assert same(2 * kl, log_det + moments - m1 @ P1 @ m1 + m2 @ P2 @ m2)
    assert not same(2 * kl, log_det + moments - (m1 @ P1 @ m1 + m2 @ P2 @ m2))  # printed: a bracket too many
    assert not same(kl, (log_det - 2 + np.trace(P2 @ C1) + gap @ C2 @ gap) / 2)  # printed before the final formula


def test_e_1_2_b_the_first_line_is_the_other_direction(rng, covariance):
    m1, m2, C1, C2 = *rng.standard_normal((2, 3)), covariance(3), covariance(3)
    P, gap = np.linalg.inv(C1), m1 - m2
    log_det = math.log(np.linalg.det(C1) / np.linalg.det(C2))
    printed = (log_det - 3 + np.trace(P @ C2) + gap @ P @ gap) / 2
    assert printed == pytest.approx(gaussian.kl(m2, C2, m1, C1)) != pytest.approx(gaussian.kl(m1, C1, m2, C2))


def test_notation_alpha_of_c_and_e_is_the_product():
    """C and E: alpha_t = alpha_{t-1} (1 - beta_t). That is alpha_bar here."""
    assert same(S.alpha_bar[1:], S.alpha_bar[:-1] * (1 - S.beta[1:]))
    assert same(S.alpha, 1 - S.beta) and not same(S.alpha[2:], S.alpha_bar[2:])
