"""tinydiff/autograd/numpy_calls.py: NumPy's functions never lose a gradient without a word."""

import re
import warnings

import numpy as np
import pytest

from tinydiff import no_grad, ops
from tinydiff.autograd import numpy_calls
from tinydiff.autograd.tensor import Tensor


def leaf(array, dtype=float):
    return Tensor(np.asarray(array, dtype), requires_grad=True)


REFUSED = {
    "exp": (lambda x: np.exp(x), "td.ops.exp"),
    "tanh": (lambda x: np.tanh(x), "td.ops.tanh"),
    "square": (lambda x: np.square(x), "x * x"),
    "maximum": (lambda x: np.maximum(x, 0), "td.ops.maximum"),
    "clip": (lambda x: np.clip(x, 0, 1), "td.ops.clip"),
    "concatenate": (lambda x: np.concatenate([np.ones((2, 2)), x]), "td.ops.concatenate"),
    "stack": (lambda x: np.stack([x, x]), "td.ops.stack"),
    "where": (lambda x: np.where(x > 0, x, 0), "td.ops.where"),
    "dot": (lambda x: np.dot(np.ones((2, 2)), x), "x @ y"),
    "einsum": (lambda x: np.einsum("ij->j", x), "td.ops.einsum"),
    "linalg.norm": (lambda x: np.linalg.norm(x), "td.ops.norm"),
    "linalg.inv": (lambda x: np.linalg.inv(x), "write a td.Function"),
    "fft.fft": (lambda x: np.fft.fft(x), "write a td.Function"),
    "sum": (lambda x: np.sum(x, axis=0), "td.ops.sum"),
    "mean": (lambda x: np.mean(x), "td.ops.mean"),
    "sum of a list": (lambda x: np.sum([x, x]), "td.ops.sum"),
    "std": (lambda x: np.std(x), "td.ops.std"),
    "cumsum": (lambda x: np.cumsum(x), "write a td.Function"),
    "median": (lambda x: np.median(x), "write a td.Function"),
    "split": (lambda x: np.split(x, 2), "td.ops.split"),
    "pad": (lambda x: np.pad(x, 1), "td.ops.pad"),
    "reshape": (lambda x: np.reshape(x, 4), "td.ops.reshape"),
    "transpose": (lambda x: np.transpose(x), "td.ops.transpose"),
    "squeeze": (lambda x: np.squeeze(x), "td.ops.squeeze"),
    "expand_dims": (lambda x: np.expand_dims(x, 0), "td.ops.expand_dims"),
    "broadcast_to": (lambda x: np.broadcast_to(x, (3, 2, 2)), "td.ops.broadcast_to"),
    "add.reduce": (lambda x: np.add.reduce(x), "td.ops.sum"),
    "multiply.outer": (lambda x: np.multiply.outer(x, x), "x[:, None] * y"),
    "add with out": (lambda x: np.add(x, 1, out=np.ones((2, 2))), "a = a + x"),
    "add.at": (lambda x: np.add.at(np.ones((2, 2)), 0, x[0]), "x.data"),
    "copyto": (lambda x: np.copyto(np.ones((2, 2)), x), "x.data"),
    "full_like": (lambda x: np.full_like(x, x[0, 0]), "td.ops.broadcast_to"),
    "copyto in full_like": (lambda x: np.full_like(np.ones((2, 2)), x[0, 0]), "x.data"),
    "full": (lambda x: np.full((2, 2), x[0, 0]), "td.ops.broadcast_to"),
    "mean of a list": (lambda x: np.mean([x, x]), "td.ops.stack(list) and td.ops.mean"),
    "max of a tuple": (lambda x: np.max((x[0], x[1])), "td.ops.max"),
    "median of a list": (lambda x: np.median([x, x]), "write a td.Function"),
    "linalg.norm of a list": (lambda x: np.linalg.norm([x[0], x[1]]), "td.ops.norm"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_lose_a_gradient_says_what_to_write(name):
    call, advice = REFUSED[name]
    with pytest.raises(TypeError, match=rf"(?s)^np\.{re.escape(name.partition(' ')[0])}.*{re.escape(advice)}"):
        call(leaf([[1.0, 2.0], [3.0, 5.0]]))
    assert call(Tensor(np.array([[1.0, 2.0], [3.0, 5.0]]))) is not NotImplemented
    with no_grad():
        call(leaf([[1.0, 2.0], [3.0, 5.0]]))


QUIET = {
    "argmax": lambda x: np.argmax(x), "argsort": lambda x: np.argsort(x), "shape": lambda x: np.shape(x),
    "ndim": lambda x: np.ndim(x), "size": lambda x: np.size(x), "allclose": lambda x: np.allclose(x, x),
    "array_equal": lambda x: np.array_equal(x, x), "isclose": lambda x: np.isclose(x, 1), "isnan": lambda x: np.isnan(x),
    "isfinite": lambda x: np.isfinite(x), "sign": lambda x: np.sign(x), "floor": lambda x: np.floor(x),
    "zeros_like": lambda x: np.zeros_like(x), "ones_like": lambda x: np.ones_like(x), "nonzero": lambda x: np.nonzero(x),
    "logical_and": lambda x: np.logical_and(x, x), "searchsorted": lambda x: np.searchsorted([1.0, 2.0], x),
    "count_nonzero": lambda x: np.count_nonzero(x), "any": lambda x: np.any(x), "copy": lambda x: np.copy(x),
    "result_type": lambda x: np.result_type(x), "array2string": lambda x: np.array2string(x),
    "histogram": lambda x: np.histogram(x)[0], "asarray": lambda x: np.asarray(x), "round": lambda x: np.round(x),
}  # fmt: skip


@pytest.mark.parametrize("name", QUIET)
def test_what_carries_no_gradient_goes_on_working(name):
    a = np.array([[1.0, -2.0], [0.5, 3.0]])
    np.testing.assert_equal(QUIET[name](leaf(a)), QUIET[name](a))


LISTS = {
    "array": lambda xs: np.array([xs[0], xs[1]]), "asarray": lambda xs: np.asarray(xs), "exp": lambda xs: np.exp(xs),
    "array of numbers": lambda xs: np.array([x.sum() for x in xs]), "tuple": lambda xs: np.array((xs[0], xs[1]), float),
    "lines": lambda xs: np.array(
        [xs[0], xs[1]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_an_array_of_a_list_of_tensors_warns(name):
    xs = [leaf([1.0, 2.0]), leaf([3.0, 4.0])]
    with pytest.warns(UserWarning, match=r"td\.ops\.stack") as caught:
        LISTS[name](xs)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LISTS[name]([x.data for x in xs])
        LISTS[name]([x.detach() for x in xs])
        for x in xs:
            np.asarray(x), np.array(x, float), np.allclose([x, x], 1), np.argmax(xs), np.shape(xs)
        np.testing.assert_allclose(xs, [[1, 2], [3, 4]])


def test_saving_goes_on_working(tmp_path):
    np.save(tmp_path / "x.npy", leaf([1.0, 2.0]))
    np.savez(tmp_path / "x.npz", x=leaf([1.0, 2.0]))
    assert np.load(tmp_path / "x.npy").tolist() == np.load(tmp_path / "x.npz")["x"].tolist() == [1, 2]


def test_the_functions_behind_operators_are_operators(rng):
    a, b = rng.uniform(0.5, 2, (2, 2)), rng.uniform(0.5, 2, (2, 2))
    for name in ("add", "subtract", "multiply", "divide", "power", "matmul"):
        function = getattr(np, name)
        for left, right in ((leaf(a), b), (a, leaf(b)), (leaf(a), leaf(b))):
            y = function(left, right)
            assert type(y) is Tensor and y.requires_grad
            np.testing.assert_allclose(y.data, function(a, b), rtol=1e-14)
    for name in ("less", "greater_equal", "equal", "not_equal"):
        assert getattr(np, name)(a, leaf(b)).data.tolist() == getattr(np, name)(a, b).tolist()
    assert np.negative(leaf(a)).requires_grad and np.absolute(leaf(a)).requires_grad


def test_an_array_changed_in_place_by_a_tensor_without_a_gradient():
    a = np.ones(2)
    a += Tensor(np.array([1.0, 2.0]))
    assert a.tolist() == [2, 3]
    with pytest.raises(TypeError, match="a = a"):
        a += leaf([1.0, 2.0])
    assert a.tolist() == [2, 3]


def test_numpy_changing_a_tensor_in_place_is_noticed():
    for change in (lambda x: np.add(x, 1, out=x), lambda x: np.copyto(x, 0), lambda x: np.add.at(x, 0, 1)):
        x, w = Tensor(np.array([1.0, 2.0])), leaf([3.0, 4.0])
        y = x * w
        change(x)
        with pytest.raises(RuntimeError, match="changed in place"):
            y.sum().backward()


def test_names_that_are_written_exist():
    for text in numpy_calls._INSTEAD.values():
        for name in re.findall(r"td\.ops\.(\w+)", text):
            assert name in ops.__all__
        for name in re.findall(r"\bx\.(\w+)\(", text):
            assert hasattr(Tensor, name), name


def test_boolean_tensors_combine():
    x = leaf([1.0, 2.0, 3.0])
    assert ((x > 1) & (x < 3)).data.tolist() == [False, True, False]
    assert (~(x > 1) | (x == 3)).data.tolist() == [True, False, True]
