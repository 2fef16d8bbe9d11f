"""tinydiff/ops/broadcasting.py: unbroadcast is the adjoint of broadcasting."""

import numpy as np
import pytest

from tinydiff.ops.broadcasting import unbroadcast

CASES = [
    ((3,), (2, 3)),
    ((2, 1), (2, 3)),
    ((1, 3), (2, 3)),
    ((1, 1), (2, 3)),
    ((), (2, 3)),
    ((1,), (2, 3)),
    ((2, 3), (2, 3)),
    ((3, 1, 2), (5, 3, 4, 2)),
    ((1,), (1, 1)),
    ((), (1,)),
    ((1, 3), (0, 3)),
    ((0, 1), (2, 0, 4)),
    ((), ()),
]


@pytest.mark.parametrize(("shape", "broadcast"), CASES, ids=str)
def test_adjoint_identity(shape, broadcast, rng):
    x, L = rng.normal(size=shape), rng.normal(size=broadcast)
    L_X = unbroadcast(L, shape)
    assert L_X.shape == shape
    np.testing.assert_allclose((np.broadcast_to(x, broadcast) * L).sum(), (x * L_X).sum(), atol=1e-12)


@pytest.mark.parametrize(("shape", "broadcast"), CASES, ids=str)
def test_every_element_gets_the_sum_of_its_copies(shape, broadcast):
    """Against a loop over all positions of the broadcast array."""
    L = np.arange(np.prod(broadcast, dtype=int), dtype=float).reshape(broadcast) + 1
    origin = np.broadcast_to(np.arange(np.prod(shape, dtype=int)).reshape(shape), broadcast)
    expected = np.zeros(np.prod(shape, dtype=int))
    for position in np.ndindex(*broadcast):
        expected[origin[position]] += L[position]
    np.testing.assert_array_equal(unbroadcast(L, shape), expected.reshape(shape))


def test_dtype_is_kept_and_the_argument_is_not_changed():
    L = np.ones((4, 3), np.float32)
    assert unbroadcast(L, (3,)).dtype == np.float32
    assert L.tolist() == [[1] * 3] * 4
