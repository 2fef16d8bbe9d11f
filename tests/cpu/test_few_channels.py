"""tinydiff/cpu/few_channels.py against the definition in float64."""

import numpy as np
import pytest

from tinydiff.cpu import few_channels
from tinydiff.machine import threads as workers
from tinydiff.ops import convolution
from tinydiff.ops.windows import Window

CASES = [  # N, H, W, few, many, window
    (5, 8, 9, 1, 8, Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))),
    (3, 7, 6, 3, 16, Window((3, 3), (1, 1), ((0, 2), (2, 1)), (1, 1))),
    (2, 9, 8, 4, 5, Window((2, 3), (1, 1), ((1, 0), (0, 0)), (2, 1))),
    (2, 5, 5, 2, 6, Window((1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1))),
    (70, 32, 32, 1, 32, Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))),
    (2, 8, 7, 2, 9, Window((3, 3), (2, 2), ((0, 1), (0, 1)), (1, 1))),
    (0, 4, 4, 1, 8, Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))),
]


def close(found, exact):
    assert found.dtype == np.float32 and found.shape == exact.shape
    np.testing.assert_allclose(found, exact, rtol=0, atol=2e-6 * max(1, np.abs(exact).max(initial=0)))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("N", "H", "W", "few", "many", "window"), CASES, ids=str)
def test_from_and_to_few_channels(N, H, W, few, many, window, threads, rng, monkeypatch):
    calls = []
    for name in ("_from_few", "_back_to_few", "_weight_gradient"):
        original = getattr(few_channels, name)
        monkeypatch.setattr(few_channels, name, lambda *a, f=original, name=name: calls.append(name) or f(*a))
    for C, K in ((few, many), (many, few)):
        X, F = rng.normal(size=(N, H, W, C)), rng.normal(size=(*window.size, C, K)) / C**0.5
        size = window.output_size(X.shape)
        L_Y, b, E = rng.normal(size=(N, *size, K)), rng.normal(size=K), rng.normal(size=(N, K))
        R = rng.normal(size=L_Y.shape)

        def three(X, F, L_Y, *terms, window=window):
            return (
                convolution.convolve(X, F, terms[0], window, 1, *terms[1:]),
                convolution.convolve_input_gradient(L_Y, F, X.shape, window),
                convolution.convolve_weight_gradient(X, L_Y, F.shape, window),
            )

        exact = three(X, F, L_Y, b, E, R)
        assert not calls  # float64 is left to others
        with workers.threads(threads):
            single = [a.astype(np.float32) for a in (X, F, L_Y, b, E, R)]
            found, again = three(*single), three(*single)
        for f, a, e in zip(found, again, exact, strict=True):
            close(f, e)
            np.testing.assert_array_equal(f, a)
        if window.turned is not None:
            first, second = ("_from_few", "_back_to_few") if few == C else ("_back_to_few", "_from_few")
            assert calls == [first, second, "_weight_gradient"] * 2
        calls.clear()


def test_who_is_left_to_others():
    x = np.ones(1, np.float32)
    assert few_channels.is_faster(1, 32, 1, x, x) and few_channels.is_faster(4, 5, 1, x)
    for few, many, groups, array in ((5, 32, 1, x), (4, 4, 1, x), (1, 32, 2, x), (1, 32, 1, x.astype(np.float64))):
        assert not few_channels.is_faster(few, many, groups, x, array)


@pytest.mark.parametrize(("C", "K"), [(2, 8), (8, 2)])
def test_what_is_left_to_others(C, K, rng):
    X, F = rng.normal(size=(2, 5, 6, C)).astype(np.float32), rng.normal(size=(3, 3, C, K)).astype(np.float32)
    same, halving = (Window((3, 3), (s, s), ((1, 1), (1, 1)), (1, 1)) for s in (1, 2))
    for dtype in (np.float32, np.float64):
        b = np.ones(K, dtype)
        assert (few_channels.convolve(X, F, b, same) is NotImplemented) == (dtype == np.float64)
        L_Y = np.ones((2, 5, 6, K), dtype)
        assert (few_channels.convolve_weight_gradient(X, L_Y, F.shape, same) is NotImplemented) == (dtype == np.float64)
    # to few channels only with stride 1
    L_Y = np.ones((2, 3, 3, K), np.float32)
    assert (few_channels.convolve(X, F, None, halving) is NotImplemented) == (K < C)
    assert (few_channels.convolve_weight_gradient(X, L_Y, F.shape, halving) is NotImplemented) == (K < C)
