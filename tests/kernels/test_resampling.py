"""Copies between maps against NumPy, bit for bit."""

import numpy as np
import pytest

from tinydiff.kernels import resampling
from tinydiff.kernels.matrix import Cost

MAPS = [(1, 1, 1, 1), (2, 3, 5, 4), (3, 4, 2, 7), (2, 9, 8, 36), (0, 4, 4, 4), (2, 4, 4, 0)]


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", MAPS)
def test_upsample(device, shape):
    X = normal(*shape)
    np.testing.assert_array_equal(device.run(resampling.upsample, X), X.repeat(2, axis=1).repeat(2, axis=2))


@pytest.mark.parametrize("shape", MAPS)
def test_upsample_backward(device, shape):
    N, H, W, C = shape
    L_Y = normal(N, 2 * H, 2 * W, C)
    L_X = device.run(resampling.upsample_backward, L_Y)
    a, b, c, d = (L_Y[:, i::2, j::2] for i in (0, 1) for j in (0, 1))
    np.testing.assert_array_equal(L_X, ((a + b) + c) + d)
    np.testing.assert_array_equal(L_X, device.run(resampling.upsample_backward, L_Y, seed=5))


@pytest.mark.parametrize("A, B", [(4, 8), (4, 3), (3, 4), (5, 2), (32, 64), (0, 4), (4, 0)])
def test_concatenate_and_split(device, A, B):
    first, second = normal(2, 5, 3, A), normal(2, 5, 3, B, seed=1)
    Y = device.run(resampling.concatenate, [first, second])
    np.testing.assert_array_equal(Y, np.concatenate([first, second], -1))
    for part, truth in zip(device.run(resampling.split, Y, [A]), (first, second), strict=True):
        np.testing.assert_array_equal(part, truth)


def test_views_and_addresses_off_16_bytes(device):
    memory = normal(1 + 2 * 3 * 3 * 4)
    X = device.array(memory)[1:].reshape(2, 3, 3, 4)
    truth = memory[1:].reshape(2, 3, 3, 4).repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(device.run(resampling.upsample, X), truth)
    view = normal(2, 6, 3, 4)[:, ::2]
    np.testing.assert_array_equal(device.run(resampling.upsample, view), view.repeat(2, axis=1).repeat(2, axis=2))


def test_what_is_left_to_others(device):
    X = np.ones((1, 2, 2, 4))
    assert device.run(resampling.upsample, X) is NotImplemented
    assert device.run(resampling.upsample_backward, X) is NotImplemented
    assert device.run(resampling.upsample, X.astype(np.float32), (2, 3)) is NotImplemented
    assert device.run(resampling.concatenate, [normal(1, 2, 4)] * 3) is NotImplemented
    assert device.run(resampling.concatenate, [normal(1, 2, 4)] * 2, 1) is NotImplemented
    assert device.run(resampling.concatenate, [X, X]) is NotImplemented
    assert device.run(resampling.concatenate, [normal(1, 2, 4), normal(2, 2, 4)]) is NotImplemented
    assert device.run(resampling.split, X, [2]) is NotImplemented


def test_costs():
    assert resampling.copy_cost(normal(2, 3), normal(4)) == Cost(0, 40)
