import math

import numpy as np
import pytest

from tinydiff.autograd.tensor import Tensor
from tinydiff.diffusion.decoder import bin_log_prob, log_normal_interval

BYTES = np.arange(256) / 127.5 - 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sigma", [1e-5, 1e-3, 1 / 255, 0.05, 0.7, 20.0, 1e4])
@pytest.mark.parametrize("mean", [-50.0, -1.0, -0.99999, 0.0, 0.123, 0.9964, 1.0, 3.0])
def test_the_256_probabilities_add_up_to_1(mean, sigma, dtype):
    log_p = bin_log_prob(np.full(256, mean), np.full(256, 2 * math.log(sigma)), BYTES.astype(dtype)).data
    # the edges of neighbouring bytes meet to rounding: float32 bytes are off by 6e-8, a narrow Gaussian resolves that
    assert abs(np.exp(log_p).sum() - 1) < (1e-10 if dtype is np.float64 else 1e-10 + 1e-7 / sigma)


def test_probabilities_are_those_of_the_c_librarys_erf():
    rng = np.random.default_rng(0)
    for _ in range(300):
        k, mean, sigma = rng.integers(1, 255), rng.uniform(-1.5, 1.5), 10 ** rng.uniform(-2, 1)
        a, b = ((BYTES[k] + side / 255 - mean) / sigma for side in (-1, 1))
        if a + b > 0:
            a, b = -b, -a
        exact = (math.erfc(-b / math.sqrt(2)) - math.erfc(-a / math.sqrt(2))) / 2
        if exact > 1e-290 and b - a > 1e-3:
            ours = bin_log_prob(np.full(1, mean), np.full(1, 2 * math.log(sigma)), BYTES[k : k + 1]).item()
            assert ours == pytest.approx(math.log(exact), rel=1e-11, abs=1e-11)


def test_far_tails_follow_the_asymptotic_series():
    for z in (40.0, 200.0, 1e5):
        b = np.array([-z])
        series = -z * z / 2 - math.log(z * math.sqrt(2 * math.pi)) + math.log1p(-1 / z**2 + 3 / z**4 - 15 / z**6)
        assert log_normal_interval(np.array([-np.inf]), b).item() == pytest.approx(series, rel=1e-11)
        assert log_normal_interval(-b, np.array([np.inf])).item() == pytest.approx(series, rel=1e-11)
        assert log_normal_interval(b - 1, b).item() == pytest.approx(series, rel=1e-11)
    for z in (5.0, 40.0, 200.0):  # a narrow interval is the density times its width
        narrow = log_normal_interval(np.array([-z - 1e-6 / z]), np.array([-z])).item()
        assert narrow == pytest.approx(-z * z / 2 + math.log(1e-6 / z / math.sqrt(2 * math.pi)), abs=1e-6)


def test_open_ends_and_middle():
    inf = np.array([np.inf])
    assert log_normal_interval(-inf, inf).item() == 0
    assert log_normal_interval(-inf, np.zeros(1)).item() == pytest.approx(math.log(0.5), rel=1e-15)
    assert log_normal_interval(-np.ones(1), np.ones(1)).item() == pytest.approx(math.log(math.erf(1 / math.sqrt(2))))


def test_gradients_are_finite_differences():
    rng = np.random.default_rng(1)
    x0 = BYTES[[0, 0, 3, 100, 128, 200, 255, 255, 255]]
    mean, log_variance = rng.uniform(-1.2, 1.2, 9), rng.uniform(-9, 1, 9)
    L_Y, h = rng.standard_normal(9), 1e-5
    inputs = [Tensor(mean, requires_grad=True), Tensor(log_variance, requires_grad=True)]
    bin_log_prob(*inputs, x0).backward(L_Y)

    def value(m, v):
        return bin_log_prob(m, v, x0).data

    numeric_mean = (value(mean + h, log_variance) - value(mean - h, log_variance)) / (2 * h) * L_Y
    numeric_variance = (value(mean, log_variance + h) - value(mean, log_variance - h)) / (2 * h) * L_Y
    np.testing.assert_allclose(inputs[0].grad, numeric_mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(inputs[1].grad, numeric_variance, rtol=1e-5, atol=1e-5)


def test_gradients_far_from_the_byte_point_back_to_it():
    mean = Tensor(np.full(2, 5.0, np.float32), requires_grad=True)
    log_variance = Tensor(np.full(2, -12.0, np.float32), requires_grad=True)
    bin_log_prob(mean, log_variance, np.array([-1, 0.0039215], np.float32)).backward(np.ones(2, np.float32))
    assert mean.grad.dtype == np.float32 and np.all(np.isfinite(mean.grad)) and np.all(mean.grad < -1e5)
    assert np.all(np.isfinite(log_variance.grad)) and np.all(log_variance.grad > 1e5)
