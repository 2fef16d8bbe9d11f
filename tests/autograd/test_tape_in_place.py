"""Arrays that change in place between forward and backward are an error that names the operation."""

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.function import Function
from tinydiff.autograd.tape import no_grad
from tinydiff.autograd.tensor import Tensor


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


def set_all(x):
    x[...] = 7.0


def add_one(x):
    x += 1.0


def subtract_one(x):
    x -= 1.0


def double(x):
    x *= 2.0


def halve(x):
    x /= 2.0


@pytest.mark.parametrize("change", [set_all, add_one, subtract_one, double, halve])
def test_a_saved_input_that_changes_is_an_error_naming_the_op(change):
    x, w = leaf([1.0, 2.0]), Tensor(np.array([3.0, 4.0]))
    y = (x * w).sum()
    with no_grad():
        change(w)
    with pytest.raises(RuntimeError, match=r"Multiply.*in place"):
        y.backward()
    assert x.grad is None


def test_a_leaf_updated_too_early_is_an_error():
    w = leaf([1.0])
    y = w * w
    with no_grad():
        w -= 0.1  # an optimiser step before backward
    with pytest.raises(RuntimeError, match=r"Multiply.*in place"):
        y.backward()


VIEWS = {
    "reshape": lambda x: ops.reshape(x, (4,)),
    "transpose": ops.transpose,
    "detach": lambda x: x.detach(),
    "getitem": lambda x: x[0],
    "expand_dims": lambda x: ops.expand_dims(x, 0),
    "squeeze": lambda x: ops.squeeze(ops.expand_dims(x, 0), 0),
    "split": lambda x: ops.split(x, 2)[1],
    "several": lambda x: ops.transpose(ops.reshape(x.detach(), (1, 4)))[1:3],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_change_through_a_view_is_an_error_naming_the_op(view):
    x = leaf([[1.0, 2.0], [3.0, 4.0]])
    part = view(x)
    assert np.shares_memory(part.data, x.data)
    y = ops.sin(x).sum()
    with no_grad():
        part[...] = 0.0
    with pytest.raises(RuntimeError, match=r"Sin.*in place"):
        y.backward()


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_change_of_the_whole_is_an_error_for_an_op_that_saved_a_view(view):
    x, scale = leaf([[1.0, 2.0], [3.0, 4.0]]), leaf([2.0])
    y = (scale * view(x)).sum()
    with no_grad():
        x += 1.0
    with pytest.raises(RuntimeError, match=r"Multiply.*in place"):
        y.backward()


def test_a_saved_output_that_changes_is_an_error():
    x = leaf([1.0, 2.0])
    y = ops.exp(x)  # keeps its own result for backward
    with no_grad():
        y += 1.0
    with pytest.raises(RuntimeError, match=r"Exp.*in place"):
        y.backward(np.ones(2))


def test_a_change_through_a_view_of_an_output_is_an_error():
    y = ops.exp(leaf([1.0, 2.0]))
    view = y.detach()[:1]
    view[0] = 0.0
    with pytest.raises(RuntimeError, match=r"Exp.*in place"):
        y.backward(np.ones(2))


@pytest.mark.parametrize(
    ("name", "compute"),
    [
        ("Linear", lambda x, w: ops.linear(x, w)),
        ("Matmul", lambda x, w: ops.matmul(x, w)),
        ("Einsum", lambda x, w: ops.einsum("ij,jk->ik", x, w)),
        ("Divide", lambda x, w: x / w),
        ("Power", lambda x, w: x**w),
        ("Conv2d", lambda x, w: ops.conv2d(ops.reshape(x, (1, 2, 2, 1)), ops.reshape(w, (2, 2, 1, 1)))),
        ("Attention", lambda x, w: ops.attention(x, w, w)),
        ("LayerNorm", lambda x, w: ops.layer_norm(x, w[0], w[1])),
        ("Maximum", lambda x, w: ops.maximum(x, w)),
    ],
)
def test_constants_that_change_are_noticed_by(name, compute):
    x, w = leaf([[1.0, 2.0], [3.0, 4.0]]), Tensor(np.full((2, 2), 2.0))
    y = compute(x, w).sum()
    w *= 3.0
    with pytest.raises(RuntimeError, match=rf"{name}.*in place"):
        y.backward()


def test_views_of_memory_that_numpy_does_not_own():
    """An array over a buffer, as files are read, has a base that is no array."""
    x, w = leaf(np.ones(3)), Tensor(np.frombuffer(bytearray(24)))
    view = w.reshape(3, 1)
    y = (x * w).sum()
    view += 3.0
    with pytest.raises(RuntimeError, match=r"Multiply.*in place"):
        y.backward()


@pytest.mark.parametrize("changed", [0, 1])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_tensors_made_of_one_array_are_both_watched(changed, order):
    rows = np.ones((2, 3))
    tensors = [Tensor(rows[0]), Tensor(rows[1])]
    y = Product.apply(*(tensors[i] for i in order), leaf(np.ones(3))).sum()
    tensors[changed] *= 3.0
    with pytest.raises(RuntimeError, match=r"Product.*in place"):
        y.backward()


class Product(Function):
    """Of three arrays; the third needs the gradient."""

    def forward(self, A, B, C):
        self.save(A, B, C)
        return A * B * C

    def backward(self, L_Y):
        A, B, _ = self.saved
        return None, None, L_Y * A * B


def test_changes_that_no_backward_needs_are_allowed():
    x, w = leaf([1.0, 2.0]), Tensor(np.array([3.0, 4.0]))
    y = (x + w).sum()
    w += 1.0  # the backward of a sum does not look at its inputs
    y.backward()
    assert x.grad.tolist() == [1, 1]
    x.grad = None
    w += 1.0
    (x * w).sum().backward()  # a change before forward is no change in between
    assert x.grad.tolist() == [5, 6]
    copy = Tensor(w.data.copy())
    y = (x * w).sum()
    copy += 1.0  # other memory
    y.backward()


def test_an_in_place_change_of_a_branch_that_needs_no_gradient_is_allowed():
    x, w = Tensor(np.array([1.0])), leaf([2.0])
    y = x * w  # needs x for L_w, not w
    with no_grad():
        x += 0.0  # noticed all the same: x was saved
    with pytest.raises(RuntimeError, match="Multiply"):
        y.backward()
