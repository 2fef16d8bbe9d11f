"""Gradients of tables against a loop."""

import numpy as np
import pytest

from tinydiff.cuda import tables


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(7,), (2, 3), (0,)])
def test_rows_are_added_where_they_were_picked(device, shape):
    rng = np.random.default_rng(0)
    L_Y, indices = rng.standard_normal((*shape, 5)).astype(np.float32), rng.integers(0, 4, shape)
    truth = np.zeros((4, 5))
    np.add.at(truth, indices, L_Y)
    np.testing.assert_allclose(device.run(tables.sum_picked, L_Y, indices, (4, 5)), truth, rtol=0, atol=1e-6)
    assert device.run(tables.sum_picked, L_Y.astype(np.float64), indices, (4, 5)) is NotImplemented
