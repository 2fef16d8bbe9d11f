from fractions import Fraction

import numpy as np
import pytest

from tinydiff.diffusion import Schedule
from tinydiff.errors import InputError

SCHEDULES = [
    Schedule.linear(),
    Schedule.cosine(),
    Schedule.sigmoid(),
    Schedule.linear(60, 0.002, 0.4),
    Schedule.from_betas([0.999]),
    Schedule.from_betas([0.5, 0.99]),
    Schedule.linear().respaced(10),
    Schedule.linear().zero_terminal_snr(),
]


def test_linear_is_the_papers():
    s = Schedule.linear()
    assert s.T == 1000 and s.beta[0] == 0 and s.alpha[0] == 1 and s.alpha_bar[0] == 1
    np.testing.assert_array_equal(s.beta[1:], np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(s.alpha_bar[1:], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), rtol=1e-12)
    assert s.alpha_bar[-1] == pytest.approx(4.0358e-5, rel=1e-4)


def test_cosine_follows_its_formula_until_the_cap():
    T, s = 200, Schedule.cosine(200)
    f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(s.alpha_bar[:-1], (f / f[0])[:-1], rtol=1e-10)
    assert s.beta[-1] == 0.999 and s.beta.max() == 0.999


def test_sigmoid_follows_its_formula_until_the_cap():
    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    start, end, tau, T = -3.0, 5.0, 0.7, 100
    s = Schedule.sigmoid(T, start, end, tau)
    level = sigmoid((np.arange(T + 1) / T * (end - start) + start) / tau)
    expected = (sigmoid(end / tau) - level) / (sigmoid(end / tau) - sigmoid(start / tau))
    np.testing.assert_allclose(s.alpha_bar[:-1], expected[:-1], rtol=1e-10)
    assert s.beta[-1] == 0.999


@pytest.mark.parametrize("s", SCHEDULES, ids=repr)
def test_arrays_agree_with_each_other(s):
    T = s.T
    arrays = (s.beta, s.alpha, s.alpha_bar, s.log_alpha_bar, s.one_minus_alpha_bar, s.posterior_variance)
    assert all(a.shape == (T + 1,) and a.dtype == np.float64 for a in (*arrays, s.log_posterior_variance, s.log_snr))
    assert s.timesteps.shape == (T + 1,) and s.timesteps.dtype == np.int64 and s.timesteps[0] == 0
    np.testing.assert_allclose(s.alpha, 1 - s.beta, atol=1e-16)
    np.testing.assert_allclose(s.alpha_bar, np.cumprod(s.alpha), rtol=1e-12, atol=1e-30)
    np.testing.assert_allclose(s.one_minus_alpha_bar, 1 - s.alpha_bar, atol=1e-14)
    assert np.all(np.diff(s.alpha_bar) < 0)
    before, after = s.one_minus_alpha_bar[:-1], s.one_minus_alpha_bar[1:]
    np.testing.assert_allclose(s.posterior_variance[1:], before / after * s.beta[1:], rtol=1e-14)
    assert s.posterior_variance[0] == 0 and s.posterior_variance[1] == 0
    assert np.all(s.posterior_variance[2:] > 0) and np.all(s.posterior_variance <= s.beta)
    np.testing.assert_allclose(np.exp(s.log_posterior_variance[2:]), s.posterior_variance[2:], rtol=1e-12)
    assert s.log_posterior_variance[1] == (s.log_posterior_variance[2] if T > 1 else np.log(s.beta[1]))
    np.testing.assert_allclose(np.exp(s.log_snr[1:]), s.alpha_bar[1:] / s.one_minus_alpha_bar[1:], rtol=1e-10)


def test_one_minus_alpha_bar_is_exact_where_alpha_bar_is_close_to_one():
    betas = [1e-9, 3e-9, 1e-8, 0.999, 0.9]
    s = Schedule.from_betas(betas)
    alpha_bar = Fraction(1)
    for t, beta in enumerate(betas, start=1):
        alpha_bar *= 1 - Fraction(beta)
        assert s.one_minus_alpha_bar[t] == pytest.approx(float(1 - alpha_bar), rel=1e-15, abs=0)
        assert s.alpha_bar[t] == pytest.approx(float(alpha_bar), rel=1e-14)


