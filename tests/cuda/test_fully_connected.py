"""Sums over rows and over pixels, and of products, against float64."""

import numpy as np
import pytest

from tinydiff.cuda import convolution, fully_connected
from tinydiff.cuda.products import Cost
from tinydiff.ops.fully_connected import linears_input_gradient


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    "shape", [(1, 1), (7, 3), (1000, 33), (64, 128), (0, 5), (5, 0), (3, 130, 36), (2, 0, 4), (0, 2, 4)]
)
def test_sum_rows(device, shape):
    X = normal(*shape)
    Y = device.run(fully_connected.sum_rows, X)
    assert Y.shape == (*shape[:-2], shape[-1]) and Y.dtype == np.float32
    np.testing.assert_allclose(Y, X.astype(float).sum(-2), atol=1e-6 * (1 + shape[-2]))
    np.testing.assert_array_equal(Y, device.run(fully_connected.sum_rows, X, seed=3))


@pytest.mark.parametrize("shape", [(3, 4, 5, 8), (2, 1, 1, 33), (200, 3, 3, 4), (0, 4, 4, 4)])
def test_sum_pixels(device, shape):
    X = normal(*shape)
    np.testing.assert_allclose(device.run(convolution.sum_pixels, X), X.astype(float).sum((1, 2)), atol=1e-5)
    assert device.run(convolution.sum_pixels, X[0] if len(X) else X[:, 0]) is NotImplemented


@pytest.mark.parametrize("shape", [(3, 4, 5, 8), (2, 1, 1, 33), (40, 12, 12, 36)])
def test_sum_pixels_and_images(device, shape):
    """In one part and in several of an image; the same bits whichever blocks are last."""
    X = normal(*shape)
    first, second = (device.run(convolution.sum_pixels_and_images, X, seed=seed) for seed in (1, 2))
    for ours, again, truth in zip(
        first, second, (X.astype(float).sum((1, 2)), X.astype(float).sum((0, 1, 2))), strict=True
    ):
        np.testing.assert_allclose(ours, truth, rtol=0, atol=1e-6 * np.abs(X).sum() / shape[3])
        np.testing.assert_array_equal(ours, again)
    for other in (X[0], X[:0], X.astype(float)):
        assert device.run(convolution.sum_pixels_and_images, other) is NotImplemented


def test_sum_rows_leaves_others_alone(device):
    assert device.run(fully_connected.sum_rows, np.ones((2, 2))) is NotImplemented
    assert device.run(fully_connected.sum_rows, normal(2, 2, 2, 2)) is NotImplemented
    assert device.run(fully_connected.sum_rows, normal(65536, 1, 1)) is NotImplemented


def test_costs():
    assert fully_connected.sum_rows_cost(normal(6, 7)) == Cost(42, 4 * 49)
    assert convolution.sum_pixels_cost(normal(2, 3, 4, 5)) == Cost(120, 4 * (120 + 10))


def test_products_of_16_bits_are_added_in_float32(device):
    """2^11 + 1 is no number of fp16, 2^11 + 2 is one."""
    L_Ys = [np.full((1, 8), x, np.float16) for x in (2**11, 1, 1)]
    L_X = device.run(fully_connected.linears_input_gradient, L_Ys, [np.eye(8, dtype=np.float16)] * 3)
    np.testing.assert_array_equal(L_X, np.full((1, 8), 2**11 + 2))
    np.testing.assert_array_equal(linears_input_gradient(L_Ys, [np.eye(8, dtype=np.float16)] * 3), L_X)
