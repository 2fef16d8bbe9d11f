"""tinydiff/cuda/attending.py and softmaxes.py against closed forms in float64."""

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module
from tinydiff.cuda import attending, softmaxes

INF = np.float32(np.inf)
LENGTHS = [1, 2, 31, 33, 64, 65, 200, 257, 1000, 1025, 2500]  # of rows held by a warp, at every size, and by a block


def softmax(X):
    X = X.astype(np.float64)
    E = np.exp(X - np.maximum(X.max(-1, keepdims=True), -1e300))
    total = E.sum(-1, keepdims=True)
    return E / np.where(total == 0, 1, total)


def softmax_backward(P, L_P):
    P, L_P = P.astype(np.float64), L_P.astype(np.float64)
    return P * (L_P - (P * L_P).sum(-1, keepdims=True))


@pytest.mark.parametrize("columns", LENGTHS)
@pytest.mark.parametrize("rows", [1, 11])
def test_softmax(rows, columns, device, rng):
    X, L_P = 5 * rng.normal(size=(2, rows, columns)).astype(np.float32)
    P = device.run(softmaxes.softmax_array, X, -1)
    np.testing.assert_allclose(P, softmax(X), rtol=4e-6, atol=1e-9)
    L_X = device.run(softmaxes.softmax_backward, P, L_P, -1)
    np.testing.assert_allclose(L_X, softmax_backward(P, L_P), rtol=0, atol=1e-6 * np.abs(P * L_P).max())


@pytest.mark.parametrize("columns", LENGTHS)
def test_rows_with_infinities(columns, device, rng):
    """As ops.softmax: a row of -inf alone gives zeros; where there is +inf, its place is NaN and the others are 0."""
    X = rng.normal(size=(4, columns)).astype(np.float32)
    X[0] = -INF
    X[1, columns // 2 :] = -INF
    X[2, columns - 1] = INF
    with np.errstate(invalid="ignore", over="ignore"):
        expected = ops.softmax(X).data
    np.testing.assert_allclose(device.run(softmaxes.softmax_array, X, -1), expected, rtol=2e-6, atol=1e-9)
    np.testing.assert_array_equal(device.run(softmaxes.softmax_array, X, -1)[0], 0)


@pytest.mark.parametrize("columns", [40, 1200])
def test_large_and_small_logits_lose_nothing(columns, device, rng):
    X = rng.normal(size=(3, columns)).astype(np.float32)
    X[0] += 3e4
    X[1] -= 3e4
    X[2] *= 1e37
    np.testing.assert_allclose(device.run(softmaxes.softmax_array, X, -1), softmax(X), rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("columns", [64, 300, 1500])
def test_a_nan_fills_its_row_and_no_other(columns, device):
    X = np.zeros((9, columns), np.float32)
    X[3, columns // 2] = np.nan
    P = device.run(softmaxes.softmax_array, X, -1)
    assert np.isnan(P[3]).all() and np.isfinite(np.delete(P, 3, 0)).all()


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 2000), (2, 0, 3)], ids=str)
def test_nothing(shape, device):
    X = np.ones(shape, np.float32)
    assert device.run(softmaxes.softmax_array, X, -1).shape == shape
    assert device.run(softmaxes.softmax_backward, X, X, -1).shape == shape


def test_leading_axes_and_other_memory_layouts(device, rng):
    X, L_P = rng.normal(size=(2, 2, 3, 70)).astype(np.float32)
    swapped = np.ascontiguousarray(X.swapaxes(0, 1)).swapaxes(0, 1)
    P = device.run(softmaxes.softmax_array, swapped, -1)
    np.testing.assert_allclose(P, softmax(X), rtol=2e-6)
    gaps = np.repeat(L_P, 2, -1)[..., ::2]
    np.testing.assert_array_equal(
        device.run(softmaxes.softmax_backward, P, gaps, -1), device.run(softmaxes.softmax_backward, P, L_P, -1)
    )


@pytest.mark.parametrize("columns", [40, 1500])
def test_the_same_bits_whatever_the_order_of_threads(columns, device, rng):
    X, L_P = rng.normal(size=(2, 9, columns)).astype(np.float32)
    P = device.run(softmaxes.softmax_array, X, -1, seed=1)
    np.testing.assert_array_equal(P, device.run(softmaxes.softmax_array, X, -1, seed=2))
    L_X = device.run(softmaxes.softmax_backward, P, L_P, -1, seed=1)
    np.testing.assert_array_equal(L_X, device.run(softmaxes.softmax_backward, P, L_P, -1, seed=2))


# attention: leading axes, L, M, D, E
ATTENTION = [((), 5, 7, 3, 2), ((2,), 16, 16, 8, 8), ((2, 3), 4, 33, 5, 6), ((1,), 1, 1, 1, 1), ((2,), 3, 1100, 4, 4)]


def qkv(rng, leading, L, M, D, E):
    sizes = (L, D), (M, D), (M, E), (L, E)
    return [rng.normal(size=(*leading, *size)).astype(np.float32) for size in sizes]


