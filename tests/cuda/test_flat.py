"""tinydiff/cuda/flat.py: many arrays in one piece of memory."""

import numpy as np
import pytest

from tinydiff.cuda import flat


def test_every_array_starts_at_a_cache_line():
    whole, parts = flat.join([np.ones(shape, np.float32) for shape in ((3, 5), (7,), (), (1,), (0, 2), (130,))])
    for part in parts:
        assert (part.ctypes.data - whole.ctypes.data) % 128 == 0 and part.base is whole
    assert whole.sum() == 15 + 7 + 1 + 1 + 130 and whole.size == flat.size(parts) == 32 * 9


@pytest.mark.parametrize("change", ["order", "gap", "copy", "part"])
def test_arrays_that_do_not_fill_a_piece_of_memory_are_copied(change):
    whole, (a, b) = flat.join([np.ones((2, 3)), np.zeros(4)])
    assert flat.join([a, b])[0] is whole
    other = {"order": [b, a], "gap": [a, b[1:]], "copy": [a, b.copy()], "part": [a]}[change]
    joined, views = flat.join(other)
    assert joined is not whole
    for view, array in zip(views, other, strict=True):
        np.testing.assert_array_equal(view, array)
