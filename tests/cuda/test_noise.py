"""tinydiff/cuda/noise.py and random.py against tinydiff.random.Generator and tinydiff.diffusion in float64."""

import numpy as np
import pytest

from tests.diffusion.steps import by_the_papers
from tinydiff.cuda import draws, noise, random
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.diffusion.sampler import ddim_weights
from tinydiff.random import Generator

STATES = [(0, 0, 0, 0), (2**64 - 1, 2**32 - 1, 2**32 - 1, 2**32 - 2), (2**40 + 12345, 4, 77, 9)]
STATE = STATES[2]

# of images: as many elements as a block of four, fewer, sizes that no multiple of four is, and more than a block of threads
SHAPES = [(3, 2, 2, 1), (5, 1, 1, 1), (3, 5, 5, 1), (2, 7, 3, 3), (2, 32, 32, 3), (1, 28, 28, 1)]


def per_image(a, x):
    return np.reshape(a, (-1, *[1] * (x.ndim - 1)))


@pytest.mark.parametrize("state", STATES, ids=str)
@pytest.mark.parametrize("n", [0, 1, 2, 5, 1023, 4100])
def test_draws_are_those_of_the_generator(n, state, device):
    words = device.run(random.words, n, state, device.place)
    assert words.dtype == np.uint32
    np.testing.assert_array_equal(words, Generator(*state).words(n))
    np.testing.assert_array_equal(device.run(random.uniform, n, state, device.place), Generator(*state).uniform(n))
    np.testing.assert_allclose(
        device.run(random.normal, n, state, device.place), Generator(*state).normal(n), rtol=0, atol=2e-6
    )


def test_a_normal_far_from_0(device):
    """Of a word as small as 522 the half that is added to it counts."""
    state = (0, 0, 0, 1767245)
    x = device.run(random.normal, 4, state, device.place)
    assert Generator(*state).words(1) == 522 and x[1] < -5.4
    np.testing.assert_allclose(x, Generator(*state).normal(4, np.float64), rtol=0, atol=3e-6)


@pytest.mark.parametrize("draw", [random.words, random.uniform, random.normal])
def test_an_element_does_not_depend_on_how_many_there_are(draw, device):
    np.testing.assert_array_equal(
        device.run(draw, 37, STATE, device.place), device.run(draw, 3000, STATE, device.place)[:37]
    )


@pytest.mark.parametrize("draw", [random.words, random.normal])
def test_the_clock_is_added_to_step_and_offset(draw, device):
    seed, stream, step, offset = STATE
    moved = device.run(lambda clock: draw(50, (*STATE, clock), device.place), np.array([3, 1000], np.uint32))
    there = device.run(draw, 50, (seed, stream, step + 3, offset + 1000), device.place)
    np.testing.assert_array_equal(moved, there)


def test_more_elements_than_a_kernel_counts(device):
    with pytest.raises(ValueError, match=r"fewer than 2\*\*31"):
        draws.int32(2**31)


@pytest.mark.parametrize("shape", [*SHAPES, (0, 4, 4, 1)], ids=str)
def test_q_sample(shape, device, rng):
    x0, a = rng.normal(size=shape).astype(np.float32), rng.uniform(size=shape[0])
    b = np.sqrt(1 - a * a)
    eps = Generator(*STATE).normal(shape, np.float64)
    xt, seen = device.run(noise.q_sample, x0, a.astype(np.float32), b, STATE)
    assert seen == STATE
    np.testing.assert_allclose(xt, per_image(a, x0) * x0 + per_image(b, x0) * eps, rtol=0, atol=2e-6)


