from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tests.diffusion.steps import by_the_papers
from tinydiff.diffusion import Diffusion, Schedule, ddim_invert, inpaint, interpolate, sample
from tinydiff.diffusion.editing import repaint_path
from tinydiff.errors import InputError
from tinydiff.random import Generator

S = Schedule.linear(400, 1e-4, 0.05)


def images(n=50, seed=0):
    return 0.3 + 0.5 * np.random.default_rng(seed).standard_normal((n, 2, 2, 1))


def there_and_back(data, diffusion, x0, steps, model=None, **options):
    model = model or data.eps
    x_T = ddim_invert(model, diffusion, x0, steps, **options)
    back = sample(model, diffusion, x0.shape, Generator(0), "ddim", steps, x_T=x_T, progress=False)
    return x_T, np.abs(back - x0).max()


def test_inversion_and_ddim_return_the_image_with_an_error_of_first_order(gaussian_data):
    data, x0 = gaussian_data(S.beta[1:]), images()
    d = Diffusion(S, clip_x0=False)
    x_T, coarse = there_and_back(data, d, x0, 50)
    _, fine = there_and_back(data, d, x0, 200)
    assert fine < 0.06 and 2.5 < coarse / fine < 6
    # the exact solution of the probability-flow ODE: the standardised image
    ab = S.alpha_bar[-1]
    exact = np.sqrt(ab) * data.m + (x0 - data.m) / data.s * np.sqrt(ab * data.s**2 + 1 - ab)
    x_T, _ = there_and_back(data, d, x0, None)
    assert np.abs(x_T - exact).max() < 0.05


def test_inversion_predicts_the_noise_where_the_image_stands():
    """At x_{i-1} with its own t, but x_0, for which no model was trained, as x_1; a refinement at x_i."""
    calls = []

    def model(x, t):
        calls.append(t[0])
        return 0 * x

    ddim_invert(model, Diffusion(S), images(2), 4)
    ddim_invert(model, Diffusion(S), images(2), 4, refinements=1)
    assert calls[:4] == [100, 100, 200, 300]
    assert calls[4:] == [100, 100, 100, 200, 200, 300, 300, 400]


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
def test_refinements_make_the_inverse_exact(predict, gaussian_data):
    data, x0 = gaussian_data(S.beta[1:]), images(5)
    model = {"eps": data.eps, "v": data.v, "x0": lambda x, t: data.x0(x, t)}[predict]
    d = Diffusion(S, predict, clip_x0=False)
    errors = [there_and_back(data, d, x0, 20, model, refinements=k)[1] for k in (0, 2, 30)]
    assert errors[0] > 0.03 and errors[1] < errors[0] / 3 and errors[2] < 1e-6


def test_inversion_takes_labels_and_guidance():
    class Network:
        num_classes, null_label, calls = 3, 2, 0

        def __call__(self, x, t, labels=None):
            self.calls += 1
            return 0.1 * labels.reshape(-1, 1, 1, 1) * x

    x0, d = images(2), Diffusion(S, clip_x0=False)
    plain = ddim_invert(Network(), d, x0, 10, labels=1)
    guided = ddim_invert(Network(), d, x0, 10, labels=1, guidance=2.0)
    assert not np.allclose(plain, guided)
    np.testing.assert_allclose(guided, ddim_invert(lambda x, t: 0 * x, d, x0, 10))  # 0.2 + 2 (0.1 - 0.2) = 0
    model = Network()
    ddim_invert(model, d, x0, 10, labels=1, refinements=3)
    assert model.calls == 40


def test_interpolation_starts_from_images_blended_at_the_noise_level(gaussian_data):
    starts = []

    def model(x, t):
        starts.append((x.copy(), t[0]))
        return 0 * x

    a, b = np.full((60, 60, 1), 0.8), np.full((60, 60, 1), -0.4)
    d, t = Diffusion(S), 150
    out = interpolate(model, d, a, b, t, [0, 0.25, 0.5, 1], Generator(4), sampler="ddim", steps=10, progress=False)
    assert out.shape == (4, 60, 60, 1)
    x, first_t = starts[0]
    assert first_t == t and len(starts) == 10
    for k, share in enumerate([0, 0.25, 0.5, 1]):
        mean = np.sqrt(S.alpha_bar[t]) * ((1 - share) * 0.8 - share * 0.4)
        std = np.sqrt(1 - S.alpha_bar[t])
        assert abs(x[k].mean() - mean) < 4.5 * std / 60
        assert abs(x[k].std() / std - 1) < 4.5 / np.sqrt(2 * 3600)
    g = Generator(4)
    np.testing.assert_allclose(x[0], d.q_sample(a[None], t, g.normal((60, 60, 1), np.float64)[None])[0])
    np.testing.assert_allclose(x[3], d.q_sample(b[None], t, g.normal((60, 60, 1), np.float64)[None])[0])


def test_interpolation_at_little_noise_returns_the_ends(gaussian_data):
    data = gaussian_data(S.beta[1:])
    a, b = images(2, seed=3)
    d = Diffusion(S, clip_x0=False)
    out = interpolate(data.eps, d, a, b, 1, [0, 1], Generator(0), progress=False)
    np.testing.assert_allclose(out, [a, b], atol=0.05)


