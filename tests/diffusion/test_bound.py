import math
from itertools import pairwise

import numpy as np
import pytest

from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.diffusion.bound import estimate_sum, reverse_term
from tinydiff.errors import InputError
from tinydiff.random import Generator

S = Schedule.linear(60, 0.002, 0.4)
LN2 = math.log(2)


def bytes_of(x):
    return np.clip(np.rint((x + 1) * 127.5), 0, 255) / 127.5 - 1


def expected_steps(data, schedule, variance):
    """E[L_{t-1}] in bits per dimension for Gaussian data and the exact model, t = 2..T: KL of two Gaussians whose means
    differ by the posterior's weight on x0 times what is not known of x0."""
    out = []
    for t in range(2, schedule.T + 1):
        ab, before, beta = data.alpha_bar[t], data.alpha_bar[t - 1], data.betas[t - 1]
        unknown = data.s**2 * (1 - ab) / (ab * data.s**2 + 1 - ab)
        posterior = (1 - before) / (1 - ab) * beta
        sigma2 = beta if variance == "beta" else posterior
        weight = np.sqrt(before) * beta / (1 - ab)
        constant = (np.log(sigma2 / posterior) + posterior / sigma2 - 1) / 2
        out.append((constant / LN2, weight**2 * unknown / (2 * sigma2) / LN2))
    return np.array(out).T


def expected_decoder(data):
    """E[L_0] by quadrature over the error of the predicted x0, for data that stays away from the first and last
    byte."""
    ab1, ab2 = data.alpha_bar[1:3]
    unknown = data.s**2 * (1 - ab1) / (ab1 * data.s**2 + 1 - ab1)
    sigma = np.sqrt((1 - ab1) / (1 - ab2) * data.betas[1])
    z, dz = np.linspace(-9, 9, 20001, retstep=True)
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    log_p = []
    for e in np.abs(z) * np.sqrt(unknown):
        a, b = (-e - 1 / 255) / sigma, (-e + 1 / 255) / sigma
        log_p.append(math.log((math.erfc(-b / math.sqrt(2)) - math.erfc(-a / math.sqrt(2))) / 2))
    return -(density * np.array(log_p)).sum() * dz / LN2


@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_every_term_is_its_closed_form_for_gaussian_data(variance, gaussian_data):
    data = gaussian_data(S.beta[1:], m=0.1, s=0.1)
    N, D = 40, 500
    x0 = data.m + data.s * np.random.default_rng(0).standard_normal((N, D))
    bound = Diffusion(S, variance=variance, clip_x0=False).vlb(data.eps, x0, Generator(1))
    assert bound.L_T.shape == bound.L_0.shape == bound.total.shape == bound.total_se.shape == (N,)
    assert bound.L_t.shape == (N, 60) and all(bound[k].dtype == np.float64 for k in bound.keys())  # noqa: SIM118

    constant, random = expected_steps(data, S, variance)
    means, n = bound.L_t[:, 1:].mean(0), N * D
    assert np.all(np.abs(means - constant - random) < 4.5 * random * np.sqrt(2 / n) + 1e-12)

    decoder, spread = bound.L_0.mean(), bound.L_0.std() / np.sqrt(N)
    assert abs(decoder - expected_decoder(data)) < 4.5 * spread
    np.testing.assert_array_equal(bound.L_0, bound.L_t[:, 0])

    ab = data.alpha_bar[-1]
    np.testing.assert_allclose(bound.L_T, (ab * (x0**2).mean(1) - ab - np.log(1 - ab)) / (2 * LN2), rtol=1e-9)
    np.testing.assert_allclose(bound.total, bound.L_T + bound.L_t.sum(1), rtol=1e-14)
    assert np.all(bound.total_se == 0)

    exact = bound.L_T.mean() + (constant + random).sum() + expected_decoder(data)
    assert abs(bound.total.mean() - exact) < 4.5 * bound.total.std() / np.sqrt(N)


def test_prior_term_of_the_papers_schedule():
    """7.3e-6 bits per dimension where the mean square of x0 is 1/4."""
    x0 = np.full((1, 2, 2, 1), 0.5, np.float32)
    bound = Diffusion(Schedule.linear()).vlb(lambda x, t: np.zeros_like(x), x0, Generator(0), t=[1])
    assert bound.L_T[0] == pytest.approx(7.3e-6, rel=0.005)


