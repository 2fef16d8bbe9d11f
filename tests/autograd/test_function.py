"""tinydiff/autograd/function.py: the contract between an operation that somebody writes and the tape."""

import gc
import weakref
from contextlib import nullcontext

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd import tape
from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor


class Linear(Function):
    """The example of the design: Y = X W + 1 b."""

    def forward(self, X, W, b):
        self.save(X, W)
        return X @ W + b

    def backward(self, L_Y):
        X, W = self.saved
        return L_Y @ W.T, X.T @ L_Y, L_Y.sum(0)


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


def test_the_fully_connected_layer_of_the_design(rng):
    X, W, b, L_Y = (rng.normal(size=shape) for shape in ((5, 3), (3, 4), (4,), (5, 4)))
    x, w, bias = leaf(X), leaf(W), leaf(b)
    y = Linear.apply(x, w, bias)
    np.testing.assert_allclose(y.data, X @ W + b, rtol=1e-14)
    y.backward(L_Y)
    np.testing.assert_allclose(x.grad, L_Y @ W.T, rtol=1e-14)
    np.testing.assert_allclose(w.grad, X.T @ L_Y, rtol=1e-14)
    np.testing.assert_allclose(bias.grad, L_Y.sum(0), rtol=1e-14)


def test_forward_and_backward_see_plain_arrays_only():
    seen = []

    class Look(Function):
        def forward(self, X, A, number, nothing):
            seen.extend([X, A, number, nothing])
            return X * 2

        def backward(self, L_Y):
            seen.append(L_Y)
            return L_Y * 2, None, None, None

    x, a = leaf([1.0, 2.0]), np.ones(2)
    y = Look.apply(x, a, 3.0, None)
    assert type(y) is Tensor
    y.backward(np.ones(2))
    assert seen[0] is x.data
    assert seen[1] is a
    assert seen[2] == 3
    assert seen[3] is None
    assert type(seen[4]) is np.ndarray


def test_gradients_without_axes_are_arrays_too():
    """NumPy's sum of two 0-d arrays is a number; backward must not see it, for it cannot be written to."""
    seen = []

    class Look(Function):
        def forward(self, X):
            return X * 1

        def backward(self, L_Y):
            seen.append(L_Y)
            return L_Y

    x = leaf(2.0)
    y = Look.apply(x)
    y.retain_grad()
    (y + y * y + y).backward()
    assert [type(a) for a in (seen[0], x.grad, y.grad)] == [np.ndarray] * 3
    assert y.grad == x.grad == 6


def test_numbers_and_lists_become_arrays_unless_they_stand_beside_an_array():
    seen = []

    class Look(Function):
        def forward(self, A, B):
            seen.append((A, B, self.shapes))
            return np.multiply(A, B)

        def backward(self, L_Y):
            return None, None

    Look.apply(2.0, [3.0, 4.0])
    Look.apply(2.0, 3)
    Look.apply(np.float64(2), [3.0])
    assert [(type(a), a.dtype, b.dtype) for a, b, _ in seen] == [
        (np.ndarray, np.float32, np.float32),
        (np.ndarray, np.float32, np.float32),
        (np.ndarray, np.float64, np.float32),
    ]
    assert [shapes for _, _, shapes in seen] == [((), (2,)), ((), ()), ((), (1,))]
    Look.apply(leaf(np.ones((2, 3), np.float32)), 2.0)
    assert type(seen[-1][1]) is float, "a Python number must not widen the array beside it"
    assert seen[-1][2] == ((2, 3), ())


def test_options_reach_forward_and_several_outputs_come_back_as_a_tuple():
    class Scale(Function):
        def forward(self, X, by=1, twice=False):
            self.by = by
            return (X * by, X * by) if twice else X * by

        def backward(self, *L_Ys):
            return sum(L_Ys) * self.by

    x = leaf([1.0, 2.0])
    assert Scale.apply(x, by=3).data.tolist() == [3, 6]
    pair = Scale.apply(x, by=3, twice=True)
    assert isinstance(pair, tuple)
    assert len(pair) == 2
    (pair[0] + pair[1]).backward(np.ones(2))
    assert x.grad.tolist() == [6, 6]