def test_sampling_from_a_level_is_the_tail_of_the_chain(gaussian_data):
    """A truncated schedule with x_T given goes on exactly as the whole chain does."""
    data, d = gaussian_data(S.beta[1:]), Diffusion(S, clip_x0=False)
    xt = images(3)
    part = replace(d, schedule=S.truncated(100))
    out = sample(data.eps, part, xt.shape, Generator(0), "ddim", x_T=xt, progress=False)
    x = xt
    for i in range(100, 0, -1):
        eps = data.eps(x, np.full(3, i))
        x0 = d.predict_x0(eps, x, i)
        x = np.sqrt(S.alpha_bar[i - 1]) * x0 + np.sqrt(1 - S.alpha_bar[i - 1]) * eps
    np.testing.assert_allclose(out, x, rtol=1e-9)


def test_inpainting_keeps_what_is_known_and_draws_the_rest(gaussian_data):
    s = Schedule.linear(40, 0.002, 0.5)
    data = gaussian_data(s.beta[1:])
    known = np.array([True, False])
    x0 = np.tile(np.where(known, 0.9, 777.0), (4000, 1, 1, 1))
    out = inpaint(data.eps, Diffusion(s, clip_x0=False), x0, known, Generator(0), jump=5, rounds=3, progress=False)
    np.testing.assert_array_equal(out[..., 0], x0[..., 0])
    # independent pixels: what is known says nothing about the rest, which has the moments of the chain
    free = sample(data.eps, Diffusion(s, clip_x0=False), (4000, 1, 1, 1), Generator(1), progress=False)
    assert abs(out[..., 1].mean() - data.m) < 0.02 + 4.5 * data.s / np.sqrt(4000)
    assert abs(out[..., 1].std() / free.std() - 1) < 0.06


def test_inpainting_walks_down_by_the_sampler_and_up_by_the_forward_process():
    d, known, x0, g = (
        Diffusion(Schedule.linear(7, 0.05, 0.9)),
        np.arange(4).reshape(2, 2, 1) > 1,
        images(3),
        Generator(5),
    )

    def model(x, t):
        return np.sin(x + t[0])

    out = inpaint(model, d, x0, known, Generator(5), jump=2, rounds=3, progress=False)
    x, i = g.normal(x0.shape, x0.dtype), 7
    for target in repaint_path(7, 2, 3):
        if target > i:
            x = d.q_step(x, target, g.normal(x0.shape, x0.dtype))
        else:
            z = g.normal(x0.shape, x0.dtype) if i > 1 else 0
            x, _ = by_the_papers(d, "ddpm", 0, model(x, [i]), x, i, z)
            kept = d.q_sample(x0, target, g.normal(x0.shape, x0.dtype)) if target else x0
            x = np.where(known, kept, x)
        i = target
    np.testing.assert_allclose(out, x, rtol=0, atol=1e-10)


def test_inpainting_in_rounds_agrees_better_with_what_is_known():
    """Two pixels with correlation 0.95 under the exact model: given one, the other has mean 0.95 of it. Plain
    replacement misses that by far; walking up and down again comes close."""
    s = Schedule.linear(60, 0.002, 0.4)
    C = np.array([[1.0, 0.95], [0.95, 1.0]]) * 0.25

    def model(x, t):
        ab = s.alpha_bar[t[0]]
        return x @ np.linalg.inv(ab * C + (1 - ab) * np.eye(2)) * np.sqrt(1 - ab)

    x0 = np.tile([0.6, 0.0], (1500, 1, 1, 1))
    d, known = Diffusion(s, clip_x0=False), np.array([True, False])
    means = [
        inpaint(model, d, x0, known, Generator(2), jump=1, rounds=r, progress=False)[..., 1].mean() for r in (1, 12)
    ]
    assert abs(means[0] - 0.57) > 0.1
    assert abs(means[1] - 0.57) < 0.04


def test_repaint_path():
    assert repaint_path(4, 2, 1) == [3, 2, 1, 0]
    assert repaint_path(4, 2, 3) == [3, 2, 1, 2, 3, 2, 1, 2, 3, 2, 1, 0]
    assert repaint_path(5, 2, 2) == [4, 3, 4, 5, 4, 3, 2, 1, 2, 3, 2, 1, 0]
    assert repaint_path(5, 10, 10) == [4, 3, 2, 1, 0]
    path = [250, *repaint_path(250, 10, 10)]
    assert np.all(np.abs(np.diff(path)) == 1) and path[-1] == 0 and path.count(0) == 1
    assert sum(b < a for a, b in pairwise(path)) == 250 + 9 * 10 * 24


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda d, x: inpaint(None, d, x, np.ones((3, 2, 2, 1)), Generator(0)), "must be boolean"),
        (lambda d, x: inpaint(None, d, x, np.ones((4, 2), bool), Generator(0)), r"broadcast to \(3, 2, 2, 1\)"),
        (lambda d, x: inpaint(None, d, x, x > 0, Generator(0), jump=0), "at least 1"),
        (lambda d, x: interpolate(None, d, x[0], x[1], 401, [0.5], Generator(0)), "t must be in 1..400"),
        (lambda d, x: interpolate(None, d, x[0], x[1], 40, [1.5], Generator(0)), "shares must be numbers in 0..1"),
        (lambda d, x: interpolate(None, d, x[0], x[1], 40, [], Generator(0)), "at least one"),
    ],
)
def test_misuse_is_answered_with_a_sentence(call, sentence):
    with pytest.raises(InputError, match=sentence):
        call(Diffusion(S), images(3))
