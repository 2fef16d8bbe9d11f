"""Sums against float64."""

import numpy as np
import pytest

from tinydiff.cuda import reduction


@pytest.mark.parametrize("n", [0, 1, 5000])
def test_sum_of_squares(n, device, rng):
    x = rng.normal(size=2 * n).astype(np.float32)
    total = device.run(lambda x: reduction.sum_of_squares(x[::-2]), x)
    np.testing.assert_allclose(total, np.sum(x[::-2].astype(np.float64) ** 2), rtol=1e-6)
    assert device.run(reduction.sum_of_squares, x.astype(np.float64)) is NotImplemented
