"""Source B: C. Kitowski, review of "Denoising Diffusion Probabilistic Models" (Ho, Jain & Abbeel, 2020)."""

import itertools
import math

import numpy as np
import pytest

from tinydiff.diffusion import Diffusion, Schedule, gaussian
from tinydiff.diffusion.decoder import bin_log_prob
from tinydiff.random import Generator

S = Schedule.linear(40, 0.005, 0.4)
LN2 = math.log(2)


def test_b_3_1_1_eq_3_to_4_two_steps_are_one_with_the_product(rng, agrees):
    d, x, t = Diffusion(S), np.full((40000, 1), 0.8), 20
    both = S.alpha[t] * S.alpha[t - 1]
    after = d.q_step(d.q_step(x, t - 1, rng.standard_normal(x.shape)), t, rng.standard_normal(x.shape))
    agrees(after, math.sqrt(both) * 0.8)
    agrees((after - math.sqrt(both) * 0.8) ** 2, 1 - both)
    variances = S.alpha[t] * (1 - S.alpha[t - 1]) + (1 - S.alpha[t])  # sigma_X^2 + sigma_Y^2
    assert variances == pytest.approx(1 - both)
    assert S.respaced([t - 2, t, S.T]).beta[2] == pytest.approx(1 - both)  # tinydiff's step over two


def test_b_3_1_1_eq_7_to_8_closed_form(rng):
    x0, eps = rng.standard_normal((2, 3, 4))
    for t in (1, 20, 40):
        alpha_bar = math.prod(1 - S.beta[1 : t + 1])
        xt = Diffusion(S).q_sample(x0, t, eps)
        np.testing.assert_allclose(xt, math.sqrt(alpha_bar) * x0 + math.sqrt(1 - alpha_bar) * eps, rtol=1e-12)
        density = gaussian.log_prob(xt, math.sqrt(alpha_bar) * x0, variance=1 - alpha_bar)
        white = gaussian.log_prob(eps, np.zeros(4), variance=1.0)
        np.testing.assert_allclose(density, white - 2 * math.log(1 - alpha_bar), rtol=1e-9)


class Discrete:
    """A chain x_0, ..., x_3 over three states with forward steps q and arbitrary reverse steps p: sums for integrals."""

    T, K = 3, 3

    def __init__(self, rng):
        self.forward = rng.dirichlet(np.ones(self.K), (self.T, self.K))  # [t - 1, x_{t-1}, x_t]
        self.prior = rng.dirichlet(np.ones(self.K))
        self.backward = rng.dirichlet(np.ones(self.K), (self.T, self.K))  # [t - 1, x_t, x_{t-1}]

    def paths(self, x0):
        """For every (x_1, ..., x_T): q(x_{1:T} | x_0) and p(x_{0:T})."""
        for rest in itertools.product(range(self.K), repeat=self.T):
            x = (x0, *rest)
            steps = range(1, self.T + 1)
            q = math.prod(self.forward[t - 1, x[t - 1], x[t]] for t in steps)
            yield q, self.prior[x[-1]] * math.prod(self.backward[t - 1, x[t], x[t - 1]] for t in steps)

    def terms(self, x0):
        """E_q of L_T, of each L_{t-1}, t = T..2, and of L_0."""
        q = [np.eye(self.K)[x0]]  # q(x_t | x_0)
        for step in self.forward:
            q.append(q[-1] @ step)
        terms = [np.sum(q[-1] * np.log(q[-1] / self.prior))]
        for t in range(self.T, 1, -1):
            joint = q[t - 1][:, None] * self.forward[t - 1]
            posterior = joint / q[t]  # q(x_{t-1} | x_t, x_0), by columns
            terms.append(np.sum(joint * np.log(posterior / self.backward[t - 1].T)))
        return [*terms, -np.sum(q[1] * np.log(self.backward[0, :, x0]))]


def test_b_3_1_2_bound_and_its_terms_on_a_discrete_chain(rng):
    chain = Discrete(rng)
    p_total = 0.0
    for x0 in range(3):
        q, p = np.array(list(chain.paths(x0))).T
        bound = np.sum(q * np.log(q / p))
        p_total += p.sum()
        assert sum(chain.terms(x0)) == pytest.approx(bound)  # L = L_T + sum of L_{t-1} + L_0
        posterior = p / p.sum()
        assert bound + math.log(p.sum()) == pytest.approx(np.sum(q * np.log(q / posterior)))  # the gap is a KL
        assert bound > -math.log(p.sum())
    assert p_total == pytest.approx(1)


