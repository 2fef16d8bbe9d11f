import numpy as np
import pytest

from tinydiff import random
from tinydiff.autograd.tensor import Tensor
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.diffusion.bound import reverse_term
from tinydiff.ops import concatenate
from tinydiff.random import Generator

S = Schedule.linear(50, 0.01, 0.4)
X0 = np.random.default_rng(0).uniform(-1, 1, (12, 3, 2, 2)).astype(np.float32)


class Recorder:
    """A model that returns what it is told to and remembers how it was called."""

    def __init__(self, answer=np.zeros_like):
        self.answer, self.calls = answer, []

    def __call__(self, x, t, labels=None):
        self.calls.append((x, t, labels))
        return self.answer(x)


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
def test_loss_is_the_mean_square_of_what_is_missed(predict):
    rng = np.random.default_rng(1)
    eps, output = (rng.standard_normal(X0.shape).astype(np.float32) for _ in range(2))
    t = rng.integers(1, 51, 12)
    d = Diffusion(S, predict)
    model = Recorder(lambda x: output)
    loss = d.loss(model, X0, None, t=t, eps=eps)
    assert isinstance(loss, Tensor) and loss.shape == ()
    assert loss.item() == pytest.approx(np.mean((d.target(X0, eps, t) - output) ** 2), rel=1e-6)
    x, told, labels = model.calls[0]
    np.testing.assert_array_equal(told, t)
    np.testing.assert_array_equal(x, d.q_sample(X0, t, eps))
    assert labels is None


def test_draws_are_those_of_the_training_step():
    d, model = Diffusion(S), Recorder()
    generator = Generator(7, step=4)
    loss = d.loss(model, X0, generator)
    t = Generator(7).at(random.TIME, 4).integers(1, 51, 12)
    eps = Generator(7).at(random.NOISE, 4).normal(X0.shape)
    x, told, _ = model.calls[0]
    np.testing.assert_array_equal(told, t)
    np.testing.assert_array_equal(x, d.q_sample(X0, t, eps))
    assert loss.item() == pytest.approx(np.mean(eps**2), rel=1e-6)
    assert generator.state == (7, 0, 4, 0)  # untouched
    assert d.loss(model, X0, Generator(7, step=5)).item() != loss.item()


def test_t_is_uniform_on_1_to_T():
    model = Recorder()
    x0 = np.zeros((5000, 1), np.float32)
    d = Diffusion(Schedule.from_betas([0.5, 0.9, 0.99, 0.9]))
    d.loss(model, x0, Generator(3))
    counts = np.bincount(model.calls[0][1], minlength=5)
    assert counts[0] == 0
    assert np.all(np.abs(counts[1:] - 1250) < 4.5 * np.sqrt(5000 * 0.25 * 0.75))


def test_scalar_t_and_labels_reach_the_model_per_image():
    model = Recorder()
    Diffusion(S).loss(model, X0, Generator(0), labels=3, t=9)
    _, t, labels = model.calls[0]
    np.testing.assert_array_equal(t, np.full(12, 9))
    np.testing.assert_array_equal(labels, np.full(12, 3))
    Diffusion(S).loss(model, X0, Generator(0), labels=np.arange(12))
    np.testing.assert_array_equal(model.calls[1][2], np.arange(12))


def test_gradient_of_a_linear_model():
    w = Tensor(np.array([0.3, -0.2]), requires_grad=True)
    x0, eps = X0.astype(np.float64), np.random.default_rng(2).standard_normal(X0.shape)
    d = Diffusion(S)
    d.loss(lambda x, t: x * w, x0, None, t=20, eps=eps).backward()
    x = d.q_sample(x0, 20, eps)
    expected = (2 * (x * w.data - eps) * x).sum((0, 1, 2)) / x.size
    np.testing.assert_allclose(w.grad, expected, rtol=1e-12)


def test_the_exact_model_reaches_the_least_possible_loss(gaussian_data):
    """For Gaussian data the conditional variance of eps is s^2 alpha_bar / (s^2 alpha_bar + 1 - alpha_bar)."""
    data = gaussian_data(S.beta[1:])
    n, t = 40000, 20
    rng = np.random.default_rng(3)
    x0 = data.m + data.s * rng.standard_normal((n, 1))
    least = data.s**2 * data.alpha_bar[t] / (data.s**2 * data.alpha_bar[t] + 1 - data.alpha_bar[t])
    loss = Diffusion(S).loss(data.eps, x0, Generator(5), t=t).item()
    assert abs(loss - least) < 4.5 * least * np.sqrt(2 / n)
    worse = Diffusion(S).loss(lambda x, t: data.eps(x, t) * 1.1, x0, Generator(5), t=t).item()
    assert worse > loss


