"""tinydiff/cpu/convolution.py against the definitions in float64: whichever algorithm computes, it is the same sums."""

import inspect
from functools import partial

import numpy as np
import pytest

from tests.conftest import arrange
from tinydiff.cpu import convolution as fast
from tinydiff.cpu import few_channels as few
from tinydiff.cpu import patches, winograd
from tinydiff.cpu.convolution import ALGORITHMS, Algorithm
from tinydiff.dispatch import by_definition
from tinydiff.machine import threads as workers
from tinydiff.ops import convolution as ops
from tinydiff.ops.windows import Window

NAMES = (
    "convolve", "convolve_input_gradient", "convolve_weight_gradient", "sum_pixels", "upsample_convolve",
    "upsample_convolve_input_gradient", "upsample_convolve_weight_gradient",
)  # fmt: skip


def window(size, stride=1, padding=0, dilation=1):
    return Window.read("test", size, stride, padding, dilation)


SAME = window(3, 1, 1)

CASES = {  # images, filters (of one group), window, groups
    "Winograd": ((4, 16, 16, 32), 32, SAME, 1),
    "Winograd, ragged": ((9, 14, 13, 17), 21, SAME, 1),
    "Winograd, little padding": ((8, 18, 11, 16), 40, window(3, 1, ((0, 2), (2, 0))), 1),
    "from few channels": ((5, 8, 9, 1), 8, SAME, 1),
    "to few channels": ((5, 8, 9, 8), 3, SAME, 1),
    "from few, halving": ((3, 7, 6, 3), 16, window(3, 2, ((0, 1), (0, 1))), 1),
    "to few, much padding": ((2, 5, 6, 9), 2, window(3, 1, 3), 1),
    "one image": ((1, 32, 32, 64), 64, window(3, 2, 1), 1),
    "one small image": ((1, 2, 2, 512), 512, SAME, 1),
    "pixels": ((3, 4, 9, 20), 12, window(1), 1),
    "some pixels": ((2, 5, 4, 8), 5, window(1, 2), 1),
    "halving": ((3, 8, 7, 8), 12, window(3, 2, ((0, 1), (0, 1))), 1),
    "5x5": ((2, 9, 8, 6), 7, window(5, 1, 2), 1),
    "ragged": ((2, 11, 9, 5), 6, window((5, 3), (3, 2), ((1, 2), (0, 1))), 1),
    "dilated": ((2, 9, 8, 5), 8, window((3, 2), 1, 2, (2, 3)), 1),
    "much padding": ((1, 3, 4, 5), 6, window(3, 1, ((5, 4), (3, 6))), 1),
    "groups": ((2, 6, 5, 6), 9, SAME, 3),
    "groups, ragged": ((5, 11, 9, 4), 6, window((3, 2), (2, 1), (1, 2), (1, 3)), 2),
    "a group for each channel": ((2, 6, 6, 8), 8, SAME, 8),
    "one pixel": ((3, 1, 1, 5), 6, SAME, 1),
    "one pixel, many channels": ((3, 1, 1, 64), 64, SAME, 1),
    "no images": ((0, 4, 4, 3), 5, SAME, 1),
    "no images, many channels": ((0, 8, 8, 32), 32, SAME, 1),
    "no channels": ((2, 4, 4, 0), 5, SAME, 1),
    "no channels, halving": ((2, 4, 4, 0), 5, window(3, 2, 1), 1),
    "no filters": ((2, 4, 4, 5), 0, SAME, 1),
    "no filters in groups": ((2, 4, 4, 4), 0, window(3, 2, 1), 2),
}


