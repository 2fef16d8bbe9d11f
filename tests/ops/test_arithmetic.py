"""tinydiff/ops/arithmetic.py against NumPy and the C library, gradients by gradcheck."""

import math

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor

SHAPES = [
    ((3, 4), (3, 4)),
    ((3, 4), (4,)),
    ((3, 1), (1, 4)),
    ((2, 3, 4), (3, 1)),
    ((2, 1, 3), (4, 1)),
    ((1,), (5,)),
    ((), (3,)),
    ((2, 3), ()),
    ((), ()),
    ((0, 3), (3,)),
    ((1, 3), (0, 3)),
]

BINARY = {
    "add": (ops.add, np.add),
    "subtract": (ops.subtract, np.subtract),
    "multiply": (ops.multiply, np.multiply),
    "divide": (ops.divide, np.divide),
    "power": (ops.power, np.power),
    "maximum": (ops.maximum, np.maximum),
    "minimum": (ops.minimum, np.minimum),
}


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


def gradients(y, *leaves):
    for x in leaves:
        x.grad = None
    y.backward(np.ones(y.shape, y.dtype))
    return [x.grad.tolist() for x in leaves]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_binary_operations(name, shapes, rng, verify):
    ours, theirs = BINARY[name]
    a, b = (rng.uniform(0.5, 2, shape) for shape in shapes)
    if name not in ("power",):
        a, b = (x * rng.choice([-1.0, 1.0], x.shape) for x in (a, b))
    verify(ours, a, b, expected=theirs(a, b))


@pytest.mark.parametrize("name", BINARY)
def test_binary_operations_with_a_number_on_either_side(name, rng, verify):
    ours, theirs = BINARY[name]
    a = rng.uniform(0.5, 2, (3, 2))
    for number in (2, 1.5):
        verify(lambda x, n=number: ours(x, n), a, expected=theirs(a, number))
        verify(lambda x, n=number: ours(n, x), a, expected=theirs(number, a))


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("shapes", [((3,), (4,)), ((2, 3), (2,)), ((2, 3, 4), (2, 1, 4)[::-1])], ids=str)
def test_shapes_that_do_not_broadcast_are_named(name, shapes):
    a, b = (np.ones(shape) for shape in shapes)
    patterns = [str(shape).replace("(", r"\(").replace(")", r"\)") for shape in shapes]
    for arguments in ((leaf(a), leaf(b)), (leaf(a), b), (a, leaf(b)), (a, b)):
        with pytest.raises(ValueError, match=rf"{name}.*{patterns[0]}.*{patterns[1]}"):
            BINARY[name][0](*arguments)


UNARY = {  # function, NumPy's or the C library's, and the interval it is checked on
    "exp": (ops.exp, np.exp, (-3, 3)),
    "log": (ops.log, np.log, (0.1, 5)),
    "sqrt": (ops.sqrt, np.sqrt, (0.1, 5)),
    "abs": (ops.abs, np.abs, (0.1, 5)),
    "abs of negative": (ops.abs, np.abs, (-5, -0.1)),
    "sin": (ops.sin, np.sin, (-7, 7)),
    "cos": (ops.cos, np.cos, (-7, 7)),
    "erf": (ops.erf, np.vectorize(math.erf, otypes=[float]), (-3, 3)),
    "negative": (lambda x: -x, np.negative, (-3, 3)),
}


@pytest.mark.parametrize("shape", [(3, 4), (), (1,), (2, 1, 3), (0, 3)], ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_unary_operations(name, shape, rng, verify):
    ours, theirs, interval = UNARY[name]
    a = rng.uniform(*interval, shape)
    verify(ours, a, expected=theirs(a) if a.size else a)


def test_derivatives_in_closed_form():
    x = np.linspace(0.2, 2.5, 47)
    for function, derivative in (
        (ops.exp, np.exp(x)),
        (ops.log, 1 / x),
        (ops.sqrt, 0.5 / np.sqrt(x)),
        (ops.sin, np.cos(x)),
        (ops.cos, -np.sin(x)),
        (ops.erf, 2 / math.sqrt(math.pi) * np.exp(-x * x)),
        (lambda a: a**3.5, 3.5 * x**2.5),
        (lambda a: 2.0**a, math.log(2) * 2**x),
        (lambda a: 1 / a, -1 / x**2),
    ):
        a = leaf(x)
        function(a).backward(np.ones(x.shape))
        np.testing.assert_allclose(a.grad, derivative, rtol=1e-13)


def test_erf_in_float32_is_good_to_float32():
    x = np.linspace(-4, 4, 1001).astype(np.float32)
    exact = np.array([math.erf(v) for v in x.astype(float)])
    y = ops.erf(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y.data, exact, rtol=2e-7, atol=1e-12)


@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "sin", "cos", "erf"])
def test_integers_are_taken_as_numbers(name):
    np.testing.assert_allclose(UNARY[name][0](np.array([1, 2, 3])).data, UNARY[name][1](np.array([1.0, 2.0, 3.0])))


# Where the derivative does not exist, or is easily lost


@pytest.mark.parametrize("function", [ops.maximum, ops.minimum])
def test_ties_share_equally(function):
    a, b = leaf([1.0, 2.0, 3.0]), leaf([2.0, 2.0, 2.0])
    larger, smaller = [0, 0.5, 1], [1, 0.5, 0]
    expected = [larger, smaller] if function is ops.maximum else [smaller, larger]
    assert gradients(function(a, b), a, b) == expected
    assert gradients(function(a, 2.0), a) == expected[:1]
    assert gradients(function(2.0, a), a) == expected[:1]
    assert gradients(function(a, a), a) == [[1, 1, 1]]


