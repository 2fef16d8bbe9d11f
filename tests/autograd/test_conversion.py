"""tinydiff/autograd/conversion.py: tensors of tensors, array[i] = tensor, .grad of what is not a leaf, names of other libraries."""

import cmath
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


WITHOUT_SOURCE = {
    "math.exp(s)": r"td\.ops\.exp", "m.log(s)": r"td\.ops\.log", "root(s)": r"math\.sqrt.*td\.ops\.sqrt",
    "1 + math.pow(s, 2) * 3": r"x \*\* y", "math.gamma(s)": "td.Function", "math.fsum(x)": r"x\.sum\(\)",
    "cmath.exp(s)": "td.ops.exp",
    "np.array([x, x])": r"td\.ops\.stack", "np.array(xs)": r"td\.ops\.stack", "np.asarray([y for y in xs], float)": "stack",
    "np.array((s, 1.0))": "stack", "np.array([\n    x,\n    x,\n])": "stack", "np.fromiter((y for y in x), float)": "stack",
    "np.float32(x)": r"astype\(np\.float32\)", "rng.normal(s, 1, 3)": "mean \\+ scale \\* noise",
    "np.random.permutation(x)": "indices",
    "np.arange(s)": "np.arange", "np.ones(2).fill(s)": r"td\.ops\.broadcast_to", "a.fill(s)": r"td\.ops\.broadcast_to",
    "a.__setitem__(0, s)": None, "float(s)": None, "int(s)": None, "round(s)": None, "np.asarray(x)": None, "np.array(x)": None,
    "'%.1f' % s": None, "f'{s:.2f}'": None, "math.floor(s)": None, "math.isnan(s)": None, "s.item() + math.exp(s.item())": None,
    "np.float64(s)": None, "max([math.exp(1.0), float(s)])": None, "np.allclose([x, x], 1)": None, "print(float(s), [1])": None,
    "np.copy(x)": None, "np.testing.assert_allclose(xs, [x.data, x.data])": None,
}  # fmt: skip


@pytest.mark.parametrize("file", ["<stdin>", "<string>"])
def test_guards_need_no_source(file):
    """As in a terminal, where the lines that were typed cannot be read."""
    for text, advice in WITHOUT_SOURCE.items():
        x = leaf([1.0, 2.0])
        scope = {"np": np, "math": math, "m": math, "root": math.sqrt, "cmath": cmath, "rng": np.random.default_rng(0)}
        scope |= {"x": x, "s": x[1], "xs": [x, x], "a": np.zeros(2), "advice": None}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            exec(compile(f"def f(x, s, xs):\n    return {text}\nf(x, s, xs)\n{text}", file, "exec"), scope)
        messages = [str(w.message) for w in caught]
        assert len(messages) == 0 if advice is None else len(messages) > 1, (text, messages)
        assert advice is None or all(re.search(advice, m) for m in messages), (text, messages)
    with pytest.raises(TypeError, match="array @ x"):
        exec(compile("np.ones(2).dot(x)", file, "exec"), {"np": np, "x": leaf([1.0, 2.0])})
    with pytest.raises(TypeError, match=r"td\.ops\.sum"):
        exec(compile("np.sum([x, x])", file, "exec"), {"np": np, "x": leaf([1.0, 2.0])})
    with pytest.warns(UserWarning, match=r"array\[i\] = x"):
        exec(compile("a[0] = x", file, "exec"), {"a": np.zeros((2, 2)), "x": leaf([1.0, 2.0])})


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