def test_needs_says_which_gradients_are_wanted():
    seen = []

    class Product(Function):
        def forward(self, A, B, C):
            seen.append(self.needs)
            self.save(A, B, C)
            return A * B * C

        def backward(self, L_Y):
            A, B, C = self.saved
            return (
                L_Y * B * C if self.needs[0] else None,
                L_Y * A * C if self.needs[1] else None,
                L_Y * A * B if self.needs[2] else None,
            )

    a, b, c = leaf([2.0]), Tensor(np.array([3.0])), leaf([5.0])
    Product.apply(a, b, c).backward()
    assert (a.grad.item(), b.grad, c.grad.item()) == (15, None, 6)
    Product.apply(b, 1.0 + a, np.array([1.0]))
    with tape.no_grad():
        Product.apply(a, b, c)
    Product.apply(b, b, b)
    assert [tuple(map(bool, needs)) for needs in seen] == [
        (True, False, True),
        (False, True, False),
        (False, False, False),
        (False, False, False),
    ]


def test_gradients_of_constants_are_thrown_away_if_computed_anyway():
    x, w = leaf([[1.0, 2.0]]), Tensor(np.ones((2, 2)))
    Linear.apply(x, w, np.zeros(2)).backward(np.ones((1, 2)))
    assert w.grad is None
    assert x.grad.tolist() == [[2, 2]]


def test_backward_is_not_called_where_nothing_needs_a_gradient():
    class Refuse(Function):
        def forward(self, X):
            return X + 1

        def backward(self, L_Y):
            raise AssertionError("nobody needs this gradient")

    constant = Refuse.apply(Tensor([1.0]))
    assert not constant.requires_grad
    x = leaf(np.float32([1.0]))
    (x * constant).backward()
    assert x.grad.tolist() == [2]


class Pair(Function):
    """(2 x, 3 x), noting the gradients that arrive."""

    log: list = []  # noqa: RUF012

    def forward(self, X):
        return 2 * X, 3 * X

    def backward(self, L_A, L_B):
        self.log.append((L_A.copy(), L_B.copy()))
        return 2 * L_A + 3 * L_B


@pytest.fixture
def pair_log():
    Pair.log.clear()
    return Pair.log


def test_an_unused_output_gets_zeros(pair_log):
    x = leaf(np.float32([1.0, 2.0]))
    _, b = Pair.apply(x)
    (b * 10).backward(np.float32([1, 1]))
    L_A, L_B = pair_log[0]
    assert L_A.tolist() == [0, 0]
    assert L_A.dtype == np.float32
    assert L_B.tolist() == [10, 10]
    assert x.grad.tolist() == [30, 30]


def test_backward_from_one_output_of_several(pair_log):
    x = leaf([1.0])
    a, _ = Pair.apply(x)
    a.backward()
    assert x.grad.tolist() == [2]
    assert len(pair_log) == 1


def test_outputs_used_several_times_arrive_summed_and_once(pair_log):
    x = leaf([1.0])
    a, b = Pair.apply(x)
    (a * a + b * 5 + a * b + b).backward()
    assert len(pair_log) == 1
    assert pair_log[0] == (np.array([2 * 2 + 3.0]), np.array([5 + 2 + 1.0]))
    assert x.grad.tolist() == [2 * 7 + 3 * 8]


def test_integer_outputs_are_not_on_the_tape():
    class TopIndex(Function):
        def forward(self, X):
            self.index = X.argmax()
            self.shape = X.shape
            return X.max(), np.asarray(self.index)

        def backward(self, L_Y, L_index):
            L_X = np.zeros(self.shape)
            L_X[self.index] = L_Y
            return L_X

    x = leaf([1.0, 3.0, 2.0])
    top, index = TopIndex.apply(x)
    assert not index.requires_grad
    assert index.dtype.kind == "i"
    top.backward()
    assert x.grad.tolist() == [0, 1, 0]