def close(found, exact, dtype, large=1):
    assert found.dtype == dtype and found.shape == exact.shape
    tolerance = 1e-13 if dtype == np.float64 else 2e-6
    np.testing.assert_allclose(found, exact, rtol=0, atol=tolerance * large * max(1, np.abs(exact).max(initial=0)))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_sums_are_those_of_the_definition(case, dtype, threads, rng):
    shape, K, window, groups = case
    W = rng.normal(size=(*window.size, shape[3] // groups, K)) / max(1, shape[3]) ** 0.5
    X, b, E = rng.normal(size=shape), rng.normal(size=K), rng.normal(size=(shape[0], K))
    L_Y = rng.normal(size=(shape[0], *window.output_size(shape), K))
    R = rng.normal(size=L_Y.shape)
    exact = (
        ops.convolve.definition(X, W, None, window, groups),
        ops.convolve.definition(X, W, b, window, groups, E, R),
        ops.convolve_input_gradient.definition(L_Y, W, shape, window, groups),
        ops.convolve_weight_gradient.definition(X, L_Y, W.shape, window, groups),
        ops.sum_pixels.definition(X),
    )
    arrays = [a.astype(dtype) for a in (X, W, b, E, R, L_Y)]
    for given in (arrays, *([arrange(a)[name] for a in arrays] for name in arrange(X))):
        X, W, b, E, R, L_Y = given
        with workers.threads(threads):
            found = (
                fast.convolve(X, W, None, window, groups),
                fast.convolve(X, W, b, window, groups, E, R),
                fast.convolve_input_gradient(L_Y, W, shape, window, groups),
                fast.convolve_weight_gradient(X, L_Y, W.shape, window, groups),
                fast.sum_pixels(X),
            )
        for f, e in zip(found, exact, strict=True):
            close(f, e, dtype, large=5)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_definitions_in_float32(case, rng):
    shape, K, window, groups = case
    X, W = rng.normal(size=shape), rng.normal(size=(*window.size, shape[3] // groups, K)) / max(1, shape[3]) ** 0.5
    L_Y = rng.normal(size=(shape[0], *window.output_size(shape), K))

    def three(X, W, L_Y):
        with by_definition():
            return (
                ops.convolve(X, W, None, window, groups),
                ops.convolve_input_gradient(L_Y, W, shape, window, groups),
                ops.convolve_weight_gradient(X, L_Y, W.shape, window, groups),
            )

    exact = three(X, W, L_Y)
    for f, e in zip(three(*(a.astype(np.float32) for a in (X, W, L_Y))), exact, strict=True):
        close(f, e, np.float32)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("N", "H", "W", "C", "K"),
    [(2, 8, 8, 16, 24), (3, 5, 7, 32, 16), (1, 2, 2, 64, 64), (2, 3, 4, 3, 2), (1, 1, 1, 2, 3), (0, 4, 4, 2, 2)],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_upsampled_sums_are_those_of_the_definition(N, H, W, C, K, dtype, threads, rng):
    X, F, b = rng.normal(size=(N, H, W, C)), rng.normal(size=(3, 3, C, K)) / C**0.5, rng.normal(size=K)
    L_Y = rng.normal(size=(N, 2 * H, 2 * W, K))

    def four(X, F, b, L_Y):
        return (
            ops.upsample_convolve(X, F, b),
            ops.upsample_convolve(X, F, None),
            ops.upsample_convolve_input_gradient(L_Y, F),
            ops.upsample_convolve_weight_gradient(X, L_Y),
        )

    with by_definition():
        exact = four(X, F, b, L_Y)
    doubled = X.repeat(2, 1).repeat(2, 2)
    close(exact[1], ops.convolve.definition(doubled, F, None, SAME), np.float64)
    arrays = [a.astype(dtype) for a in (X, F, b, L_Y)]
    for layout in (arrays, *([arrange(a)[name] for a in arrays] for name in arrange(X))):
        with workers.threads(threads):
            for f, e in zip(four(*layout), exact, strict=True):
                close(f, e, dtype, large=5)


WHO = [  # case, dtype, threads; who computes the three
    ("Winograd", np.float32, 2, (winograd.convolve, winograd.convolve_input_gradient, winograd.convolve_weight_gradient)),
    ("Winograd", np.float64, 2, (patches.convolve, fast._turned, patches.convolve_weight_gradient)),
    ("from few channels", np.float32, 2, (few.convolve, fast._turned, few.convolve_weight_gradient)),
    ("from few, halving", np.float32, 2,
     (few.convolve, patches.convolve_input_gradient, few.convolve_weight_gradient)),
    ("one image", np.float32, 2,
     (patches.convolve_together, patches.convolve_input_gradient, patches.convolve_weight_gradient)),
    ("one image", np.float32, 1, (patches.convolve, patches.convolve_input_gradient, patches.convolve_weight_gradient)),
    ("groups", np.float32, 2, (patches.convolve, fast._turned, patches.convolve_weight_gradient)),
]  # fmt: skip


@pytest.mark.parametrize(("case", "dtype", "threads", "expected"), WHO, ids=lambda x: str(x)[:20])
def test_who_computes(case, dtype, threads, expected, rng, monkeypatch):
    shape, K, window, groups = CASES[case]
    X, W = rng.normal(size=shape).astype(dtype), rng.normal(size=(*window.size, shape[3] // groups, K)).astype(dtype)
    computed = []

    def noted(f, *args):
        result = f(*args)
        if result is not NotImplemented:
            computed.append(f)
        return result

    rows = [Algorithm(*(f and partial(noted, f) for f in row)) for row in ALGORITHMS]
    monkeypatch.setattr(fast, "ALGORITHMS", rows)
    with workers.threads(threads):
        L_Y = ops.convolve(X, W, None, window, groups)
        ops.convolve_weight_gradient(X, L_Y, W.shape, window, groups)
        ops.convolve_input_gradient(L_Y, W, shape, window, groups)
    assert (computed[0], computed[-1], computed[1]) == expected


def test_terms_of_a_wider_type_widen_the_result(rng):
    for shape, K in (((4, 16, 16, 32), 32), ((3, 8, 8, 2), 16), ((3, 8, 8, 16), 2), ((2, 5, 5, 5), 6)):
        X, W = rng.normal(size=shape).astype(np.float32), rng.normal(size=(3, 3, shape[3], K)).astype(np.float32)
        assert fast.convolve(X, W, np.ones(K), SAME).dtype == np.float64
        assert fast.convolve(X, W.astype(np.float64), None, SAME).dtype == np.float64
        assert fast.convolve(X, W, np.ones(K, np.float32), SAME).dtype == np.float32


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name):
    """Those of the definitions, also in each row of the table."""
    columns = {"convolve": 0, "convolve_input_gradient": 1, "convolve_weight_gradient": 2}
    functions = [getattr(fast, name)]
    if name in columns:
        functions += [row[columns[name]] for row in ALGORITHMS if row[columns[name]] is not None]

    def parameters(f):
        return [(p.name, p.default) for p in inspect.signature(f).parameters.values()]

    assert all(parameters(f) == parameters(getattr(ops, name).definition) for f in functions)


def test_another_algorithm_is_another_row(monkeypatch):
    """Rows are asked in their order; what one leaves goes to the next."""
    asked = []

    def five(X, W, b, window, groups=1, E=None, R=None):
        asked.append(window.size)
        return "by 5x5" if window.size == (5, 5) else NotImplemented

    monkeypatch.setattr(fast, "ALGORITHMS", (Algorithm(five), *ALGORITHMS))
    X = np.ones((1, 8, 8, 5))
    assert ops.convolve(X, np.ones((5, 5, 5, 2)), None, window(5)) == "by 5x5"
    assert ops.convolve(X, np.ones((3, 3, 5, 2)), None, SAME).shape == (1, 8, 8, 2)
    # the input gradient of stride 1 asks them for the convolution with turned filters
    assert ops.convolve_input_gradient(X, np.ones((5, 5, 3, 5)), (1, 12, 12, 3), window(5)) == "by 5x5"
    assert ops.convolve_weight_gradient(X, np.ones((1, 4, 4, 2)), (5, 5, 5, 2), window(5)).shape == (5, 5, 5, 2)
    assert asked == [(5, 5), (3, 3), (5, 5)]
    monkeypatch.setattr(fast, "ALGORITHMS", (Algorithm(five),))
    assert fast.convolve(X, np.ones((3, 3, 5, 2)), None, SAME) is NotImplemented  # and the definition computes it
    assert ops.convolve(X, np.ones((3, 3, 5, 2)), None, SAME).shape == (1, 8, 8, 2)


def test_the_last_row_takes_all():
    assert all(f is not None for f in ALGORITHMS[-1])
