"""tinydiff/ops/loss.py against closed forms; gradients by gradcheck and as derived in the sources (A 3.3, 3.5)."""

import math

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


def reduced(values, reduction):
    return {"mean": np.mean, "sum": np.sum, "none": lambda v: v}[reduction](values)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 1), (5,), (), (1, 1)], ids=str)
def test_mse_loss(shape, reduction, rng, verify):
    a, b = rng.normal(size=shape), rng.normal(size=shape)
    verify(lambda x, y: ops.mse_loss(x, y, reduction=reduction), a, b, expected=reduced((a - b) ** 2, reduction))


def test_mse_gradients_in_closed_form(rng):
    a, b = leaf(rng.normal(size=(4, 3))), leaf(rng.normal(size=(4, 3)))
    ops.mse_loss(a, b).backward()
    np.testing.assert_allclose(a.grad, 2 * (a.data - b.data) / 12, rtol=1e-13)
    np.testing.assert_allclose(b.grad, -a.grad, rtol=1e-13)


def test_mse_is_the_mean_unless_told_and_takes_plain_targets(rng):
    a, b = np.float32([1, 2]), np.float32([3, 5])
    loss = ops.mse_loss(leaf(a), b)
    assert loss.data == 6.5
    assert loss.dtype == np.float32
    assert loss.shape == ()


@pytest.mark.parametrize("shapes", [((3, 4), (4,)), ((3, 4), (3, 1)), ((3,), (4,)), ((2, 3), (3, 2))], ids=str)
def test_mse_refuses_to_broadcast_and_names_both_shapes(shapes):
    patterns = [str(shape).replace("(", r"\(").replace(")", r"\)") for shape in shapes]
    with pytest.raises(ValueError, match=rf"mse_loss.*{patterns[0]}.*{patterns[1]}"):
        ops.mse_loss(leaf(np.ones(shapes[0])), np.ones(shapes[1]))


def minus_log_softmax(row, label):
    return math.log(math.fsum(math.exp(v - row[label]) for v in row))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(5, 3), (1, 4), (3, 1)], ids=str)
def test_cross_entropy(shape, reduction, rng, verify):
    logits, labels = 2 * rng.normal(size=shape), rng.integers(0, shape[1], shape[0])
    each = np.array([minus_log_softmax(row, label) for row, label in zip(logits, labels, strict=True)])
    verify(lambda x, n: ops.cross_entropy(x, n, reduction), logits, labels, expected=reduced(each, reduction))


def test_cross_entropy_gradient_is_p_minus_y(rng):
    logits, labels = leaf(rng.normal(size=(4, 3))), np.array([2, 0, 1, 1])
    ops.cross_entropy(logits, labels, "sum").backward()
    p = np.exp(logits.data) / np.exp(logits.data).sum(1, keepdims=True)
    np.testing.assert_allclose(logits.grad, p - np.eye(3)[labels], rtol=1e-12)
    logits.grad = None
    ops.cross_entropy(logits, labels).backward()
    np.testing.assert_allclose(logits.grad, (p - np.eye(3)[labels]) / 4, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint8])
def test_labels_of_any_integer_type_as_array_tensor_or_list(dtype):
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    labels = np.array([1, 2], dtype)
    expected = -(math.log(0.25) + math.log(0.8)) / 2
    for given in (labels, Tensor(labels), labels.tolist()):
        np.testing.assert_allclose(ops.cross_entropy(logits, given).data, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_of_huge_logits(dtype):
    x = leaf(np.array([[1000.0, 0.0], [1000.0, 0.0], [-1000.0, -1000.0]], dtype))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y = ops.cross_entropy(x, np.array([0, 1, 1]), "none")
        y.backward(np.ones(3, dtype))
    np.testing.assert_allclose(y.data, [0, 1000, math.log(2)], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(x.grad, [[0, 0], [1, -1], [0.5, -0.5]], atol=1e-6)
    assert y.dtype == x.grad.dtype == dtype


def test_cross_entropy_does_not_lose_a_small_loss():
    """log(1 + exp(-20)) = 2.06e-9, although 1 + 2e-9 is 1 in float32."""
    y = ops.cross_entropy(np.array([[20.0, 0.0]]), np.array([0]))
    np.testing.assert_allclose(y.data, math.log1p(math.exp(-20)), rtol=1e-6)


@pytest.mark.parametrize(
    ("logits", "labels"), [((3, 4), (2,)), ((3, 4), (3, 1)), ((4,), (4,)), ((3, 4), (3, 4)), ((3, 4), ())], ids=str
)
def test_cross_entropy_names_shapes_that_do_not_fit(logits, labels):
    patterns = [str(shape).replace("(", r"\(").replace(")", r"\)") for shape in (logits, labels)]
    with pytest.raises(ValueError, match=rf"cross_entropy.*{patterns[0]}.*{patterns[1]}"):
        ops.cross_entropy(leaf(np.ones(logits)), np.zeros(labels, int))


@pytest.mark.parametrize("label", [-1, 4, 100])
def test_labels_out_of_range_are_named(label):
    with pytest.raises((ValueError, IndexError), match=rf"cross_entropy.*{label}"):
        ops.cross_entropy(np.ones((2, 4)), np.array([0, label]))


def test_labels_that_are_not_integers_are_a_type_error():
    with pytest.raises(TypeError, match=r"cross_entropy.*float64"):
        ops.cross_entropy(np.ones((2, 4)), np.array([0.0, 1.0]))


def test_unknown_reductions_are_named():
    with pytest.raises(ValueError, match=r"mse_loss.*mean.*sum.*none.*average"):
        ops.mse_loss(np.ones(3), np.ones(3), "average")
    with pytest.raises(ValueError, match=r"cross_entropy.*mean.*sum.*none.*average"):
        ops.cross_entropy(np.ones((3, 2)), [0, 1, 0], "average")
