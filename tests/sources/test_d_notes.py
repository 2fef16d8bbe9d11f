"""Source D: handwritten notes on back-propagation and diffusion. Their bars and weights are as in tinydiff here."""

import math

import numpy as np
import pytest

import tinydiff as td
from tinydiff import ops
from tinydiff.diffusion import Diffusion, Schedule, gaussian

S = Schedule.linear()


def test_d_fc_layer_with_weights_on_the_left_is_the_transpose(rng):
    """F = A X + B with columns as data: L_X = A^T L_F, L_A = L_F X^T, L_B = L_F 1."""
    A, X, B, L_F = (rng.standard_normal(s) for s in [(4, 3), (3, 6), 4, (4, 6)])
    x, w, b = (td.Tensor(v, requires_grad=True) for v in (X.T.copy(), A.T.copy(), B))
    F = ops.linear(x, w, b)
    F.backward(L_F.T)
    np.testing.assert_allclose(F.data.T, A @ X + B[:, None], rtol=1e-12)
    np.testing.assert_allclose(x.grad.T, A.T @ L_F, rtol=1e-12)
    np.testing.assert_allclose(w.grad.T, L_F @ X.T, rtol=1e-12)
    np.testing.assert_allclose(b.grad, L_F.sum(1), rtol=1e-12)


def test_d_mlp_is_a_chain_of_fc_layers(rng):
    X, W1, W2 = rng.standard_normal((5, 3)), rng.standard_normal((3, 4)), rng.standard_normal((4, 2))
    L_Y, w1 = rng.standard_normal((5, 2)), td.Tensor(W1, requires_grad=True)
    hidden = ops.linear(X, w1)
    ops.linear(ops.relu(hidden), W2).backward(L_Y)
    np.testing.assert_allclose(w1.grad, X.T @ ((L_Y @ W2.T) * (hidden.data > 0)), rtol=1e-12)


def test_d_reparameterisation_passes_gradients(rng, agrees):
    """z = mu + sigma eps: for f(z) = z^2 the slopes of E f = mu^2 + sigma^2 are 2 mu and 2 sigma."""
    eps = rng.standard_normal(40000)
    mu, sigma = (td.Tensor(np.full(40000, v), requires_grad=True) for v in (0.7, 1.3))
    z = mu + sigma * eps
    (z * z).sum().backward()
    agrees(z.data, 0.7)
    agrees((z.data - 0.7) ** 2, 1.3**2)
    agrees(mu.grad, 2 * 0.7)
    agrees(sigma.grad, 2 * 1.3)


def test_d_sum_of_independent_gaussians(rng, agrees):
    total = 0.6 * rng.standard_normal(40000) + 1.1 * rng.standard_normal(40000)
    agrees(total**2, 0.6**2 + 1.1**2)
    agrees(np.cos(total), math.exp(-(0.6**2 + 1.1**2) / 2))


def test_d_forward_step_by_step_and_in_closed_form():
    for t in (2, 500, 1000):
        tau = t - 2
        eps = S.noise_weights(t)
        assert eps[-1] == pytest.approx(math.sqrt(1 - S.alpha[t]))
        assert eps[tau] == pytest.approx(math.sqrt(S.alpha[t]) * math.sqrt(1 - S.alpha[t - 1]))
        assert math.hypot(*eps[-2:]) == pytest.approx(math.sqrt(1 - S.alpha[t] * S.alpha[t - 1]))
        assert math.hypot(*eps) == pytest.approx(math.sqrt(1 - S.alpha_bar[t]))


def test_d_limit_is_white_noise(rng):
    x0, eps = rng.uniform(-1, 1, (2, 3)), rng.standard_normal((2, 3))
    xT = Diffusion(S).q_sample(x0, S.T, eps)
    assert np.abs(xT - eps).max() < 0.01  # sqrt(4.0e-5) of x0 is left
    assert math.sqrt(S.alpha_bar[-1]) == pytest.approx(0.00635, rel=1e-2)


def test_d_posterior_by_matching_the_exponent(rng):
    """The coefficients of x_{t-1}^2 and x_{t-1} in the exponent of q(x_t | x_{t-1}) q(x_{t-1} | x_0)."""
    x0, xt = rng.standard_normal((2, 4, 2))
    for t in (2, 500, 1000):
        square = S.alpha[t] / S.beta[t] + 1 / S.one_minus_alpha_bar[t - 1]
        linear = np.sqrt(S.alpha[t]) / S.beta[t] * xt + np.sqrt(S.alpha_bar[t - 1]) / S.one_minus_alpha_bar[t - 1] * x0
        mean, variance = Diffusion(S).q_posterior(x0, xt, t)
        assert variance == pytest.approx(1 / square)
        np.testing.assert_allclose(mean, linear / square, rtol=1e-9)


def test_d_posterior_is_the_conditional_of_the_joint(rng):
    """(b-0) to (b-3): condition the joint Gaussian of (x_{t-1}, x_t) given x_0 on x_t."""
    t, x0, xt = 300, *rng.standard_normal((2, 1, 1))
    v1, v2 = S.one_minus_alpha_bar[[t - 1, t]]
    cross = np.sqrt(S.alpha[t]) * v1
    mean = np.sqrt(S.alpha_bar[t - 1]) * x0 + cross / v2 * (xt - np.sqrt(S.alpha_bar[t]) * x0)
    ours, variance = Diffusion(S).q_posterior(x0, xt, t)
    np.testing.assert_allclose(ours, mean, rtol=1e-9)
    assert variance == pytest.approx(v1 - cross**2 / v2)
    joint = gaussian.log_prob(
        np.append(ours[0], xt[0]), np.sqrt(S.alpha_bar[[t - 1, t]]) * x0[0], [[v1, cross], [cross, v2]]
    )
    assert joint == pytest.approx(
        gaussian.log_prob(ours[0], ours[0], variance=variance)
        + gaussian.log_prob(xt[0], np.sqrt(S.alpha_bar[t]) * x0[0], variance=v2)
    )


def test_d_posterior_mean_from_eps(rng):
    x0, eps = rng.standard_normal((2, 4, 2))
    d = Diffusion(S)
    for t in (1, 2, 500, 1000):
        xt = d.q_sample(x0, t, eps)
        by_hand = (xt - (1 - S.alpha[t]) / np.sqrt(1 - S.alpha_bar[t]) * eps) / np.sqrt(S.alpha[t])
        np.testing.assert_allclose(d.q_posterior_from_eps(eps, xt, t)[0], by_hand, rtol=1e-9)
        np.testing.assert_allclose(d.q_posterior(x0, xt, t)[0], by_hand, rtol=1e-6, atol=1e-9)
