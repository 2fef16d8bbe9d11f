"""tinydiff/autograd/tensor.py: what a Tensor holds, how types promote, gradients of one's own memory, operators and methods."""

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.tape import no_grad
from tinydiff.autograd.tensor import Tensor


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


# What a Tensor holds


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.int8, np.uint8, np.bool_])
def test_an_array_is_taken_as_it_is(dtype):
    a = np.ones((2, 3), dtype)
    x = Tensor(a)
    assert x.data is a
    assert x.dtype == dtype
    strided = a[:, ::2]
    assert Tensor(strided).data is strided


@pytest.mark.parametrize("value", [3, 2.5, True, [1, 2], [[1.0], [2.0]], (1, 2), []])
def test_numbers_and_lists_become_float32(value):
    x = Tensor(value)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x.data, np.asarray(value, np.float32))


@pytest.mark.parametrize("scalar", [np.float64(2), np.float32(2), np.int64(2)])
def test_numpy_scalars_keep_their_dtype(scalar):
    x = Tensor(scalar)
    assert type(x.data) is np.ndarray
    assert x.shape == ()
    assert x.dtype == scalar.dtype


def test_attributes():
    x = Tensor(np.zeros((2, 3, 4)))
    assert (x.shape, x.ndim, x.size, x.dtype, x.device) == ((2, 3, 4), 3, 24, np.float64, "cpu")
    assert x.grad is None
    assert x.requires_grad is False
    assert x.numpy() is x.data
    assert len(x) == 2
    with pytest.raises(TypeError, match="0-d"):
        len(Tensor(1.0))


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.bool_])
def test_requires_grad_on_integers_is_an_error(dtype):
    with pytest.raises(TypeError, match=f"{np.dtype(dtype)}"):
        Tensor(np.ones(3, dtype), requires_grad=True)


def test_item():
    assert Tensor(np.array([[2.5]])).item() == 2.5
    assert type(Tensor(2.5).item()) is float
    assert type(Tensor(np.array(3)).item()) is int
    assert float(Tensor(2.5)) == 2.5
    assert int(Tensor(np.array([3]))) == 3
    for shape in ((2,), (0,), (2, 3)):
        with pytest.raises(ValueError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
            Tensor(np.zeros(shape)).item()


def test_truth():
    assert Tensor(np.array([1.0]))
    assert not Tensor(0.0)
    with pytest.raises(ValueError, match=r"\(2,\)"):
        bool(Tensor([1.0, 2.0]))


def test_repr_shows_values_dtype_and_origin():
    assert "1.5" in repr(Tensor([1.5]))
    assert "float32" in repr(Tensor([1.5]))
    assert "requires_grad=True" in repr(leaf([1.5]))
    assert "Multiply" in repr(leaf([1.5]) * 2)
    assert len(repr(Tensor(np.zeros((1000, 1000))))) < 2000


def test_conversion_to_an_array():
    x = leaf([1.0, 2.0])
    assert np.shares_memory(np.asarray(x), x.data)
    assert np.asarray(x, np.float32).dtype == np.float32
    copy = np.array(x)
    copy[0] = 9
    assert x.data[0] == 1


def test_detach_shares_memory_and_leaves_the_tape():
    x = leaf([1.0, 2.0])
    d = (x * 2).detach()
    assert not d.requires_grad
    assert x.detach().data is x.data
    y = x * d
    y.backward(np.ones(2))
    np.testing.assert_array_equal(x.grad, [2, 4])


def test_to_the_device_where_it_is():
    x = leaf([1.0])
    assert x.to("cpu") is x
    with pytest.raises(ValueError, match="nonsense"):
        x.to("nonsense")


# Promotion

BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
}


@pytest.mark.parametrize("operator", BINARY.values(), ids=BINARY)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("number", [2, 2.5, True])
def test_python_numbers_take_the_dtype_of_the_tensor(operator, dtype, number):
    a = np.array([1.5, 2.0], dtype)
    for compute in (lambda x: operator(x, number), lambda x: operator(number, x)):
        x = leaf(a)
        y = compute(x)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y.data, compute(a))
        y.backward(np.ones(2, dtype))
        assert x.grad.dtype == dtype


@pytest.mark.parametrize("operator", BINARY.values(), ids=BINARY)
def test_float32_with_float64_promotes_and_each_gradient_keeps_its_dtype(operator):
    a, b = leaf(np.float32([1.5, 2.0])), leaf(np.float64([3.0, 0.5]))
    for x, y in ((a, b), (b, a)):
        z = operator(x, y)
        assert z.dtype == np.float64
        np.testing.assert_allclose(z.data, operator(x.data, y.data), rtol=1e-15)
        z.backward(np.ones(2))
    assert a.grad.dtype == np.float32
    assert b.grad.dtype == np.float64


