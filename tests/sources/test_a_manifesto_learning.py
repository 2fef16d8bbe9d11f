"""Source A again: its chapters on gradients and on diffusion; algebra and probability are in test_a_manifesto.py."""

import math

import numpy as np
import pytest

import tinydiff as td
from tests.sources.chains import joint_of_chain
from tinydiff import ops
from tinydiff.diffusion import Diffusion, Schedule, gaussian, sample
from tinydiff.diffusion.decoder import bin_log_prob

S = Schedule.linear(30, 0.01, 0.5)


# --- 4: gradients ---


def test_a_4_1_fc_layer_element_by_element(rng):
    X, W, b = (td.Tensor(rng.standard_normal(s), requires_grad=True) for s in [(4, 3), (3, 2), 2])
    L_Y = rng.standard_normal((4, 2))
    Y = ops.linear(X, W, b)
    Y.backward(L_Y)
    for n in range(4):
        for m in range(2):
            assert Y.data[n, m] == pytest.approx(
                sum(X.data[n, d] * W.data[d, m] for d in range(3)) + b.data[m]
            )  # 4.1.2
    L_X = [[sum(L_Y[i, m] * W.data[j, m] for m in range(2)) for j in range(3)] for i in range(4)]  # (4.1.7), index i
    L_W = [[sum(L_Y[n, j] * X.data[n, i] for n in range(4)) for j in range(2)] for i in range(3)]  # (4.1.10), index j
    L_b = [sum(L_Y[n, j] for n in range(4)) for j in range(2)]  # (4.1.13), index j
    for got, expected in zip((X.grad, W.grad, b.grad), (L_X, L_W, L_b), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_a_4_1_8_4_1_11_4_1_14_fc_layer_in_matrices(rng):
    X, W, b = (td.Tensor(rng.standard_normal(s), requires_grad=True) for s in [(5, 3), (3, 4), 4])
    L_Y = rng.standard_normal((5, 4))
    ops.linear(X, W, b).backward(L_Y)
    np.testing.assert_allclose(X.grad, L_Y @ W.data.T, rtol=1e-12)
    np.testing.assert_allclose(W.grad, X.data.T @ L_Y, rtol=1e-12)
    np.testing.assert_allclose(b.grad, np.ones(5) @ L_Y, rtol=1e-12)
    td.gradcheck(ops.linear, [X.data, W.data, b.data])


def test_a_4_1_a_convolution_is_the_fc_layer_on_patches(rng):
    X, W, b = (td.Tensor(rng.standard_normal(s), requires_grad=True) for s in [(2, 5, 6, 3), (3, 3, 3, 4), 4])
    Y = ops.conv2d(X, W, b, padding=1)
    L_Y = rng.standard_normal(Y.shape)
    Y.backward(L_Y)
    P = ops.patches(td.Tensor(X.data), (3, 3), padding=1)
    flat = P.data.reshape(-1, 27)
    rows = L_Y.reshape(-1, 4)
    np.testing.assert_allclose(Y.data.reshape(-1, 4), flat @ W.data.reshape(27, 4) + b.data, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(W.grad.reshape(27, 4), flat.T @ rows, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(b.grad, rows.sum(0), rtol=1e-10)
    x = td.Tensor(X.data, requires_grad=True)
    ops.patches(x, (3, 3), padding=1).backward((rows @ W.data.reshape(27, 4).T).reshape(P.shape))
    np.testing.assert_allclose(X.grad, x.grad, rtol=1e-10, atol=1e-12)


# --- 5: diffusion ---


def written_out(schedule, t):
    """The weights of x_0, eps_0, ..., eps_{t-1} in x_t: the chain run on unit vectors."""
    d, units = Diffusion(schedule), np.eye(t + 1)
    x = units[:1]
    for step in range(1, t + 1):
        x = d.q_step(x, step, units[step : step + 1])
    return x[0]


def test_a_5_2_1_the_forward_chain_is_markov(rng):
    """q(x_{1:T} | x_0) as one Gaussian is the product of its steps."""
    s, x0, x = S.truncated(5), 0.7, rng.standard_normal((20, 5))
    C = joint_of_chain(s, 0.0)[1:, 1:]
    before = np.concatenate([np.full((20, 1), x0), x[:, :-1]], 1)
    product = sum(
        gaussian.log_prob(x[:, [t]], np.sqrt(s.alpha[t + 1]) * before[:, [t]], variance=s.beta[t + 1]) for t in range(5)
    )
    np.testing.assert_allclose(gaussian.log_prob(x, np.sqrt(s.alpha_bar[1:]) * x0, C), product, rtol=1e-9)


def test_a_5_2_3_one_step(rng, agrees):
    x = Diffusion(S).q_step(np.full((40000, 1), 0.7), 12, rng.standard_normal((40000, 1)))
    agrees(x, math.sqrt(1 - S.beta[12]) * 0.7)
    agrees((x - math.sqrt(S.alpha[12]) * 0.7) ** 2, S.beta[12])


def test_a_5_2_4_weights_of_each_noise():
    for t in (1, 2, 3, 30):
        alpha = S.alpha[1 : t + 1]
        weights = [math.sqrt(alpha[tau + 1 :].prod() - alpha[tau:].prod()) for tau in range(t - 1)]
        weights.append(math.sqrt(1 - alpha[-1]))
        np.testing.assert_allclose(S.noise_weights(t), weights, rtol=1e-9)
        np.testing.assert_allclose(written_out(S, t), [math.sqrt(alpha.prod()), *weights], rtol=1e-9)


def test_a_5_2_8_induction_step():
    for t in (2, 3, 30):
        before, now = written_out(S, t - 1), written_out(S, t)
        np.testing.assert_allclose(now[:-1], math.sqrt(S.alpha[t]) * before, rtol=1e-12)  # (5.2.6), (5.2.7)
        assert now[-1] == pytest.approx(math.sqrt(1 - S.alpha[t]))


def test_a_5_2_13_to_5_2_15_mean_and_variance_of_a_weighted_sum(rng, agrees):
    c, mu, sigma = np.array([0.5, -2.0, 1.5]), np.array([1.0, 0.3, -0.7]), np.array([0.4, 1.0, 2.0])
    y = (mu + sigma * rng.standard_normal((40000, 3))) @ c
    agrees(y, c @ mu)
    agrees((y - c @ mu) ** 2, c**2 @ sigma**2)
    agrees(np.exp(1j * y).real, (np.exp(1j * c @ mu - c**2 @ sigma**2 / 2)).real)  # the characteristic function at 1


def test_a_5_2_17_squares_of_the_weights_add_up_to_1_minus_alpha_bar():
    for t in range(1, S.T + 1):
        assert (S.noise_weights(t) ** 2).sum() == pytest.approx(1 - S.alpha_bar[t], rel=1e-12)


def test_a_5_2_18_closed_form_is_the_chain(rng, agrees):
    d, x0, t = Diffusion(S), np.tile([0.7, -0.2], (40000, 1)), 9
    x = x0
    for step in range(1, t + 1):
        x = d.q_step(x, step, rng.standard_normal(x.shape))
    closed = d.q_sample(x0, t, rng.standard_normal(x.shape))
    for z in (x, closed):
        centred = z - np.sqrt(S.alpha_bar[t]) * x0
        agrees(centred, 0)
        agrees(centred[:, :, None] * centred[:, None, :], (1 - S.alpha_bar[t]) * np.eye(2))


def test_a_5_2_19_density_of_the_closed_form(rng):
    """q(x_t | x_0) by integrating q(x_t | x_{t-1}) q(x_{t-1} | x_0) over a line."""
    x0, t = 0.7, 9
    grid, dx = np.linspace(-8, 8, 4001, retstep=True)
    before = np.exp(
        gaussian.log_prob(grid[:, None], [math.sqrt(S.alpha_bar[t - 1]) * x0], variance=1 - S.alpha_bar[t - 1])
    )
    for xt in rng.standard_normal(5):
        step = np.exp(gaussian.log_prob([xt], math.sqrt(S.alpha[t]) * grid[:, None], variance=S.beta[t]))
        closed = gaussian.log_prob([xt], [math.sqrt(S.alpha_bar[t]) * x0], variance=1 - S.alpha_bar[t])
        assert (step * before).sum() * dx == pytest.approx(np.exp(closed), rel=1e-9)


class AffineModel:
    """A model eps(x, t) = slope_t x, for which the whole reverse chain is Gaussian: p(x_t) = N(0, variance[t])."""

    def __init__(self, diffusion, share=0.9):
        s = diffusion.schedule
        self.slope = share * np.sqrt(s.one_minus_alpha_bar)
        self.variance = np.ones(s.T + 1)
        for t in range(s.T, 0, -1):
            self.gain = diffusion.reverse(np.array([[self.slope[t]]]), np.ones((1, 1)), t).mean.item()
            noise = float(np.exp(diffusion.log_variance(None, np.ones((1, 1)), t))) if t > 1 else 0.0
            self.variance[t - 1] = self.gain**2 * self.variance[t] + noise

    def __call__(self, x, t, labels=None):
        return self.slope[np.asarray(t)].reshape(-1, 1).astype(x.dtype) * x


def test_a_5_3_1_the_reverse_chain_is_what_is_sampled(agrees):
    diffusion = Diffusion(S, clip_x0=False)
    model = AffineModel(diffusion)
    x = sample(model, diffusion, (40000, 1), td.random.Generator(3).at(7, 0), progress=False)
    agrees(x, 0)
    agrees(x.astype(np.float64) ** 2, model.variance[0])


@pytest.mark.slow
@pytest.mark.parametrize(("share", "clearly"), [(0.9, -1), (0.4, 1)])  # a good model leaves next to no gap
def test_a_5_3_b_3_1_2_minus_log_p_is_below_the_bound(share, clearly):
    """-log p(x_0) of bytes by integrating the decoder over p(x_1), which is known here; E L by Monte Carlo."""
    diffusion = Diffusion(Schedule.linear(8, 0.05, 0.8), clip_x0=False)
    model = AffineModel(diffusion, share)
    x1 = np.linspace(-8, 8, 20001) * math.sqrt(model.variance[1])
    p = np.exp(gaussian.log_prob(x1[:, None], [0.0], variance=model.variance[1])) * (x1[1] - x1[0])
    log_variance = float(diffusion.log_variance(None, np.ones((1, 1)), 1))
    total_probability = 0.0
    for byte in range(256):
        x0 = byte / 127.5 - 1
        given_x1 = np.exp(bin_log_prob(model.gain * x1, np.full(x1.shape, log_variance), np.full(x1.shape, x0)).data)
        probability = (p * given_x1).sum()
        total_probability += probability
        if byte in (0, 100, 130):
            total = diffusion.vlb(model, np.full((4000, 1), x0), td.random.Generator(byte)).total
            error = total.std() / math.sqrt(len(total))
            assert total.mean() - clearly * 5 * error > -math.log2(probability)
    assert total_probability == pytest.approx(1, abs=1e-9)
