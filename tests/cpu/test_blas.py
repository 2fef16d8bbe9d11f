"""tinydiff/cpu/blas.py against the plain product and sum."""

import numpy as np
import pytest

from tinydiff.cpu import blas
from tinydiff.cpu.blas import add_row, long_rows, multiply, multiply_panels, multiply_transposed

SHAPES = [
    ((64, 8), (8, 64)), ((32, 5), (5, 7)), ((64, 256), (256, 128)), ((2048, 5), (5, 192)), ((33, 4), (4, 64)),
    ((3, 64, 160), (3, 160, 128)), ((2, 96, 300), (2, 300, 128)), ((2, 32, 600), (2, 600, 64)), ((1, 1), (1, 1)),
    ((64, 512), (512, 64)),
    ((40, 1900), (1900, 128)), ((0, 4), (4, 3)), ((3, 0), (0, 4)), ((3, 4), (4, 0)), ((0, 32, 4), (0, 4, 64)),
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
    np.testing.assert_allclose(out, A.astype(float) @ B.astype(float), atol=4e-4 if dtype == np.float32 else 1e-12)


def test_multiply_writes_to_a_part_of_an_array_and_nowhere_else(rng):
    A, B, all_of_it = rng.normal(size=(64, 300)), rng.normal(size=(300, 128)), np.zeros((66, 130))
    multiply(A, B, all_of_it[1:65, 1:129])
    np.testing.assert_allclose(all_of_it[1:65, 1:129], A @ B, atol=1e-11)
    assert not all_of_it[0].any() and not all_of_it[65].any() and not all_of_it[:, [0, 129]].any()


@pytest.fixture
def products_seen(monkeypatch):
    """What NumPy is given to multiply: (multiplications of one product, axes of the stack's operands)."""
    seen = []

    def matmul(A, B, out):
        seen.append((A.shape[-2] * A.shape[-1] * B.shape[-1], A.ndim))
        return original(A, B, out=out)

    original = np.matmul
    monkeypatch.setattr(np, "matmul", matmul)
    return seen


def test_large_products_are_cut(rng, monkeypatch, products_seen):
    """What the speed rests on: no product that NumPy is given has more multiplications than OpenBLAS takes as they are."""
    monkeypatch.setattr(blas, "has_small_products", lambda: True)
    shapes = (
        (2048, 64, 64),
        (1024, 256, 256),
        (256, 64, 256),
        (64, 256, 128),
        (64, 512, 64),
        (48, 512, 64),
        (8, 1900, 128),
    )
    for L, D, M in shapes:
        A, B, Y = rng.normal(size=(2, L, D)), rng.normal(size=(2, D, M)), np.empty((2, L, M))
        np.testing.assert_allclose(multiply(A, B, Y), A @ B, atol=1e-10)
    cut = [n for n, ndim in products_seen if ndim > 3]
    assert len(cut) == len(shapes) and all(n <= 100**3 for n in cut)


def test_what_would_not_gain_is_left_whole(rng, monkeypatch, products_seen):
    def multiply_new(L, D, M, turned=False):
        multiply(
            rng.normal(size=(L, D)), rng.normal(size=(M, D)).T if turned else rng.normal(size=(D, M)), np.empty((L, M))
        )

    monkeypatch.setattr(blas, "has_small_products", lambda: True)
    multiply_new(100, 100, 100)  # it is small
    multiply_new(2048, 64, 64, turned=True)  # small products with a transposed matrix are slower
    multiply_new(2049, 64, 64)  # no rows that divide it
    monkeypatch.setattr(blas, "has_small_products", lambda: False)
    multiply_new(2048, 64, 64)  # OpenBLAS would copy the operands of every piece
    assert [n for n, _ in products_seen] == [100**3, 2048 * 64 * 64, 2049 * 64 * 64, 2048 * 64 * 64]


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize(
    ("stack", "L", "D", "panels", "columns"),
    [((), 64, 300, 3, 64), ((2,), 96, 65, 2, 32), ((2, 3), 7, 5, 4, 16), ((1,), 40, 2000, 2, 64), ((), 3, 0, 2, 4)],
)
def test_multiply_panels(stack, L, D, panels, columns, small, rng, monkeypatch):
    monkeypatch.setattr(blas, "has_small_products", lambda: small)
    A, B = rng.normal(size=(*stack, L, D)), rng.normal(size=(*stack, panels, D, columns))
    out = np.full((*stack, L, panels * columns), np.nan)
    assert multiply_panels(A, B, out) is out
    np.testing.assert_allclose(out, np.concatenate([A @ B[..., i, :, :] for i in range(panels)], -1), atol=1e-10)


def test_panels_fit_the_cache_and_divide_the_matrix(monkeypatch):
    monkeypatch.setattr(blas, "has_small_products", lambda: True)
    for D, M, width in ((64, 256, 64), (256, 256, 32), (257, 256, 16), (64, 96, 32), (64, 49, 49), (5000, 64, 64)):
        assert blas.panel_width(D, M) == width
    monkeypatch.setattr(blas, "has_small_products", lambda: False)
    assert blas.panel_width(256, 256) == 256


@pytest.mark.parametrize(
    "library, small", [("openblas 0.3.31 SkylakeX", True), ("openblas 0.3.31 Haswell", False), ("mkl 2024.1", False)]
)
def test_which_libraries_have_code_for_small_products(library, small, monkeypatch):
    monkeypatch.setattr(blas.limits, "blas", lambda: library)
    assert blas.has_small_products.__wrapped__() is small


@pytest.mark.parametrize("shape", [(64, 4), (48, 20), (7, 3), (1, 5), (5, 2000), (0, 3), (4, 0), (2048, 64)], ids=str)
def test_add_row(shape, rng):
    Y, b = rng.normal(size=shape).astype(np.float32), rng.normal(size=shape[1]).astype(np.float32)
    expected = Y + b
    assert add_row(Y, b) is Y
    np.testing.assert_array_equal(Y, expected)


@pytest.mark.parametrize(
    ("T", "C", "K"), [(0, 3, 2), (5, 0, 2), (1, 1, 1), (255, 8, 4), (256, 64, 32), (1000, 96, 32), (700, 300, 200), (513, 288, 40)]
)  # fmt: skip
@pytest.mark.parametrize("cut", [True, False])
def test_multiply_transposed(T, C, K, cut, rng, monkeypatch):
    monkeypatch.setattr(blas, "has_small_products", lambda: cut)
    A, B = rng.normal(size=(T, C)), rng.normal(size=(T, K))
    found = multiply_transposed(A.astype(np.float32), B.astype(np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, A.T @ B, rtol=0, atol=1e-5 * (T + 1) ** 0.5)
    np.testing.assert_allclose(multiply_transposed(A, B), A.T @ B, rtol=0, atol=1e-11)


def test_the_buffer_is_put_back_also_after_an_error():
    before = np.getbufsize()
    with pytest.raises(ZeroDivisionError), long_rows(1024):
        assert np.getbufsize() < before
        _ = 1 / 0
    assert np.getbufsize() == before
    with long_rows(8):
        assert np.getbufsize() == before  # short rows are faster with the large one
