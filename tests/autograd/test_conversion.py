"""tinydiff/autograd/conversion.py: tensors of tensors, array[i] = tensor, .grad of what is not a leaf, names of other libraries."""

import copy
import math
import pickle
import re
import warnings

import numpy as np
import pytest

import tinydiff as td
from tinydiff.autograd import conversion
from tinydiff.autograd.tensor import Tensor


def leaf(array):
    return Tensor(np.asarray(array, float), requires_grad=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: Tensor([x.sum(), x.mean()]), lambda x: Tensor(([1.0, x[0]], [2.0, 3.0])), lambda x: Tensor([x, x]),
        lambda x: td.ops.sum([x, x]), lambda x: td.ops.add(x, [x[0], 2.0]), lambda x: td.nn.Parameter([x[0], 1.0]),
    ],
)  # fmt: skip
def test_lists_of_tensors_refuse_to_lose_their_gradients(make):
    with pytest.raises(TypeError, match=r"lose the gradient.*td\.ops\.stack.*detach"):
        make(leaf([1.0, 2.0]))
    make(Tensor([1.0, 2.0]))
    with td.no_grad():
        make(leaf([1.0, 2.0]))


def test_a_tensor_of_a_tensor():
    x = leaf([1.0, 2.0])
    for make in (Tensor, lambda x: Tensor(x, requires_grad=True), td.nn.Parameter):
        for source in (x, x * 2):
            with pytest.raises(TypeError, match="detach"):
                make(source)
        assert make(x.detach()).data is x.data
    a, w = Tensor([1.0, 2.0]), leaf([1.0, 2.0])
    y = w * Tensor(a)
    a[0] = 5  # the memory is one, and so is what notices changes
    with pytest.raises(RuntimeError, match="changed in place"):
        y.sum().backward()


@pytest.mark.parametrize("data", [{1.0}, {"a": 1}, "text", None, [[1.0], [1.0, 2.0]]])
def test_what_is_not_numbers(data):
    with pytest.raises((TypeError, ValueError), match=f"not this {type(data).__name__}"):
        Tensor(data)


