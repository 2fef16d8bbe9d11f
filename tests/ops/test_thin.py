"""tinydiff/ops/thin.py against the definition in float64."""

import numpy as np
import pytest

from tinydiff.machine import threads as workers
from tinydiff.ops import convolution, thin
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
    for name in ("convolve", "input_gradient", "weight_gradient"):
        original = getattr(thin, name)
        monkeypatch.setattr(thin, name, lambda *a, f=original, name=name: calls.append(name) or f(*a))
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
        assert not calls  # float64 takes the definition
        with workers.threads(threads):
            single = [a.astype(np.float32) for a in (X, F, L_Y, b, E, R)]
            found, again = three(*single), three(*single)
        for f, a, e in zip(found, again, exact, strict=True):
            close(f, e)
            np.testing.assert_array_equal(f, a)
        if window.turned is not None:
            first, second = ("convolve", "input_gradient") if few == C else ("input_gradient", "convolve")
            assert calls == [first, second, "weight_gradient"] * 2
        calls.clear()


def test_who_is_left_to_the_definition():
    x = np.ones(1, np.float32)
    assert thin.is_faster(1, 32, 1, x, x) and thin.is_faster(4, 5, 1, x)
    for few, many, groups, array in ((5, 32, 1, x), (4, 4, 1, x), (1, 32, 2, x), (1, 32, 1, x.astype(np.float64))):
        assert not thin.is_faster(few, many, groups, x, array)
