"""tinydiff/ops/normalization.py against loops over groups, gradients by gradcheck."""

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor
from tinydiff.ops.normalization import group_norm_silu, group_normalize


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


def normalize(values, eps):
    return (values - values.mean()) / np.sqrt(values.var() + eps)


def group_norm_loop(x, groups, weight=None, bias=None, eps=1e-5):
    y, size = np.empty_like(x), x.shape[-1] // groups
    for n in range(len(x)):
        for g in range(groups):
            channels = slice(g * size, (g + 1) * size)
            y[n, ..., channels] = normalize(x[n, ..., channels], eps)
    return y * (1 if weight is None else weight) + (0 if bias is None else bias)


def layer_norm_loop(x, weight=None, bias=None, eps=1e-5):
    y = np.empty_like(x)
    for i in np.ndindex(*x.shape[:-1]):
        y[i] = normalize(x[i], eps)
    return y * (1 if weight is None else weight) + (0 if bias is None else bias)


SHAPES = [
    ((2, 3, 4, 6), 3), ((2, 3, 4, 6), 1), ((2, 3, 4, 6), 6), ((2, 5, 4), 2), ((3, 8), 2), ((1, 1, 1, 4), 2),
    ((2, 2, 1, 3, 4), 4),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
@pytest.mark.parametrize("affine", ["both", "weight", "bias", "neither"])
def test_group_norm(shape, groups, affine, rng, verify):
    C = shape[-1]
    x, w, b = rng.normal(1, 2, shape), rng.uniform(0.5, 2, C), rng.normal(size=C)
    if affine == "both":
        expected = group_norm_loop(x, groups, w, b)
        verify(lambda a, c, d: ops.group_norm(a, groups, c, d), x, w, b, expected=expected, single=1e-4)
    elif affine == "weight":
        verify(lambda a, c: ops.group_norm(a, groups, c), x, w, expected=group_norm_loop(x, groups, w), single=1e-4)
    elif affine == "bias":
        expected = group_norm_loop(x, groups, None, b)
        verify(lambda a, c: ops.group_norm(a, groups, bias=c), x, b, expected=expected, single=1e-4)
    else:
        verify(lambda a: ops.group_norm(a, groups), x, expected=group_norm_loop(x, groups), single=1e-4)


@pytest.mark.parametrize("shape", [(2, 3, 5), (4, 6), (5,), (2, 1, 1, 3), (3, 2)], ids=str)
@pytest.mark.parametrize("affine", ["both", "weight", "bias", "neither"])
def test_layer_norm(shape, affine, rng, verify):
    C = shape[-1]
    x, w, b = rng.normal(1, 2, shape), rng.uniform(0.5, 2, C), rng.normal(size=C)
    if affine == "both":
        verify(ops.layer_norm, x, w, b, expected=layer_norm_loop(x, w, b), single=1e-4)
    elif affine == "weight":
        verify(ops.layer_norm, x, w, expected=layer_norm_loop(x, w), single=1e-4)
    elif affine == "bias":
        verify(lambda a, c: ops.layer_norm(a, bias=c), x, b, expected=layer_norm_loop(x, None, b), single=1e-4)
    else:
        verify(ops.layer_norm, x, expected=layer_norm_loop(x), single=1e-4)


@pytest.mark.parametrize("eps", [1e-6, 0.1, 3.0])
def test_eps_is_added_to_the_variance(eps, rng, verify):
    x = rng.normal(size=(2, 3, 4))
    verify(lambda a: ops.group_norm(a, 2, eps=eps), x, expected=group_norm_loop(x, 2, eps=eps), single=1e-4)
    verify(lambda a: ops.layer_norm(a, eps=eps), x, expected=layer_norm_loop(x, eps=eps), single=1e-4)


def test_group_norm_over_many_pixels_in_float32(rng):
    """At a U-Net's size: values and all gradients against the formula in float64."""
    N, H, C, G = 3, 16, 64, 32
    x64 = rng.normal(0.5, 1.5, (N, H, H, C)).astype(np.float32).astype(np.float64)
    w64, b64, L_Y = rng.uniform(0.5, 2, C), rng.normal(size=C), rng.normal(size=(N, H, H, C))
    w64, b64, L_Y = (a.astype(np.float32).astype(np.float64) for a in (w64, b64, L_Y))
    x, w, b = (leaf(a.astype(np.float32)) for a in (x64, w64, b64))
    y = ops.group_norm(x, G, w, b)
    y.backward(L_Y.astype(np.float32))

    def grouped(a):
        return a.reshape(N, H * H, G, C // G)

    def mean(a):
        return a.mean((1, 3), keepdims=True)

    s = np.sqrt(mean((grouped(x64) - mean(grouped(x64))) ** 2) + 1e-5)
    Z = (grouped(x64) - mean(grouped(x64))) / s
    L_Z = grouped(L_Y * w64)
    L_X = (L_Z - mean(L_Z) - Z * mean(L_Z * Z)) / s
    Z = Z.reshape(x64.shape)
    np.testing.assert_allclose(y.data, Z * w64 + b64, atol=2e-5)
    np.testing.assert_allclose(x.grad, L_X.reshape(x64.shape), atol=2e-5)
    np.testing.assert_allclose(w.grad, (L_Y * Z).sum((0, 1, 2)), atol=2e-4)
    np.testing.assert_allclose(b.grad, L_Y.sum((0, 1, 2)), atol=2e-4)


def test_numbers_far_from_0_keep_their_variance():
    """E[x^2] - E[x]^2 would give nothing but rounding errors here."""
    x = (1000 + np.linspace(-1, 1, 64)).reshape(1, 32, 2).astype(np.float32)
    exact = group_norm_loop(x.astype(np.float64), 1)
    np.testing.assert_allclose(ops.group_norm(x, 1).data, exact, atol=1e-3)
    np.testing.assert_allclose(ops.layer_norm(x.reshape(1, 64)).data, exact.reshape(1, 64), atol=1e-3)


@pytest.mark.parametrize("function", [lambda x: ops.group_norm(x, 2), ops.layer_norm], ids=["group", "layer"])
def test_a_constant_group_gives_zeros_and_finite_gradients(function):
    x = leaf(np.full((2, 3, 4), 5.0))
    y = function(x)
    y.backward(np.random.default_rng(0).normal(size=y.shape))
    assert (y.data == 0).all()
    assert np.isfinite(x.grad).all()


def test_gradient_of_a_sum_is_0_but_that_of_a_projection_is_not(rng):
    x = leaf(rng.normal(size=(2, 4, 6)))
    ops.group_norm(x, 3).sum().backward()
    np.testing.assert_allclose(x.grad, 0, atol=1e-12)
    x.grad = None
    (ops.group_norm(x, 3) * rng.normal(size=x.shape)).sum().backward()
    assert np.abs(x.grad).max() > 0.1


def test_images_do_not_mix(rng):
    a = rng.normal(size=(3, 2, 2, 4))
    b = a.copy()
    b[1] += rng.normal(size=(2, 2, 4))
    np.testing.assert_array_equal(ops.group_norm(a, 2).data[[0, 2]], ops.group_norm(b, 2).data[[0, 2]])


def test_an_empty_batch(verify):
    verify(lambda x: ops.group_norm(x, 2), np.zeros((0, 2, 2, 4)), expected=np.zeros((0, 2, 2, 4)))
    verify(ops.layer_norm, np.zeros((0, 4)), expected=np.zeros((0, 4)))


def test_group_norm_names_what_does_not_fit():
    x = leaf(np.ones((2, 3, 3, 6)))
    with pytest.raises(ValueError, match=r"group_norm.*\b6\b.*\b4\b|group_norm.*\b4\b.*\b6\b"):
        ops.group_norm(x, 4)
    for groups in (0, -1):
        with pytest.raises(ValueError, match=f"group_norm.*{groups}"):
            ops.group_norm(x, groups)
    for bad in ((3,), (6, 1), (1,), ()):
        pattern = str(bad).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(ValueError, match=rf"group_norm.*{pattern}"):
            ops.group_norm(x, 3, np.ones(bad), np.ones(6))
        with pytest.raises(ValueError, match=rf"group_norm.*{pattern}"):
            ops.group_norm(x, 3, np.ones(6), np.ones(bad))
    with pytest.raises(ValueError, match=r"group_norm.*\(6,\)"):
        ops.group_norm(np.ones(6), 3)


def test_layer_norm_names_what_does_not_fit():
    x = leaf(np.ones((2, 6)))
    for bad in ((2,), (2, 6), (1,)):
        pattern = str(bad).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(ValueError, match=rf"layer_norm.*{pattern}"):
            ops.layer_norm(x, np.ones(bad))
        with pytest.raises(ValueError, match=rf"layer_norm.*{pattern}"):
            ops.layer_norm(x, np.ones(6), np.ones(bad))
    with pytest.raises(ValueError, match="layer_norm"):
        ops.layer_norm(leaf(1.0))


def silu(z):
    return z / (1 + np.exp(-z))


@pytest.mark.parametrize(("shape", "groups"), [*SHAPES, ((2, 7, 5, 4), 2), ((0, 2, 2, 4), 2)], ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_group_norm_and_silu_in_one(shape, groups, affine, rng, verify):
    C = shape[-1]
    x, w, b = rng.normal(1, 2, shape), rng.uniform(0.5, 2, C), rng.normal(size=C)
    if affine:
        expected = silu(group_norm_loop(x, groups, w, b))
        verify(lambda a, c, d: group_norm_silu(a, groups, c, d), x, w, b, expected=expected, single=1e-4)
    else:
        verify(lambda a: group_norm_silu(a, groups), x, expected=silu(group_norm_loop(x, groups)), single=1e-4)


def test_silu_does_not_overflow():
    x = np.array([[-1.0, 1.0]], np.float32)
    with np.errstate(all="raise"):
        y = group_norm_silu(x, 1, np.full(2, 1e4, np.float32), np.zeros(2, np.float32)).data
    np.testing.assert_allclose(y, [[0, 1e4]], rtol=1e-4)


@pytest.mark.parametrize("std", [1e-2, 1e-1, 1.0])
@pytest.mark.parametrize("fused", [False, True])
def test_a_large_mean_does_not_drown_the_variance(std, fused, rng):
    """Mean 1000: float32 keeps 6e-5 there, so Z is known to about 6e-5 / std; 20 times that would mean a worse method."""
    x = (1000 + std * rng.normal(size=(2, 16, 16, 8))).astype(np.float32)
    x[:, :4] += np.float32(3 * std)  # the first rows are not like the others
    exact = group_norm_loop(x.astype(float), 2, eps=1e-9)
    y = (group_norm_silu if fused else ops.group_norm)(x, 2, eps=1e-9).data
    np.testing.assert_allclose(y, silu(exact) if fused else exact, atol=max(6e-5 / std, 1e-4))
    _, mean, scale = group_normalize(x, None, None, 2, 1e-9)
    groups = x.astype(float).reshape(2, 256, 2, 4)
    np.testing.assert_allclose(mean, groups.mean((1, 3)), rtol=1e-7)
    np.testing.assert_allclose(scale, 1 / np.sqrt(groups.var((1, 3)) + 1e-9), rtol=1e-5)


def test_only_the_input_is_kept_for_the_backward_pass(rng):
    x, w, b = leaf(rng.normal(size=(2, 8, 8, 4))), leaf(np.ones(4)), leaf(np.zeros(4))
    y = group_norm_silu(x, 2, w, b)
    kept = [a for a in (*y._node.op._saved, *vars(y._node.op).values()) if isinstance(a, np.ndarray)]
    assert sum(a.size for a in kept if a is not x.data and a is not w.data and a is not b.data) <= 2 * 2 * 2


SIZES = [  # images that are one row, rows of several pixels, rows of one pixel; as many groups as channels, or one
    ((1, 4, 4, 64), 32), ((1, 8, 8, 96), 32), ((1, 16, 16, 96), 96), ((1, 24, 24, 32), 1), ((1, 11, 11, 96), 32),
    ((2, 8, 8, 512), 32), ((3, 7, 1, 3000), 6),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "groups"), SIZES, ids=str)
@pytest.mark.parametrize("fused", [False, True])
def test_one_image_and_few(shape, groups, fused, rng):
    """However an image is cut into rows: values and gradients of a random projection against float64 and finite
    differences along a random direction, with a strided gradient."""
    C = shape[-1]
    function = group_norm_silu if fused else ops.group_norm
    x, w, b = rng.normal(3, 2, shape), rng.uniform(0.5, 2, C), rng.normal(size=C)
    L_Y = rng.normal(size=(*shape[:-1], 2 * C))[..., ::2]

    def run(dtype):
        leaves = [leaf(a.astype(dtype)) for a in (x, w, b)]
        y = function(leaves[0], groups, *leaves[1:])
        y.backward(L_Y if dtype is float else L_Y.astype(dtype))
        return y.data, *(a.grad for a in leaves)

    y, *gradients = run(float)
    plain = group_norm_loop(x, groups, w, b)
    np.testing.assert_allclose(y, silu(plain) if fused else plain, atol=1e-12)
    for i, gradient in enumerate(gradients):
        step = [1e-6 * rng.normal(size=a.shape) if i == j else 0 for j, a in enumerate((x, w, b))]
        ends = [function(x + s * step[0], groups, w + s * step[1], b + s * step[2]).data for s in (1, -1)]
        np.testing.assert_allclose(((ends[0] - ends[1]) * L_Y).sum() / 2, (gradient * step[i]).sum(), rtol=1e-5)
    for ours, exact in zip(run(np.float32), (y, *gradients), strict=True):
        np.testing.assert_allclose(ours, exact, atol=3e-6 * np.abs(exact).max())


def test_a_group_far_from_0_beside_others(rng):
    """One group at 1000, the others at 0: each keeps its own accuracy, in an image alone and among others."""
    for shape in ((1, 8, 8, 64), (1, 32, 32, 64), (3, 16, 16, 64)):
        x = rng.normal(size=shape).astype(np.float32)
        x[..., 4:6] = np.float32(1000) + np.float32(0.1) * x[..., 4:6]
        y, exact = ops.group_norm(x, 32, eps=1e-9).data, group_norm_loop(x.astype(float), 32, eps=1e-9)
        np.testing.assert_allclose(y[..., 4:6], exact[..., 4:6], atol=1e-3)
        others = np.delete(np.arange(64), [4, 5])
        np.testing.assert_allclose(y[..., others], exact[..., others], atol=1e-5)


def test_a_group_that_is_not_finite_leaves_the_others_alone(rng):
    x = rng.normal(size=(2, 8, 8, 12)).astype(np.float32)
    y = ops.group_norm(x, 4).data
    x[1, 3, 3, 4] = np.inf
    with np.errstate(invalid="ignore"):
        ours = ops.group_norm(x, 4).data
    assert np.isnan(ours[1, ..., 3:6]).all()
    others = np.delete(np.arange(12), [3, 4, 5])
    np.testing.assert_array_equal(ours[..., others], y[..., others])


def test_dtypes_widen(rng):
    x, w = rng.normal(size=(2, 5, 5, 4)), rng.uniform(0.5, 2, 4)
    y = group_norm_silu(x.astype(np.float32), 2, w)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y.data, silu(group_norm_loop(x.astype(np.float32).astype(float), 2, w)), atol=1e-12)
    assert group_norm_silu(x.astype(np.float32), 2, w.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("shape", [(2, 0, 3, 4), (0, 4), (2, 3, 0), (2, 10, 10, 0)], ids=str)
def test_no_numbers(shape):
    x, w, b = leaf(np.zeros(shape)), leaf(np.ones(shape[-1])), leaf(np.zeros(shape[-1]))
    y = group_norm_silu(x, 2, w, b)
    y.backward(np.zeros(shape))
    assert y.shape == x.grad.shape == shape
    assert (w.grad == 0).all() and (b.grad == 0).all()
    _, mean, scale = group_normalize(x.data, None, None, 2, 1e-5)
    assert mean.shape == scale.shape == (shape[0], 2) and (mean == 0).all()


def test_rounding_gives_no_negative_variance():
    """Constant groups whose mean is not exact: mean(D^2) - mean(D)^2 can be below 0 by more than eps."""
    for shape in ((64, 3, 5, 6), (64, 40, 40, 6)):
        x = np.broadcast_to(np.linspace(1000.1, 1234.5, 64, dtype=np.float32)[:, None, None, None], shape)
        _, mean, scale = group_normalize(x, None, None, 2, 1e-20)
        assert np.isfinite(scale).all()
        np.testing.assert_allclose(mean, x[:, 0, 0, :2], rtol=2e-7)
