"""Convolutions that add an embedding and a residual, or read an upsampled image, against the operations one by one."""

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor
from tinydiff.machine import threads as workers
from tinydiff.ops.convolution import conv2d_add, sum_pixels, upsample_conv2d


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


def gradients(function, arrays, L_Y):
    """The output, and the gradient of each array that is not None."""
    tensors = [None if a is None else leaf(a) for a in arrays]
    y = function(*tensors)
    y.backward(L_Y)
    return y.data, *(t.grad for t in tensors if t is not None)


CASES = [  # images, filters, stride, padding
    ((3, 8, 8, 16), (3, 3, 16, 24), 1, 1),
    ((2, 16, 16, 32), (3, 3, 32, 32), 1, 1),
    ((2, 7, 6, 5), (3, 3, 5, 4), 2, ((0, 1), (0, 1))),
    ((2, 4, 5, 3), (1, 1, 3, 6), 1, 0),
    ((0, 4, 4, 2), (3, 3, 2, 2), 1, 1),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("terms", ["", "b", "e", "r", "be", "er", "ber"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sums_are_those_of_the_single_operations(case, terms, dtype, threads, rng):
    x, w, stride, padding = case
    x, w = rng.normal(size=x), rng.normal(size=w) / w[2] ** 0.5
    y = ops.conv2d(x, w, None, stride, padding)
    b, e, r = rng.normal(size=w.shape[3]), rng.normal(size=(len(x), w.shape[3])), rng.normal(size=y.shape)
    arrays = [x, w, *(a if name in terms else None for name, a in (("b", b), ("e", e), ("r", r)))]
    L_Y = rng.normal(size=y.shape)

    def one_by_one(x, w, b, e, r):
        y = ops.conv2d(x, w, b, stride, padding)
        y = y if e is None else y + ops.expand_dims(e, (1, 2))
        return y if r is None else y + r

    expected = gradients(one_by_one, arrays, L_Y)
    with workers.threads(threads):
        found = gradients(
            lambda *a: conv2d_add(*a, stride=stride, padding=padding),
            [None if a is None else a.astype(dtype) for a in arrays],
            L_Y.astype(dtype),
        )
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == dtype
        atol = (1e-13 if dtype == np.float64 else 1e-5) * max(1, np.abs(e).max(initial=0))
        np.testing.assert_allclose(f, e, rtol=0, atol=atol)


def test_a_residual_that_is_also_the_input_gets_both_gradients(rng):
    x, w = leaf(rng.normal(size=(2, 4, 4, 3))), rng.normal(size=(3, 3, 3, 3))
    L_Y = rng.normal(size=(2, 4, 4, 3))
    kept = L_Y.copy()
    y = conv2d_add(x, w, residual=x, padding=1)
    (y * 1.0).backward(L_Y)
    through = leaf(x.data)
    ops.conv2d(through, w, padding=1).backward(L_Y)
    np.testing.assert_allclose(x.grad, through.grad + kept, atol=1e-12)
    np.testing.assert_array_equal(L_Y, kept)


def test_the_gradient_of_a_residual_is_not_added_to_in_place(rng):
    """The residual's gradient is the output's own: a second use of the residual must not change what others hold."""
    r, x = leaf(rng.normal(size=(1, 3, 3, 2))), leaf(rng.normal(size=(1, 3, 3, 2)))
    w = leaf(rng.normal(size=(3, 3, 2, 2)))
    h = r * 2.0
    y = conv2d_add(x, w, residual=h, padding=1)
    z = conv2d_add(y, w, residual=h, padding=1)
    L_Z = rng.normal(size=z.shape)
    kept = L_Z.copy()
    z.backward(L_Z)
    np.testing.assert_array_equal(L_Z, kept)
    L_y = leaf(y.data)
    ops.conv2d(L_y, w.data, padding=1).backward(kept)
    np.testing.assert_allclose(r.grad, 2 * (L_y.grad + kept), atol=1e-12)


def test_conv2d_add_by_gradcheck(rng, verify):
    shapes = ((2, 4, 5, 3), (3, 3, 3, 2), (2,), (2, 2), (2, 4, 5, 2))
    verify(lambda *a: conv2d_add(*a, padding=1), *(rng.normal(size=s) for s in shapes))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_wider_term_widens_the_result(dtype):
    x, w = np.ones((2, 8, 8, 16), np.float32), np.ones((3, 3, 16, 16), np.float32)
    for terms in ({"embedding": np.ones((2, 16), dtype)}, {"residual": np.ones((2, 8, 8, 16), dtype)}):
        assert conv2d_add(x, w, **terms, padding=1).dtype == dtype


def test_terms_that_do_not_fit_are_named():
    x, w = np.ones((2, 4, 4, 3)), np.ones((3, 3, 3, 5))
    for e in ((5,), (1, 5), (2, 3), (2, 1, 1, 5)):
        with pytest.raises(ValueError, match=r"conv2d_add: embedding .*\(2, 5\)"):
            conv2d_add(x, w, embedding=np.ones(e), padding=1)
    for r in ((2, 4, 4, 3), (1, 4, 4, 5), (2, 2, 2, 5), (5,)):
        with pytest.raises(ValueError, match=r"conv2d_add: residual .*\(2, 4, 4, 5\)"):
            conv2d_add(x, w, residual=np.ones(r), padding=1)
    with pytest.raises(ValueError, match=r"conv2d_add.*channels"):
        conv2d_add(x, w[:, :, :2])


UPSAMPLED = [  # low-resolution images, filters
    (2, 8, 8, 16, 24),
    (3, 5, 7, 32, 16),
    (4, 16, 16, 32, 32),
    (1, 2, 2, 64, 64),
    (2, 3, 4, 3, 2),
    (1, 1, 1, 2, 3),
    (0, 4, 4, 2, 2),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", UPSAMPLED, ids=str)
def test_upsampling_and_convolution(case, dtype, threads, rng):
    N, H, W, C, K = case
    arrays = rng.normal(size=(N, H, W, C)), rng.normal(size=(3, 3, C, K)) / C**0.5, rng.normal(size=K)
    L_Y = rng.normal(size=(N, 2 * H, 2 * W, K))
    for part in (arrays, (*arrays[:2], None)):
        expected = gradients(lambda x, w, b: ops.conv2d(ops.upsample_nearest2d(x), w, b, padding=1), part, L_Y)
        with workers.threads(threads):
            single = [None if a is None else a.astype(dtype) for a in part]
            found = gradients(upsample_conv2d, single, L_Y.astype(dtype))
        for f, e in zip(found, expected, strict=True):
            assert f.dtype == dtype and f.shape == e.shape
            atol = (1e-13 if dtype == np.float64 else 1e-5) * max(1, np.abs(e).max(initial=0))
            np.testing.assert_allclose(f, e, rtol=0, atol=atol)


def test_upsample_conv2d_refuses_other_filters():
    with pytest.raises(ValueError, match=r"upsample_conv2d.*\(1, 1, 3, 3\)"):
        upsample_conv2d(np.ones((1, 4, 4, 3)), np.ones((1, 1, 3, 3)))
    with pytest.raises(ValueError, match="channels"):
        upsample_conv2d(np.ones((1, 4, 4, 3)), np.ones((3, 3, 2, 3)))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (64, 32, 32, 8), (0, 4, 4, 2), (2, 1, 1, 3), (3, 4, 5, 0)], ids=str)
def test_sum_pixels(shape, threads, rng):
    X = rng.normal(size=shape)
    with workers.threads(threads):
        for layout in (X, np.asfortranarray(X), np.broadcast_to(X[:, :1], X.shape)):
            np.testing.assert_allclose(sum_pixels(layout), layout.sum((1, 2)), rtol=0, atol=1e-11)
            single = sum_pixels(layout.astype(np.float32))
            assert single.dtype == np.float32
            np.testing.assert_allclose(single, layout.sum((1, 2)), rtol=0, atol=1e-3)
