"""Operations at infinities, signed zeros and NaN: what is masked out is 0, not 0 times infinity."""

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor
from tinydiff.random import Generator

INF, NAN = np.inf, np.nan
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def leaf(values, dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True)


def gradients(fn, *leaves, L_Y=1.0):
    y = fn(*leaves)
    y.backward(np.broadcast_to(np.asarray(L_Y, y.dtype), y.shape))
    return [x.grad for x in leaves]


def assert_same(ours, exact):
    """Equal, with NaN equal to NaN."""
    np.testing.assert_array_equal(ours, np.asarray(exact, ours.dtype))


X = [-INF, -2.0, -0.0, 0.0, 2.0, INF, NAN]


@pytest.mark.parametrize("L_Y", [1.0, -INF, INF])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_relu(dtype, L_Y):
    x = leaf(X, dtype)
    y = ops.relu(x)
    assert_same(y.data, [0, 0, 0, 0, 2, INF, NAN])
    assert not np.signbit(y.data[:4]).any()
    assert_same(gradients(ops.relu, x, L_Y=L_Y)[0], [0, 0, 0, 0, L_Y, L_Y, L_Y])
    assert ops.relu(np.array([-3, 0, 3])).dtype == np.int64


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("function", "left", "right"),
    [
        (ops.silu, (0, 0), (INF, 1)),
        (ops.gelu, (0, 0), (INF, 1)),
        (lambda x: ops.gelu(x, "tanh"), (0, 0), (INF, 1)),
        (ops.softplus, (0, 0), (INF, 1)),
        (ops.sigmoid, (0, 0), (1, 0)),
        (ops.tanh, (-1, 0), (1, 0)),
        (ops.erf, (-1, 0), (1, 0)),
        (ops.abs, (INF, -1), (INF, 1)),
    ],
    ids=["silu", "gelu", "gelu_tanh", "softplus", "sigmoid", "tanh", "erf", "abs"],
)
def test_limits_of_activations(function, left, right, dtype):
    x = leaf([-INF, INF], dtype)
    assert_same(function(x).data, [left[0], right[0]])
    assert_same(gradients(function, x)[0], [left[1], right[1]])
    with np.errstate(invalid="ignore"):
        assert_same(function(leaf([NAN], dtype)).data, [NAN])
    # the largest finite numbers are as far out
    huge = np.finfo(dtype).max
    near = leaf([-huge, huge], dtype)
    exact = [huge if np.isinf(v) else v for v in (left[0], right[0])]
    assert_same(function(near).data, exact)
    assert_same(gradients(function, near)[0], [left[1], right[1]])


@pytest.mark.parametrize("L_Y", [1.0, INF])
def test_abs(L_Y):
    x = leaf(X)
    assert_same(ops.abs(x).data, np.abs(X))
    assert_same(gradients(ops.abs, x, L_Y=L_Y)[0], [-L_Y, -L_Y, 0, 0, L_Y, L_Y, 0])


@pytest.mark.parametrize("L_Y", [1.0, INF])
def test_maximum_and_minimum(L_Y):
    a, b = leaf([1, 2, 3, -INF, INF, NAN, 1, -0.0]), leaf([2, 2, 2, 0, INF, 1, NAN, 0.0])
    assert_same(ops.maximum(a, b).data[:7], [2, 2, 3, 0, INF, NAN, NAN])
    L_a, L_b = gradients(ops.maximum, a, b, L_Y=L_Y)
    assert_same(L_a, [0, L_Y / 2, L_Y, 0, L_Y / 2, L_Y, L_Y, L_Y / 2])
    assert_same(L_b, [L_Y, L_Y / 2, 0, L_Y, L_Y / 2, L_Y, L_Y, L_Y / 2])
    c, d = leaf(-a.data), leaf(-b.data)
    assert_same(ops.minimum(c, d).data[:7], [-2, -2, -3, 0, -INF, NAN, NAN])
    for ours, theirs in zip(gradients(ops.minimum, c, d, L_Y=L_Y), (L_a, L_b), strict=True):
        assert_same(ours, theirs)
    assert_same(gradients(lambda x: ops.maximum(x, 2), leaf([1, 2, 3]), L_Y=L_Y)[0], [0, L_Y / 2, L_Y])
    assert_same(gradients(lambda x: ops.minimum([3, 2, 1], x), leaf([1, 2, 3]), L_Y=L_Y)[0], [L_Y, L_Y / 2, 0])


