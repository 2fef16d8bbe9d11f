import numpy as np
import pytest

from tests.diffusion.steps import SAMPLERS, by_the_papers, take
from tinydiff.diffusion import Diffusion, Schedule, sample, sample_steps
from tinydiff.diffusion.sampler import DDIM, DDPM, ddim_weights, make_solver, step_back
from tinydiff.errors import InputError
from tinydiff.random import Generator

S = Schedule.linear(60, 0.002, 0.4)
SHAPE = (5, 4, 4, 2)


def run(model, diffusion, shape=SHAPE, seed=0, **options):
    return sample(model, diffusion, shape, Generator(seed), progress=False, **options)


def moments(data, schedule, sampler, eta=0.0, variance="beta"):
    """Mean and variance of a pixel after all steps, from the papers' epsilon forms, for the exact model."""
    kept, ab = schedule.timesteps, data.alpha_bar[schedule.timesteps]
    mean, var = 0.0, 1.0
    for i in range(len(kept) - 1, 0, -1):
        # the exact eps is k x + c
        k0 = data.gain(kept[i])
        k = (1 - np.sqrt(ab[i]) * k0) / np.sqrt(1 - ab[i])
        c = -np.sqrt(ab[i]) * data.m * (1 - np.sqrt(ab[i]) * k0) / np.sqrt(1 - ab[i])
        alpha = ab[i] / ab[i - 1]
        posterior = (1 - ab[i - 1]) / (1 - ab[i]) * (1 - alpha)
        if sampler == "ddpm":  # Ho et al., algorithm 2
            slope = (1 - (1 - alpha) / np.sqrt(1 - ab[i]) * k) / np.sqrt(alpha)
            shift = -(1 - alpha) / np.sqrt(1 - ab[i]) * c / np.sqrt(alpha)
            noise = (1 - alpha if variance == "beta" else posterior) if i > 1 else 0.0
        else:  # Song et al., eq. 12 and 16
            noise = eta**2 * posterior
            direction = np.sqrt(max(1 - ab[i - 1] - noise, 0))
            slope = np.sqrt(ab[i - 1] / ab[i]) * (1 - np.sqrt(1 - ab[i]) * k) + direction * k
            shift = -np.sqrt(ab[i - 1] / ab[i]) * np.sqrt(1 - ab[i]) * c + direction * c
        mean, var = slope * mean + shift, slope**2 * var + noise
    return mean, var


CHAINS = [
    ("ddpm", None, 0.0, "beta"),
    ("ddpm", None, 0.0, "posterior"),
    ("ddpm", 13, 0.0, "beta"),
    ("ddpm", 13, 0.0, "posterior"),
    ("ddpm", [1, 2, 30, 60], 0.0, "beta"),
    ("ddim", None, 0.0, "beta"),
    ("ddim", None, 0.5, "beta"),
    ("ddim", None, 1.0, "beta"),
    ("ddim", 13, 0.0, "beta"),
    ("ddim", 13, 0.5, "posterior"),
    ("ddim", 13, 1.0, "beta"),
    ("ddim", 2, 0.0, "beta"),
    ("ddim", 2, 1.0, "beta"),
]


