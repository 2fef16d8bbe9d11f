"""tinydiff/autograd/numpy_calls.py: NumPy's functions never lose a gradient without a word."""

import re
import warnings

import numpy as np
import pytest

import tinydiff
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
    "cumsum": (lambda x: np.cumsum(x), "np.tri(len(x)) @ x"),
    "cross": (lambda x: np.cross([1.0, 2.0, 3.0], np.pad(x.data[0], (0, 1)) + x[0, 0]), "write a td.Function"),
    "remainder": (lambda x: np.ones((2, 2)) % x, "np.floor(x.data / y)"),
    "r_": (lambda x: np.r_[x[0], x[1]], "td.ops.concatenate"),
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
    "full_like of an array": (lambda x: np.full_like(np.ones((2, 2)), x[0, 0]), "td.ops.broadcast_to"),
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


ADVICE = {
    "square": np.square, "reciprocal": np.reciprocal, "fabs": np.fabs, "log1p": np.log1p, "expm1": np.expm1, "exp2": np.exp2,
    "log2": np.log2, "log10": np.log10, "tan": np.tan, "sinh": np.sinh, "cosh": np.cosh, "hypot": np.hypot, "ptp": np.ptp,
    "diff": np.diff, "flip": np.flip, "trace": np.trace, "diagonal": np.diagonal, "true_divide": np.true_divide,
    "float_power": np.float_power, "fmax": np.fmax, "logaddexp": np.logaddexp, "vdot": np.vdot, "inner": np.inner,
    "vecdot": np.vecdot, "tril": np.tril, "triu": np.triu, "norm": np.linalg.norm, "degrees": np.degrees,
    "radians": np.radians, "prod": np.prod, "cumsum": np.cumsum, "outer": np.outer, "sort": np.sort, "nansum": np.nansum,
    "nanmean": np.nanmean, "remainder": np.remainder, "pow": np.power, "fsum": np.sum, "dist": lambda x, y: np.linalg.norm(x - y),
    "tile": lambda x: np.tile(x, 3), "roll": lambda x: np.roll(x, 3, axis=0), "linspace": lambda a, b: np.linspace(a, b, 3),
    "polyval": lambda a, b, c, x: np.polyval([a, b, c], x), "trapezoid": lambda y: np.trapezoid(y, dx=0.5, axis=0),
    "multi_dot": lambda a, b, c: a @ b @ c, "average": np.average, "add.outer": np.add.outer, "fliplr": np.fliplr,
    "matrix_power": lambda x: np.linalg.matrix_power(x, 2), "insert": lambda x, new: np.insert(x, 1, new, axis=0),
}  # fmt: skip
WITH_NAMES = {"linspace", "polyval", "trapezoid", "multi_dot", "insert"}  # of other arguments than x and y
VECTORS = set(
    [
        "outer",
        "sort",
        "cumsum",
        "add.outer",
        "roll",
        "diff",
        "flip",
        "nanmean",
        "nansum",
        "inner",
        "vdot",
        "vecdot",
        "trapezoid",
    ]
)


def test_what_is_written_computes_the_same(rng):
    for name, function in ADVICE.items():
        text = re.split(" for | of | along ", numpy_calls._INSTEAD[name])[0]
        shape = () if name == "linspace" else 4 if name in VECTORS else (4, 4)
        given = {letter: rng.uniform(0.5, 2, shape) for letter in "xyabc"} | {"new": rng.uniform(size=(1, 4))}
        numbers = {"np": np, "td": tinydiff, "n": 3, "dx": 0.5, "i": 1}
        value = eval(text, numbers | {letter: leaf(a) for letter, a in given.items()})
        own = getattr(function, "__code__", None)
        names = own.co_varnames if name in WITH_NAMES else ["x", "y"][: 2 if re.search(r"\by\b", text) else 1]
        np.testing.assert_allclose(value.data, function(*[given[k] for k in names]), rtol=1e-9, err_msg=name)
        assert value.requires_grad, name


def test_whole_quotients_and_remainders():
    x = leaf([5.0, 7.0])
    assert (x // 2).data.tolist() == [2, 3] and not (x // 2).requires_grad and (11 // x).data.tolist() == [2, 1]
    for compute in (lambda x: x % 2, lambda x: 11 % x):
        with pytest.raises(TypeError, match=r"write x - y \* np\.floor"):
            compute(x)
        assert compute(x.detach()).data.tolist() == compute(x.data).tolist()
    assert round(leaf(2.6)) == 3 and round(leaf(2.66), 1) == 2.7


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
