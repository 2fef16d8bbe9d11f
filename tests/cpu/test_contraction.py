"""Products of matrices that threads share."""

import numpy as np
import pytest

import tinydiff as td
from tinydiff.cpu import contraction
from tinydiff.machine import threads
from tinydiff.ops.contraction import product

SHAPES = [
    ((7, 5), (5, 9)),
    ((2, 5), (5, 9)),  # more columns than rows
    ((1, 5), (5, 9)),
    ((4, 7, 5), (4, 5, 3)),
    ((4, 7, 5), (5, 3)),
    ((7, 5), (4, 5, 3)),
    ((2, 1, 7, 5), (6, 5, 3)),
    ((1, 3, 7, 5), (2, 1, 5, 3)),
    ((1, 1, 2, 5), (1, 1, 5, 1)),
]


@pytest.mark.parametrize("n", [1, 2, 3, 8])
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_any_division_gives_the_product(a, b, turned, n, monkeypatch):
    monkeypatch.setattr(contraction, "MULTIPLICATIONS_WORTH_A_THREAD", 0)
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=a), rng.normal(size=b)
    exact = A @ B
    A = A.swapaxes(-1, -2).copy() if turned[0] else A
    B = B.swapaxes(-1, -2).copy() if turned[1] else B
    with threads.threads(n):
        found = contraction.product(A, B, *turned)
    if n == 1:
        assert found is NotImplemented
    else:
        np.testing.assert_allclose(found, exact, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "int64", "complex128"])
def test_the_type_is_numpys(dtype, monkeypatch):
    monkeypatch.setattr(contraction, "MULTIPLICATIONS_WORTH_A_THREAD", 0)
    A, B = np.arange(12).reshape(4, 3).astype(dtype), np.arange(6.0, dtype="float32").reshape(3, 2)
    with threads.threads(2):
        Y = contraction.product(A, B)
    assert Y.dtype == (A @ B).dtype
    np.testing.assert_allclose(Y, A @ B)


def test_small_products_and_empty_ones_stay_in_the_calling_thread():
    with threads.threads(2):
        for a, b in (((20, 20), (20, 20)), ((0, 4000), (4000, 4000)), ((4000, 0), (0, 4000))):
            assert contraction.product(np.ones(a), np.ones(b)) is NotImplemented
            np.testing.assert_array_equal(product(np.ones(a), np.ones(b)), np.ones(a) @ np.ones(b))


def test_threads_really_share_it_and_its_gradients(monkeypatch):
    parts, share = [], threads.share
    monkeypatch.setattr(
        contraction, "share", lambda work, items, most: parts.append(len(items)) or share(work, items, most)
    )
    rng = np.random.default_rng(0)
    a, b = (td.Tensor(rng.normal(size=s), requires_grad=True) for s in ((300, 200), (200, 500)))
    L = rng.normal(size=(300, 500))
    with threads.threads(2):
        (a @ b).backward(L)
    assert parts == [500, 300, 500]
    np.testing.assert_allclose(a.grad, L @ b.data.T, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(b.grad, a.data.T @ L, rtol=1e-10, atol=1e-12)