def test_the_bound_is_above_the_entropy_of_bytes_and_close_to_it(gaussian_data):
    """Bytes drawn from a rounded Gaussian have a known entropy. The best reverse chain of many steps nearly reaches it
    with beta as variance, which is right where the data is wide compared with the noise, as at the first steps."""
    s = Schedule.linear(300, 1e-4, 0.06)
    data = gaussian_data(s.beta[1:], m=0.05, s=0.25)
    levels = (np.arange(1, 256) - 0.5) / 127.5 - 1
    cdf = np.array([0.5 * math.erfc(-(v - data.m) / data.s / math.sqrt(2)) for v in levels])
    p = np.diff(np.concatenate([[0], cdf, [1]]))
    entropy = -(p * np.log2(p)).sum()
    x0 = bytes_of(data.m + data.s * np.random.default_rng(0).standard_normal((16, 400)))
    total, worse = (Diffusion(s, variance=v).vlb(data.eps, x0, Generator(0)).total for v in ("beta", "posterior"))
    se = total.std() / 4
    assert total.mean() + 4 * se > entropy
    assert total.mean() - 4 * se < entropy + 0.3
    assert worse.mean() > entropy + 1


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
@pytest.mark.parametrize("variance", ["beta", "posterior", "learned"])
def test_random_bytes_cannot_be_stored_in_less_than_8_bits(predict, variance):
    rng = np.random.default_rng(0)
    x0 = (rng.integers(0, 256, (64, 5, 5, 3)) / 127.5 - 1).astype(np.float32)
    d = Diffusion(S, predict, variance)
    answers = [lambda x: 0 * x, np.tanh, lambda x: 0.9 * x, lambda x: np.sin(30 * x)]
    for answer in answers:

        def model(x, t, answer=answer):
            out = answer(x)
            return np.concatenate([out, np.cos(x)], axis=-1) if variance == "learned" else out

        total = d.vlb(model, x0, Generator(3)).total
        assert total.mean() + 4 * total.std() / 8 >= 8


@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_steps_are_the_weighted_error_of_the_noise(variance):
    """Source B: exactly, up to the constant that vanishes only for the posterior's variance."""
    rng = np.random.default_rng(0)
    x0, eps, guess = rng.standard_normal((3, 7, 11))
    d = Diffusion(S, variance=variance, clip_x0=False)
    for t in (2, 3, 30, 60):
        xt = d.q_sample(x0, t, eps)
        weight, constant = d.eps_error_weight(t)
        sigma2 = S.beta[t] if variance == "beta" else S.posterior_variance[t]
        assert weight == pytest.approx(S.beta[t] ** 2 / (2 * sigma2 * S.alpha[t] * (1 - S.alpha_bar[t])), rel=1e-10)
        assert (constant == 0) == (variance == "posterior")
        expected = (weight * (eps - guess) ** 2 + constant).mean(1) / LN2
        np.testing.assert_allclose(reverse_term(d, guess, x0, xt, t), expected, rtol=1e-10)
    with pytest.raises(ValueError, match="learned"):
        Diffusion(S, variance="learned").eps_error_weight(3)


def test_terms_by_the_general_kl(gaussian_data):
    """L_{t-1} with learned variance against the formula for diagonal Gaussians, straight from means and variances."""
    rng = np.random.default_rng(0)
    x0, eps, guess, v = rng.standard_normal((4, 3, 5))
    d = Diffusion(S, variance="learned", clip_x0=False)
    for t in (2, 17, 60):
        xt = d.q_sample(x0, t, eps)
        output = np.concatenate([guess, v], axis=-1)
        mean, log_variance, _ = d.reverse(output, xt, t)
        q_mean, q_var = d.q_posterior(x0, xt, t)
        kl = 0.5 * (log_variance - np.log(q_var) - 1 + (q_var + (q_mean - mean) ** 2) / np.exp(log_variance))
        np.testing.assert_allclose(reverse_term(d, output, x0, xt, t), kl.mean(1) / LN2, rtol=1e-9)


def test_clipping_is_part_of_the_reverse_process():
    x0 = np.ones((2, 3))
    far = lambda x, t: np.full_like(x, 9.0)  # noqa: E731
    clipped = Diffusion(S, "x0").vlb(far, x0, Generator(0))
    free = Diffusion(S, "x0", clip_x0=False).vlb(far, x0, Generator(0))
    assert clipped.total.mean() < 3 < 100 < free.total.mean()


