import numpy as np
import pytest

from tinydiff.autograd.tensor import Tensor
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.errors import InputError

S = Schedule.linear(40, 0.01, 0.4)
T = S.T
SHAPE = (6, 3, 2, 2)
STEPS = [1, 2, 3, 17, 39, 40]


@pytest.fixture
def draws():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(SHAPE) for _ in range(3)]


def test_q_sample_is_the_closed_form(draws):
    x0, eps, _ = draws
    d = Diffusion(S)
    for t in (1, 17, 40):
        alpha_bar = np.prod(1 - S.beta[1 : t + 1])
        np.testing.assert_allclose(
            d.q_sample(x0, t, eps), np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * eps, rtol=1e-12
        )
    np.testing.assert_array_equal(d.q_sample(x0, 0, eps), x0)
    together = d.q_sample(x0, np.array(STEPS), eps)
    for n, t in enumerate(STEPS):
        np.testing.assert_allclose(together[n], d.q_sample(x0, t, eps)[n], rtol=1e-14)


def test_the_chain_step_by_step_is_the_weighted_sum_of_its_noises(draws):
    """AI Manifesto 5.2.3 applied t times gives 5.2.4."""
    x0, d = draws[0], Diffusion(S)
    noises = np.random.default_rng(1).standard_normal((T, *SHAPE))
    x = x0
    for t in range(1, T + 1):
        x = d.q_step(x, t, noises[t - 1])
        expected = np.sqrt(S.alpha_bar[t]) * x0 + np.tensordot(S.noise_weights(t), noises[:t], 1)
        np.testing.assert_allclose(x, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("t", STEPS[1:])
def test_posterior_is_bayes_rule_on_a_line(t):
    """q(x_{t-1} | x_t, x_0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x_0): normalised on a fine grid."""
    x0, xt = 0.7, -0.4
    z = np.linspace(-8, 8, 400001)
    log_q = -((xt - np.sqrt(1 - S.beta[t]) * z) ** 2) / (2 * S.beta[t])
    log_q -= (z - np.sqrt(S.alpha_bar[t - 1]) * x0) ** 2 / (2 * (1 - S.alpha_bar[t - 1]))
    q = np.exp(log_q - log_q.max())
    q /= q.sum()
    mean, variance = Diffusion(S).q_posterior(np.full((1, 1), x0), np.full((1, 1), xt), t)
    assert mean.item() == pytest.approx((q * z).sum(), abs=1e-9)
    assert variance == pytest.approx((q * z * z).sum() - (q * z).sum() ** 2, abs=1e-9)


def test_posterior_from_x0_and_from_eps_agree(draws):
    x0, eps, _ = draws
    d = Diffusion(S)
    for t in (*STEPS, np.array(STEPS)):
        xt = d.q_sample(x0, t, eps)
        (mean, variance), (mean_eps, variance_eps) = d.q_posterior(x0, xt, t), d.q_posterior_from_eps(eps, xt, t)
        np.testing.assert_allclose(mean, mean_eps, rtol=1e-9, atol=1e-10)
        np.testing.assert_array_equal(variance, variance_eps)


def test_posterior_of_the_first_step_is_x0(draws):
    mean, variance = Diffusion(S).q_posterior(draws[0], draws[1], 1)
    np.testing.assert_allclose(mean, draws[0], rtol=1e-15)
    assert variance == 0


def test_posterior_variance_broadcasts_against_the_mean(draws):
    mean, variance = Diffusion(S).q_posterior(draws[0], draws[1], np.array(STEPS))
    assert variance.shape == (6, 1, 1, 1) and (mean * variance).shape == SHAPE
    np.testing.assert_allclose(variance.ravel(), S.posterior_variance[STEPS])


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
def test_target_and_its_conversions_agree(predict, draws):
    x0, eps, _ = draws
    d = Diffusion(S, predict=predict)
    for t in (*STEPS, np.array(STEPS)):
        xt, target = d.q_sample(x0, t, eps), d.target(x0, eps, t)
        np.testing.assert_allclose(d.predict_x0(target, xt, t), x0, atol=1e-11)
        np.testing.assert_allclose(d.predict_eps(target, xt, t), eps, atol=1e-11)


def test_v_is_the_angular_velocity(draws):
    """With alpha_bar = cos^2(phi), v = d xt / d phi (Salimans & Ho, 2022)."""
    x0, eps, _ = draws
    t, h = 17, 1e-6
    phi = np.arccos(np.sqrt(S.alpha_bar[t]))
    ahead, behind = (np.cos(phi + s) * x0 + np.sin(phi + s) * eps for s in (h, -h))
    np.testing.assert_allclose(Diffusion(S, "v").target(x0, eps, t), (ahead - behind) / (2 * h), atol=1e-8)


def test_predict_x0_never_clips(draws):
    d = Diffusion(S, "x0", clip_x0=True)
    np.testing.assert_array_equal(d.predict_x0(9 * draws[0], draws[1], 3), 9 * draws[0])


def test_reverse_without_clipping_is_the_papers_epsilon_form(draws):
    eps, xt, _ = draws
    d = Diffusion(S, clip_x0=False)
    for t in STEPS:
        alpha, beta = 1 - S.beta[t], S.beta[t]
        paper = (xt - beta / np.sqrt(1 - S.alpha_bar[t]) * eps) / np.sqrt(alpha)
        np.testing.assert_allclose(d.reverse(eps, xt, t).mean, paper, rtol=1e-9, atol=1e-9)


def test_reverse_clips_x0_if_told_to(draws):
    eps, xt, _ = draws
    mean, _, x0 = Diffusion(S).reverse(eps, xt, 30)
    free = Diffusion(S, clip_x0=False).reverse(eps, xt, 30).x0
    np.testing.assert_array_equal(x0, np.clip(free, -1, 1))
    assert np.any(np.abs(free) > 1)
    np.testing.assert_array_equal(mean, Diffusion(S).q_posterior(x0, xt, 30)[0])


def test_variances(draws):
    xt = draws[0]
    for t in STEPS[1:]:
        assert np.exp(Diffusion(S, variance="beta").log_variance(None, xt, t)) == pytest.approx(S.beta[t])
        assert np.exp(Diffusion(S, variance="posterior").log_variance(None, xt, t)) == pytest.approx(
            S.posterior_variance[t]
        )
    for variance in ("beta", "posterior"):
        assert np.exp(Diffusion(S, variance=variance).log_variance(None, xt, 1)) == pytest.approx(
            S.posterior_variance[2]
        )
    learned = Diffusion(S, variance="learned")
    for t in (*STEPS, np.array(STEPS)):
        column = np.broadcast_to(t, 6).reshape(-1, 1, 1, 1)
        low = np.log(S.posterior_variance[np.maximum(column, 2)])
        for v, f in ((-1.0, 0.0), (1.0, 1.0), (0.4, 0.7)):
            expected = f * np.log(S.beta[column]) + (1 - f) * low
            np.testing.assert_allclose(learned.log_variance(np.full(SHAPE, v), xt, t), np.broadcast_to(expected, SHAPE))


def test_learned_variance_splits_the_channels(draws):
    output = np.concatenate([draws[0], draws[1]], axis=-1)
    d = Diffusion(S, variance="learned")
    np.testing.assert_array_equal(d.predict_eps(output, draws[2], 5), draws[0])
    np.testing.assert_array_equal(
        d.reverse(output, draws[2], np.array(STEPS)).log_variance, d.log_variance(draws[1], draws[2], np.array(STEPS))
    )


def test_dtype_of_the_images_is_kept_and_t_may_be_anything_integer(draws):
    x0, eps, _ = (a.astype(np.float32) for a in draws)
    d = Diffusion(S)
    for t in (5, np.int32(5), np.array(5), np.full(6, 5, np.uint8), [5] * 6, Tensor(np.full(6, 5))):
        out = d.q_sample(x0, t, eps)
        assert out.dtype == np.float32
        np.testing.assert_allclose(out, d.q_sample(x0, 5, eps), rtol=1e-6)
        assert all(a.dtype == np.float32 for a in d.reverse(eps, x0, t)[::2])


def test_small_t_keeps_its_noise_in_half_precision():
    d = Diffusion(Schedule.linear())
    eps = np.ones((1, 4), np.float16)
    np.testing.assert_allclose(d.q_sample(np.zeros_like(eps), 1, eps), 0.01, rtol=1e-3)


def test_tensors_stay_on_the_tape(draws):
    """The reparameterised x_t passes gradients to x0 and to eps."""
    x0, eps = (Tensor(a, requires_grad=True) for a in draws[:2])
    t = np.array(STEPS)
    Diffusion(S).q_sample(x0, t, eps).backward(draws[2])
    column = t.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(x0.grad, np.sqrt(S.alpha_bar[column]) * draws[2], rtol=1e-12)
    np.testing.assert_allclose(eps.grad, np.sqrt(1 - S.alpha_bar[column]) * draws[2], rtol=1e-12)


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"predict": "epsilon"}, "predict must be one of eps, x0, v, not 'epsilon'"),
        ({"variance": "fixed"}, "variance must be one of"),
        ({"min_snr": 0}, "min_snr must be greater than 0"),
    ],
)
def test_unknown_kinds(kwargs, sentence):
    with pytest.raises(InputError, match=sentence):
        Diffusion(S, **kwargs)


