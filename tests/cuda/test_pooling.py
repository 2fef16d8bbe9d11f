"""Copies between maps against NumPy, bit for bit."""

import numpy as np
import pytest

from tests.cuda.conftest import HALVES, assert_rounded, in_16_bits
from tinydiff.cuda import pooling
from tinydiff.cuda.shape import cut, join
from tinydiff.cuda.tables import pick_rows
from tinydiff.precision import from_memory

MAPS = [(1, 1, 1, 1), (2, 3, 5, 4), (3, 4, 2, 7), (2, 9, 8, 36), (0, 4, 4, 4), (2, 4, 4, 0)]


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", MAPS)
def test_repeat_pixels(device, shape):
    X = normal(*shape)
    np.testing.assert_array_equal(device.run(pooling.repeat_pixels, X, (2, 2)), X.repeat(2, axis=1).repeat(2, axis=2))


@pytest.mark.parametrize("shape", MAPS)
def test_sum_pixel_blocks(device, shape):
    N, H, W, C = shape
    L_Y = normal(N, 2 * H, 2 * W, C)
    L_X = device.run(pooling.sum_pixel_blocks, L_Y, (2, 2))
    a, b, c, d = (L_Y[:, i::2, j::2] for i in (0, 1) for j in (0, 1))
    np.testing.assert_array_equal(L_X, ((a + b) + c) + d)
    np.testing.assert_array_equal(L_X, device.run(pooling.sum_pixel_blocks, L_Y, (2, 2), seed=5))


@pytest.mark.parametrize("A, B", [(4, 8), (4, 3), (3, 4), (5, 2), (32, 64), (0, 4), (4, 0)])
def test_join_and_cut(device, A, B):
    first, second = normal(2, 5, 3, A), normal(2, 5, 3, B, seed=1)
    Y = device.run(join, [first, second], -1)
    np.testing.assert_array_equal(Y, np.concatenate([first, second], -1))
    for part, truth in zip(device.run(cut, Y, [A], -1), (first, second), strict=True):
        np.testing.assert_array_equal(part, truth)


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("shape", [(2, 3, 5, 8), (2, 9, 8, 24), (3, 4, 2, 7), (1, 2, 2, 12), (0, 4, 4, 8)])
def test_16_bits(precision, shape, device):
    """What is moved keeps its bits, and four pixels are added in float32; eight channels at once where they come in eights."""
    N, H, W, C = shape
    X, L_Y = normal(*shape), normal(N, 2 * H, 2 * W, C)
    L_Y[:1, :1, :2, 0] = np.nan, np.inf
    (X, L_Y), (_, l_y) = in_16_bits(precision, X, L_Y)
    np.testing.assert_array_equal(device.run(pooling.repeat_pixels, X, (2, 2)), X.repeat(2, axis=1).repeat(2, axis=2))
    L_X = device.run(pooling.sum_pixel_blocks, L_Y, (2, 2))
    assert np.isnan(from_memory(L_X[:1, :1, :1, 0])).all()
    L_X[:1, :1, :1, 0] = l_y[:1, :2, :2, 0] = 0
    assert_rounded(L_X, sum(l_y[:, i::2, j::2] for i in (0, 1) for j in (0, 1)))
    Y = device.run(join, [X, L_Y[:, :H, :W]], -1)
    np.testing.assert_array_equal(Y, np.concatenate([X, L_Y[:, :H, :W]], -1))
    for part, truth in zip(device.run(cut, Y, [C], -1), (X, L_Y[:, :H, :W]), strict=True):
        np.testing.assert_array_equal(part, truth)
    if X.size:
        rows = X.reshape(-1, C)
        np.testing.assert_array_equal(device.run(pick_rows, rows, np.array([2, 0, 2])), rows[[2, 0, 2]])


@pytest.mark.parametrize("A, B", [(8, 16), (8, 4), (12, 8), (3, 8)])
def test_join_and_cut_in_16_bits(device, A, B):
    memory = [normal(1 + 2 * 5 * n, seed=n).astype(np.float16) for n in (A, B)]
    first, second = off = [x[1:].reshape(2, 5, -1) for x in memory]  # these lie off 16 bytes
    for a, b in (off, (first.copy(), second), (first, second.copy()), (first.copy(), second.copy())):
        Y = device.run(join, [a, b], -1)
        np.testing.assert_array_equal(Y, np.concatenate([first, second], -1))
        for part, truth in zip(device.run(cut, Y, [A], -1), (first, second), strict=True):
            np.testing.assert_array_equal(part, truth)


def test_views_and_addresses_off_16_bytes(device):
    memory = normal(1 + 2 * 3 * 3 * 4)
    X = device.array(memory)[1:].reshape(2, 3, 3, 4)
    truth = memory[1:].reshape(2, 3, 3, 4).repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(device.run(pooling.repeat_pixels, X, (2, 2)), truth)
    view = normal(2, 6, 3, 4)[:, ::2]
    np.testing.assert_array_equal(
        device.run(pooling.repeat_pixels, view, (2, 2)), view.repeat(2, axis=1).repeat(2, axis=2)
    )


def test_what_is_left_to_others(device):
    X = np.ones((1, 2, 2, 4))
    assert device.run(pooling.repeat_pixels, X, (2, 2)) is NotImplemented
    assert device.run(pooling.sum_pixel_blocks, X, (2, 2)) is NotImplemented
    assert device.run(pooling.repeat_pixels, X.astype(np.float32), (2, 3)) is NotImplemented
    assert device.run(join, [normal(1, 2, 4)] * 3, -1) is NotImplemented
    assert device.run(join, [normal(1, 2, 4)] * 2, 1) is NotImplemented
    assert device.run(join, [X, X], -1) is NotImplemented
    assert device.run(join, [X.astype(np.float32), X.astype(np.float16)], -1) is NotImplemented
    assert device.run(join, [normal(1, 2, 4), normal(2, 2, 4)], -1) is NotImplemented
    assert device.run(cut, X, [2], -1) is NotImplemented
