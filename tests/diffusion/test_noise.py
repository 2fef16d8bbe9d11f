"""tinydiff/diffusion/noise.py: the definitions against formulas in float64, written out anew."""

import inspect

import numpy as np
import pytest

from tinydiff.cuda import host
from tinydiff.cuda import noise as by_kernels
from tinydiff.diffusion import Diffusion, Schedule, noise
from tinydiff.dispatch import on_host
from tinydiff.random import Generator

STATE = (2**40 + 12345, 4, 77, 9)
SHAPES = [(3, 3, 5, 1), (2, 4, 4, 2), (1, 1, 1, 3), (0, 4, 4, 1)]
DTYPES = [np.float16, np.float32, np.float64]


def columns(a, x):
    return np.reshape(a, (-1, *[1] * (x.ndim - 1)))


def weights(n, rng):
    a = rng.uniform(0.1, 0.9, size=n)
    return a, np.sqrt(1 - a * a)


@pytest.mark.parametrize("name", ["q_sample", "mse_loss", "reverse_step"])
def test_kernels_have_the_signatures_of_the_definitions(name):
    assert inspect.signature(getattr(by_kernels, name)) == inspect.signature(getattr(noise, name))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_q_sample(shape, dtype, rng):
    """From a state it draws what the generator of that state draws, and hands it on; an array it takes as it is."""
    x0, (a, b) = rng.normal(size=shape).astype(dtype), weights(shape[0], rng)
    xt, eps = noise.q_sample(x0, a, b, STATE)
    np.testing.assert_array_equal(eps, Generator(*STATE).normal(shape, dtype))
    assert xt.dtype == eps.dtype == dtype
    exact = columns(a, x0) * x0.astype(np.float64) + columns(b, x0) * eps.astype(np.float64)
    np.testing.assert_allclose(xt, exact, rtol=0, atol=8 * np.finfo(dtype).eps)
    again, same = noise.q_sample(x0, a, b, eps)
    assert same is eps
    np.testing.assert_array_equal(again, xt)


def test_one_weight_for_all_images(rng):
    x0, eps = rng.normal(size=(2, 3, 5, 5, 1)).astype(np.float32)
    expected = noise.q_sample(x0, np.full(3, 0.8), np.full(3, 0.6), eps)[0]
    for one in (0.8, np.float64(0.8), np.array(0.8)):
        result = noise.q_sample(x0, one, 0.6, eps)[0]
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("target", ["eps", "x0", "v"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mse_loss_and_its_gradient(shape, target, weighted, dtype, rng):
    P, x0 = rng.normal(size=(2, *shape)).astype(dtype)
    (a, b), w = weights(shape[0], rng), rng.uniform(0.5, 2, size=shape[0]) if weighted else None
    _, eps = noise.q_sample(x0, a, b, STATE)
    loss, L_P = noise.mse_loss(P, x0, a, b, eps, target, w)
    exact_x0, exact_eps = x0.astype(np.float64), eps.astype(np.float64)
    y = {"eps": exact_eps, "x0": exact_x0, "v": columns(a, x0) * exact_eps - columns(b, x0) * exact_x0}[target]
    d, w = P - y, columns(w, x0) if weighted else 1.0
    assert isinstance(loss, np.ndarray) and loss.shape == () and loss.dtype == L_P.dtype == dtype
    rounding = np.finfo(dtype).eps
    np.testing.assert_allclose(loss, np.sum(w * d * d) / max(d.size, 1), rtol=8 * rounding)
    np.testing.assert_allclose(L_P * max(d.size, 1), 2 * w * d, rtol=0, atol=64 * rounding)
    drawn_anew = noise.mse_loss(P, x0, a, b, STATE, target, None if not weighted else w.reshape(-1))
    for ours, other in zip((loss, L_P), drawn_anew, strict=True):
        np.testing.assert_array_equal(ours, other)


def test_half_precision_is_summed_in_single():
    P = np.full((1, 300, 300, 1), 20, np.float16)
    loss, L_P = noise.mse_loss(P, 0 * P, 0.8, 0.6, 0 * P)
    assert loss == 400 and loss.dtype == np.float16
    np.testing.assert_allclose(L_P, 40 / P.size, rtol=1e-3)


def test_the_gradient_has_the_dtype_of_the_prediction(rng):
    P, x0 = rng.normal(size=(2, 2, 3, 3, 1))
    loss, L_P = noise.mse_loss(P.astype(np.float32), x0, 0.8, 0.6, STATE)
    assert loss.dtype == np.float64 and L_P.dtype == np.float32


@pytest.mark.parametrize("predict", ["eps", "v"])
def test_a_training_step_without_kernels_draws_its_noise_once(predict, monkeypatch, rng):
    draws, normal = [], Generator.normal
    monkeypatch.setattr(Generator, "normal", lambda *args: draws.append(args) or normal(*args))
    x0 = rng.normal(size=(4, 3, 3, 1)).astype(np.float32)
    Diffusion(Schedule.linear(), predict).loss(lambda x, t: 0.3 * x, x0, Generator(3))
    assert len(draws) == 1


@pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))
@pytest.mark.parametrize("given", ["t", "eps", "both", "nothing"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_loss_is_the_same_by_kernels_and_by_definition(given, dtype, rng):
    """Kernels make the noise again, the definition keeps it; given noise is used where it is."""
    d, x0 = Diffusion(Schedule.cosine(50), "v", min_snr=5.0), rng.normal(size=(3, 3, 5, 1)).astype(dtype)
    t, eps = d.draw(x0, Generator(3, step=9))
    options = {"t": {"t": t}, "eps": {"eps": eps}, "both": {"t": t, "eps": eps}, "nothing": {}}[given]
    expected = d.loss(lambda x, t: 0.3 * x, x0, Generator(3, step=9), **options)
    with on_host():
        ours = d.loss(lambda x, t: 0.3 * x, x0, Generator(3, step=9), **options)
    assert ours.dtype == dtype and ours.item() == pytest.approx(expected.item(), rel=2e-6)