def test_b_3_1_2_bound_is_the_log_ratio_of_the_joints(agrees):
    """vlb's terms add up to E_q[log q(x_{1:T} | x_0) - log p(x_{0:T})], taken here along whole sampled chains."""
    s = Schedule.linear(6, 0.1, 0.9)
    d, slope, n = Diffusion(s, clip_x0=False), 0.7, 20000
    x0, rng = np.full((n, 1), 31 / 127.5 - 1), np.random.default_rng(1)

    def model(x, t, labels=None):
        return slope * x

    x, log_ratio = x0, np.zeros(n)
    for t in range(1, 7):
        before, x = x, d.q_step(x, t, rng.standard_normal((n, 1)))
        log_ratio += gaussian.log_prob(x, np.sqrt(s.alpha[t]) * before, variance=s.beta[t])
        mean, log_variance, _ = d.reverse(slope * x, x, t)
        if t > 1:
            log_ratio -= gaussian.log_prob(before, mean, variance=np.exp(log_variance))
        else:
            log_ratio -= bin_log_prob(mean, np.full(mean.shape, log_variance), x0).data[:, 0]
    log_ratio -= gaussian.log_prob(x, [0.0], variance=1.0)
    total = d.vlb(model, x0, Generator(2)).total
    agrees(log_ratio / LN2 - total, 0)  # two independent estimates of one expectation


def test_b_posterior_is_bayes_rule(rng):
    """q(x_{t-1} | x_t, x_0) = q(x_t | x_{t-1}) q(x_{t-1} | x_0) / q(x_t | x_0), as densities."""
    x0, x, xt = rng.standard_normal((3, 7, 2))
    for t in (2, 17, 40):
        mean, variance = Diffusion(S).q_posterior(x0, xt, t)
        bayes = (
            gaussian.log_prob(xt, np.sqrt(S.alpha[t]) * x, variance=S.beta[t])
            + gaussian.log_prob(x, np.sqrt(S.alpha_bar[t - 1]) * x0, variance=1 - S.alpha_bar[t - 1])
            - gaussian.log_prob(xt, np.sqrt(S.alpha_bar[t]) * x0, variance=1 - S.alpha_bar[t])
        )
        np.testing.assert_allclose(gaussian.log_prob(x, mean, variance=variance), bayes, rtol=1e-7)
        assert variance == pytest.approx((1 - S.alpha_bar[t - 1]) / (1 - S.alpha_bar[t]) * S.beta[t])


