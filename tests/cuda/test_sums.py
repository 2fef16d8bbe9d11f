"""Sums of the columns of several matrices at once, and of matrices of 16 bits, against float64."""

import numpy as np
import pytest

from tests.cuda.conftest import HALVES, in_16_bits
from tinydiff.cuda import sums
from tinydiff.cuda.source import LAYERS


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def close(Y, X):
    assert Y.dtype == np.float32
    np.testing.assert_allclose(Y, X.astype(float).sum(-2), rtol=0, atol=3e-6 * np.sqrt(X.shape[-2]))


@pytest.mark.parametrize("rows", [7, 300])
def test_several_matrices(device, rows):
    """In one slab and in several, of which any may be last: the same bits."""
    Xs = [normal(rows, n) for n in (32, 5, 70)]
    first, second = (device.run(sums.sum_columns_of_each, Xs, seed=seed) for seed in (1, 2))
    for X, Y, again in zip(Xs, first, second, strict=True):
        close(Y, X)
        np.testing.assert_array_equal(Y, again)


@pytest.mark.parametrize("precision", HALVES)
def test_16_bits_are_added_in_float32_as_they_are(device, precision):
    shapes = (130, 33), (130, 8)
    halves, exact = in_16_bits(precision, *(normal(*shape) for shape in shapes), normal(3, 130, 36))
    for Y, x in zip(device.run(sums.sum_columns_of_each, halves[:2]), exact, strict=False):
        close(Y, x)

    def with_total(X):
        total = device.xp.empty(36, np.float32)
        return sums.sum_columns(X, total), total

    Y, total = device.run(with_total, halves[2])
    close(Y, exact[2])
    np.testing.assert_allclose(total, exact[2].sum((0, 1)), rtol=0, atol=1e-4)


def test_more_matrices_than_a_launch_takes_and_what_is_not_taken(device):
    Xs = [normal(3, 2, seed=i) for i in range(LAYERS + 1)]
    for Y, X in zip(device.run(sums.sum_columns_of_each, Xs), Xs, strict=True):
        close(Y, X)
    for others in ([Xs[0], normal(4, 2)], [Xs[0], Xs[0].astype(float)], [Xs[0], Xs[0][:0]], [Xs[0], Xs[0][None]]):
        assert device.run(sums.sum_columns_of_each, others) is None
