"""Convolutions and their gradients against the definition in float64."""

import numpy as np
import pytest

from tinydiff.cuda import convolution
from tinydiff.cuda.products import PLANS, Cost
from tinydiff.ops import convolution as definition
from tinydiff.ops.windows import Window


def window(size, stride=1, padding=0, dilation=1):
    return Window.read("test", size, stride, padding, dilation)


SAME = window(3, 1, 1)
HALVING = window(3, 2, ((0, 1), (0, 1)))
POINT = window(1)

# images, channels, filters, window
CASES = {
    "3x3": ((2, 6, 5), 4, 8, SAME),
    "one pixel": ((3, 1, 1), 4, 4, SAME),
    "many images in a tile": ((40, 2, 2), 8, 12, SAME),
    "deep": ((1, 5, 4), 68, 36, SAME),
    "several tiles": ((3, 7, 5), 16, 72, SAME),
    "1 channel": ((2, 5, 7), 1, 8, SAME),
    "2 channels": ((2, 5, 5), 2, 6, SAME),
    "3 channels": ((2, 9, 8), 3, 36, SAME),
    "3 filters": ((2, 9, 8), 36, 3, SAME),
    "odd channels": ((2, 6, 3), 13, 7, SAME),
    "1x1": ((2, 4, 9), 20, 12, POINT),
    "1x1, stride 2": ((2, 5, 4), 8, 4, window(1, 2)),
    "halving": ((3, 8, 8), 8, 12, HALVING),
    "halving, odd sizes": ((2, 7, 5), 8, 12, HALVING),
    "halving, 3 channels": ((2, 6, 4), 3, 5, HALVING),
    "no padding": ((2, 6, 7), 4, 8, window(3)),
    "uneven padding": ((2, 5, 6), 4, 8, window(3, 1, ((2, 0), (1, 3)))),
    "more padding than filter": ((1, 3, 4), 4, 4, window(3, 1, ((5, 4), (3, 6)))),
    "even filter": ((2, 6, 5), 8, 4, window((2, 4), 1, 1)),
    "stride 3 and 2": ((2, 11, 9), 4, 8, window((5, 3), (3, 2), ((1, 2), (0, 1)))),
    "stride above the filter": ((2, 9, 9), 4, 8, window(2, 4)),
    "dilation": ((2, 9, 8), 4, 8, window(3, 1, 2, 2)),
    "dilation above the stride": ((2, 11, 12), 4, 8, window((3, 2), 2, ((1, 2), (3, 0)), (3, 5))),
    "no tap reaches some pixels": ((1, 13, 12), 4, 8, window(2, (3, 2), 0, (3, 4))),
    "stride and dilation": ((1, 12, 13), 4, 8, window(3, (2, 4), 3, (3, 6))),
}


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def arrays(images, C, K, window):
    X, W = normal(*images, C), normal(*window.size, C, K)
    return X, W, normal(images[0], *window.output_size(X.shape), K)


def doubles(*xs):
    return [x.astype(float) for x in xs]


def error(y, truth):
    """The largest error relative to the largest entry."""
    assert y.shape == truth.shape and y.dtype == np.float32
    return np.abs(y - truth).max() / np.abs(truth).max()


def check(device, images, C, K, window):
    X, W, L_Y = arrays(images, C, K, window)
    b, E, R = normal(K), normal(images[0], K), normal(*L_Y.shape, seed=1)
    X64, W64, L64 = doubles(X, W, L_Y)
    Y = definition.convolve(X64, W64, None, window)
    assert error(device.run(convolution.convolve, X, W, None, window), Y) < 2e-6
    assert error(device.run(convolution.convolve, X, W, b, window, 1, E, R), Y + b + E[:, None, None] + R) < 2e-6
    L_X = device.run(convolution.convolve_input_gradient, L_Y, W, X.shape, window)
    assert error(L_X, definition.convolve_input_gradient(L64, W64, X.shape, window)) < 2e-6
    L_W = device.run(convolution.convolve_weight_gradient, X, L_Y, W.shape, window)
    assert error(L_W, definition.convolve_weight_gradient(X64, L64, W.shape, window)) < 2e-6


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_convolutions_and_both_gradients(device, case):
    check(device, *case)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("tile", PLANS, ids=lambda p: f"{p.m}x{p.n} by {p.vector_a} and {p.vector_b}")
def test_every_tile_and_parts(device, monkeypatch, tile, parts):
    monkeypatch.setattr(convolution, "plan", lambda *sizes: tile._replace(parts=parts))
    check(device, (5, 7, 9), 20, 36, SAME)
    check(device, (3, 6, 8), 16, 132, HALVING)


def test_no_images_no_channels_no_filters(device):
    for images, C, K in [((0, 4, 4), 4, 8), ((2, 4, 4), 0, 8), ((2, 4, 4), 4, 0)]:
        X, W, L_Y = arrays(images, C, K, SAME)
        b = normal(K)
        np.testing.assert_array_equal(
            device.run(convolution.convolve, X, W, b, SAME), np.zeros(L_Y.shape) + (b if C == 0 else 0)
        )
        for gradient in (
            device.run(convolution.convolve_input_gradient, L_Y, W, X.shape, SAME),
            device.run(convolution.convolve_weight_gradient, X, L_Y, W.shape, SAME),
        ):
            np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


