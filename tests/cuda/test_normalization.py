"""tinydiff/cuda/normalization.py against the operations in float64, whose gradients are checked in tests/ops."""

import math

import numpy as np
import pytest

from tests.cuda.conftest import HALVES, assert_rounded, in_16_bits
from tinydiff import ops
from tinydiff.autograd.tensor import Tensor
from tinydiff.cuda import activation, normalization
from tinydiff.precision import from_memory
from tinydiff.random import Generator

STATE = (2**40 + 5, 5, 77, 2**32 - 3)  # of the generator that draws dropout's mask; the offset crosses 2**32
DROPOUT = (0.3, STATE)

# N, size, C, groups
SHAPES = [
    (2, (4, 4), 8, 8),  # groups of one channel
    (2, (3, 5), 8, 4),  # of two
    (2, (3, 5), 24, 8),  # of three, while four are read at once
    (1, (7,), 9, 3),  # of three, read one by one
    (2, (5, 3), 30, 10),  # channels are not a multiple of 4
    (1, (28, 28), 32, 32),
    (1, (20, 15), 24, 6),  # the last slab is narrower than the others
    (11, (2, 2), 40, 2),  # more images than warps that add them up
    (1, (5, 8), 96, 1),  # one group
    (3, (), 12, 2),  # no pixels' axis
    (2, (1, 1), 256, 32),  # one pixel
    (1, (3,), 1032, 2),  # a row of threads longer than a warp
    (1, (3,), 129, 1),
    (1, (2, 65), 20, 4),
    (1, (50, 50), 8, 2),  # more than fits in shared memory
    (1, (50, 49), 3, 1),
]


def shifted(a):
    """Not from a multiple of 16 bytes on."""
    other = np.zeros(a.size + 1, a.dtype)[1:].reshape(a.shape)
    other[...] = a
    return other


def strided(a):
    return np.repeat(a, 2, axis=-1)[..., ::2]


def arrays(rng, N, size, C):
    X, L_Y = (rng.normal(size=(N, *size, C)).astype(np.float32) for _ in range(2))
    return X + 1, L_Y, *(rng.normal(size=C).astype(np.float32) for _ in range(2))


def exact(X, L_Y, w, b, groups, eps=1e-5, silu=False, dropout=None):
    """Y, L_X, L_w, L_b by the tape in float64."""
    x, w, b = (None if a is None else Tensor(a.astype(np.float64), requires_grad=True) for a in (X, w, b))
    y = ops.group_norm(x, groups, w, b, eps)
    y = ops.silu(y) if silu else y
    if dropout:
        p, state = dropout
        y = y * ((Generator(*state).uniform(X.shape) >= p) / (1 - p))
    y.backward(L_Y.astype(np.float64))
    return y.data, x.grad, None if w is None else w.grad, None if b is None else b.grad


def both(device, X, L_Y, w, b, groups, eps=1e-5, silu=False, dropout=None, needs=(True, True, True), **options):
    """Y, L_X, L_w, L_b by the kernels."""

    def forward_and_backward(X, L_Y, w, b):
        Y, mean, scale = normalization.group_normalize(X, w, b, groups, eps, silu, dropout)
        return Y, *normalization.group_normalize_backward(L_Y, X, mean, scale, w, b, groups, silu, needs, dropout)

    return device.run(forward_and_backward, X, L_Y, w, b, **options)


def assert_close(ours, expected, tolerance=3e-6):
    for name, a, e in zip(("Y", "L_X", "L_w", "L_b")[-len(expected) :], ours, expected, strict=True):
        assert a.shape == e.shape and a.dtype == np.float32, name
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * np.abs(e).max(initial=1e-30), err_msg=name)


@pytest.mark.parametrize(("N", "size", "C", "groups"), SHAPES, ids=str)
@pytest.mark.parametrize(
    ("silu", "dropout"), [(False, None), (True, None), (True, DROPOUT)], ids=["", "silu", "dropout"]
)
def test_values_and_gradients(N, size, C, groups, silu, dropout, device, rng):
    X, L_Y, w, b = arrays(rng, N, size, C)
    # with two elements in a group Z is 1 and -1 but for eps, so L_X is a difference of nearly equal numbers
    tolerance = 3e-6 if math.prod(size) * C // groups > 8 else 1e-3
    expected = exact(X, L_Y, w, b, groups, 1e-5, silu, dropout)
    assert_close(both(device, X, L_Y, w, b, groups, 1e-5, silu, dropout), expected, tolerance)


