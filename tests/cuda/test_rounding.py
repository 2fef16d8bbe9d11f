"""tinydiff/cuda/rounding.py against NumPy, bit for bit."""

import numpy as np
import pytest

from tests.cuda.conftest import HALVES
from tinydiff.cuda.rounding import converted
from tinydiff.precision import from_memory, in_memory

# Halfway between neighbours, the largest and the smallest numbers, and what is beyond them.
ODD = [0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 65504, 65519, 65520, -1e6, 2**-14, 2**-24, 2**-25,
       1.5 * 2**-25, -(2.0**-26), 3.39e38, np.inf, -np.inf, np.nan]  # fmt: skip


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("n, first", [(0, 0), (1, 0), (8, 0), (2051, 0), (2051, 1)])
def test_to_16_bits_and_back(precision, n, first, device, rng):
    """first: where the array begins; from 1 on, off 16 bytes."""
    numbers = np.float32(10) ** rng.uniform(-9, 9, n).astype(np.float32)
    x = np.concatenate([numbers, np.float32(ODD)]) if n else numbers
    memory = in_memory(x, precision)
    half = device.run(lambda a: converted(a[first:], memory.dtype), x)
    assert half.dtype == memory.dtype
    wide = device.run(lambda a: converted(a[first:], np.float32), memory)
    assert wide.dtype == np.float32
    for ours, truth in ((from_memory(half), from_memory(memory)[first:]), (wide, from_memory(memory)[first:])):
        np.testing.assert_array_equal(ours, truth)
        np.testing.assert_array_equal(np.signbit(ours), np.signbit(truth))


def test_shapes_strides_and_dtypes(device):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x = np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2]
    half = device.run(converted, x, bfloat16)
    assert half.dtype == bfloat16
    np.testing.assert_array_equal(half, x.astype(bfloat16))
    np.testing.assert_array_equal(device.run(converted, half.T, np.float32), x.T)
    assert device.run(converted, np.array(2, np.float32), np.float16).shape == ()
    for a, dtype in ((x, np.float32), (x.astype(np.float16), np.float16), (x.astype(np.float64), np.float16), (x, int)):
        assert device.run(converted, a, dtype) is NotImplemented