@pytest.mark.parametrize(("sampler", "steps", "eta", "variance"), CHAINS)
def test_exact_model_on_gaussian_data_gives_the_moments_of_the_recursion(sampler, steps, eta, variance, gaussian_data):
    """Every step is affine, so mean and variance are known exactly; the tolerance is 4.5 standard errors of 40,000
    pixels."""
    data = gaussian_data(S.beta[1:])
    schedule = S if steps is None else S.respaced(steps)
    mean, var = moments(data, schedule, sampler, eta, variance)
    n = 40000
    diffusion = Diffusion(S, variance=variance, clip_x0=False)
    x = run(data.eps, diffusion, (n // 8, 2, 2, 2), seed=1, sampler=sampler, steps=steps, eta=eta)
    assert x.dtype == np.float32
    assert abs(x.mean(dtype=np.float64) - mean) < 4.5 * np.sqrt(var / n)
    assert abs(x.var(dtype=np.float64) / var - 1) < 4.5 * np.sqrt(2 / n) + 1e-5


@pytest.mark.parametrize(
    ("sampler", "eta", "variance"), [("ddpm", 0, "beta"), ("ddpm", 0, "posterior"), ("ddim", 0, ""), ("ddim", 1, "")]
)
def test_the_recursion_tends_to_the_data(sampler, eta, variance, gaussian_data):
    errors = []
    for T in (50, 200, 800):
        s = Schedule.linear(T, 0.1 / T, 20 / T)
        data = gaussian_data(s.beta[1:])
        mean, var = moments(data, s, sampler, eta, variance)
        errors.append(abs(mean - data.m) + abs(var - data.s**2))
    assert errors[0] > 2.5 * errors[1] > 6 * errors[2] and errors[2] < 0.01


def test_the_model_gets_the_original_t_from_T_down_once_per_image():
    calls = []

    def model(x, t, labels=None):
        calls.append((t.copy(), labels))
        return np.zeros_like(x)

    run(model, Diffusion(S), steps=7, sampler="ddim")
    expected = [60, 51, 43, 34, 26, 17, 9]
    assert [t.tolist() for t, _ in calls] == [[k] * 5 for k in expected]
    assert all(t.dtype.kind == "i" and labels is None for t, labels in calls)
    calls.clear()
    run(model, Diffusion(S))
    assert [t[0] for t, _ in calls] == list(range(60, 0, -1))
    calls.clear()
    run(model, Diffusion(S), steps=[4, 60])
    assert [t[0] for t, _ in calls] == [60, 4]


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
@pytest.mark.parametrize("variance", ["beta", "posterior", "learned"])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS)
def test_a_step_is_that_of_the_papers(predict, variance, clip, sampler, eta):
    rng = np.random.default_rng(0)
    for schedule in (S, S.respaced(7), S.respaced([3, 10, 60])):
        d, before = Diffusion(schedule, predict, variance, clip), None
        solver = make_solver(sampler, d, eta)
        for i in range(schedule.T, 0, -1):
            xt, output = (
                rng.standard_normal(SHAPE),
                rng.standard_normal((*SHAPE[:-1], 4 if variance == "learned" else 2)),
            )
            used = Generator(3, 7, i)
            x, x0 = step_back(solver, output, xt, i, used, before)
            z = Generator(3, 7, i).normal(SHAPE, np.float64)
            expected, expected_x0 = by_the_papers(d, sampler, eta, output, xt, i, z, before)
            np.testing.assert_allclose(x0, expected_x0, rtol=0, atol=8e-15 / np.sqrt(schedule.alpha_bar[i]))
            np.testing.assert_allclose(x, expected, rtol=0, atol=8e-15 * np.abs(expected).max())
            noisy = i > 1 and (sampler == "ddpm" or eta > 0)
            assert used.state == (3, 7, i, xt.size // 4 if noisy else 0)
            before = x0


class Guided:
    """A network with labels, of which the last is the null label."""

    num_classes, null_label = 3, 2

    def __call__(self, x, t, labels):
        column = labels.reshape(-1, 1, 1, 1)
        return np.sin((1 + column) * x + 0.01 * t.reshape(-1, 1, 1, 1))


@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS)
@pytest.mark.parametrize("guidance", [None, 2.5])
def test_a_chain_is_made_of_the_steps_of_the_papers(sampler, eta, guidance):
    schedule, labels, model = S.respaced(9), np.arange(5) % 2, Guided()
    x_T, g, drawn = np.random.default_rng(0).standard_normal(SHAPE), Generator(4), Generator(4)
    chain = sample_steps(model, Diffusion(S), SHAPE, g, sampler, 9, eta, labels, guidance, x_T=x_T)
    x, x0 = x_T, None
    for i, step in zip(range(9, 0, -1), chain, strict=True):
        t = np.full(5, schedule.timesteps[i])
        output = model(x, t, labels)
        if guidance:
            null = model(x, t, np.full(5, 2))
            output = null + guidance * (output - null)
        noisy = i > 1 and (sampler == "ddpm" or eta > 0)
        z = drawn.normal(SHAPE, np.float64) if noisy else 0
        x, x0 = by_the_papers(Diffusion(schedule), sampler, eta, output, x, i, z, x0)
        np.testing.assert_allclose(step.x, x, rtol=0, atol=1e-11)
        np.testing.assert_allclose(step.x0, x0, rtol=0, atol=1e-11)
        assert step.t == schedule.timesteps[i - 1] and g.state == drawn.state


def test_an_output_of_the_wrong_shape_is_answered_with_a_sentence():
    for variance, channels in (("beta", 4), ("learned", 2)):
        output = np.zeros((*SHAPE[:-1], channels))
        with pytest.raises(ValueError, match="the model must return"):
            step_back(DDPM(Diffusion(S, variance=variance)), output, np.zeros(SHAPE), 3, Generator(0))


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
def test_ddim_with_eta_1_is_ancestral_sampling_with_the_posterior_variance(predict):
    """The same map and the same noise: to rounding in float64, on the full schedule and on a strided one."""
    rng = np.random.default_rng(0)
    for schedule in (S, S.respaced(9)):
        d = Diffusion(schedule, predict, variance="posterior")
        for i in range(1, schedule.T + 1):
            xt, output, z = rng.standard_normal((3, *SHAPE))
            ours, x0 = take(DDPM(d), output, xt, i, z)
            theirs, x0_too = take(DDIM(d, 1.0), output, xt, i, z)
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
            np.testing.assert_array_equal(x0, x0_too)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_weights_are_equation_12(eta):
    rng = np.random.default_rng(0)
    x0, xt = rng.standard_normal((2, 100))
    for i in range(1, S.T + 1):
        now, before = S.alpha_bar[i], S.alpha_bar[i - 1]
        sigma = eta * np.sqrt((1 - before) / (1 - now)) * np.sqrt(1 - now / before)
        eps = (xt - np.sqrt(now) * x0) / np.sqrt(1 - now)
        expected = np.sqrt(before) * x0 + np.sqrt(max(1 - before - sigma**2, 0)) * eps
        a, b, s = ddim_weights(S, i, eta)
        np.testing.assert_allclose(a * x0 + b * xt, expected, rtol=1e-9, atol=1e-12)
        assert s == pytest.approx(sigma, abs=1e-12)


def test_eps_is_derived_anew_after_clipping():
    xt = np.full((1, 1, 1, 1), 3.0)
    output = np.full_like(xt, -2.0)
    i = 30
    x, x0 = take(DDIM(Diffusion(S)), output, xt, i)
    assert x0.item() == 1.0
    eps = (3.0 - np.sqrt(S.alpha_bar[i])) / np.sqrt(1 - S.alpha_bar[i])
    assert x.item() == pytest.approx(np.sqrt(S.alpha_bar[i - 1]) + np.sqrt(1 - S.alpha_bar[i - 1]) * eps)


@pytest.mark.parametrize(
    "options", [{}, {"sampler": "ddim", "eta": 1.0}, {"steps": 3}, {"sampler": "ddim"}, {"sampler": "dpm++"}]
)
def test_no_noise_enters_x_0_and_the_images_are_the_last_prediction(options):
    last = None

    def model(x, t):
        nonlocal last
        last = np.tanh(x)
        return last

    x = run(model, Diffusion(S, "x0", clip_x0=False), **options)
    np.testing.assert_allclose(x, last, rtol=1e-6)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
def test_images_are_in_range_whatever_the_model_says(sampler, predict):
    x = run(lambda x, t: 50 * np.sin(9 * x), Diffusion(S, predict), sampler=sampler, steps=20)
    assert np.abs(x).max() <= 1 and np.isfinite(x).all()


def test_draws_are_the_generators_own_sequence():
    """x_T first, then one draw per step that takes noise; the images are a function of the generator's state."""
    g = Generator(3, stream=7)
    start = g.normal(SHAPE)
    noises = [g.normal(SHAPE) for _ in range(3)]
    d = Diffusion(S, "x0", variance="posterior", clip_x0=False)
    used = Generator(3, stream=7)
    x = sample(lambda x, t: 0 * x, d, SHAPE, used, steps=4, progress=False)
    assert used.state == g.state
    r = S.respaced(4)
    expected = start
    for i in (4, 3, 2):
        on_xt = np.sqrt(1 - r.beta[i]) * (1 - r.alpha_bar[i - 1]) / (1 - r.alpha_bar[i])
        expected = on_xt * expected + np.sqrt(r.posterior_variance[i]) * noises[4 - i]
    np.testing.assert_allclose(x, 0 * expected, atol=1e-6)
    steps = list(sample_steps(lambda x, t: 0 * x, d, SHAPE, Generator(3, stream=7), steps=4))
    np.testing.assert_allclose(steps[2].x, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(run(np_eps, Diffusion(S), seed=5), run(np_eps, Diffusion(S), seed=5))
    assert not np.array_equal(run(np_eps, Diffusion(S), seed=5), run(np_eps, Diffusion(S), seed=6))


def np_eps(x, t, labels=None):
    return 0.5 * x


def test_a_generator_that_draws_in_its_own_way_is_asked():
    class Mirrored(Generator):
        def normal(self, *args, **kwargs):
            return -super().normal(*args, **kwargs)

    d, mirrored = Diffusion(S, clip_x0=False), Mirrored(3)
    x = sample(np_eps, d, SHAPE, mirrored, steps=4, progress=False)
    np.testing.assert_array_equal(x, -run(np_eps, d, seed=3, steps=4))  # this model is odd
    plain = Generator(3)
    sample(np_eps, d, SHAPE, plain, steps=4, progress=False)
    assert mirrored.state == plain.state


def test_ddim_without_eta_draws_nothing_but_x_T():
    g, expected = Generator(3), Generator(3)
    expected.normal(SHAPE)
    sample(np_eps, Diffusion(S), SHAPE, g, "ddim", progress=False)
    assert g.state == expected.state


def test_steps_yield_what_sample_returns():
    d = Diffusion(S)
    steps = list(sample_steps(np_eps, d, SHAPE, Generator(2), "ddim", steps=6, eta=0.5))
    assert [s.t for s in steps] == [50, 40, 30, 20, 10, 0]
    np.testing.assert_array_equal(steps[-1].x, run(np_eps, d, seed=2, sampler="ddim", steps=6, eta=0.5))
    np.testing.assert_allclose(steps[-1].x, steps[-1].x0, rtol=1e-6)
    assert all(np.abs(s.x0).max() <= 1 for s in steps)


def test_a_given_start_is_used_and_keeps_its_dtype():
    x_T = np.random.default_rng(0).standard_normal(SHAPE)
    d = Diffusion(S)
    a, b = (run(np_eps, d, seed=seed, sampler="ddim", x_T=x_T) for seed in (1, 2))
    np.testing.assert_array_equal(a, b)
    assert a.dtype == np.float64
    with pytest.raises(InputError, match="x_T must be floating point of shape"):
        run(np_eps, d, x_T=x_T[:2])


def test_dpm_solver_is_of_second_order(gaussian_data):
    """Against the exact solution of the probability-flow ODE, x_t = sqrt(var_t) z + mean_t for Gaussian data: halving
    the
    steps of a fine schedule quarters the error of DPM-Solver++ and halves that of DDIM. The first and last steps are
    short."""
    s = Schedule.linear(2000, 1e-5, 0.01)
    data = gaussian_data(s.beta[1:])
    x_T = np.random.default_rng(0).standard_normal((4, 5))
    ab = s.alpha_bar
    exact = data.m + data.s * (x_T - np.sqrt(ab[-1]) * data.m) / np.sqrt(ab[-1] * data.s**2 + 1 - ab[-1])

    def even_in_log_snr(n):
        levels = np.linspace(s.log_snr[-1], s.log_snr[1], n)
        return np.unique(np.searchsorted(-s.log_snr[1:], -levels) + 1)

    def error(sampler, n):
        x = run(data.eps, Diffusion(s, clip_x0=False), x_T.shape, sampler=sampler, steps=even_in_log_snr(n), x_T=x_T)
        return np.abs(x - exact).max()

    assert 1.6 < error("ddim", 20) / error("ddim", 40) < 2.5
    assert 3.0 < error("dpm++", 20) / error("dpm++", 40) < 5.5
    assert error("dpm++", 20) < error("ddim", 40) / 3


@pytest.mark.parametrize("predict", ["x0", "v"])
def test_zero_terminal_snr_samples_from_the_right_mean(predict, gaussian_data):
    """With alpha_bar_T = 0 the start is exactly q(x_T), and one step goes to the data's mean."""
    s = S.zero_terminal_snr()
    data = gaussian_data(s.beta[1:])
    model = data.v if predict == "v" else lambda x, t: data.x0(x, t)
    for sampler in ("ddpm", "ddim", "dpm++"):
        first = next(sample_steps(model, Diffusion(s, predict), SHAPE, Generator(0), sampler, steps=10))
        np.testing.assert_allclose(first.x0, data.m, atol=1e-6)
        assert np.isfinite(run(model, Diffusion(s, predict), sampler=sampler, steps=10)).all()


def test_learned_variance_is_what_the_model_says():
    """All f = 0 is the posterior's variance, all f = 1 is beta: the same images as with those fixed."""
    for v, variance in ((-1.0, "posterior"), (1.0, "beta")):

        def model(x, t, v=v):
            return np.concatenate([0.5 * x, np.full_like(x, v)], axis=-1)

        learned = run(model, Diffusion(S, variance="learned"))
        np.testing.assert_allclose(learned, run(np_eps, Diffusion(S, variance=variance)), rtol=1e-4, atol=1e-5)


def test_progress_bar_counts_the_steps(capsys):
    sample(np_eps, Diffusion(S), SHAPE, Generator(0), steps=4)
    assert "/4" in capsys.readouterr().err
    run(np_eps, Diffusion(S), steps=4)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sampler": "euler"}, r"sampler must be one of ddpm, ddim, dpm\+\+, not 'euler'"),
        ({"sampler": "ddim", "eta": 1.5}, "eta must be between 0 and 1, not 1.5"),
        ({"sampler": "ddim", "eta": float("nan")}, "eta must be between"),
        ({"eta": 0.5}, "eta belongs to the ddim sampler; ddpm has none"),
        ({"steps": 0}, "steps must be in 1..60"),
        ({"steps": 61}, "not 61"),
        ({"steps": [3, 4]}, "end in 60"),
        ({"shape": (4, 0, 2, 1)}, "shape must be that of the images"),
        ({"shape": 7}, "shape must be"),
        ({"labels": np.zeros(3, int)}, "labels must be one integer or 5 of them"),
        ({"labels": 0.5}, "labels must be"),
        ({"guidance": 3.0}, "null label"),
    ],
)
def test_wrong_options_are_answered_at_the_call(options, sentence):
    with pytest.raises(InputError, match=sentence):
        sample_steps(np_eps, Diffusion(S), generator=Generator(0), **{"shape": SHAPE, **options})