# Vectors of eight channels: groups of one, three and twelve; a slab narrower than the others, a row longer than a warp, an image
# that does not fit in shared memory. One by one: an odd tile, groups of two and three.
HALF_SHAPES = [
    (2, (4, 4), 8, 8),
    (2, (3, 5), 24, 8),
    (1, (20, 15), 24, 2),
    (1, (16, 9), 40, 5),
    (1, (20, 6), 144, 3),
    (1, (3,), 1040, 2),
    (1, (50, 50), 16, 2),
    (11, (2, 2), 40, 4),
    (2, (5, 3), 12, 6),
    (1, (7,), 9, 3),
    (1, (50, 49), 11, 1),
]


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize(("N", "size", "C", "groups"), HALF_SHAPES, ids=str)
def test_16_bits(N, size, C, groups, precision, device, rng):
    X, L_Y, w, b = arrays(rng, N, size, C)
    memory, (x, l_y) = in_16_bits(precision, X, L_Y)
    dropout = DROPOUT if C % 3 == 0 else None
    Y, L_X, L_w, L_b = both(device, *memory, w, b, groups, 1e-5, True, dropout)
    y, *gradients = exact(x, l_y, w, b, groups, 1e-5, True, dropout)
    assert Y.dtype == L_X.dtype == memory[0].dtype
    assert_rounded(Y, y)
    assert_rounded(L_X, gradients[0])
    assert_close((L_w, L_b), gradients[1:], 3e-6)


@pytest.mark.parametrize("precision", HALVES)
def test_16_bits_that_lie_in_memory_in_other_ways(precision, device, rng):
    X, L_Y, w, b = arrays(rng, 2, (3, 4), 8)
    (X, L_Y), _ = in_16_bits(precision, X, L_Y)
    expected = both(device, X, L_Y, w, b, 2, silu=True, dropout=DROPOUT)
    for x, l_y in ((shifted(X), strided(L_Y)), (strided(X), shifted(L_Y))):
        for a, e in zip(both(device, x, l_y, w, b, 2, silu=True, dropout=DROPOUT, seed=3), expected, strict=True):
            np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("C", [8, 9])