def test_a_gradient_takes_the_dtype_of_its_input():
    class Widen(Function):
        def forward(self, A, B):
            return A.astype(np.float64) + B

        def backward(self, L_Y):
            assert L_Y.dtype == np.float64
            return L_Y, L_Y

    a, b = leaf(np.float32([1.0])), leaf(np.float64([1.0]))
    y = Widen.apply(a, b)
    y.backward()
    assert (a.grad.dtype, b.grad.dtype) == (np.float32, np.float64)
    a.grad = b.grad = None
    (Widen.apply(a * 1, b * 1) * 2).backward()
    assert (a.grad.dtype, b.grad.dtype) == (np.float32, np.float64)


def test_forward_may_return_its_input_or_a_number():
    class Same(Function):
        def forward(self, X):
            return X

        def backward(self, L_Y):
            return L_Y

    class Total(Function):
        def forward(self, X):
            self.save(X)
            return X.sum()  # a NumPy scalar, not an array

        def backward(self, L_Y):
            (X,) = self.saved
            return np.broadcast_to(L_Y, X.shape)  # a read-only view

    x = leaf([1.0, 2.0])
    same = Same.apply(x)
    assert same is not x
    total = Total.apply(same)
    assert total.shape == ()
    assert isinstance(total.data, np.ndarray)
    total.backward()
    assert x.grad.tolist() == [1, 1]
    x.grad += 1  # an array of its own, not the read-only view that backward returned
    assert x.grad.tolist() == [2, 2]


def test_none_means_no_gradient():
    class Gate(Function):
        def forward(self, A, B):
            return A + B

        def backward(self, L_Y):
            return L_Y, None

    a, b = leaf([1.0]), leaf([2.0])
    Gate.apply(a, b).backward()
    assert a.grad.tolist() == [1]
    assert b.grad is None


def test_two_applications_of_one_class_do_not_share_what_they_saved():
    x, w1, w2 = leaf([[1.0]]), leaf([[2.0]]), leaf([[5.0]])
    y = Linear.apply(Linear.apply(x, w1, np.zeros(1)), w2, np.zeros(1))
    y.backward()
    assert (x.grad.item(), w1.grad.item(), w2.grad.item()) == (10, 5, 2)


@pytest.mark.parametrize("recording", [True, False])
def test_an_operation_knows_the_shapes_of_its_inputs_and_which_need_a_gradient(recording):
    class Look(Function):
        def forward(self, A, B, c, d):
            seen.extend([self.shapes, self.needs])
            return A

    seen = []
    with nullcontext() if recording else tape.no_grad():
        Look.apply(np.ones((2, 3)), Tensor(np.ones(4), requires_grad=True), 2.0, None)
    assert seen == [((2, 3), (4,), (), None), (False, recording, False, False)]


def test_nothing_is_saved_where_nothing_is_recorded():
    kept = []

    class Keep(Function):
        def forward(self, X):
            extra = X * 2
            kept.append(weakref.ref(extra))
            self.save(X, extra)
            self.more = extra
            return X + 1

        def backward(self, L_Y):
            return L_Y

    gc.disable()
    try:
        y = Keep.apply(Tensor(np.ones(3)))
        with tape.no_grad():
            z = Keep.apply(leaf(np.ones(3)))
        recorded = Keep.apply(leaf(np.ones(3)))
        assert [reference() is None for reference in kept] == [True, True, False]
        assert not y.requires_grad
        assert not z.requires_grad
        assert recorded.requires_grad
        recorded.backward(np.ones(3))
        assert kept[2]() is None, "what an op saved must go once its backward has run, though its output is still here"
    finally:
        gc.enable()


def test_functions_mix_with_built_in_operations():
    x = leaf([0.5, -1.0])
    y = (Linear.apply(ops.reshape(x, (1, 2)), np.eye(2), np.zeros(2)) ** 2).sum()
    y.backward()
    np.testing.assert_allclose(x.grad, 2 * x.data)
