"""tinydiff/cpu/activation.py against the definitions."""

import numpy as np
import pytest

from tests.cpu.agreement import check
from tinydiff.cpu import activation
from tinydiff.ops.activation import silu_backward, silu_forward

SHAPES = [(3, 4), (), (1,), (2, 1, 3), (0, 3), (300, 1000)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [0.1, 3, 60])
def test_silu(shape, size, rng):
    A, L_Y = np.asarray(size * rng.normal(size=shape)), np.asarray(rng.normal(size=shape))
    check(silu_forward, A)
    check(silu_backward, L_Y, A)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("forward", [activation.silu_forward, silu_forward.definition])
@pytest.mark.parametrize("backward", [activation.silu_backward, silu_backward.definition])
def test_limits(forward, backward, dtype):
    A = np.array([-np.inf, np.finfo(dtype).min, -2000, -150, 150, 2000, np.finfo(dtype).max, np.inf], dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        np.testing.assert_allclose(forward(A), np.maximum(A, 0), rtol=1e-15, atol=1e-60)
        np.testing.assert_allclose(backward(np.full(8, 3, dtype), A), 3 * (A > 0), rtol=1e-15, atol=1e-60)
    assert np.isnan(forward(np.array([np.nan], dtype))).all() and np.isnan(backward(A[4:5], A[:1] * np.nan)).all()


def test_the_definition_keeps_the_left_tail_that_the_tanh_rounds_away():
    A = np.array([-50.0, -300.0, -700.0])
    np.testing.assert_allclose(silu_forward.definition(A), A * np.exp(A), rtol=1e-14)
    assert not activation.silu_forward(A).any()