@pytest.mark.parametrize("case", ["many images in a tile", "halving", "odd channels"])
def test_the_same_bits_whatever_the_order_of_threads(device, monkeypatch, case):
    images, C, K, window = CASES[case]
    X, W, L_Y = arrays(images, C, K, window)
    real = convolution.plan
    monkeypatch.setattr(convolution, "plan", lambda *sizes: real(*sizes)._replace(parts=2))

    def all_three(seed):
        return (
            device.run(convolution.convolve, X, W, normal(K), window, seed=seed),
            device.run(convolution.convolve_input_gradient, L_Y, W, X.shape, window, seed=seed),
            device.run(convolution.convolve_weight_gradient, X, L_Y, W.shape, window, seed=seed),
        )

    for one, other in zip(all_three(1), all_three(2), strict=True):
        np.testing.assert_array_equal(one, other)


def test_arrays_that_are_not_contiguous_or_not_aligned(device):
    X, W, b = normal(2, 5, 6, 8), normal(3, 3, 8, 12), normal(13)[1:]
    X, W = X.transpose(0, 2, 1, 3), W[::-1]
    truth = definition.convolve(*doubles(X, W, b), SAME)
    assert error(device.run(convolution.convolve, X, W, b, SAME), truth) < 2e-6
    on_device = device.array(normal(13))[1:]
    assert error(device.run(convolution.convolve, X, W, on_device, SAME), truth) < 2e-6


def test_an_infinite_pixel_reaches_only_the_outputs_that_read_it(device):
    X, W, L_Y = arrays((1, 9, 7), 4, 8, SAME)
    X[0, 6, 3], L_Y[0, 6, 3] = np.inf, np.inf
    near = np.zeros(L_Y.shape, bool)
    near[0, 5:8, 2:5] = True
    np.testing.assert_array_equal(np.isfinite(device.run(convolution.convolve, X, W, None, SAME)), ~near)
    L_X = device.run(convolution.convolve_input_gradient, L_Y, W, X.shape, SAME)
    np.testing.assert_array_equal(np.isfinite(L_X), ~near[..., :4])


def test_arrays_of_more_than_2_gib(device):
    """On a GPU; on the host the same with small arrays. The last image comes out as it does alone."""
    images, side = (40, 1024) if device.name == "cuda" else (3, 8)
    X = device.xp.ones((images, side, side, 16), np.float32)
    X[-1] = device.array(normal(side, side, 16))
    W = device.array(normal(3, 3, 16, 16))
    runs = [
        lambda X: convolution.convolve(X, W, None, SAME),
        lambda X: convolution.convolve_input_gradient(X, W, X.shape, SAME),
        lambda X: convolution.convolve_input_gradient(X[:, ::2, ::2], W, X.shape, HALVING),
    ]
    for run in runs:
        of_all, alone = (device.run(lambda X, run=run: run(X)[-1], x) for x in (X, X[-1:]))
        np.testing.assert_allclose(of_all, alone, rtol=0, atol=1e-5 * np.abs(alone).max())
    X[:-1] = 0
    of_all, alone = (device.run(convolution.convolve_weight_gradient, x, x, W.shape, SAME) for x in (X, X[-1:]))
    np.testing.assert_allclose(of_all, alone, rtol=0, atol=1e-4 * np.abs(alone).max())


def test_what_is_left_to_others(device):
    X, W, L_Y = arrays((2, 4, 4), 4, 8, SAME)
    assert device.run(convolution.convolve, X, W, None, SAME, 2) is NotImplemented
    assert device.run(convolution.convolve, X.astype(float), W, None, SAME) is NotImplemented
    assert device.run(convolution.convolve, X, W, np.zeros(8), SAME) is NotImplemented
    assert device.run(convolution.convolve_input_gradient, L_Y, W.astype(float), X.shape, SAME) is NotImplemented
    assert device.run(convolution.convolve_weight_gradient, X, L_Y, W.shape, SAME, 2) is NotImplemented
    wide = window(1, (1, 1), ((0, 0), (0, 2**14)))
    assert device.run(convolution.convolve, X, W[:1, :1], None, wide) is NotImplemented


def test_costs():
    X, W, L_Y = arrays((2, 8, 8), 8, 12, HALVING)
    flops = 2 * 2 * 16 * 72 * 12
    assert convolution.convolve_cost(X, W, normal(12), HALVING) == Cost(flops, 4 * (X.size + W.size + L_Y.size + 12))
    gradients = Cost(flops, 4 * (X.size + W.size + L_Y.size))
    assert convolution.convolve_input_gradient_cost(L_Y, W, X.shape, HALVING) == gradients
    assert convolution.convolve_weight_gradient_cost(X, L_Y, W.shape, HALVING) == gradients
