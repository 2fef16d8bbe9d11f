"""tinydiff/autograd/tensor.py: changes in place, and when they are refused."""

import numpy as np
import pytest

from tinydiff.autograd.tape import no_grad
from tinydiff.autograd.tensor import Tensor


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


# Changes in place


def test_changes_in_place_keep_memory_and_dtype():
    a = np.float32([1, 2, 3])
    x = Tensor(a)
    before = x
    x += 1
    assert a.tolist() == [2, 3, 4]
    x *= Tensor([2.0, 3.0, 4.0])
    assert a.tolist() == [4, 9, 16]
    x -= np.float32([1, 1, 2])
    assert a.tolist() == [3, 8, 14]
    x /= 2
    assert a.tolist() == [1.5, 4, 7]
    x[0] = 10
    x[1:] = Tensor([20.0, 30.0])
    assert a.tolist() == [10, 20, 30]
    assert x is before
    assert x.data is a
    assert a.dtype == np.float32
    x[Tensor(np.array([True, False, False]))] = 7
    x[Tensor(np.array([2]))] = 8
    assert a.tolist() == [7, 20, 8]


def test_a_leaf_can_be_updated_under_no_grad():
    x = leaf([1.0, 2.0])
    with no_grad():
        x -= np.array([0.5, 0.5])
        x[0] = 9
    assert x.data.tolist() == [9, 1.5]
    assert x.requires_grad
    assert x.grad is None


def test_changes_that_would_need_recording_are_refused():
    x, constant = leaf([1.0, 2.0]), Tensor(np.array([1.0, 2.0]))
    y = x * 2

    def change(target, value):
        target += value

    def assign(target, value):
        target[0] = value

    for target, value in ((x, 1.0), (y, 1.0), (constant, x)):
        with pytest.raises(RuntimeError, match="in place"):
            change(target, value)
    for target, value in ((x, 1.0), (y, 1.0), (constant, x[0])):
        with pytest.raises(RuntimeError, match="in place"):
            assign(target, value)
    assert x.data.tolist() == [1, 2]
    assert constant.data.tolist() == [1, 2]