@pytest.mark.parametrize("L_Y", [1.0, INF])
def test_extremes(L_Y):
    rows = [[1, 3, 3], [-INF, -INF, -INF], [INF, 0, INF], [NAN, 5, NAN], [-INF, 0, 1]]
    shares = [[0, 0.5, 0.5], [1 / 3] * 3, [0.5, 0, 0.5], [0.5, 0, 0.5], [0, 0, 1]]
    exact = [[0 if s == 0 else L_Y * s for s in row] for row in shares]
    x = leaf(rows)
    assert_same(ops.max(x, 1).data, [3, -INF, INF, NAN, 1])
    np.testing.assert_allclose(gradients(lambda a: ops.max(a, 1), x, L_Y=L_Y)[0], exact)
    np.testing.assert_allclose(gradients(lambda a: ops.min(a, 1), leaf(-x.data), L_Y=L_Y)[0], exact)


@pytest.mark.parametrize("L_Y", [1.0, INF])
def test_max_pool2d(L_Y):
    def share(image, **options):
        x = leaf(np.array(image)[None, :, :, None])
        return gradients(lambda a: ops.max_pool2d(a, 2, **options), x, L_Y=L_Y)[0][0, :, :, 0]

    assert_same(share([[1, 3, -INF, 0], [3, 2, NAN, 9]]), [[0, L_Y / 2, 0, 0], [L_Y / 2, 0, L_Y, 0]])
    # of four windows, each with three pixels of padding, which are -inf as well
    assert_same(share([[-INF, -INF], [-INF, -INF]], padding=1), np.full((2, 2), L_Y))
    assert_same(share([[NAN, -INF], [-INF, 5]], padding=1), np.full((2, 2), L_Y))


def test_dropout():
    x = leaf(np.full(1000, INF))
    kept = Generator(3).uniform(1000) >= 0.4
    y = ops.dropout(x, 0.4, Generator(3))
    assert_same(y.data, np.where(kept, INF, 0))
    y.backward(np.full(1000, -INF))
    assert_same(x.grad, np.where(kept, -INF, 0))


@pytest.mark.parametrize("L_Y", [1.0, INF])
def test_clip(L_Y):
    x = leaf([-INF, -1, 0, 1, 2, INF, NAN])
    for low, high, value, inside in (
        (-1, 1, [-1, -1, 0, 1, 1, 1, NAN], [0, 1, 1, 1, 0, 0, 0]),
        (None, 1, [-INF, -1, 0, 1, 1, 1, NAN], [1, 1, 1, 1, 0, 0, 0]),
        (0, None, [0, 0, 0, 1, 2, INF, NAN], [0, 0, 1, 1, 1, 1, 0]),
        (None, None, x.data, [1, 1, 1, 1, 1, 1, 0]),
        (-INF, INF, x.data, [1, 1, 1, 1, 1, 1, 0]),
        (2, 1, [1, 1, 1, 1, 1, 1, NAN], [0] * 7),  # high rules
    ):
        assert_same(ops.clip(x, low, high).data, value)
        x.zero_grad()
        assert_same(
            gradients(lambda a, low=low, high=high: ops.clip(a, low, high), x, L_Y=L_Y)[0], np.where(inside, L_Y, 0)
        )


def test_where_and_slices_let_no_infinity_through():
    a, b = leaf([1, 2]), leaf([3, 4])
    L_a, L_b = gradients(lambda a, b: ops.where(np.array([True, False]), a, b), a, b, L_Y=INF)
    assert_same(L_a, [INF, 0])
    assert_same(L_b, [0, INF])
    for fn in (
        lambda x: x[:1],
        lambda x: x[[0]],
        lambda x: ops.split(x, 2)[0],
        lambda x: ops.pad(x, 1, value=INF)[1:2],
    ):
        assert_same(gradients(fn, leaf([1, 2]), L_Y=INF)[0], [INF, 0])


