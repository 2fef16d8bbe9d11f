"""tinydiff/ops/tall_products.py against float64."""

import numpy as np
import pytest

from tinydiff.machine import threads as workers
from tinydiff.ops import tall_products
from tinydiff.ops.convolution import sum_pixels
from tinydiff.ops.tall_products import multiply_transposed


@pytest.mark.parametrize(
    ("T", "C", "K"), [(0, 3, 2), (5, 0, 2), (1, 1, 1), (255, 8, 4), (256, 64, 32), (1000, 96, 32), (700, 300, 200), (513, 288, 40)]
)  # fmt: skip
@pytest.mark.parametrize("cut", [True, False])
def test_multiply_transposed(T, C, K, cut, rng, monkeypatch):
    monkeypatch.setattr(tall_products, "has_small_products", lambda: cut)
    A, B = rng.normal(size=(T, C)), rng.normal(size=(T, K))
    found = multiply_transposed(A.astype(np.float32), B.astype(np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, A.T @ B, rtol=0, atol=1e-5 * (T + 1) ** 0.5)
    np.testing.assert_allclose(multiply_transposed(A, B), A.T @ B, rtol=0, atol=1e-11)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (64, 32, 32, 8), (0, 4, 4, 2), (2, 1, 1, 3), (3, 4, 5, 0)], ids=str)
def test_sum_pixels(shape, threads, rng):
    X = rng.normal(size=shape)
    with workers.threads(threads):
        for layout in (X, np.asfortranarray(X), np.broadcast_to(X[:, :1], X.shape)):
            np.testing.assert_allclose(sum_pixels(layout), layout.sum((1, 2)), rtol=0, atol=1e-11)
            single = sum_pixels(layout.astype(np.float32))
            assert single.dtype == np.float32
            np.testing.assert_allclose(single, layout.sum((1, 2)), rtol=0, atol=1e-3)