def test_gradients_through_a_promotion_in_the_middle():
    x = leaf(np.float32([1.0, 2.0]))
    y = x * np.float32(3)
    assert y.dtype == np.float32
    z = (y * np.array([1.0, 0.1])).sum()
    assert z.dtype == np.float64
    z.backward()
    assert x.grad.dtype == np.float32
    np.testing.assert_allclose(x.grad, [3, 0.3], rtol=1e-7)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (ops.linear, ((2, 3), (3, 4), (4,))),
        (ops.conv2d, ((1, 3, 3, 2), (2, 2, 2, 3), (3,))),
        (ops.conv_transpose2d, ((1, 3, 3, 2), (2, 2, 3, 2), (3,))),
        (lambda x, w, b: ops.group_norm(x, 2, w, b), ((2, 3, 4), (4,), (4,))),
        (ops.layer_norm, ((2, 4), (4,), (4,))),
        (ops.attention, ((3, 2), (4, 2), (4, 2))),
        (ops.mse_loss, ((3,), (3,))),
        (lambda *xs: ops.einsum("ij,jk->ik", *xs), ((2, 3), (3, 4))),
        (lambda *xs: ops.stack(xs), ((3,), (3,))),
    ],
)
def test_one_float64_among_the_inputs_promotes(function, shapes, rng):
    arrays = [rng.uniform(0.5, 1, shape) for shape in shapes]
    for wide in range(len(arrays)):
        xs = [leaf(a if i == wide else a.astype(np.float32)) for i, a in enumerate(arrays)]
        y = function(*xs)
        assert y.dtype == np.float64
        y.backward(np.ones(y.shape))
        assert [x.grad.dtype for x in xs] == [x.dtype for x in xs]


def test_integer_tensors_compute_as_numpy_does():
    n = Tensor(np.array([1, 2, 3]))
    assert (n + 1).dtype == np.int64
    assert (n * n).data.tolist() == [1, 4, 9]
    assert (n / 2).dtype == np.float64
    x = leaf(np.array([0.5, 0.5, 0.5]))
    (x * n).backward(np.ones(3))
    assert x.grad.tolist() == [1, 2, 3]


# Operators stay on the tape, whatever stands on the left


@pytest.mark.parametrize("operator", BINARY.values(), ids=BINARY)
@pytest.mark.parametrize(
    "other",
    [np.array([2.0, 3.0]), np.array(2.0), np.float64(2.0), np.float32(2.0), np.array([[1.0], [2.0]]), np.array([2, 3])],
    ids=["array", "0-d", "float64", "float32", "broadcasting", "integers"],
)
def test_arrays_on_either_side_stay_on_the_tape(operator, other):
    a = np.array([1.5, 2.5])
    x = leaf(a)
    for left in (True, False):
        y = operator(other, x) if left else operator(x, other)
        assert type(y) is Tensor
        assert y.requires_grad
        np.testing.assert_allclose(y.data, operator(other, a) if left else operator(a, other), rtol=1e-14)


def test_ndarray_plus_tensor_has_a_gradient():
    x = leaf([1.0, 2.0])
    (np.array([[10.0, 20.0], [30.0, 40.0]]) * x).sum().backward()
    assert x.grad.tolist() == [40, 60]


def test_matmul_operator_on_either_side(rng):
    a, b = rng.normal(size=(2, 3)), rng.normal(size=(3, 4))
    for y in (leaf(a) @ b, a @ leaf(b), leaf(a) @ leaf(b)):
        assert y.requires_grad
        np.testing.assert_allclose(y.data, a @ b, rtol=1e-14)


def test_unary_operators():
    x = leaf([1.0, -2.0])
    y = -x + abs(x)
    assert y.data.tolist() == [0, 4]
    y.backward(np.ones(2))
    assert x.grad.tolist() == [0, -2]


def test_comparisons_give_values_off_the_tape():
    x, a = leaf([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])
    for result, expected in (
        (x < a, [True, False, False]),
        (x <= Tensor(a), [True, True, False]),
        (x > 2, [False, False, True]),
        (x >= 2.0, [False, True, True]),
        (x == 2, [False, True, False]),
        (x != 2, [True, False, True]),
        (a < x, [False, False, True]),
    ):
        assert not getattr(result, "requires_grad", False)
        assert np.asarray(result).tolist() == expected


def test_tensors_can_be_keys():
    a, b = Tensor([1.0]), Tensor([1.0])
    assert len({a, b}) == 2
    assert {a: 1, b: 2}[a] == 1


def test_iteration_ends_and_carries_gradients():
    x = leaf([[1.0, 2.0], [3.0, 4.0]])
    rows = list(x)
    assert [row.data.tolist() for row in rows] == [[1, 2], [3, 4]]
    rows[1].backward(np.ones(2))
    assert x.grad.tolist() == [[0, 0], [1, 1]]