def test_schedules_are_read_only():
    s = Schedule.linear(10, 0.1, 0.9)
    with pytest.raises(ValueError, match="read-only"):
        s.beta[3] = 0.5
    with pytest.raises(AttributeError):
        s.beta = np.ones(11)
    betas = np.full(5, 0.9)
    s = Schedule.from_betas(betas)
    betas[:] = 0.1
    assert s.beta[1] == 0.9


@pytest.mark.parametrize(
    ("T", "n", "kept"),
    [
        (10, 4, [2, 5, 8, 10]),  # 2.5 and 7.5 round to even
        (10, 3, [3, 7, 10]),
        (1000, 5, [200, 400, 600, 800, 1000]),
        (7, 1, [7]),
        (7, 7, range(1, 8)),
    ],
)
def test_respacing_keeps_evenly_spaced_steps_that_end_in_T(T, n, kept):
    s = Schedule.linear(T, 0.3, 0.9)
    r = s.respaced(n)
    assert r.timesteps.tolist() == [0, *kept]
    np.testing.assert_array_equal(r.alpha_bar, s.alpha_bar[r.timesteps])
    previous = np.append(1.0, r.alpha_bar)[: r.T + 1]
    np.testing.assert_allclose(r.beta[1:], 1 - r.alpha_bar[1:] / previous[1:], rtol=1e-12)


def test_every_number_of_steps_gives_distinct_steps():
    s = Schedule.linear(97, 0.05, 0.2)
    for n in range(1, 98):
        kept = s.respaced(n).timesteps
        assert len(kept) == n + 1 and np.all(np.diff(kept) > 0) and kept[-1] == 97


def test_respacing_takes_given_steps_and_composes():
    s = Schedule.linear()
    r = s.respaced([1, 10, 500, 1000])
    assert r.timesteps.tolist() == [0, 1, 10, 500, 1000]
    assert r.respaced(2).timesteps.tolist() == [0, 10, 1000]
    np.testing.assert_array_equal(r.respaced(2).alpha_bar, s.alpha_bar[[0, 10, 1000]])
    assert s.respaced(np.arange(1, 1001)).beta.tolist() == s.beta.tolist()
    assert r.beta[1] == s.beta[1] or abs(r.beta[1] / s.beta[1] - 1) < 1e-15


def test_truncation_keeps_the_first_steps():
    s = Schedule.linear()
    r = s.truncated(300)
    assert r.T == 300 and r.timesteps[-1] == 300
    np.testing.assert_array_equal(r.alpha_bar, s.alpha_bar[:301])
    np.testing.assert_array_equal(r.posterior_variance, s.posterior_variance[:301])


def test_zero_terminal_snr_follows_lin_et_al():
    s = Schedule.linear()
    z = s.zero_terminal_snr()
    root = np.sqrt(s.alpha_bar[1:])
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    np.testing.assert_allclose(np.sqrt(z.alpha_bar[1:]), expected, atol=1e-15)
    assert z.alpha_bar[-1] == 0 and z.beta[-1] == 1 and z.log_snr[-1] == -np.inf
    assert z.alpha_bar[1] == pytest.approx(s.alpha_bar[1], rel=1e-15)
    r = z.respaced(7)
    assert r.beta[-1] == 1 and r.alpha_bar[-1] == 0 and np.all(np.isfinite(r.posterior_variance))


def test_noise_weights_of_the_chain_written_out():
    """AI Manifesto 5.2.4, by its own products, and 5.2.16."""
    s = Schedule.linear(30, 0.01, 0.5)
    for t in (1, 2, 17, 30):
        alpha = s.alpha
        printed = [np.sqrt(np.prod(alpha[tau + 2 : t + 1]) - np.prod(alpha[tau + 1 : t + 1])) for tau in range(t - 1)]
        printed.append(np.sqrt(1 - alpha[t]))
        np.testing.assert_allclose(s.noise_weights(t), printed, rtol=1e-10)
        assert np.sum(s.noise_weights(t) ** 2) == pytest.approx(s.one_minus_alpha_bar[t], rel=1e-13)