def test_b_posterior_mean_in_terms_of_eps_line_by_line(rng):
    x0, eps = rng.standard_normal((2, 5, 2))
    d = Diffusion(S)
    for t in (2, 17, 40):
        a, ab, ab1, beta = S.alpha[t], S.alpha_bar[t], S.alpha_bar[t - 1], S.beta[t]
        xt = d.q_sample(x0, t, eps)
        x0_again = (xt - np.sqrt(1 - ab) * eps) / np.sqrt(ab)
        np.testing.assert_allclose(d.predict_x0(eps, xt, t), x0_again, rtol=1e-12)
        lines = [
            np.sqrt(a) * (1 - ab1) / (1 - ab) * xt + np.sqrt(ab1) * beta / (1 - ab) * x0,
            np.sqrt(a) * (1 - ab1) / (1 - ab) * xt + np.sqrt(ab1) * beta / (1 - ab) * x0_again,
            np.sqrt(a) * (1 - ab1) / (1 - ab) * xt + beta / (np.sqrt(a) * (1 - ab)) * (xt - np.sqrt(1 - ab) * eps),
            (a - ab + 1 - a) / (np.sqrt(a) * (1 - ab)) * xt - (1 - a) / np.sqrt(a) / np.sqrt(1 - ab) * eps,
            (xt - (1 - a) / np.sqrt(1 - ab) * eps) / np.sqrt(a),
        ]
        for line in (*lines, d.q_posterior_from_eps(eps, xt, t)[0]):
            np.testing.assert_allclose(line, d.q_posterior(x0, xt, t)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_b_l_t_is_the_weighted_eps_error(variance, rng):
    """With weight beta_t^2 / (2 sigma_t^2 alpha_t (1 - alpha_bar_t)), plus a constant unless sigma_t^2 is the
    posterior's variance; and the weighted error of the means is the weighted error of eps."""
    d, n, D = Diffusion(S, variance=variance, clip_x0=False), 4, 3
    x0, direction = rng.uniform(-0.9, 0.9, (n, D)), rng.standard_normal(D)
    bound = d.vlb(lambda x, t: 0.3 * x + direction, x0, Generator(5))
    g = Generator(5)
    for t in range(1, S.T + 1):
        eps = g.normal((n, D), np.float64)
        if t == 1:
            continue
        a, ab = S.alpha[t], S.alpha_bar[t]
        posterior = (1 - S.alpha_bar[t - 1]) / (1 - ab) * S.beta[t]
        sigma2 = S.beta[t] if variance == "beta" else posterior
        xt = d.q_sample(x0, t, eps)
        predicted = 0.3 * xt + direction
        error = ((eps - predicted) ** 2).mean(1)
        weight = S.beta[t] ** 2 / (2 * sigma2 * a * (1 - ab))
        constant = (posterior / sigma2 - 1 - np.log(posterior / sigma2)) / 2
        if t == 2:
            assert (constant > 0.01) == (variance == "beta")
        np.testing.assert_allclose(bound.L_t[:, t - 1] * LN2, weight * error + constant, rtol=1e-7)
        np.testing.assert_allclose(d.eps_error_weight(t), (weight, constant), rtol=1e-7, atol=1e-14)
        means = d.q_posterior_from_eps(eps, xt, t)[0] - d.reverse(predicted, xt, t).mean
        np.testing.assert_allclose((means**2).mean(1) / (2 * sigma2), weight * error, rtol=1e-9)


def test_b_l_simple_drops_the_weight(rng):
    d, t = Diffusion(S), np.array([1, 7, 20, 40])
    x0, eps = rng.uniform(-1, 1, (4, 5)), rng.standard_normal((4, 5))
    ab = S.alpha_bar[t][:, None]

    def model(x, t, labels=None):
        np.testing.assert_allclose(x, np.sqrt(ab) * x0 + np.sqrt(1 - ab) * eps, rtol=1e-12)
        return 0.3 * x

    loss = d.loss(model, x0, None, t=t, eps=eps).item()
    assert loss == pytest.approx(np.mean((eps - 0.3 * (np.sqrt(ab) * x0 + np.sqrt(1 - ab) * eps)) ** 2))


def test_b_l_T_has_no_parameters_and_is_the_kl_to_white_noise(rng):
    x0 = rng.uniform(-1, 1, (6, 4))
    d = Diffusion(S)
    kl = gaussian.kl(np.sqrt(S.alpha_bar[-1]) * x0, None, np.zeros(4), None, variance=(1 - S.alpha_bar[-1], 1.0))
    for model in (lambda x, t: 0 * x, lambda x, t: x):
        np.testing.assert_allclose(d.vlb(model, x0, Generator(0), t=[1]).L_T, kl / 4 / LN2, rtol=1e-9)


@pytest.mark.parametrize("sigma", [1e-3, 0.05, 3.0])
def test_b_13_probabilities_of_the_256_levels_sum_to_1(sigma, rng):
    levels = np.arange(256) / 127.5 - 1
    mean = rng.uniform(-1.5, 1.5, (20, 1))
    log_p = bin_log_prob(mean + 0 * levels, np.full((20, 256), 2 * math.log(sigma)), np.tile(levels, (20, 1))).data
    np.testing.assert_allclose(np.exp(log_p).sum(1), 1, rtol=1e-12)
    phi = np.vectorize(lambda z: math.erfc(-z / math.sqrt(2)) / 2)
    upper = np.append(phi((levels[:-1] + 1 / 255 - mean) / sigma), np.ones((20, 1)), 1)
    lower = np.append(np.zeros((20, 1)), phi((levels[1:] - 1 / 255 - mean) / sigma), 1)
    np.testing.assert_allclose(np.exp(log_p), upper - lower, atol=1e-12)


def test_b_13_is_the_first_column_of_the_bound(rng):
    d = Diffusion(S, clip_x0=False)
    x0 = rng.integers(0, 256, (5, 3)) / 127.5 - 1
    x1 = d.q_sample(x0, 1, Generator(4).normal((5, 3), np.float64))
    mean, log_variance, _ = d.reverse(0.5 * x1, x1, 1)
    expected = -bin_log_prob(mean, np.full((5, 3), log_variance), x0).data.mean(1) / LN2
    bound = d.vlb(lambda x, t: 0.5 * x, x0, Generator(4), t=[1])
    np.testing.assert_allclose(bound.L_0, expected, rtol=1e-9)
    assert float(np.exp(log_variance)) == pytest.approx(S.posterior_variance[2])