def test_zero_terminal_snr_refuses_eps():
    with pytest.raises(InputError, match="alpha_bar_T = 0"):
        Diffusion(S.zero_terminal_snr())
    Diffusion(S.zero_terminal_snr(), "v")
    Diffusion(S.zero_terminal_snr(), "x0")


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda d, x: d.q_sample(x, 41, x), ValueError, r"t must be in 0..40, not 41..41"),
        (lambda d, x: d.q_sample(x, -1, x), ValueError, "not -1"),
        (lambda d, x: d.q_posterior(x, x, 0), ValueError, "t must be in 1..40"),
        (lambda d, x: d.q_sample(x, 2.0, x), TypeError, "t must be integers, not float64"),
        (lambda d, x: d.q_sample(x, True, x), TypeError, "t must be integers"),
        (lambda d, x: d.q_sample(x, np.ones(5, int), x), ValueError, r"\(6,\), not shape \(5,\)"),
        (lambda d, x: d.q_sample(x, 3, x[:, :1]), ValueError, r"x0 \(6, 3, 2, 2\) and eps \(6, 1, 2, 2\)"),
        (lambda d, x: d.q_sample(x.astype(np.uint8), 3, x), TypeError, "x0 must be floating point .* not uint8"),
        (lambda d, x: d.predict_x0(x[..., :1], x, 3), ValueError, r"must return \(6, 3, 2, 2\), not \(6, 3, 2, 1\)"),
        (lambda d, x: Diffusion(S, variance="learned").predict_x0(x, x, 3), ValueError, r"must return \(6, 3, 2, 4\)"),
        (lambda d, x: Diffusion([0.1]), TypeError, "schedule must be a Schedule, not list"),
    ],
)
def test_misuse_is_answered_with_a_sentence(call, error, sentence, draws):
    with pytest.raises(error, match=sentence):
        call(Diffusion(S), draws[0])
