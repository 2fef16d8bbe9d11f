"""What a failing check costs: seconds and memory for a million elements, and beside a passing one."""

import time
import tracemalloc

import numpy as np
import pytest

from tinydiff.gradcheck import GradientError, gradcheck

pytestmark = pytest.mark.slow
RNG = np.random.default_rng(0)


def attention(q, k, v):
    s = q @ k.T / np.sqrt(q.shape[1])
    p = np.exp(s - s.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return p @ v, (q, k, v, p)


def attention_backward(g, cache, axis=1):
    q, k, v, p = cache
    dp = g @ v.T
    ds = p * (dp - (dp * p).sum(axis, keepdims=True)) / np.sqrt(q.shape[1])
    return ds @ k, ds.T @ q, p.T @ g


def softplus(x):
    return [float(np.log1p(np.exp(v))) for v in x]


def seconds(*args, wrong, **options):
    """Of the processor, the less of two runs."""
    taken = []
    for _ in range(2):
        start = time.process_time()
        if wrong:
            with pytest.raises(GradientError):
                gradcheck(*args, **options)
        else:
            gradcheck(*args, **options)
        taken.append(time.process_time() - start)
    return min(taken)


CASES = {
    "attention, 100 x 100": (
        attention,
        [RNG.normal(size=(100, 100)) for _ in range(3)],
        attention_backward,
        lambda g, cache: attention_backward(g, cache, 0),
        {"cache": True},
    ),
    "a loop over 500 numbers": (
        softplus,
        [RNG.normal(size=500)],
        lambda g, x: np.asarray(g) / (1 + np.exp(-x)),
        lambda g, x: np.asarray(g) / (1 + np.exp(x)),
        {},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_failing_check_costs_at_most_twenty_passing_ones(name):
    forward, inputs, right, wrong, options = CASES[name]
    passing = seconds(forward, inputs, backward=right, wrong=False, **options)
    assert seconds(forward, inputs, backward=wrong, wrong=True, **options) < 20 * passing


def test_a_million_elements():
    x = RNG.normal(size=(1000, 1000))
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(GradientError, match="mask"):
            gradcheck(lambda x: np.maximum(x, 0), [x], backward=lambda g, x: g * (x > -0.001))
        assert time.process_time() - start < 20
        assert tracemalloc.get_traced_memory()[1] < 500e6
    finally:
        tracemalloc.stop()