def test_what_is_read_twice_is_the_same_in_16_bits(C, precision, device, rng, monkeypatch):
    X, L_Y, w, b = arrays(rng, 2, (9, 10), C)
    L_Y[0, 0, 0] = 3e-8  # below the least normal number of fp16, and below the least of all when it grows
    given = (*in_16_bits(precision, X, L_Y)[0], w, b, 1)
    kept = both(device, *given, silu=True, dropout=DROPOUT)
    monkeypatch.setattr(normalization, "_shared_memory", lambda x: 0)
    for a, e in zip(both(device, *given, silu=True, dropout=DROPOUT), kept, strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("C", [8, 9])
def test_infinite_nan_and_too_large_in_16_bits(C, precision, device, rng):
    """Of one image of three: what is not finite stays in it. fp16 becomes infinite beyond 65504."""
    X, L_Y, w, b = arrays(rng, 3, (2, 3), C)
    X[0, 0, 0, 0], X[1, 1, 1, -1], b[0] = np.nan, np.inf, 1e5
    (X, L_Y), _ = in_16_bits(precision, X, L_Y)
    Y, L_X, *_ = both(device, X, L_Y, w, b, 1)
    Y, L_X = from_memory(Y), from_memory(L_X)
    assert np.isnan(Y[:2]).all() and np.isnan(L_X[:2]).all() and np.isfinite(L_X[2]).all()
    assert np.isfinite(Y[2, ..., 1:]).all() and np.isposinf(Y[2, ..., 0]).all() == (precision == "fp16")


@pytest.mark.parametrize("shape", [(0, 4, 4, 8), (0, 3, 9), (2, 0, 3, 8)], ids=str)
def test_nothing_in_16_bits(shape, device):
    X, w = np.ones(shape, np.float16), np.ones(shape[-1], np.float32)
    Y, L_X, L_w, L_b = both(device, X, X, w, w, 1, silu=True)
    assert Y.shape == L_X.shape == shape and Y.dtype == L_X.dtype == np.float16
    assert not L_w.any() and not L_b.any() and L_w.dtype == L_b.dtype == np.float32


def test_arrays_of_bfloat16_are_those_of_their_bits(device, rng):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    X, L_Y, w, b = arrays(rng, 2, (3, 4), 8)
    bits = both(device, *(in_16_bits("bf16", X, L_Y)[0]), w, b, 2, silu=True)
    ours = both(device, X.astype(bfloat16), L_Y.astype(bfloat16), w, b, 2, silu=True)
    assert ours[0].dtype == ours[1].dtype == bfloat16
    for a, e in zip(ours, bits, strict=True):
        np.testing.assert_array_equal(a.view(e.dtype), e)


@pytest.mark.parametrize(("C", "groups"), [(24, 4), (15, 5)])
@pytest.mark.parametrize(("with_w", "with_b"), [(False, False), (True, False), (False, True)])
def test_without_weight_or_bias(C, groups, with_w, with_b, device, rng):
    X, L_Y, w, b = arrays(rng, 2, (3, 4), C)
    w, b = w if with_w else None, b if with_b else None
    expected = exact(X, L_Y, w, b, groups, silu=True)
    if not with_w:  # as if it were 1
        expected = (*expected[:2], exact(X, L_Y, np.ones(C, np.float32), b, groups, silu=True)[2], expected[3])
    if not with_b:  # as if it were 0
        expected = (*expected[:3], exact(X, L_Y, w, np.zeros(C, np.float32), groups, silu=True)[3])
    assert_close(both(device, X, L_Y, w, b, groups, silu=True), expected)


def test_mean_and_scale_are_those_of_the_groups(device, rng):
    X, _, w, b = arrays(rng, 3, (5, 7), 12)
    _, mean, scale = device.run(normalization.group_normalize, X, w, b, 3, 1e-6)
    groups = X.astype(np.float64).reshape(3, 35, 3, 4)
    np.testing.assert_allclose(mean, groups.mean((1, 3)), rtol=1e-6)
    np.testing.assert_allclose(scale, 1 / np.sqrt(groups.var((1, 3)) + 1e-6), rtol=1e-6)


@pytest.mark.parametrize("C", [16, 18])
def test_a_large_mean_with_a_small_variance(C, device, rng):
    """The variance has all its digits; Z has those that a float32 mean leaves it."""
    X = (1e4 + rng.normal(size=(2, 13, 11, C))).astype(np.float32)
    Y, mean, scale = device.run(normalization.group_normalize, X, None, None, 2, 0.0)
    groups = X.astype(np.float64).reshape(2, 143, 2, C // 2)
    np.testing.assert_allclose(scale, 1 / groups.std((1, 3)), rtol=1e-6)
    np.testing.assert_allclose(mean, groups.mean((1, 3)), rtol=2e-7)
    expected = (groups - groups.mean((1, 3), keepdims=True)) / groups.std((1, 3), keepdims=True)
    np.testing.assert_allclose(Y, expected.reshape(X.shape), rtol=0, atol=3e-3)


@pytest.mark.parametrize("C", [16, 18])
def test_one_value_far_from_all_others_does_not_spoil_the_variance(C, device, rng):
    X = rng.normal(size=(1, 30, 30, C)).astype(np.float32)
    X[0, 0, 0, 0] = 1e5  # also the value that sums are taken relative to
    X[0, 20, 3, C // 2] = -1e5
    _, _, scale = device.run(normalization.group_normalize, X, None, None, 2, 0.0)
    np.testing.assert_allclose(scale, 1 / X.astype(np.float64).reshape(1, 900, 2, C // 2).std((1, 3)), rtol=1e-5)


def test_a_constant_group_is_normalised_to_its_bias(device, rng):
    X, w, b = np.full((1, 4, 4, 8), 3.3, np.float32), *rng.normal(size=(2, 8)).astype(np.float32)
    Y, _, scale = device.run(normalization.group_normalize, X, w, b, 2, 1e-5)
    np.testing.assert_allclose(scale, 1 / np.sqrt(1e-5), rtol=1e-6)
    np.testing.assert_allclose(Y, np.broadcast_to(b, Y.shape), atol=1e-3)


@pytest.mark.parametrize("shape", [(0, 4, 4, 8), (0, 3, 9), (2, 0, 3, 8)], ids=str)
def test_nothing(shape, device):
    X, w = np.ones(shape, np.float32), np.ones(shape[-1], np.float32)
    Y, L_X, L_w, L_b = both(device, X, X, w, w, 1, silu=True)
    assert Y.shape == L_X.shape == shape
    assert not L_w.any() and not L_b.any() and L_w.shape == L_b.shape == shape[-1:]


@pytest.mark.parametrize(
    ("N", "size", "C", "groups"), [(3, (9, 5), 24, 6), (2, (5, 3), 30, 10), (1, (50, 50), 8, 2)], ids=str
)
def test_the_same_bits_whatever_the_order_of_threads(N, size, C, groups, device, rng):
    given = arrays(rng, N, size, C)
    first = both(device, *given, groups, silu=True, dropout=DROPOUT, seed=1)
    for a, b in zip(first, both(device, *given, groups, silu=True, dropout=DROPOUT, seed=2), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_image_is_rounded_in_the_same_way_in_any_batch(device, rng):
    X, L_Y, w, b = arrays(rng, 5, (6, 7), 16)
    batch, alone = both(device, X, L_Y, w, b, 4, silu=True), both(device, X[3:4], L_Y[3:4], w, b, 4, silu=True)
    for whole, one in zip(batch[:2], alone[:2], strict=True):
        np.testing.assert_array_equal(whole[3:4], one)


def test_what_is_read_twice_is_rounded_in_the_same_way(device, rng, monkeypatch):
    given = arrays(rng, 2, (9, 10), 24)
    kept = both(device, *given, 6, silu=True, dropout=DROPOUT)
    monkeypatch.setattr(normalization, "_shared_memory", lambda x: 0)
    assert not normalization._layout(given[0], 6, 1).tiled
    for a, e in zip(both(device, *given, 6, silu=True, dropout=DROPOUT), kept, strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("needs", [tuple(bool(k >> i & 1) for i in range(3)) for k in range(8)], ids=str)
def test_only_the_gradients_that_are_needed(needs, device, rng):
    given = arrays(rng, 2, (3, 4), 8)
    _, *all_of_them = both(device, *given, 2, silu=True)
    _, *some = both(device, *given, 2, silu=True, needs=needs)
    for need, expected, ours in zip(needs, all_of_them, some, strict=True):
        if need:
            np.testing.assert_array_equal(ours, expected)
        else:
            assert ours is None


@pytest.mark.parametrize("C", [8, 9])
def test_dropout_without_silu_keeps_what_the_generator_keeps(C, device, rng):
    X, _, w, b = arrays(rng, 2, (5, 3), C)
    plain, *_ = device.run(normalization.group_normalize, X, w, b, 1, 1e-5)
    p = float(Generator(*STATE).uniform(20)[-1])  # one number is p itself, and kept
    Y, *_ = device.run(normalization.group_normalize, X, w, b, 1, 1e-5, False, (p, STATE))
    np.testing.assert_array_equal(Y, plain * ops.dropout(np.ones_like(X), p, Generator(*STATE)).data)


def test_dropout_hides_infinities_too(device):
    X, b = np.zeros((2, 4, 8), np.float32), np.array([np.inf, 1, 1, 1, 1, 1, 1, -np.inf], np.float32)
    kept = Generator(*STATE).uniform(X.shape) >= DROPOUT[0]
    L_Y = np.where(kept, np.float32(0.7), np.float32(np.inf))
    Y, _, _, L_b = both(device, X, L_Y, None, b, 2, dropout=DROPOUT)
    np.testing.assert_allclose(Y, np.where(kept, b / 0.7, 0), rtol=1e-6)
    np.testing.assert_allclose(L_b, kept.sum((0, 1)), rtol=1e-6)


def test_the_clock_is_added_to_step_and_offset(device, rng):
    seed, stream, step, offset = STATE
    X, L_Y, w, b = arrays(rng, 1, (5, 3), 8)

    def run(X, L_Y, w, b, dropout, *clock):
        dropout = (dropout[0], (*dropout[1], *clock))
        Y, *rest = normalization.group_normalize(X, w, b, 2, 1e-5, True, dropout)
        return Y, *normalization.group_normalize_backward(L_Y, X, *rest, w, b, 2, True, dropout=dropout)

    moved = device.run(run, X, L_Y, w, b, DROPOUT, np.array([3, 5], np.uint32))
    expected = device.run(run, X, L_Y, w, b, (0.3, (seed, stream, step + 3, offset + 5)))
    for a, e in zip(moved, expected, strict=True):
        np.testing.assert_array_equal(a, e)


def test_arrays_that_lie_in_memory_in_other_ways(device, rng):
    X, L_Y, w, b = arrays(rng, 2, (3, 4), 8)
    expected = both(device, X, L_Y, w, b, 2, silu=True)
    for x, l_y in ((shifted(X), strided(L_Y)), (strided(X), shifted(L_Y))):
        for a, e in zip(both(device, x, l_y, strided(w), b, 2, silu=True), expected, strict=True):
            np.testing.assert_array_equal(a, e)


def test_what_the_kernels_leave_to_others(device):
    run = device.run
    assert run(normalization.group_normalize, np.ones((1, 2, 4)), None, None, 2, 1e-5) is NotImplemented
    assert run(normalization.group_normalize, np.ones((1, 2, 1028), np.float32), None, None, 1, 1e-5) is NotImplemented
    assert run(normalization.group_normalize, np.ones((1, 2, 257), np.float32), None, None, 1, 1e-5) is NotImplemented
    assert run(activation.silu_forward, np.ones(3)) is NotImplemented
    half, single = np.ones((1, 2, 8), np.float16), np.ones((1, 2, 8), np.float32)
    assert run(normalization.group_normalize, half, np.ones(8, np.float16), None, 2, 1e-5) is NotImplemented
    saved = np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), None, None, 2, True
    assert run(normalization.group_normalize_backward, half, single, *saved) is NotImplemented
    assert run(activation.silu_backward, half, single) is NotImplemented


@pytest.mark.parametrize("memory", [64 << 10, 99 << 10, 227 << 10])
@pytest.mark.parametrize("bytes_each", [4, 2])
def test_every_division_of_work_is_one_that_the_kernels_can_do(memory, bytes_each):
    for P in (0, 1, 2, 16, 49, 64, 784, 1024, 4096, 65536):
        for C in (1, 3, 4, 12, 30, 32, 64, 100, 128, 256, 512, 1024):
            for D in (d for d in (1, 2, 3, 4, 5, 8, 10, 16, 25, 32, 64, 128, 256, 512) if C % d == 0):
                for tiles in (1, 2):
                    a = normalization._divide(P, C, D, tiles, memory, bytes_each)
                    if a is None:
                        assert 4096 // bytes_each < D or (D > 256 and D % (16 // bytes_each))
                        continue
                    assert a.slab % D == 0 and a.slab % a.vector == 0 and C % a.vector == 0 and a.slab <= C
                    assert a.columns & (a.columns - 1) == 0 and a.slab // a.vector <= a.columns <= a.threads <= 256
                    assert a.threads % 32 == 0 and a.threads % a.columns == 0
                    assert a.shared + 1024 <= memory and a.shared % 4 == 0
                    assert a.tiled <= (a.shared >= bytes_each * tiles * P * a.slab)
                    assert a[:4] == normalization._divide(P, C, D, tiles, 227 << 10, bytes_each)[:4]


def test_silu(device, rng):
    for n in (0, 1, 5, 1030):
        X, L_Y = 4 * rng.normal(size=(2, n)).astype(np.float32)
        x = Tensor(X.astype(np.float64), requires_grad=True)
        y = ops.silu(x)
        y.backward(L_Y.astype(np.float64))
        np.testing.assert_allclose(device.run(activation.silu_forward, X), y.data, rtol=3e-7, atol=1e-7)
        np.testing.assert_allclose(device.run(activation.silu_backward, L_Y, X), x.grad, rtol=1e-6, atol=1e-6)
    far = np.array([-np.inf, -3e38, -200, -90, 90, 200, 3e38, np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(device.run(activation.silu_forward, far), [0, 0, 0, 0, *far[4:]])
    L_X = device.run(activation.silu_backward, np.ones(9, np.float32), far)
    np.testing.assert_array_equal(L_X, [0, 0, 0, 0, 1, 1, 1, 1, np.nan])


@pytest.mark.parametrize("precision", HALVES)
def test_silu_in_16_bits(precision, device, rng):
    for n, first in ((0, 0), (1, 0), (5, 0), (2061, 0), (2060, 1)):
        memory, (x, l_y) = in_16_bits(precision, *4 * rng.normal(size=(2, n)).astype(np.float32))
        x = Tensor(x[first:], requires_grad=True)
        y = ops.silu(x)
        y.backward(l_y[first:])
        X, L_Y = (a[first:] for a in memory)  # from 1 on off 16 bytes
        assert_rounded(device.run(activation.silu_forward, X), y.data)
        assert_rounded(device.run(activation.silu_backward, L_Y, X), x.grad)
    far = np.array([-np.inf, -6e4, -200, -90, 90, 200, 6e4, np.inf, np.nan], np.float32)
    (X, ones), (x, _) = in_16_bits(precision, far, np.ones_like(far))
    np.testing.assert_array_equal(from_memory(device.run(activation.silu_forward, X)), [0, 0, 0, 0, *x[4:]])
    L_X = from_memory(device.run(activation.silu_backward, ones, X))
    np.testing.assert_array_equal(L_X, [0, 0, 0, 0, 1, 1, 1, 1, np.nan])


def test_silu_of_an_array_without_axes_has_none(device):
    X = np.array(1.5, np.float32)
    assert device.run(activation.silu_forward, X).shape == () == device.run(activation.silu_backward, X, X).shape


def test_silu_leaves_what_it_cannot_count():
    many = np.broadcast_to(np.float32(0), 2**31)
    assert activation.silu_forward(many) is activation.silu_backward(many, many) is NotImplemented