@pytest.mark.parametrize("sizes", ATTENTION, ids=str)
def test_attention_and_its_gradients(sizes, device, rng):
    Q, K, V, L_Y = qkv(rng, *sizes)
    scale = 0.7
    q, k, v = (Tensor(a.astype(np.float64), requires_grad=True) for a in (Q, K, V))
    y = ops.attention(q, k, v, scale=scale)
    y.backward(L_Y.astype(np.float64))
    Y, z = device.run(attending.attend, Q, K, V, scale)
    S = scale * q.data @ k.data.swapaxes(-1, -2)
    np.testing.assert_allclose(z, ops.logsumexp(S, -1, keepdims=True).data, rtol=0, atol=3e-6)
    ours = Y, *device.run(attending.attend_backward, L_Y, Q, K, V, z, Y, scale)
    for name, a, e in zip(("Y", "L_Q", "L_K", "L_V"), ours, (y.data, q.grad, k.grad, v.grad), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=3e-6 * max(np.abs(e).max(), 0.1), err_msg=name)


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True), (False,) * 3], ids=str
)
def test_only_the_gradients_that_are_needed(needs, device, rng):
    Q, K, V, L_Y = qkv(rng, (2,), 4, 5, 3, 6)
    Y, z = device.run(attending.attend, Q, K, V, 1.0)
    everything = device.run(attending.attend_backward, L_Y, Q, K, V, z, Y, 1.0)
    some = device.run(attending.attend_backward, L_Y, Q, K, V, z, Y, 1.0, needs)
    for need, a, e in zip(needs, some, everything, strict=True):
        if need:
            np.testing.assert_array_equal(a, e)
        else:
            assert a is None


@pytest.mark.parametrize("columns", [7, 1100])
def test_logits_of_minus_infinity_alone_attend_to_nothing(columns, device):
    Q, K, V = (
        np.full((2, 1), 1e30, np.float32),
        np.full((columns, 1), -1e30, np.float32),
        np.ones((columns, 3), np.float32),
    )
    Y, z = device.run(attending.attend, Q, K, V, 1.0)
    np.testing.assert_array_equal(Y, 0)
    for gradient in device.run(attending.attend_backward, Y, Q, K, V, z, Y, 1.0):
        np.testing.assert_array_equal(gradient, 0)


def test_what_the_kernels_leave_to_others(device, rng):
    Q, K, V, _ = qkv(rng, (2,), 4, 5, 3, 6)
    assert device.run(softmaxes.softmax_array, np.ones((2, 3)), -1) is NotImplemented
    assert device.run(attending.attend, Q, K.astype(np.float64), V, 1.0) is NotImplemented
    assert device.run(attending.attend, Q, K[:1], V[:1], 1.0) is NotImplemented
    assert device.run(attending.attend, Q, K[:, :0], V[:, :0], 1.0) is NotImplemented


# the operations of ops.attention that reach these kernels


@pytest.fixture
def ran(monkeypatch):
    """The names of the softmax kernels' functions that computed something."""
    names = []

    def watch(name, function):
        def watched(*args):
            result = function(*args)
            names.extend([] if result is NotImplemented else [name])
            return result

        monkeypatch.setattr(softmaxes, name, watched)

    for name in ("softmax_array", "softmax_backward"):
        watch(name, getattr(softmaxes, name))
    return names


def gradients(function, *arrays):
    """function(*tensors) and the gradients of the sum of sin of it, from arrays of one module."""
    leaves = [Tensor(a, requires_grad=True) for a in arrays]
    y = function(*leaves)
    ops.sum(ops.sin(y)).backward()
    return [y.data, *(leaf.grad for leaf in leaves)]


def check_on(device, function, *arrays):
    ours = device.run(lambda *xs: gradients(function, *xs), *arrays)
    exact = gradients(function, *(a.astype(np.float64) for a in arrays))
    for a, e in zip(ours, exact, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, e, rtol=0, atol=3e-6 * np.abs(e).max(initial=0.1))


@pytest.mark.parametrize("shape", [(3, 40), (5,), (2, 3, 1100), (0, 4), (3, 1)], ids=str)
def test_softmax_over_the_last_axis_runs_on_kernels(shape, device, ran, rng):
    X = rng.normal(size=shape).astype(np.float32)
    for axis in (-1, len(shape) - 1):
        check_on(device, lambda x, axis=axis: ops.softmax(x, axis), X)
    assert ran == ["softmax_array", "softmax_backward"] * 2


@pytest.mark.parametrize(("shape", "axis"), [((3, 40), 0), ((2, 3, 5), 1), ((2, 3, 5), -3)], ids=str)
def test_softmax_over_another_axis_does_not(shape, axis, device, ran, rng):
    check_on(device, lambda x: ops.softmax(x, axis), rng.normal(size=shape).astype(np.float32))
    assert not ran


@pytest.mark.parametrize(
    ("axis", "expected"),
    [(-1, ["softmax_array"]), ((1,), ["softmax_array"]), (0, []), ((0, 1), []), (None, [])],
    ids=str,
)
def test_the_gradient_of_logsumexp_is_a_softmax(axis, expected, device, ran, rng):
    check_on(device, lambda x: ops.logsumexp(x, axis), rng.normal(size=(4, 33)).astype(np.float32))
    assert ran == expected


def test_masked_attention_runs_its_softmax_on_kernels(device, ran, rng):
    Q, K, V, _ = qkv(rng, (2,), 4, 9, 3, 6)
    mask = rng.uniform(size=(4, 9)) < 0.7
    mask[2] = False

    def masked(q, k, v):
        return ops.attention(q, k, v, array_module(q.data).asarray(mask))

    check_on(device, masked, Q, K, V)
    assert ran == ["softmax_array", "softmax_backward"]


def test_broadcast_attention_leaves_what_does_not_fit_to_others(device, ran, rng):
    Q, K, V, _ = qkv(rng, (), 4, 9, 3, 6)
    check_on(device, ops.attention, Q, K, np.stack([V, 2 * V]))  # L_P has one axis more than P
    assert ran == ["softmax_array"]
