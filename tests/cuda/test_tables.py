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


@pytest.mark.parametrize("D", [1, 5, 8])
@pytest.mark.parametrize("shape", [(7,), (2, 3), (0,), ()])
def test_rows_are_picked(device, shape, D):
    rng = np.random.default_rng(0)
    W, indices = rng.standard_normal((4, D)).astype(np.float32), np.asarray(rng.integers(0, 4, shape))
    for known in (False, True):
        np.testing.assert_array_equal(device.run(tables.pick_rows, W, indices, known), W[indices])
    assert device.run(tables.pick_rows, W.astype(np.float64), indices) is NotImplemented
    assert device.run(tables.pick_rows, W, indices.astype(np.int32)) is NotImplemented


@pytest.mark.parametrize("index, row", [(-1, 0), (4, 3), (2**40, 3), (-(2**40), 0)])
def test_an_index_outside_is_an_error_and_reads_no_other_memory(device, index, row):
    W, indices = normal(4, 8), np.array([1, index, 2])
    np.testing.assert_array_equal(device.run(tables.pick_rows, W, indices, True), W[[1, row, 2]])
    with pytest.raises(IndexError, match=r"not in 0\.\.3"):
        device.run(tables.pick_rows, W, indices)