def test_storing_a_tensor_in_an_array_warns():
    x, a = leaf([1.0, 2.0]), np.zeros((2, 2))
    with pytest.warns(UserWarning, match=r"td\.ops\.stack") as caught:
        a[0] = x
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"x\.data"):
        a[1, 1] = x.sum()
    assert a.tolist() == [[1, 2], [0, 3]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a[0] = x.data
        a[0] = Tensor([1.0, 2.0])
        with td.no_grad():
            a[0] = x
        assert float(x[0]) == math.sqrt(x[0].item()) == 1 and math.isfinite(x[0])
        np.asarray(x), np.array(x), x.numpy(), x[0].item()


def test_functions_of_python_and_methods_of_arrays_say_what_to_write():
    x = leaf([1.0, 2.0])
    with pytest.warns(UserWarning, match=r"td\.ops\.sqrt") as caught:
        assert math.sqrt(x[0]) == 1
    assert caught[0].filename == __file__
    with pytest.raises(TypeError, match="array @ x"):
        np.ones(2).dot(x)
    with pytest.warns(UserWarning, match=r"td\.ops\.broadcast_to"):
        np.ones(2).fill(x[0])
    for method in (x.mean, x.sum, x.std, x.norm, x.softmax, x.squeeze):
        with pytest.raises(TypeError, match="write axis, as in NumPy, for dim"):
            method(dim=0)
    with pytest.raises(TypeError, match="write keepdims, as in NumPy, for keepdim"):
        x.max(0, keepdim=True)


def test_the_gradient_of_what_is_not_a_leaf_warns():
    w = leaf([1.0, 2.0])
    (w * w).sum().backward()
    w = w - 0.1 * w.grad
    (w * w).sum().backward()
    with pytest.warns(UserWarning, match=r"Subtract.*retain_grad\(\).*w\.data -= lr \* w\.grad") as caught:
        assert w.grad is None
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = leaf([1.0]) * 2
        y.retain_grad()
        assert y.grad is None
        assert y.detach().grad is None
        z = leaf([1.0]) * 2
        z.grad = None
        assert z.grad is None


def test_names_of_other_libraries_say_what_to_write():
    x = leaf([1.0, 2.0])
    for name in conversion._INSTEAD:
        with pytest.raises(AttributeError, match=f"'{name}': write "):
            getattr(x, name)
    with pytest.raises(AttributeError, match=r"no attribute 'nonsense'$"):
        _ = x.nonsense
    for text in conversion._INSTEAD.values():
        for name in re.findall(r"td\.ops\.(\w+)", text):
            assert name in td.ops.__all__
        for name in re.findall(r"\bx\.(\w+)", text):
            assert hasattr(Tensor, name) or name in Tensor.__slots__, name
    for name in ("grad", "cat", "relu", "tensor"):
        with pytest.raises(AttributeError, match=f"'{name}': write"):
            getattr(td, name)
    with pytest.raises(AttributeError, match="first order only"):
        _ = td.grad
    with pytest.raises(AttributeError, match=r"td\.ops\.maximum\(.*; nn\.Sequential takes functions"):
        _ = td.nn.LeakyReLU


def test_iteration_and_indices_are_as_in_numpy():
    with pytest.raises(TypeError, match="0-d"):
        list(Tensor(1.0))
    assert [10, 20, 30][Tensor(np.array(1))] == 20
    for wrong in (Tensor(1.0), Tensor(np.array([1]))):
        with pytest.raises(TypeError, match="only a 0-d tensor of integers"):
            _ = [10, 20][wrong]
    x = leaf([1.0, 3.0, 2.0])
    assert max(x).item() == 3 and [y.item() for y in sorted(x)] == [1, 2, 3] and 2.0 in x
    sum(x).backward()
    assert x.grad.tolist() == [1, 1, 1]


def test_data_that_is_a_tensor():
    w = leaf([1.0, 2.0])
    w.data = w.detach() * 2
    with pytest.raises(TypeError, match=r"w\.data = y\.data"):
        _ = w * 2


def test_unary_plus_copies():
    x = leaf([1.0, 2.0])
    y = +x
    assert not np.shares_memory(y.data, x.data)
    (y * 3).sum().backward()
    assert x.grad.tolist() == [3, 3]


def test_copies():
    w = td.nn.Parameter(np.array([1.0, 2.0]))
    w.grad = np.ones(2)
    deep, shallow = copy.deepcopy(w), copy.copy(w)
    assert type(deep) is type(shallow) is td.nn.Parameter and deep.requires_grad
    assert (
        not np.shares_memory(deep.data, w.data) and not np.shares_memory(deep.grad, w.grad) and shallow.data is w.data
    )
    y = w * 2
    for other in (copy.deepcopy(y), copy.copy(y)):
        w.grad = None
        (other * 5).sum().backward(retain_graph=True)
        assert w.grad.tolist() == [10, 10]
    back = pickle.loads(pickle.dumps(w))
    assert type(back) is td.nn.Parameter and back.requires_grad and back.data.tolist() == [1, 2]
    with pytest.raises(TypeError, match=r"x\.detach\(\)"):
        pickle.dumps(y)


def test_freezing():
    x = leaf([1.0])
    assert x.requires_grad_(False) is x and not x.requires_grad
    assert x.requires_grad_().requires_grad
    with pytest.raises(RuntimeError, match="detach"):
        (x * 2).requires_grad_(False)
    with pytest.raises(TypeError, match="int64"):
        Tensor(np.array([1])).requires_grad_()


def test_zero_grad():
    x = leaf([1.0, 2.0])
    x.zero_grad(set_to_none=False)
    assert x.grad is None
    x.sum().backward()
    x.zero_grad(set_to_none=False)
    assert x.grad.tolist() == [0, 0]
    x.zero_grad()
    assert x.grad is None


def test_no_grad_stands_before_functions_with_and_without_parentheses():
    for decorate in (td.no_grad, td.no_grad()):
        assert not decorate(lambda x: x * 2)(leaf([1.0])).requires_grad