def test_misuse():
    d = Diffusion(S)
    with pytest.raises(ValueError, match="generator, or both t and eps"):
        d.loss(Recorder(), X0, None, t=3)
    with pytest.raises(TypeError, match="uint8"):
        d.loss(Recorder(), np.zeros((2, 4, 4, 1), np.uint8), Generator(0))
    with pytest.raises(ValueError, match="must return"):
        d.loss(Recorder(lambda x: x[:, :1]), X0, Generator(0))


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
def test_learned_variance_adds_the_bounds_terms(predict):
    """simple + T/1000 L_t in bits, with the L_t of the bound itself, decoder included."""
    rng = np.random.default_rng(4)
    x0 = X0.astype(np.float64)
    t = np.array([1, 1, 2, 2, 3, 10, 20, 30, 40, 48, 49, 50])
    eps, prediction = rng.standard_normal((2, *X0.shape))
    v = rng.uniform(-1, 1, X0.shape)
    d = Diffusion(S, predict, "learned", clip_x0=False)
    output = np.concatenate([prediction, v], axis=-1)
    loss = d.loss(lambda x, t: output, x0, None, t=t, eps=eps).item()
    xt = d.q_sample(x0, t, eps)
    terms = [reverse_term(d, output[n : n + 1], x0[n : n + 1], xt[n : n + 1], int(t[n])).item() for n in range(12)]
    simple = np.mean((d.target(x0, eps, t) - prediction) ** 2)
    assert loss == pytest.approx(simple + 50 / 1000 * np.mean(terms), rel=1e-9)
    clipping = Diffusion(S, predict, "learned", clip_x0=True)
    assert clipping.loss(lambda x, t: output, x0, None, t=t, eps=eps).item() == loss


def test_learned_variance_detaches_the_prediction():
    rng = np.random.default_rng(5)
    x0, t = X0.astype(np.float64), np.array([1, 1, 2, 2, 3, 10, 20, 30, 40, 48, 49, 50])
    eps, prediction, v = rng.standard_normal((3, *X0.shape))
    d = Diffusion(S, variance="learned")
    output = Tensor(np.concatenate([prediction, v], axis=-1), requires_grad=True)
    d.loss(lambda x, t: output, x0, None, t=t, eps=eps).backward()
    np.testing.assert_allclose(output.grad[..., :2], 2 * (prediction - eps) / eps.size, rtol=1e-9, atol=1e-15)

    def value(v):
        out = np.concatenate([prediction, v], axis=-1)
        return d.loss(lambda x, t: out, x0, None, t=t, eps=eps).item()

    for n in range(12):
        direction = np.zeros_like(v)
        direction[n] = rng.standard_normal(v[n].shape)
        numeric = (value(v + 1e-6 * direction) - value(v - 1e-6 * direction)) / 2e-6
        assert (output.grad[..., 2:] * direction).sum() == pytest.approx(numeric, rel=1e-5, abs=1e-9)


def test_learned_variance_finds_the_best_one(gaussian_data):
    """With the exact model the best sigma^2 is the posterior's plus the spread of the mean; gradient descent on v finds
    it."""
    data = gaussian_data(S.beta[1:])
    t, n = 5, 20000
    rng = np.random.default_rng(6)
    x0 = data.m + data.s * rng.standard_normal((n, 1))
    eps = rng.standard_normal((n, 1))
    d = Diffusion(S, variance="learned", clip_x0=False)
    unknown = data.s**2 * (1 - S.alpha_bar[t]) / (S.alpha_bar[t] * data.s**2 + 1 - S.alpha_bar[t])
    best = S.posterior_variance[t] + d.posterior_weights(t)[0] ** 2 * unknown
    f = np.log(best / S.posterior_variance[t]) / np.log(S.beta[t] / S.posterior_variance[t])
    slopes = []
    for v in (2 * f - 1 - 0.05, 2 * f - 1 + 0.05):
        w = Tensor(np.full((1, 1), v), requires_grad=True)
        d.loss(lambda x, t, w=w: concatenate([data.eps(x, t), ones(x) * w], axis=-1), x0, None, t=t, eps=eps).backward()
        slopes.append(w.grad.item())
    assert 0 < f < 1 and slopes[0] < 0 < slopes[1]


def ones(x):
    return Tensor(np.ones_like(x))


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
def test_min_snr_weights_the_error_of_x0(predict):
    """min(snr, 5) (x0 - predicted x0)^2, whatever is predicted: the same number, scaled by alike for eps and v."""
    rng = np.random.default_rng(7)
    x0, t = X0.astype(np.float64), rng.integers(1, 51, 12)
    eps, output = rng.standard_normal((2, *X0.shape))
    d = Diffusion(S, predict, min_snr=5.0)
    loss = d.loss(lambda x, t: output, x0, None, t=t, eps=eps).item()
    error = (x0 - d.predict_x0(output, d.q_sample(x0, t, eps), t)) ** 2
    snr = (S.alpha_bar / (1 - np.where(S.alpha_bar == 1, 0, S.alpha_bar)))[t].reshape(-1, 1, 1, 1)
    # an error d in x0 is an error d sqrt(snr) in eps and d sqrt(snr + 1) in v
    np.testing.assert_allclose(loss, np.mean(np.minimum(snr, 5) * error), rtol=1e-9)
    assert d.loss(lambda x, t: output, x0, None, t=9, eps=eps).shape == ()
    assert Diffusion(S, predict).loss(lambda x, t: output, x0, None, t=t, eps=eps).item() != pytest.approx(loss)


def test_a_respaced_diffusion_trains_with_the_original_steps():
    model = Recorder()
    Diffusion(S.respaced([10, 30, 50])).loss(model, X0, Generator(0), t=2)
    assert set(model.calls[0][1].tolist()) == {30}


def test_draw_gives_what_the_loss_takes():
    d, generator = Diffusion(S), Generator(3, step=9)
    t, eps = d.draw(X0, generator)
    assert t.shape == (12,) and eps.shape == X0.shape and eps.dtype == np.float32
    model = lambda x, t: 0.3 * x  # noqa: E731
    assert d.loss(model, X0, None, t=t, eps=eps).item() == d.loss(model, X0, generator).item()