def test_methods_are_the_functions_of_ops(rng):
    a = rng.uniform(0.5, 2, size=(2, 3, 1))
    x = leaf(a)
    for ours, theirs in (
        (x.sum(), a.sum()),
        (x.sum(axis=1, keepdims=True), a.sum(axis=1, keepdims=True)),
        (x.mean((0, 2)), a.mean((0, 2))),
        (x.var(axis=1, ddof=1), a.var(axis=1, ddof=1)),
        (x.max(1), a.max(1)),
        (x.min(), a.min()),
        (x.reshape(3, 2), a.reshape(3, 2)),
        (x.reshape((-1,)), a.reshape(-1)),
        (x.transpose(), a.transpose()),
        (x.transpose((1, 0, 2)), a.transpose(1, 0, 2)),
        (x.T, a.T),
        (x.squeeze(2), a.squeeze(2)),
        (x[1, ..., 0], a[1, ..., 0]),
    ):
        assert ours.requires_grad
        np.testing.assert_allclose(ours.data, theirs, rtol=1e-14)


# backward, at the tensor


def test_backward_needs_a_gradient_to_start_from_unless_there_is_one_element():
    x = leaf([1.0, 2.0])
    with pytest.raises(ValueError, match=r"\(2,\).*L_Y"):
        (x * 2).backward()
    for y in ((x * x).sum(), (x * x).sum(keepdims=True)):
        x.grad = None
        y.backward()
        np.testing.assert_array_equal(x.grad, [2, 4])


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1), (1, 2)])
def test_backward_refuses_a_gradient_of_another_shape(shape):
    with pytest.raises(ValueError, match=rf"\({', ?'.join(map(str, shape))},?\).*\(2,\)"):
        (leaf([1.0, 2.0]) * 2).backward(np.ones(shape))


@pytest.mark.parametrize("kind", [np.array, Tensor, list], ids=["array", "tensor", "list"])
def test_backward_takes_arrays_tensors_and_lists(kind):
    x = leaf(np.float32([1.0, 2.0]))
    (x * 2).backward(kind([1.0, 10.0]))
    assert x.grad.tolist() == [2, 20]
    assert x.grad.dtype == np.float32


def test_backward_of_a_constant_is_an_error():
    for y in (Tensor([1.0]), Tensor([1.0]) * 2, leaf([1.0]).detach()):
        with pytest.raises(RuntimeError, match="requires_grad"):
            y.backward()
    with no_grad():
        y = leaf([1.0]) * 2
    with pytest.raises(RuntimeError, match="no_grad"):
        y.backward()


def test_backward_of_a_leaf():
    x = leaf(3.0)
    x.backward()
    assert isinstance(x.grad, np.ndarray)
    assert x.grad == 1
    L = np.array(5.0)
    x.backward(L)
    assert x.grad == 6
    assert L == 5
    y = leaf([1.0, 2.0])
    L = np.ones(2)
    y.backward(L)
    assert not np.shares_memory(y.grad, L)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0, 3), (2, 1, 2)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_grad_is_an_array_of_the_tensors_shape_and_dtype(shape, dtype):
    x = leaf(np.ones(shape, dtype))
    for times in (1, 2, 3):  # accumulated over calls
        (x * x + x).sum().backward()
        assert type(x.grad) is np.ndarray
        assert x.grad.shape == shape
        assert x.grad.dtype == dtype
        np.testing.assert_array_equal(x.grad, np.full(shape, 3 * times))
    x.zero_grad()
    assert x.grad is None or not x.grad.any()


def test_grad_accumulates_into_an_array_of_its_own():
    x = leaf([1.0, 2.0])
    L = np.array([1.0, 1.0])
    (x + 0).backward(L)
    first = x.grad
    assert not np.shares_memory(first, L)
    (x * 3).backward(L)
    assert x.grad.tolist() == [4, 4]
    assert L.tolist() == [1, 1]


def test_retain_grad():
    x = leaf([1.0, 2.0])
    y = x * 3
    y.retain_grad()
    z = y * y
    (z.sum() + (y * 5).sum()).backward()
    np.testing.assert_array_equal(y.grad, 2 * y.data + 5)  # the whole gradient, summed over both uses
    np.testing.assert_array_equal(x.grad, 3 * (2 * y.data + 5))
    with pytest.warns(UserWarning, match="retain_grad"):
        assert z.grad is None, "only leaves and tensors that asked keep a gradient"
    assert not np.shares_memory(x.grad, y.grad)


def test_retain_grad_of_the_tensor_that_backward_starts_from():
    y = leaf([2.0]) * 3
    y.retain_grad()
    y.backward()
    assert y.grad.tolist() == [1]


def test_retain_grad_of_one_output_of_several():
    x = leaf([1.0, 2.0, 3.0, 4.0])
    first, second = ops.split(x, 2)
    second.retain_grad()
    (first * 2 + second * 5).sum().backward()
    assert second.grad.tolist() == [5, 5]
    with pytest.warns(UserWarning, match="Split"):
        assert first.grad is None


def test_retain_grad_does_not_keep_the_tensor_alive_and_needs_a_gradient():
    x = leaf([1.0])
    y = x * 2
    y.retain_grad()
    z = y * 3
    del y
    z.backward()
    assert x.grad.tolist() == [6]
    x.retain_grad()  # a leaf keeps its gradient anyway
    with pytest.raises(RuntimeError, match="gradient"):
        Tensor([1.0]).retain_grad()