def test_an_infinite_slope_that_was_not_taken_is_nan_and_how_to_avoid_it():
    """As the docstring of `where` says."""
    x = leaf([0.0, 4.0])
    with np.errstate(all="ignore"):
        assert_same(gradients(lambda x: ops.where(x > 0, ops.sqrt(x), x), x)[0], [NAN, 0.25])
    safe = leaf([0.0, 4.0])
    exact = [1, 0.25]
    assert_same(
        gradients(lambda x: ops.where(x > 0, ops.sqrt(ops.where(x > 0, x, 1)), x), safe)[0],
        exact,
    )


def test_softmax_and_logsumexp():
    rows = [[-INF, -INF], [-INF, 0], [INF, 0]]
    with np.errstate(all="ignore"):
        assert_same(ops.softmax(leaf(rows)).data, [[0, 0], [0, 1], [NAN, 0]])
        assert_same(ops.log_softmax(leaf(rows)).data, [[NAN, NAN], [-INF, 0], [NAN, -INF]])
    assert_same(ops.logsumexp(leaf(rows), 1).data, [-INF, 0, INF])
    assert_same(gradients(lambda x: ops.logsumexp(x, 1), leaf(rows[:2]))[0], [[0, 0], [0, 1]])
    assert_same(gradients(ops.softmax, leaf(rows[:2]))[0], [[0, 0], [0, 0]])


def test_keys_that_are_masked_out_may_be_infinite(rng):
    q, k, v = (rng.normal(size=(3, 2)) for _ in range(3))
    mask = np.array([True, True, False])
    exact = ops.attention(q, k[:2], v[:2]).data
    k[2] = INF, NAN
    leaves = leaf(q), leaf(k), leaf(v)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(ops.attention(*leaves, mask).data, exact)
        L_v = gradients(lambda *a: ops.attention(*a, mask), *leaves)[2]
    assert np.isfinite(L_v).all()
    assert (L_v[2] == 0).all()


def test_cross_entropy_of_impossible_classes():
    x = leaf([[-INF, 0, 0], [0, 0, -INF]])
    assert_same(ops.cross_entropy(x, [1, 0], "none").data, np.log([2, 2]))
    L_X = gradients(lambda x: ops.cross_entropy(x, [1, 0], "sum"), x)[0]
    np.testing.assert_allclose(L_X, [[0, -0.5, 0.5], [-0.5, 0.5, 0]])


@pytest.mark.parametrize("L_Y", [1.0, INF])
def test_power(L_Y):
    """a, b, value, slope by a, slope by b: those that are 0 by definition let no infinity through."""
    rows = [
        (0, -1, INF, -INF, -INF),
        (-0.0, -1, -INF, -INF, INF),
        (0, 0, 1, 0, 0),
        (0, 0.5, 0, INF, 0),
        (0, 1, 0, 1, 0),
        (-2, 0, 1, 0, NAN),
        (-2, 0.5, NAN, NAN, NAN),
        (-2, 3, -8, 12, NAN),
        (INF, 0, 1, 0, INF),
        (INF, 2, INF, INF, INF),
        (-INF, 0, 1, 0, NAN),
        (NAN, 0, 1, 0, NAN),
        (1, INF, 1, INF, 0),
    ]
    A, B, Y, by_a, by_b = np.array(rows, float).T
    if np.isinf(L_Y):  # a slope of 0 that is computed is no mask
        A, B, Y, by_a, by_b = A[:-1], B[:-1], Y[:-1], by_a[:-1], by_b[:-1]
    a, b = leaf(A), leaf(B)
    with np.errstate(all="ignore"):
        assert_same(ops.power(a, b).data, Y)
        L_a, L_b = gradients(ops.power, a, b, L_Y=L_Y)
    assert_same(L_a, [0 if s == 0 else L_Y * s for s in by_a])
    assert_same(L_b, [0 if s == 0 else L_Y * s for s in by_b])


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float64])
def test_power_by_whole_numbers(dtype):
    x = leaf([-3.0, 0.0, 2.0, INF])
    for n in (0, 1, 2, 3):
        x.zero_grad()
        exact = n * x.data ** (n - 1) if n else 0 * np.ones(4)
        for exponent in (n, np.array(n, dtype), np.full(4, n, dtype)):
            x.zero_grad()
            assert_same(gradients(lambda x, e=exponent: x**e, x)[0], exact)
