"""tinydiff/ops/reduction.py against NumPy, gradients by gradcheck and in closed form."""

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor

AXES = [None, 0, 1, -1, (0, 1), (0, -1), (-1, 1), (0, 1, 2), ()]
FUNCTIONS = {"sum": np.sum, "mean": np.mean, "var": np.var, "max": np.max, "min": np.min}


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


def distinct(rng, shape):
    """Values far enough apart that no finite difference changes which is the largest."""
    n = int(np.prod(shape))
    return (rng.permutation(n).reshape(shape) + rng.uniform(-0.2, 0.2, shape)) / max(n, 1)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients(name, axis, keepdims, rng, verify):
    a = distinct(rng, (2, 3, 4))
    expected = FUNCTIONS[name](a, axis=axis, keepdims=keepdims)
    verify(lambda x: getattr(ops, name)(x, axis=axis, keepdims=keepdims), a, expected=expected)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 3), (3, 1, 1)], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_small_shapes(name, shape, rng, verify):
    a = distinct(rng, shape)
    verify(getattr(ops, name), a, expected=FUNCTIONS[name](a))
    verify(lambda x: getattr(ops, name)(x, keepdims=True), a, expected=FUNCTIONS[name](a, keepdims=True))


@pytest.mark.parametrize(("shape", "axis"), [((0,), None), ((0, 3), 0), ((2, 0), -1), ((2, 0, 3), (1, 2))], ids=str)
def test_sums_over_nothing_are_0(shape, axis, verify):
    verify(lambda x: ops.sum(x, axis), np.zeros(shape), expected=np.zeros(shape).sum(axis))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_empty_results(name, verify):
    verify(lambda x: getattr(ops, name)(x, axis=1), np.zeros((0, 3)), expected=np.zeros(0))


@pytest.mark.parametrize("name", ["max", "min"])
def test_the_extreme_of_nothing_is_an_error(name):
    for shape, axis in (((0,), None), ((2, 0), 1)):
        with pytest.raises(ValueError, match=rf"{name}.*\({shape[0]}"):
            getattr(ops, name)(leaf(np.zeros(shape)), axis)


@pytest.mark.parametrize("ddof", [0, 1, 2])
@pytest.mark.parametrize("axis", [None, 0, (0, -1)], ids=str)
def test_ddof(ddof, axis, rng, verify):
    a = rng.normal(size=(3, 2, 4))
    verify(lambda x: ops.var(x, axis, ddof=ddof), a, expected=a.var(axis, ddof=ddof))
    verify(lambda x: ops.var(x, axis=axis, keepdims=True, ddof=ddof), a, expected=a.var(axis, ddof=ddof, keepdims=True))


def test_ddof_that_leaves_no_degrees_of_freedom_is_an_error():
    with pytest.raises(ValueError, match=r"var.*3.*3"):
        ops.var(leaf(np.ones(3)), ddof=3)
    with pytest.raises(ValueError, match="var"):
        ops.var(leaf(np.ones((2, 0))), axis=1)


def test_variance_of_numbers_far_from_0():
    """The mean of the squared deviations, not the difference of two huge numbers."""
    a = (10_000 + np.linspace(-1, 1, 1000)).astype(np.float32)
    exact = a.astype(np.float64).var()
    np.testing.assert_allclose(ops.var(a).data, exact, rtol=1e-3)
    x = leaf(a)
    ops.var(x).backward()
    np.testing.assert_allclose(x.grad, 2 * (a - a.astype(np.float64).mean()) / 1000, atol=2e-6)


def test_gradients_in_closed_form(rng):
    a = rng.normal(size=(3, 5))
    x = leaf(a)
    for y, expected in (
        (ops.sum(x), np.ones((3, 5))),
        (ops.mean(x, 1).sum(), np.full((3, 5), 1 / 5)),
        (ops.var(x, 1, ddof=1).sum(), 2 * (a - a.mean(1, keepdims=True)) / 4),
        ((ops.sum(x, 0) ** 2).sum(), np.broadcast_to(2 * a.sum(0), (3, 5))),
    ):
        x.grad = None
        y.backward()
        np.testing.assert_allclose(x.grad, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", ["max", "min"])
def test_ties_share_equally(name):
    sign = 1 if name == "max" else -1
    function = getattr(ops, name)
    x = leaf(sign * np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]))
    for axis, L_Y, expected in (
        (1, [6.0, 6.0], [[0, 3, 3], [2, 2, 2]]),
        (None, 6.0, [[0, 3, 3], [0, 0, 0]]),
        ((0, 1), 6.0, [[0, 3, 3], [0, 0, 0]]),
        (0, [2.0, 2.0, 4.0], [[0, 2, 4], [2, 0, 0]]),
        ((), np.ones((2, 3)), np.ones((2, 3))),
    ):
        x.grad = None
        function(x, axis=axis).backward(np.asarray(L_Y))
        np.testing.assert_allclose(x.grad, expected)


def test_float32_sums_are_good_to_float32(rng):
    a = rng.uniform(0, 1, (1000, 1000)).astype(np.float32)
    for axis in (None, 0, 1):
        np.testing.assert_allclose(ops.sum(a, axis).data, a.astype(np.float64).sum(axis), rtol=2e-6)
        np.testing.assert_allclose(ops.mean(a, axis).data, a.astype(np.float64).mean(axis), rtol=2e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_lists_and_arrays_are_taken_as_they_are(name):
    y = getattr(ops, name)([[1.0, 2.0], [3.0, 5.0]], axis=1)
    assert type(y) is Tensor
    assert y.dtype == np.float32
    np.testing.assert_allclose(y.data, FUNCTIONS[name]([[1.0, 2.0], [3.0, 5.0]], axis=1))


def test_integers():
    a = np.arange(6).reshape(2, 3)
    assert ops.sum(a).data == 15
    assert ops.max(a, axis=1).data.tolist() == [2, 5]
    assert ops.mean(a).data == 2.5
    assert ops.mean(a).dtype == np.float64


@pytest.mark.parametrize("name", FUNCTIONS)
def test_wrong_axes_are_named_with_the_shape(name):
    function, x = getattr(ops, name), leaf(np.ones((2, 3)))
    for axis in (2, -3, (0, 2)):
        with pytest.raises(ValueError, match=rf"{name}.*axis.*{2 if axis == (0, 2) else axis}.*2"):
            function(x, axis=axis)
    for axis in ((0, 0), (1, -1)):
        with pytest.raises(ValueError, match=rf"{name}.*axis|{name}.*axes"):
            function(x, axis=axis)
    with pytest.raises((TypeError, ValueError), match="axis"):
        function(x, axis=1.5)
