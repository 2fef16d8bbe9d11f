"""tinydiff/ops/activation.py against the C library's functions, far tails included."""

import math

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor


def logistic(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def normal_cdf(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


REFERENCE = {
    "relu": (ops.relu, lambda x: max(x, 0.0)),
    "silu": (ops.silu, lambda x: x * logistic(x)),
    "sigmoid": (ops.sigmoid, logistic),
    "tanh": (ops.tanh, math.tanh),
    "gelu": (ops.gelu, lambda x: x * normal_cdf(x)),
    "gelu tanh": (
        lambda x: ops.gelu(x, approximate="tanh"),
        lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    "softplus": (ops.softplus, lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x)))),
}
DERIVATIVE = {
    "relu": lambda x: float(x > 0),
    "silu": lambda x: logistic(x) * (1 + x * logistic(-x)),
    "sigmoid": lambda x: logistic(x) * logistic(-x),
    "tanh": lambda x: 1 / math.cosh(x) ** 2,
    "gelu": lambda x: normal_cdf(x) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi),
    "softplus": logistic,
}


@pytest.mark.parametrize("shape", [(3, 4), (), (1,), (2, 1, 3), (0, 3)], ids=str)
@pytest.mark.parametrize("name", REFERENCE)
def test_values_and_gradients(name, shape, rng, verify):
    function, reference = REFERENCE[name]
    a = rng.uniform(0.1, 3, shape) * rng.choice([-1.0, 1.0], shape)
    verify(function, a, expected=np.vectorize(reference, otypes=[float])(a))


@pytest.mark.parametrize("name", REFERENCE)
def test_values_over_a_wide_range(name):
    function, reference = REFERENCE[name]
    x = np.concatenate([np.linspace(-40, 40, 1601), [0.0, 1e-8, -1e-8, 1e-300]])
    np.testing.assert_allclose(function(x).data, [reference(v) for v in x], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", DERIVATIVE)
def test_derivatives_in_closed_form(name):
    x = np.concatenate([np.linspace(-30, 30, 1201), [0.0, 1e-8, -1e-8]])
    a = Tensor(x, requires_grad=True)
    REFERENCE[name][0](a).backward(np.ones(x.shape))
    np.testing.assert_allclose(a.grad, [DERIVATIVE[name](v) for v in x], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", REFERENCE)
def test_large_inputs_neither_overflow_nor_give_nan(name, dtype):
    a = Tensor(np.array([-1e12, -1000, -100, 100, 1000, 1e12], dtype), requires_grad=True)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y = REFERENCE[name][0](a)
        y.backward(np.ones(y.shape, dtype))
    limit = {"sigmoid": [0, 1], "tanh": [-1, 1]}.get(name)
    positive = a.data > 0
    expected = np.where(positive, limit[1], limit[0]) if limit else a.data * positive
    np.testing.assert_allclose(y.data, expected, atol=1e-30)
    np.testing.assert_allclose(a.grad, 0 * positive if limit else positive, atol=1e-30)
    assert y.dtype == a.grad.dtype == dtype


@pytest.mark.parametrize("name", REFERENCE)
def test_nan_stays_nan(name):
    with np.errstate(invalid="ignore"):
        assert np.isnan(REFERENCE[name][0](np.array([np.nan])).data).all()


def test_relu_has_slope_0_at_0():
    x = Tensor(np.array([-1.0, -0.0, 0.0, 1.0]), requires_grad=True)
    y = ops.relu(x)
    y.backward(np.ones(4))
    assert y.data.tolist() == [0, 0, 0, 1]
    assert x.grad.tolist() == [0, 0, 0, 1]


def test_gelu_knows_two_forms():
    with pytest.raises(ValueError, match=r"gelu.*none.*tanh.*sigmoid"):
        ops.gelu(np.ones(3), approximate="sigmoid")
    difference = np.abs(ops.gelu(np.linspace(-4, 4, 99)).data - ops.gelu(np.linspace(-4, 4, 99), "tanh").data)
    assert 1e-4 < difference.max() < 1e-3


@pytest.mark.parametrize("name", REFERENCE)
def test_integers_are_taken_as_numbers(name):
    y = REFERENCE[name][0](np.array([-1, 0, 2]))
    np.testing.assert_allclose(y.data, [REFERENCE[name][1](v) for v in (-1, 0, 2)], rtol=1e-13)


@pytest.mark.parametrize("name", REFERENCE)
def test_float32_is_good_to_float32(name):
    x = np.linspace(-8, 8, 801).astype(np.float32)
    a = Tensor(x, requires_grad=True)
    y = REFERENCE[name][0](a)
    exact = np.array([REFERENCE[name][1](float(v)) for v in x])
    np.testing.assert_allclose(y.data, exact, rtol=1e-6, atol=3e-7)
    if name in DERIVATIVE:
        y.backward(np.ones_like(x))
        np.testing.assert_allclose(a.grad, [DERIVATIVE[name](float(v)) for v in x], rtol=2e-6, atol=3e-7)
