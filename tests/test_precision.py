"""tinydiff/precision.py"""

import numpy as np
import pytest

from tinydiff.precision import PRECISIONS, from_memory, in_memory, rounded

BITS = {"float32": 24, "tf32": 11, "fp16": 11, "bf16": 8}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rounded_is_the_nearest_number_of_so_many_bits(precision, rng):
    x = rng.standard_normal(1000).astype(np.float32)
    exponent = np.frexp(x.astype(float))[1]
    scale = 2.0 ** (BITS[precision] - exponent)
    y = rounded(x, precision).astype(float)
    assert (y * scale == np.rint(y * scale)).all()
    assert (np.abs(y - x) * scale <= 0.5).all()


def test_ties_and_numbers_that_are_none():
    halfway = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, -1 - 2.0**-11], np.float32)
    np.testing.assert_array_equal(rounded(halfway, "tf32"), np.float32([1 + 2**-10, 1 + 2**-9, -1 - 2**-10]))
    np.testing.assert_array_equal(rounded(halfway, "fp16"), np.float32([1, 1 + 2**-9, -1]))
    halfway = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8], np.float32)
    np.testing.assert_array_equal(rounded(halfway, "bf16"), np.float32([1, 1 + 2**-6]))
    none = np.array([np.inf, -np.inf, np.nan, 0.0], np.float32)
    none = np.append(none, np.array([0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32))  # NaNs of other bits
    for precision in PRECISIONS:
        np.testing.assert_array_equal(rounded(none, precision), none)
        np.testing.assert_array_equal(from_memory(in_memory(none, precision)), none)
    assert rounded(np.float32([1e6]), "fp16")[0] == np.inf


@pytest.mark.parametrize("precision", PRECISIONS)
def test_memory_holds_what_is_rounded(precision, rng):
    x = rng.standard_normal((3, 5)).astype(np.float32)
    if precision == "tf32":  # rounded on the way to the tensor cores, not before
        np.testing.assert_array_equal(in_memory(x, precision), x)
    else:
        np.testing.assert_array_equal(from_memory(in_memory(x, precision)), rounded(x, precision))