def test_ties_that_are_broadcast_share_equally():
    a, b = leaf(np.ones((2, 3))), leaf(np.ones(3))
    assert gradients(ops.maximum(a, b), a, b) == [[[0.5] * 3] * 2, [1.0] * 3]


def test_abs_has_slope_0_at_0():
    x = leaf([-2.0, -0.0, 0.0, 3.0])
    assert gradients(ops.abs(x), x) == [[-1, 0, 0, 1]]


def test_clip_passes_the_gradient_at_its_bounds():
    x = leaf([-2.0, -1.0, 0.0, 1.0, 2.0])
    y = ops.clip(x, -1.0, 1.0)
    assert y.data.tolist() == [-1, -1, 0, 1, 1]
    assert gradients(y, x) == [[0, 1, 1, 1, 0]]


def test_clip_with_one_bound_or_keywords():
    x = leaf([-2.0, 0.0, 2.0])
    assert ops.clip(x, None, 1.0).data.tolist() == [-2, 0, 1]
    assert ops.clip(x, -1.0, None).data.tolist() == [-1, 0, 2]
    assert ops.clip(x, low=-1.0, high=1.0).data.tolist() == [-1, 0, 1]
    assert gradients(ops.clip(x, None, 1.0), x) == [[1, 1, 0]]
    assert gradients(ops.clip(x, -1.0, None), x) == [[0, 1, 1]]
    assert x.clip(-1, 1).data.tolist() == [-1, 0, 1]


def test_clip_keeps_the_dtype(rng, verify):
    a = rng.normal(size=(4, 5))
    verify(lambda x: ops.clip(x, -0.5, 0.7), a, expected=np.clip(a, -0.5, 0.7))
    assert ops.clip(np.float32([3.0]), 0, 1).dtype == np.float32


@pytest.mark.parametrize(
    ("base", "exponent", "slope"),
    [
        (0.0, 2.0, 0.0),
        (0.0, 1.0, 1.0),
        (0.0, 0.0, 0.0),
        (-2.0, 2.0, -4.0),
        (-2.0, 3.0, 12.0),
        (-2.0, -1.0, -0.25),
        (-2.0, 0.0, 0.0),
        (-2.0, 1.0, 1.0),
        (4.0, 0.5, 0.25),
        (4.0, 0, 0.0),
        (-3.0, 2, -6.0),
    ],
)
@pytest.mark.parametrize("form", ["number", "array", "tensor"])
def test_powers_of_negative_numbers_and_of_zero(base, exponent, slope, form):
    x = leaf([base])
    p = {"number": exponent, "array": np.array([float(exponent)]), "tensor": Tensor(np.array([float(exponent)]))}[form]
    with np.errstate(all="raise"):
        y = x**p
        y.backward()
    assert y.data.tolist() == [base**exponent]
    np.testing.assert_allclose(x.grad, [slope], rtol=1e-14)


def test_zero_to_a_trainable_power_has_a_finite_gradient():
    x, p = leaf([0.0, 2.0]), leaf([2.0, 3.0])
    with np.errstate(all="raise"):
        (x**p).backward(np.ones(2))
    np.testing.assert_allclose(x.grad, [0, 12])
    np.testing.assert_allclose(p.grad, [0, 8 * math.log(2)])


@pytest.mark.parametrize(
    "shapes", [((3, 4), (3, 4), (3, 4)), ((4,), (3, 4), ()), ((3, 1), (4,), (3, 4)), ((2, 3, 4), (1,), (3, 1))], ids=str
)
def test_where(shapes, rng, verify):
    condition = rng.random(shapes[0]) < 0.5
    a, b = rng.normal(size=shapes[1]), rng.normal(size=shapes[2])
    verify(ops.where, condition, a, b, expected=np.where(condition, a, b))
    from_tensor = ops.where(Tensor(condition), Tensor(a), b)
    np.testing.assert_array_equal(from_tensor.data, np.where(condition, a, b))


def test_where_with_numbers_keeps_the_dtype():
    x = leaf(np.float32([1.0, 2.0]))
    y = ops.where(x > 1.5, x, 0.0)
    assert y.dtype == np.float32
    assert gradients(y, x) == [[0, 1]]
    assert ops.where(x > 1.5, 7, x).data.tolist() == [1, 7]


def test_where_does_not_spread_what_it_did_not_choose():
    x = leaf([0.0, 4.0])
    with np.errstate(all="ignore"):
        y = ops.where(x > 0, ops.maximum(x, 1e-3) ** 0.5, np.array([np.inf, np.nan]))
    assert y.data.tolist() == [np.inf, 2]
    assert gradients(y, x) == [[0, 0.25]]


def test_where_names_the_shapes():
    with pytest.raises(ValueError, match=r"where.*\(3,\).*\(2, 3\).*\(4,\)"):
        ops.where(np.ones(3, bool), leaf(np.ones((2, 3))), leaf(np.ones(4)))


def test_a_constant_array_gets_no_gradient_and_the_leaf_its_sum():
    x, table = leaf([1.0, 2.0]), np.array([[1.0, 2.0], [3.0, 4.0]])
    assert gradients(table * x, x) == [[4, 6]]
    assert gradients(table / x, x) == [[-4, -1.5]]
    assert gradients(x - table, x) == [[2, 2]]
    assert gradients(table - x, x) == [[-2, -2]]


def test_results_never_share_memory_with_inputs(rng):
    a = rng.normal(size=(3, 3))
    results = ops.clip(a, -9, 9), ops.maximum(a, a), ops.where(True, a, a), ops.add(a, 0.0), ops.abs(a), ops.power(a, 1)
    for y in results:
        assert not np.shares_memory(y.data, a)
