"""tinydiff/ops/pooling.py against loops over windows, gradients by gradcheck and the adjoint identity."""

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


def pair(value):
    return (value, value) if isinstance(value, int) else value


def windows(x, window, stride, padding, fill):
    """(position of the output, window's pixels) for every window of x with a margin of `fill`."""
    (R, S), (sh, sw) = pair(window), pair(window if stride is None else stride)
    vertical, horizontal = (pair(p) for p in pair(padding))
    x = np.pad(x, ((0, 0), vertical, horizontal, (0, 0)), constant_values=fill)
    for i in range((x.shape[1] - R) // sh + 1):
        for j in range((x.shape[2] - S) // sw + 1):
            yield (i, j), x[:, i * sh : i * sh + R, j * sw : j * sw + S]


def pool_loop(x, window, stride, padding, reduce, fill):
    values = dict(windows(x, window, stride, padding, fill))
    Ho, Wo = (1 + max(p[k] for p in values) for k in (0, 1))
    out = np.empty((len(x), Ho, Wo, x.shape[3]))
    for (i, j), pixels in values.items():
        out[:, i, j] = reduce(pixels, (1, 2))
    return out


CASES = [  # images, window, stride, padding
    ((2, 4, 6, 3), 2, None, 0),
    ((2, 5, 7, 2), 2, None, 0),  # a remainder that no window reaches
    ((1, 5, 6, 2), (2, 3), None, 0),
    ((2, 5, 6, 1), 3, 1, 0),
    ((1, 6, 5, 2), 3, 2, 1),
    ((1, 4, 5, 2), (3, 2), (1, 2), (1, 0)),
    ((1, 5, 5, 1), 2, 3, 0),  # gaps between windows
    ((1, 4, 5, 2), 3, 2, ((1, 0), (0, 1))),
    ((1, 1, 1, 2), 1, None, 0),
    ((2, 3, 4, 1), (3, 4), None, 0),
    ((1, 1, 6, 2), (1, 2), None, 0),
]


@pytest.mark.parametrize(("shape", "window", "stride", "padding"), CASES, ids=str)
def test_avg_pool2d(shape, window, stride, padding, rng, verify):
    x = rng.normal(size=shape)
    expected = pool_loop(x, window, stride, padding, np.mean, 0.0)  # padded zeros count
    verify(lambda a: ops.avg_pool2d(a, window, stride, padding), x, expected=expected)


@pytest.mark.parametrize(("shape", "window", "stride", "padding"), CASES, ids=str)
def test_max_pool2d(shape, window, stride, padding, rng, verify):
    x = rng.permutation(np.prod(shape)).reshape(shape) / 7.0 - 30  # distinct and mostly negative: padding must not win
    expected = pool_loop(x, window, stride, padding, np.max, -np.inf)
    verify(lambda a: ops.max_pool2d(a, window, stride, padding), x, expected=expected)


def test_padded_zeros_count_in_the_mean():
    y = ops.avg_pool2d(np.ones((1, 2, 2, 1)), 2, 1, 1)
    assert y.data[0, :, :, 0].tolist() == [[0.25, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 0.25]]


def test_equal_maxima_share_the_gradient():
    x = leaf(np.array([[3.0, 3.0, 1.0, 2.0], [3.0, 0.0, 2.0, 2.0]]).reshape(1, 2, 4, 1))
    ops.max_pool2d(x, 2).backward(np.array([6.0, 6.0]).reshape(1, 1, 2, 1))
    assert x.grad[0, :, :, 0].tolist() == [[2, 2, 0, 2], [2, 0, 2, 2]]


def test_equal_maxima_in_overlapping_windows_share_each():
    x = leaf(np.array([1.0, 1.0, 1.0]).reshape(1, 1, 3, 1))
    ops.max_pool2d(x, (1, 2), 1).backward(np.array([2.0, 4.0]).reshape(1, 1, 2, 1))
    assert x.grad.ravel().tolist() == [1, 1 + 2, 2]


def test_padding_neither_wins_nor_takes_gradient():
    x = leaf(np.full((1, 2, 2, 1), -5.0))
    y = ops.max_pool2d(x, 2, 2, 1)
    assert (y.data == -5).all()
    y.backward(np.ones(y.shape))
    assert x.grad.ravel().tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("shape", [(2, 3, 4, 2), (1, 1, 1, 1), (2, 1, 3, 1), (0, 2, 2, 1)], ids=str)
@pytest.mark.parametrize("factor", [1, 2, 3, (2, 3), (1, 4)], ids=str)
def test_upsample_nearest2d(shape, factor, rng, verify):
    x = rng.normal(size=shape)
    f, g = pair(factor)
    expected = x.repeat(f, axis=1).repeat(g, axis=2)
    verify(lambda a: ops.upsample_nearest2d(a, factor), x, expected=expected)


def test_upsampling_doubles_unless_told():
    assert ops.upsample_nearest2d(np.ones((1, 2, 3, 1))).shape == (1, 4, 6, 1)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: ops.avg_pool2d(x, 3, 2, 1),
        lambda x: ops.avg_pool2d(x, (2, 3), (1, 2), ((0, 1), (2, 0))),
        lambda x: ops.upsample_nearest2d(x, (2, 3)),
    ],
)
def test_adjoint_identity(operation, rng):
    a = rng.normal(size=(2, 6, 7, 3))
    x = leaf(a)
    y = operation(x)
    L_Y = rng.normal(size=y.shape)
    y.backward(L_Y)
    np.testing.assert_allclose((y.data * L_Y).sum(), (a * x.grad).sum(), rtol=1e-12)


def test_pooling_undoes_upsampling(rng):
    x = rng.normal(size=(2, 3, 4, 2))
    np.testing.assert_allclose(ops.avg_pool2d(ops.upsample_nearest2d(x, 3), 3).data, x, rtol=1e-13)
    np.testing.assert_array_equal(ops.max_pool2d(ops.upsample_nearest2d(x, 3), 3).data, x)


@pytest.mark.parametrize("function", [ops.avg_pool2d, ops.max_pool2d])
def test_pooling_names_what_does_not_fit(function):
    name, x = function.__name__, leaf(np.ones((1, 4, 5, 2)))
    with pytest.raises(ValueError, match=rf"{name}.*\(4, 5, 2\)"):
        function(leaf(np.ones((4, 5, 2))), 2)
    with pytest.raises(ValueError, match=rf"{name}.*6"):
        function(x, 6)
    for arguments in ((0,), (2, 0), (2, 1, -1), ((2, 2, 2),), (2, -1)):
        with pytest.raises((ValueError, TypeError), match=name):
            function(x, *arguments)


def test_upsampling_names_what_does_not_fit():
    for x, factor in ((np.ones((4, 5, 2)), 2), (np.ones((1, 4, 5, 2)), 0), (np.ones((1, 4, 5, 2)), (2, -1))):
        with pytest.raises((ValueError, TypeError), match="upsample_nearest2d"):
            ops.upsample_nearest2d(leaf(x), factor)
