"""Threads that share an operation: parts in order, the same bits each time, settings put back."""

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from tinydiff import ops, workers


def blas_threads():
    return [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_every_item_is_worked_on_once_and_results_come_in_order(n):
    with workers.threads(n):
        parts = workers.share(list, range(5))
    assert [item for part in parts for item in part] == list(range(5)) and len(parts) == min(n, 5)


def test_nothing_to_share():
    with workers.threads(2):
        assert workers.share(list, []) == [[]]


def test_the_threads_really_are_several():
    barrier = threading.Barrier(2, timeout=20)  # passes only if two threads wait at it together
    with workers.threads(2):
        workers.share(lambda part: barrier.wait(), [0, 1])


def test_settings_are_put_back_also_after_an_error():
    before = blas_threads()
    with pytest.raises(ZeroDivisionError), workers.threads(2):
        assert set(blas_threads()) <= {1}
        workers.share(lambda part: 1 / part[0], [1, 0])
    assert blas_threads() == before and workers.share(list, [1, 2]) == [[1, 2]]


def test_available_threads_follow_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert workers.available() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert workers.available() >= 1


@pytest.mark.parametrize("n", [1, 2, 3])
def test_convolutions_agree_whatever_the_number_of_threads(n):
    rng = np.random.default_rng(0)
    X, W = rng.normal(size=(7, 5, 5, 2)), rng.normal(size=(3, 3, 2, 4))

    def run():
        x, w = ops._Tensor(X, True), ops._Tensor(W, True)
        y = ops.conv2d(x, w, stride=2, padding=1)
        y.backward(np.cos(y.data))
        return y.data, x.grad, w.grad

    plain = run()
    with workers.threads(n):
        once, again = run(), run()
    for a, b, c in zip(plain, once, again, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(b, c)
