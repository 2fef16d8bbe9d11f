"""tinydiff/ops/products.py against the plain product and sum."""

import numpy as np
import pytest

from tinydiff.ops import products
from tinydiff.ops.products import add_row, multiply

SHAPES = [
    ((64, 8), (8, 64)), ((32, 5), (5, 7)), ((64, 256), (256, 128)), ((2048, 5), (5, 192)), ((33, 4), (4, 64)),
    ((3, 64, 160), (3, 160, 128)), ((2, 96, 300), (2, 300, 128)), ((2, 32, 600), (2, 600, 64)), ((1, 1), (1, 1)),
    ((0, 4), (4, 3)), ((3, 0), (0, 4)), ((3, 4), (4, 0)), ((0, 32, 4), (0, 4, 64)),
]  # fmt: skip


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("turned", ["", "A", "B"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_multiply(shapes, turned, dtype, rng):
    A, B = (rng.normal(size=shape).astype(dtype) for shape in shapes)
    A = np.ascontiguousarray(A.swapaxes(-1, -2)).swapaxes(-1, -2) if turned == "A" else A
    B = np.ascontiguousarray(B.swapaxes(-1, -2)).swapaxes(-1, -2) if turned == "B" else B
    out = np.full((*A.shape[:-1], B.shape[-1]), np.nan, dtype)
    assert multiply(A, B, out) is not None
    np.testing.assert_allclose(out, A.astype(float) @ B.astype(float), atol=2e-4 if dtype == np.float32 else 1e-12)


def test_multiply_writes_to_a_part_of_an_array_and_nowhere_else(rng):
    A, B, all_of_it = rng.normal(size=(64, 300)), rng.normal(size=(300, 128)), np.zeros((66, 130))
    multiply(A, B, all_of_it[1:65, 1:129])
    np.testing.assert_allclose(all_of_it[1:65, 1:129], A @ B, atol=1e-11)
    assert not all_of_it[0].any() and not all_of_it[65].any() and not all_of_it[:, [0, 129]].any()


def test_large_products_are_cut(rng, monkeypatch):
    """What the speed rests on: no product that NumPy is given has more multiplications than the limit."""
    seen = []

    def matmul(A, B, out):
        seen.append((A.shape[-2] * A.shape[-1] * B.shape[-1], A.ndim))
        return original(A, B, out=out)

    original = np.matmul
    monkeypatch.setattr(np, "matmul", matmul)
    for L, D, M in ((2048, 64, 64), (1024, 256, 256), (256, 64, 256)):
        multiply(rng.normal(size=(2, L, D)), rng.normal(size=(2, D, M)), np.empty((2, L, M)))
    assert len(seen) == 3 and all(n <= products._LIMIT and ndim == 5 for n, ndim in seen)
    multiply(rng.normal(size=(2048, 64)), rng.normal(size=(64, 64)).T, np.empty((2048, 64)))
    assert seen[3][1] == 2  # small products with a transposed matrix are slower than one large one


@pytest.mark.parametrize("shape", [(64, 4), (48, 20), (7, 3), (1, 5), (5, 2000), (0, 3), (4, 0), (2048, 64)], ids=str)
def test_add_row(shape, rng):
    Y, b = rng.normal(size=shape).astype(np.float32), rng.normal(size=shape[1]).astype(np.float32)
    expected = Y + b
    assert add_row(Y, b) is Y
    np.testing.assert_array_equal(Y, expected)