def test_a_subset_evaluates_the_same_noise_and_leaves_the_rest_nan():
    x0 = bytes_of(np.random.default_rng(0).uniform(-1, 1, (4, 3, 3, 1)).astype(np.float32)).astype(np.float32)
    model, d = (lambda x, t: 0.5 * x), Diffusion(S)
    g1, g2 = Generator(5), Generator(5)
    full, part = d.vlb(model, x0, g1), d.vlb(model, x0, g2, t=[40, 1, 7, 8, 20])
    steps = np.array([1, 7, 8, 20, 40])
    np.testing.assert_array_equal(part.L_t[:, steps - 1], full.L_t[:, steps - 1])
    assert np.isnan(np.delete(part.L_t, steps - 1, axis=1)).all()
    np.testing.assert_array_equal(part.L_0, full.L_0)
    assert np.all(np.isfinite(part.total)) and np.all(part.total_se > 0)
    assert g1.state == g2.state
    no_decoder = d.vlb(model, x0, Generator(5), t=[7, 8])
    assert np.isnan(no_decoder.L_0).all() and np.isfinite(no_decoder.total).all()
    one = d.vlb(model, x0, Generator(5), t=40)
    assert np.isfinite(one.total).all() and np.isnan(one.total_se).all()
    assert set(dict(**full)) == {"L_T", "L_t", "L_0", "total", "total_se"}


def test_noise_is_the_generators_own_sequence():
    xs = {}

    def model(x, t):
        xs[int(t[0])] = x
        return 0 * x

    x0 = np.full((3, 3, 3, 1), 0.25, np.float32)  # 27 elements: a draw ends inside a block of four
    d, used, g = Diffusion(S), Generator(5, stream=7), Generator(5, stream=7)
    d.vlb(model, x0, used)
    for t in range(1, 61):
        np.testing.assert_array_equal(xs[t], d.q_sample(x0, t, g.normal(x0.shape)))
    assert used.state == g.state


def test_the_estimate_is_exact_where_it_can_be():
    rng = np.random.default_rng(0)
    terms = rng.uniform(1, 2, (3, 20))
    total, se = estimate_sum(terms, np.arange(1, 21))
    np.testing.assert_allclose(total, terms.sum(1))
    np.testing.assert_array_equal(se, 0)
    steps = np.array([1, 4, 9, 13, 18])
    total, se = estimate_sum(np.full((1, 20), 3.0), steps)
    assert total == pytest.approx(60) and se == 0
    # two strata, 2..11 (half way between 9 and 13) and 12..20, of which two steps each are known; step 1 by itself
    total, se = estimate_sum(terms, steps)
    known = terms[:, steps - 1]
    np.testing.assert_allclose(total, known[:, 0] + 10 * known[:, 1:3].mean(1) + 9 * known[:, 3:].mean(1))
    expected = sum(n * n * (1 - 2 / n) * known[:, k : k + 2].var(1, ddof=1) / 2 for n, k in ((10, 1), (9, 3)))
    np.testing.assert_allclose(se, np.sqrt(expected))


def test_the_estimate_from_random_steps_is_unbiased_and_knows_its_error():
    """Random stratified subsets of the terms that a trained model has: steep at small t, flat beyond."""
    t = np.arange(1, 401)
    terms = (0.4 / t + 0.01 * np.exp(-t / 50))[None]
    terms[:, 0] = 1.7
    exact, rng, errors, variances = terms.sum(), np.random.default_rng(0), [], []
    for _ in range(400):
        edges = np.linspace(1, 400, 41)
        draws = np.unique([1, *(int(rng.integers(int(a), int(b))) + 1 for a, b in pairwise(edges))])
        total, se = estimate_sum(terms, draws)
        errors.append(total.item() - exact)
        variances.append(se.item() ** 2)
    error = np.mean(np.square(errors))
    assert abs(np.mean(errors)) < 0.02 * exact
    assert 0.7 * error < np.mean(variances) < 4 * error


def test_labels_and_original_steps_reach_the_model():
    calls = []

    def model(x, t, labels=None):
        calls.append((t.tolist(), labels.tolist()))
        return 0 * x

    Diffusion(S.respaced(3)).vlb(model, np.zeros((2, 2, 2, 1), np.float32), Generator(0), labels=[4, 5])
    assert calls == [([20, 20], [4, 5]), ([40, 40], [4, 5]), ([60, 60], [4, 5])]


def test_single_step_schedule():
    """With T = 1 the decoder's variance is beta_1: all there is are L_T and L_0."""
    s = Schedule.from_betas([0.999])
    bound = Diffusion(s).vlb(lambda x, t: 0 * x, np.zeros((2, 3)), Generator(0))
    assert bound.L_t.shape == (2, 1) and np.isfinite(bound.total).all()
    np.testing.assert_allclose(bound.total, bound.L_T + bound.L_0)


@pytest.mark.parametrize("t", [[0, 1], [61], [], [1.5]])
def test_wrong_steps(t):
    with pytest.raises(InputError, match=r"integers in 1\.\.60"):
        Diffusion(S).vlb(lambda x, t: 0 * x, np.zeros((2, 3)), Generator(0), t=t)
