"""tinydiff/autograd/function.py: what somebody is told whose operation does not keep the contract."""

import numpy as np
import pytest

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


@pytest.mark.parametrize(
    ("gradients", "count"),
    [(lambda L: L, 1), (lambda L: (L,), 1), (lambda L: (L, L, L), 3), (lambda L: (), 0)],
    ids=["array", "one", "three", "none"],
)
def test_wrong_number_of_gradients_is_a_sentence(gradients, count):
    class Sum(Function):
        def forward(self, A, B):
            return A + B

        def backward(self, L_Y):
            return gradients(L_Y)

    with pytest.raises(ValueError, match=rf"Sum.*\b{count}\b.*\b2\b"):
        Sum.apply(leaf([1.0]), leaf([2.0])).backward()


@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (1, 2), (2, 2)])
def test_wrong_shape_of_a_gradient_is_a_sentence(shape):
    class Odd(Function):
        def forward(self, A, B):
            return A + B

        def backward(self, L_Y):
            return L_Y, np.zeros(shape)

    with pytest.raises(ValueError, match=r"Odd.*\({}\).*input 1.*\(2,\)".format(", ?".join(map(str, shape)) + ",?")):
        Odd.apply(leaf([1.0, 2.0]), leaf([1.0, 2.0])).backward(np.ones(2))


@pytest.mark.parametrize("gradient", [3.0, [1.0, 1.0], Tensor(np.ones(2))], ids=["number", "list", "tensor"])
def test_gradients_that_are_no_arrays_are_a_sentence(gradient):
    class Odd(Function):
        def forward(self, A):
            return A * 2

        def backward(self, L_Y):
            return (gradient,)

    with pytest.raises((TypeError, ValueError), match=r"Odd"):
        Odd.apply(leaf([1.0, 2.0])).backward(np.ones(2))


def test_forward_without_a_result_is_a_sentence():
    class Forgot(Function):
        def forward(self, A):
            A * 2

    with pytest.raises((TypeError, ValueError), match="Forgot"):
        Forgot.apply(leaf([1.0]))


def test_missing_methods_are_named():
    class Half(Function):
        def forward(self, X):
            return X / 2

    class Nothing(Function):
        pass

    with pytest.raises(TypeError, match=r"Half.*backward"):
        Half.apply(leaf([1.0])).backward()
    with pytest.raises(TypeError, match=r"Nothing.*forward"):
        Nothing.apply(leaf([1.0]))


def test_an_error_inside_forward_or_backward_comes_through_and_leaves_the_tape_usable():
    class Break(Function):
        def forward(self, X, where):
            self.where = where
            if where == "forward":
                raise KeyError("forward")
            return X

        def backward(self, L_Y):
            raise KeyError("backward")

    x = leaf([1.0])
    with pytest.raises(KeyError, match="forward"):
        Break.apply(x, where="forward")
    with pytest.raises(KeyError, match="backward"):
        Break.apply(x, where="backward").backward()
    x.grad = None
    (x * 3).backward()
    assert x.grad.tolist() == [3]
