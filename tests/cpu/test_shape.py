"""tinydiff/cpu/shape.py against the definition."""

import numpy as np
import pytest

from tests.cpu.agreement import check, leaves
from tinydiff.ops.shape import join

SHAPES = [(2, 3), (3, 0, 2), (0, 4), (1, 1, 1, 1), (5, 6, 7), (64, 32, 32, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_definition(shape, rng):
    for axis in (*range(1, len(shape)), -1):
        parts = [rng.normal(size=(*shape[:axis], n, *shape[axis:][1:])) for n in (3, 0, 1, 5)]
        check(join, parts, axis, single=0, double=0)
        check(join, parts[:1], axis, single=0, double=0)


def test_types_widen(rng):
    parts = [rng.normal(size=(4, 3)), np.ones((4, 2), np.float32), np.ones((4, 1), int)]
    Y = join(parts, 1)
    assert Y.dtype == np.float64
    np.testing.assert_array_equal(Y, np.hstack(parts))
    assert join(parts[1:2] * 2, 1).dtype == np.float32


@pytest.mark.parametrize("axis", [0, -2])
def test_the_first_axis_is_left_to_the_definition(axis):
    assert leaves(join, [np.ones((2, 3)), np.ones((4, 3))], axis)