def test_betas_that_end_in_1_make_a_zero_terminal_snr_schedule_again():
    made = Schedule.linear(50, 1e-3, 0.3).zero_terminal_snr()
    again = Schedule.from_betas(made.beta[1:])
    assert again.alpha_bar[-1] == 0 and again.log_snr[-1] == -np.inf
    for name in ("beta", "alpha_bar", "one_minus_alpha_bar", "posterior_variance"):
        np.testing.assert_allclose(getattr(again, name), getattr(made, name), rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Schedule.linear(0), "T must be an integer of at least 1"),
        (lambda: Schedule.linear(2.5), "T must be an integer"),
        (lambda: Schedule.linear(True), "T must be an integer"),
        (lambda: Schedule.linear(10, 0.0, 0.1), "beta_start must be between 0 and 1"),
        (lambda: Schedule.linear(10, 0.1, 1.0), "beta_end must be between 0 and 1"),
        (lambda: Schedule.linear(10, float("nan"), 0.1), "beta_start"),
        (lambda: Schedule.cosine(-1), "T must be"),
        (lambda: Schedule.cosine(10, -0.1), "s must be"),
        (lambda: Schedule.sigmoid(10, 1, 1), "start < end"),
        (lambda: Schedule.sigmoid(10, tau=0), "tau > 0"),
        (lambda: Schedule.from_betas([]), "at least one number"),
        (lambda: Schedule.from_betas([[0.1]]), r"shape \(1, 1\)"),
        (lambda: Schedule.from_betas([1.0]), "beta_1 of 1 is 1.0"),
        (lambda: Schedule.from_betas([1.0, 1.0]), "beta_1 of 2 is 1.0"),
        (lambda: Schedule.from_betas([0.1, 1.5]), "beta_2 of 2 is 1.5"),
        (lambda: Schedule.from_betas([0.1, float("nan")]), "beta_2 of 2 is nan"),
        (lambda: Schedule.from_betas([-0.1]), "beta_1 of 1 is -0.1"),
        (lambda: Schedule.from_betas(["a"]), "sequence of numbers"),
        (lambda: Schedule.linear().respaced(0), r"in 1..1000, .* not 0"),
        (lambda: Schedule.linear().respaced(-3), "not -3"),
        (lambda: Schedule.linear().respaced(1001), "not 1001"),
        (lambda: Schedule.linear().respaced(10.0), "integers"),
        (lambda: Schedule.linear().respaced(True), "integers"),
        (lambda: Schedule.linear().respaced([]), "integers"),
        (lambda: Schedule.linear().respaced([1, 999]), "end in 1000"),
        (lambda: Schedule.linear().respaced([5, 5, 1000]), "must increase"),
        (lambda: Schedule.linear().respaced([0, 1000]), "within 1..1000"),
        (lambda: Schedule.linear().truncated(1001), "not 1001"),
        (lambda: Schedule.from_betas([0.999]).zero_terminal_snr(), "at least 2 steps"),
    ],
)
def test_wrong_arguments_are_answered_with_a_sentence(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


def test_a_schedule_that_leaves_the_image_in_x_T_warns():
    with pytest.warns(UserWarning, match="alpha_bar_T is 0.9"):
        Schedule.linear(10)


@pytest.mark.parity
def test_agreement_with_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    np.testing.assert_allclose(Schedule.cosine().alpha_bar[1:], theirs.alphas_cumprod.numpy(), rtol=1e-3, atol=1e-7)
    theirs = diffusers.DDIMScheduler(1000, timestep_spacing="trailing")
    for n in (1, 3, 7, 50, 333, 1000):
        theirs.set_timesteps(n)
        assert (Schedule.linear().respaced(n).timesteps[:0:-1] - 1).tolist() == theirs.timesteps.tolist()