def test_q_sample_with_one_weight_for_all_images(device, rng):
    x0 = rng.normal(size=(3, 5, 5, 1)).astype(np.float32)
    expected, _ = device.run(noise.q_sample, x0, np.full(3, 0.8), np.full(3, 0.6), STATE)
    np.testing.assert_array_equal(device.run(noise.q_sample, x0, 0.8, np.array(0.6), STATE)[0], expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("target", noise.TARGETS)
@pytest.mark.parametrize("weighted", [False, True])
def test_mse_loss_and_its_gradient(shape, target, weighted, device, rng):
    P, x0 = rng.normal(size=(2, *shape)).astype(np.float32)
    a = rng.uniform(size=shape[0])
    b = np.sqrt(1 - a * a)
    weight = rng.uniform(0.5, 2, size=shape[0]) if weighted else None
    eps = Generator(*STATE).normal(shape, np.float64)
    of_v = per_image(a, x0) * eps - per_image(b, x0) * x0
    difference = P - {"eps": eps, "x0": x0.astype(np.float64), "v": of_v}[target]
    w = per_image(weight, x0) if weighted else 1.0
    loss, L_P = device.run(noise.mse_loss, P, x0, a, b, STATE, target, weight)
    assert loss.shape == () and loss.dtype == L_P.dtype == np.float32
    np.testing.assert_allclose(loss, np.mean(w * difference**2), rtol=2e-6)
    np.testing.assert_allclose(L_P, 2 / P.size * w * difference, rtol=0, atol=4e-6 / P.size)


def test_the_loss_meets_the_very_noise_of_q_sample(device):
    """The bits are the same in every kernel, so with the noise as prediction nothing is left."""
    zeros = np.zeros((2, 9, 9, 3), np.float32)
    eps, _ = device.run(noise.q_sample, zeros, 1.0, 1.0, STATE)
    np.testing.assert_array_equal(eps.ravel(), device.run(random.normal, eps.size, STATE, device.place))
    loss, L_P = device.run(noise.mse_loss, eps, zeros, 1.0, 1.0, STATE)
    assert loss == 0 and not L_P.any()


def test_the_loss_has_the_same_bits_whatever_the_order_of_threads(device, rng):
    P = rng.normal(size=(3, 30, 30, 3)).astype(np.float32)
    (loss, L_P), (again, L_P_again) = (device.run(noise.mse_loss, P, P, 0.8, 0.6, STATE, seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(loss, again)
    np.testing.assert_array_equal(L_P, L_P_again)


def test_the_loss_of_nothing_is_0(device):
    nothing = np.zeros((0, 4, 4, 1), np.float32)
    loss, L_P = device.run(noise.mse_loss, nothing, nothing, 0.8, 0.6, STATE)
    assert loss == 0 and L_P.shape == (0, 4, 4, 1)


def test_wrong_arguments(device):
    P = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="one of eps, x0, v"):
        device.run(noise.mse_loss, P, P, 1, 0, STATE, "noise")
    with pytest.raises(ValueError, match="differ in shape"):
        device.run(noise.mse_loss, P, P[:1], 1, 0, STATE, "x0")
    with pytest.raises(ValueError, match="8 coefficients"):
        device.run(noise.reverse_step, P, P, np.zeros(7), STATE)
    with pytest.raises(ValueError, match=r"images \(2, 3\).*\(2, 4\)"):
        device.run(noise.reverse_step, np.zeros((2, 4), np.float32), P, np.zeros(8), STATE)


def test_other_dtypes_and_noise_that_exists_are_left_to_the_definitions(device):
    P = np.zeros((2, 3), np.float32)
    for images, eps in ((P.astype(np.float64), STATE), (P, P)):
        assert device.run(noise.q_sample, images, 1, 0, eps) is NotImplemented
        assert device.run(noise.mse_loss, P, images, 1, 0, eps) is NotImplemented
        assert device.run(noise.mse_loss, images, P, 1, 0, eps) is NotImplemented
        assert device.run(noise.reverse_step, images, P, np.zeros(8), eps) is NotImplemented
        assert device.run(noise.reverse_step, P, images, np.zeros(8), eps) is NotImplemented


# Steps back, against the papers. The coefficients are written out once more.

SCHEDULE = Schedule.cosine(20)


def coefficients(diffusion, sampler, i, eta):
    s = diffusion.schedule
    a, b = np.sqrt(s.alpha_bar[i]), np.sqrt(1 - s.alpha_bar[i])
    on_xt, on_output = {"eps": (1 / a, -b / a), "x0": (0, 1), "v": (a, -b)}[diffusion.predict]
    low = high = sigma = further = 0.0
    if sampler == "ddpm":
        weights = diffusion.posterior_weights(i)
        if i > 1:
            low, high = np.log(s.posterior_variance[i]), np.log(s.beta[i])
            sigma = {"learned": 1, "beta": np.exp(high / 2), "posterior": np.exp(low / 2)}[diffusion.variance]
    else:
        *weights, sigma = ddim_weights(s, i, eta)
        if sampler == "dpm++" and 1 < i < s.T:
            level = s.log_snr / 2
            further = (level[i - 1] - level[i]) / (2 * (level[i] - level[i + 1]))
    return np.array([on_xt, on_output, *weights, sigma, low, (high - low) / 2, further])


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(
    ("sampler", "variance", "eta"),
    [
        ("ddpm", "beta", 0),
        ("ddpm", "posterior", 0),
        ("ddpm", "learned", 0),
        ("ddim", "beta", 0),
        ("ddim", "learned", 0.5),
        ("dpm++", "beta", 0),
    ],
)
@pytest.mark.parametrize("shape", [(3, 3, 5, 1), (2, 20, 20, 3)], ids=str)
def test_a_step_back(predict, clip, sampler, variance, eta, shape, device, rng):
    diffusion = Diffusion(SCHEDULE, predict, variance, clip)
    before = rng.normal(size=shape).astype(np.float32) if sampler == "dpm++" else None
    for i in (12, 11, 1):
        xt = rng.normal(size=shape).astype(np.float32)
        output = rng.normal(size=(*shape[:-1], shape[-1] * (2 if variance == "learned" else 1))).astype(np.float32)
        exact = [a.astype(np.float64) for a in (output, xt)]
        z = Generator(*STATE).normal(shape, np.float64)
        expected, x0 = by_the_papers(diffusion, sampler, eta, *exact, i, z, before)
        c = coefficients(diffusion, sampler, i, eta)
        x, our_x0 = device.run(noise.reverse_step, output, xt, c, STATE, clip, before)
        np.testing.assert_allclose(our_x0, x0, rtol=0, atol=1e-6 * np.abs(x0).max())
        np.testing.assert_allclose(x, expected, rtol=0, atol=3e-6 * np.abs(expected).max())
        before = our_x0 if sampler == "dpm++" else None


def test_a_step_back_has_the_same_bits_whatever_the_order_of_threads(device, rng):
    output, xt = rng.normal(size=(2, 2, 20, 20, 3)).astype(np.float32)
    c = np.linspace(0.1, 0.9, 8)
    (x, x0), (again, x0_again) = (device.run(noise.reverse_step, output, xt, c, STATE, seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(x, again)
    np.testing.assert_array_equal(x0, x0_again)


@pytest.mark.parametrize("clip", [True, False])
def test_a_step_back_does_not_hide_what_is_not_a_number(device, clip):
    output, xt = np.full((1, 2, 2, 1), np.nan, np.float32), np.zeros((1, 2, 2, 1), np.float32)
    x, x0 = device.run(noise.reverse_step, output, xt, np.ones(8), (0, 7, 0, 0), clip=clip)
    assert np.isnan(x).all() and np.isnan(x0).all()
