"""tinydiff/ops/batch_normalization.py against NumPy's mean and variance, and group normalisation of one big image."""

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor
from tinydiff.gradcheck import gradcheck
from tinydiff.ops.batch_normalization import BatchNorm


def normalized(x, eps=1e-5):
    axes = tuple(range(x.ndim - 1))
    return (x - x.mean(axes)) / np.sqrt(x.var(axes) + eps)


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4, 5), (2, 1), (1, 3, 2)], ids=str)
@pytest.mark.parametrize("affine", ["both", "weight", "bias", "neither"])
def test_batch_norm(shape, affine, rng, verify):
    x, w, b = rng.normal(1, 2, shape), rng.uniform(0.5, 2, shape[-1]), rng.normal(size=shape[-1])
    z = normalized(x)
    if affine == "both":
        verify(ops.batch_norm, x, w, b, expected=z * w + b, single=2e-4)
    elif affine == "weight":
        verify(ops.batch_norm, x, w, expected=z * w, single=2e-4)
    elif affine == "bias":
        verify(lambda a, c: ops.batch_norm(a, bias=c), x, b, expected=z + b, single=2e-4)
    else:
        verify(ops.batch_norm, x, expected=z, single=2e-4)


def test_it_is_group_norm_of_the_whole_batch_as_one_image(rng):
    x, L_Y = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 3, 4, 5))
    a, b = Tensor(x, requires_grad=True), Tensor(x.reshape(1, -1, 5), requires_grad=True)
    y, z = ops.batch_norm(a), ops.group_norm(b, 5)
    np.testing.assert_allclose(y.data.reshape(z.shape), z.data, rtol=1e-12, atol=1e-14)
    y.backward(L_Y)
    z.backward(L_Y.reshape(z.shape))
    np.testing.assert_allclose(a.grad.reshape(z.shape), b.grad, rtol=1e-10, atol=1e-12)


def test_mean_and_variance_are_outputs_with_gradients(rng):
    x, w = rng.normal(3, 2, (4, 2, 3)), rng.normal(size=3)
    gradcheck(lambda *a: BatchNorm.apply(*a, None, eps=0.1), [x, w])
    _, mean, variance = BatchNorm.apply(x, w, None, eps=0.1)
    np.testing.assert_allclose(mean.data, x.mean((0, 1)), rtol=1e-13)
    np.testing.assert_allclose(variance.data, x.var((0, 1)), rtol=1e-13)


def test_a_given_mean_and_variance(rng, verify):
    x, w, b, mean = rng.normal(size=(3, 2, 4)), rng.normal(size=4), rng.normal(size=4), rng.normal(size=4)
    variance = rng.uniform(0.5, 2, 4)
    z = (x - mean) / np.sqrt(variance + 0.1)
    verify(lambda *a: ops.batch_norm(*a, eps=0.1), x, w, b, mean, variance, expected=z * w + b)
    for part in (slice(None), slice(0)):
        verify(
            lambda a, m, v: ops.batch_norm(a, mean=m, variance=v, eps=0.1), x[part], mean, variance, expected=z[part]
        )


def test_a_mean_far_from_zero_in_float32(rng):
    x = (1000 + rng.normal(size=(64, 8, 8, 3))).astype(np.float32)
    np.testing.assert_allclose(ops.batch_norm(x).data, normalized(x.astype(np.float64)), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1, 3),), "has 1 element in a channel; needed are 2"),
        (((0, 3),), "has 0 elements in a channel"),
        (((3,),), r"must be \(N, ..., C\), not of shape \(3,\)"),
        (((4, 3), np.ones(2)), r"weight \(2,\) does not fit x \(4, 3\); needed is \(3,\)"),
        (((4, 3), None, np.ones(4)), r"bias \(4,\) does not fit"),
        (((4, 3), None, None, np.ones(3)), "give both mean and variance, or neither"),
        (((4, 3), None, None, np.ones(3), np.ones(1)), r"variance \(1,\) does not fit"),
    ],
)
def test_what_does_not_fit(arguments, message):
    shape, *rest = arguments
    with pytest.raises(ValueError, match=f"batch_norm: .*{message}"):
        ops.batch_norm(np.ones(shape), *rest)
    with pytest.raises(TypeError, match="batch_norm: eps must be a number"):
        ops.batch_norm(np.ones((4, 3)), eps="small")
