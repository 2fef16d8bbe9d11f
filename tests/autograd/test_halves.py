"""Weights in 16 bits beside those in float32: when their numbers are made again. tests/unet/test_mixed.py has them in a network."""

from contextlib import nullcontext

import numpy as np
import pytest

import tinydiff as td
from tinydiff.autograd import halves
from tinydiff.cuda import host
from tinydiff.dispatch import by_definition, on_host


@pytest.fixture
def weight(rng):
    return td.nn.Parameter(rng.normal(size=(3, 5)).astype(np.float32))


def test_another_type_of_16_bits_is_made_again(weight):
    bfloat16 = pytest.importorskip("ml_dtypes", reason="gives NumPy bfloat16").bfloat16
    for dtype in (np.dtype(np.float16), np.dtype(bfloat16)):
        half = halves.of(weight, dtype)
        assert half.dtype == dtype
        np.testing.assert_array_equal(half, weight.data.astype(dtype))


def test_a_change_before_an_update_that_is_left_out_counts(weight):
    half = halves.of(weight, np.dtype(np.float16))
    with td.no_grad():
        weight *= 2.0
    weight.grad = np.full(weight.shape, np.inf, np.float32)
    td.optim.Adam([weight]).clipped_step([np.ones((), np.float32)], 1.0)
    assert halves.of(weight, np.dtype(np.float16)) is half
    np.testing.assert_array_equal(half, weight.data.astype(np.float16))


@pytest.mark.parametrize("on", [nullcontext, by_definition, on_host])
def test_an_update_of_all_weights_writes_them_too(on, weight):
    if on is on_host and host.missing():
        pytest.skip(host.missing())
    halves.of(weight, np.dtype(np.float16))
    weight.grad = np.ones_like(weight.data)
    with on():
        td.optim.Adam([weight], 0.1).step()
    assert weight._half.count == weight._version.count and weight._half.data is weight.data
    np.testing.assert_array_equal(weight._half.array, weight.data.astype(np.float16))
