"""Convolutions of images with doubled pixels, which the kernels never see, against the definition in float64."""

import numpy as np
import pytest

from tests.cuda.conftest import HALVES
from tests.cuda.test_convolution import doubles, error, normal
from tinydiff.cuda import convolution, doubling
from tinydiff.ops import convolution as definition
from tinydiff.precision import from_memory, in_memory, rounded

CASES = {
    "several tiles": (3, 7, 5, 16, 72),
    "one pixel": (2, 1, 1, 4, 8),
    "3 channels": (2, 3, 4, 3, 36),
    "3 filters": (2, 4, 3, 36, 3),
    "odd channels": (1, 5, 2, 13, 7),
    "many images": (40, 2, 2, 8, 12),
}


def three(device, X, W, b, L_Y, **options):
    return (
        device.run(convolution.upsample_convolve, X, W, b, **options),
        device.run(convolution.upsample_convolve_input_gradient, L_Y, W, **options),
        device.run(convolution.upsample_convolve_weight_gradient, X, L_Y, **options),
    )


def defined(X, W, b, L_Y):
    return (
        definition.upsample_convolve.definition(X, W, b),
        definition.upsample_convolve_input_gradient.definition(L_Y, W),
        definition.upsample_convolve_weight_gradient.definition(X, L_Y),
    )


def arrays(N, H, W, C, K):
    return normal(N, H, W, C), normal(3, 3, C, K), normal(K), normal(N, 2 * H, 2 * W, K)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_convolution_and_both_gradients(device, case):
    given = arrays(*case)
    for ours, truth in zip(three(device, *given), defined(*doubles(*given)), strict=True):
        assert error(ours, truth) < 2e-6


def test_without_a_bias_and_with_arrays_that_are_not_contiguous(device):
    X, W, _, L_Y = arrays(2, 3, 4, 8, 12)
    given = X[:, ::-1], W.transpose(1, 0, 2, 3), None, L_Y.transpose(0, 2, 1, 3)[:, :6].transpose(0, 2, 1, 3)
    X64, W64, L64 = doubles(*(np.array(a) for a in (given[0], given[1], given[3])))
    ours = three(device, X[:, ::-1, :3], given[1], None, given[3])
    for y, truth in zip(ours, defined(X64[:, :, :3], W64, None, L64), strict=True):
        assert error(y, truth) < 2e-6


def test_no_images_and_no_channels(device):
    for case in ((0, 3, 4, 8, 12), (2, 3, 4, 0, 8), (2, 3, 4, 8, 0)):
        given = arrays(*case)
        for y, truth in zip(three(device, *given), defined(*given), strict=True):
            np.testing.assert_array_equal(y, truth)


def test_the_same_bits_whatever_the_order_of_threads(device):
    given = arrays(2, 5, 6, 20, 12)
    for one, other in zip(three(device, *given, seed=1), three(device, *given, seed=2), strict=True):
        np.testing.assert_array_equal(one, other)


def test_sums_of_taps_have_their_order(device):
    """To the bit: float32, row by row, in each row from left to right."""
    W, L_T, L_W = normal(3, 3, 5, 7), normal(4, 4, 7, 5), np.zeros((3, 3, 5, 7), np.float32)
    of_four = [range(max(0, 2 - j), min(3, 4 - j)) for j in range(4)]
    of_three = [range(2 - j, 4 - j) for j in range(3)]

    def sums(A, rows, columns):
        return [[sum(A[r, s] for r in down for s in across) for across in columns] for down in rows]

    def gradient(L_T, L_W):
        doubling.sum_gradient(L_T, L_W)
        return L_W

    T, V = sums(W, of_four, of_four), device.run(doubling.filters_of_parities, W)
    np.testing.assert_array_equal(device.run(doubling.turned_filters, W), np.swapaxes(T, 2, 3))
    for a, b, i, j in np.ndindex(2, 2, 2, 2):
        np.testing.assert_array_equal(V[a, b, i, j], T[3 - a - 2 * i][3 - b - 2 * j])
    np.testing.assert_array_equal(device.run(gradient, L_T, L_W), np.swapaxes(sums(L_T, of_three, of_three), 2, 3))


def test_what_is_left_to_the_definition(device):
    X, W, b, L_Y = arrays(1, 2, 2, 4, 4)
    for y in three(device, *doubles(X, W, b, L_Y)):
        assert y is NotImplemented


@pytest.mark.parametrize("precision", HALVES)
def test_filters_in_16_bits_are_added_in_float32_and_rounded_once(device, precision):
    """All four taps in the corners of 2 x 2 filters: in 16 bits, adding 1 thrice to 2^11 would leave it. NaN and infinity stay."""
    W = np.ones((3, 3, 3, 5), np.float32)
    W[1, 1, 0], W[1, 1, 1, 0], W[1, 1, 2] = 2**11, np.nan, np.inf
    W = in_memory(W, precision)
    V, T = device.run(doubling.filters_of_parities, W), device.run(doubling.turned_filters, W)
    assert V.dtype == T.dtype == W.dtype
    corner = from_memory(V[0, 0, 1, 1])
    expected = rounded(np.float32([2**11 + 3]), precision)
    np.testing.assert_array_equal(corner[0], np.repeat(expected, 5))
    np.testing.assert_array_equal(corner[1:], [[np.nan, 4, 4, 4, 4], [np.inf] * 5])
    np.testing.assert_array_equal(from_memory(T[1, 1]).T, corner)
