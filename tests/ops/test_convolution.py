"""tinydiff/ops/convolution.py against loops over pixels and filter entries, over a wide sample of all options."""

import itertools
import sys
import threading
from contextlib import nullcontext

import numpy as np
import pytest

from tinydiff import dispatch, ops
from tinydiff.autograd.tensor import Tensor
from tinydiff.cpu import patches
from tinydiff.machine import threads as workers
from tinydiff.ops import convolution


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


def pair(value):
    return (value, value) if isinstance(value, int) else value


def margins(padding):
    return tuple(pair(p) for p in pair(padding))


def reads(shape, w, stride, padding, dilation):
    """For each filter entry: (r, s), the outputs that read a pixel by it, and these pixels, as index lists."""
    (_, H, W, _), (R, S) = shape, w.shape[:2]
    (sh, sw), (dh, dw), ((top, bottom), (left, right)) = pair(stride), pair(dilation), margins(padding)
    Ho = (H + top + bottom - dh * (R - 1) - 1) // sh + 1
    Wo = (W + left + right - dw * (S - 1) - 1) // sw + 1
    for r, s in itertools.product(range(R), range(S)):
        rows = [(i, i * sh + r * dh - top) for i in range(Ho) if 0 <= i * sh + r * dh - top < H]
        columns = [(j, j * sw + s * dw - left) for j in range(Wo) if 0 <= j * sw + s * dw - left < W]
        for (i, y), (j, x) in itertools.product(rows, columns):
            yield (r, s), (i, j), (y, x)


def output_size(shape, w, stride, padding, dilation):
    return tuple(
        (n + sum(p) - d * (r - 1) - 1) // s + 1
        for n, r, s, p, d in zip(shape[1:3], w.shape[:2], pair(stride), margins(padding), pair(dilation), strict=True)
    )


def slices(C, K, groups):
    """Input and output channels of each group."""
    c, k = C // groups, K // groups
    return [(slice(g * c, (g + 1) * c), slice(g * k, (g + 1) * k)) for g in range(groups)]


def conv_loop(x, w, b, stride=1, padding=0, dilation=1, groups=1):
    y = np.zeros((len(x), *output_size(x.shape, w, stride, padding, dilation), w.shape[3])) + b
    for (r, s), (i, j), (row, column) in reads(x.shape, w, stride, padding, dilation):
        for c, k in slices(x.shape[3], w.shape[3], groups):
            y[:, i, j, k] += x[:, row, column, c] @ w[r, s, :, k]
    return y


def conv_gradients_loop(x, w, L_Y, stride=1, padding=0, dilation=1, groups=1):
    L_X, L_W = np.zeros(x.shape), np.zeros(w.shape)
    for (r, s), (i, j), (row, column) in reads(x.shape, w, stride, padding, dilation):
        for c, k in slices(x.shape[3], w.shape[3], groups):
            L_X[:, row, column, c] += L_Y[:, i, j, k] @ w[r, s, :, k].T
            L_W[r, s, :, k] += x[:, row, column, c].T @ L_Y[:, i, j, k]
    return L_X, L_W, L_Y.sum((0, 1, 2))


def sample(n):
    """Combinations of all options: every value often, with every other somewhere; the same ones each time."""
    rng = np.random.default_rng(7)
    options = {
        "image": [(5, 7), (6, 6), (1, 1), (1, 5), (4, 1), (8, 3)],
        "filter": [(1, 1), (3, 3), (2, 3), (3, 1), (1, 4), (4, 4), (5, 2)],
        "channels": [(2, 3, 1), (4, 6, 2), (4, 4, 4), (3, 6, 3), (1, 1, 1), (1, 3, 1), (4, 2, 2)],
        "stride": [1, 1, 2, (2, 1), (1, 3), 3],
        "padding": [0, 1, 2, (1, 2), (0, 3), ((0, 1), (0, 1)), ((2, 0), (1, 3)), ((1, 0), (0, 0))],
        "dilation": [1, 1, 2, (1, 2), (3, 1)],
    }
    found = []
    while len(found) < n:
        case = {key: values[rng.integers(len(values))] for key, values in options.items()}
        geometry = case["stride"], case["padding"], case["dilation"]
        size = output_size((1, *case["image"]), np.empty(case["filter"]), *geometry)
        if min(size) > 0 and case not in found:
            found.append(case)
    return found


def name_of(case):
    return " ".join(f"{key[0]}{value}" for key, value in case.items()).replace(", ", ",")


@pytest.fixture(params=["fast", "definition"])
def way(request):
    """Computes everything in one way or the other."""
    with dispatch.by_definition() if request.param == "definition" else nullcontext():
        yield


@pytest.mark.parametrize("case", sample(250), ids=name_of)
def test_conv2d_with_all_its_options(case, rng, way):
    C, K, groups = case["channels"]
    x, b = rng.normal(size=(2, *case["image"], C)), rng.normal(size=K)
    w = rng.normal(size=(*case["filter"], C // groups, K))
    options = {key: case[key] for key in ("stride", "padding", "dilation")} | {"groups": groups}
    tensors = leaf(x), leaf(w), leaf(b)
    y = ops.conv2d(*tensors, **options)
    expected = conv_loop(x, w, b, **options)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y.data, expected, atol=1e-12)
    L_Y = rng.normal(size=y.shape)
    y.backward(L_Y)
    for t, exact in zip(tensors, conv_gradients_loop(x, w, L_Y, **options), strict=True):
        np.testing.assert_allclose(t.grad, exact, atol=1e-11)


@pytest.mark.parametrize("case", sample(250)[100:], ids=name_of)
def test_conv_transpose2d_with_all_its_options(case, rng, way):
    """Its forward pass is the input gradient of conv2d, for each of the sizes that conv2d maps to the same one."""
    C, K, groups = case["channels"]
    w, b = rng.normal(size=(*case["filter"], C // groups, K)), rng.normal(size=C)
    options = {key: case[key] for key in ("stride", "padding", "dilation")} | {"groups": groups}
    small = output_size((1, *case["image"]), w, case["stride"], case["padding"], case["dilation"])
    base = [
        (n - 1) * s - sum(p) + d * (r - 1) + 1
        for n, s, p, d, r in zip(
            small, pair(case["stride"]), margins(case["padding"]), pair(case["dilation"]), case["filter"], strict=True
        )
    ]
    extra = tuple(n - m for n, m in zip(case["image"], base, strict=True))
    y = rng.normal(size=(2, *small, K))
    x = rng.normal(size=(2, *case["image"], C))
    tensors = leaf(y), leaf(w), leaf(b)
    out = ops.conv_transpose2d(*tensors, output_padding=extra, **options)
    assert out.shape == x.shape
    expected, L_w, _ = conv_gradients_loop(x, w, y, **options)
    np.testing.assert_allclose(out.data, expected + b, atol=1e-12)
    # <conv(x), y> = <x, conv^T(y)>
    np.testing.assert_allclose((conv_loop(x, w, 0, **options) * y).sum(), (x * (out.data - b)).sum(), atol=1e-10)
    out.backward(x)
    np.testing.assert_allclose(tensors[0].grad, conv_loop(x, w, 0, **options), atol=1e-11)
    np.testing.assert_allclose(tensors[1].grad, L_w, atol=1e-11)
    np.testing.assert_allclose(tensors[2].grad, x.sum((0, 1, 2)), atol=1e-11)


CHECKED = [  # images, filters, options: by gradcheck, in other memory layouts and in float32
    ((2, 4, 5, 3), (3, 3, 3, 2), {"padding": 1}),
    ((1, 5, 6, 2), (3, 3, 2, 3), {"padding": ((0, 1), (0, 1)), "stride": 2}),
    ((2, 3, 4, 3), (1, 1, 3, 2), {}),
    ((1, 4, 4, 2), (1, 1, 2, 2), {"stride": 2}),
    ((1, 1, 1, 3), (3, 3, 3, 2), {"padding": 1}),
    ((1, 1, 1, 2), (1, 1, 2, 4), {}),
    ((2, 5, 4, 4), (2, 3, 2, 6), {"groups": 2, "stride": (2, 1), "padding": (1, 2)}),
    ((1, 5, 5, 3), (3, 3, 1, 3), {"groups": 3, "padding": 1}),
    ((1, 6, 7, 2), (3, 2, 2, 3), {"dilation": (2, 3), "padding": ((2, 0), (0, 3))}),
    ((1, 4, 5, 1), (4, 5, 1, 3), {}),  # the filter as large as the image
    ((2, 4, 3, 2), (3, 3, 2, 1), {"padding": 3, "stride": 3, "dilation": 2}),
]


@pytest.mark.parametrize(("x", "w", "options"), CHECKED, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_conv2d_by_gradcheck(x, w, options, bias, rng, verify):
    x, w, b = rng.normal(size=x), rng.normal(size=w), rng.normal(size=w[3])
    arrays = (x, w, b) if bias else (x, w)
    verify(lambda *a: ops.conv2d(*a, **options), *arrays, expected=conv_loop(x, w, b if bias else 0, **options))


@pytest.mark.parametrize(("x", "w", "options"), CHECKED, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_conv_transpose2d_by_gradcheck(x, w, options, bias, rng, verify):
    geometry = options.get("stride", 1), options.get("padding", 0), options.get("dilation", 1)
    small = output_size(x, np.empty(w), *geometry)
    y, w, b = rng.normal(size=(x[0], *small, w[3])), rng.normal(size=w), rng.normal(size=x[3])
    arrays = (y, w, b) if bias else (y, w)
    verify(lambda *a: ops.conv_transpose2d(*a, **options), *arrays)


@pytest.mark.parametrize("output_padding", [0, 1, (0, 1), (2, 1)], ids=str)
def test_output_padding(output_padding, rng, verify):
    y, w = rng.normal(size=(1, 3, 2, 3)), rng.normal(size=(3, 2, 2, 3))
    out = ops.conv_transpose2d(y, w, stride=3, output_padding=output_padding)
    ph, pw = pair(output_padding)
    assert out.shape == (1, 9 + ph, 5 + pw + 0, 2)
    verify(lambda *a: ops.conv_transpose2d(*a, stride=3, output_padding=output_padding), y, w)


def test_conv2d_is_the_fully_connected_layer_on_patches(rng):
    """Y = P W + 1 b, L_P = L_Y W^T, L_W = P^T L_Y, L_b = 1^T L_Y, L_X = patches^T(L_P)."""
    N, H, W, C, K, R, S = 2, 6, 5, 3, 4, 3, 2
    x, w, b = rng.normal(size=(N, H, W, C)), rng.normal(size=(R, S, C, K)), rng.normal(size=K)
    options = {"stride": (2, 1), "padding": ((1, 0), (0, 1))}
    tensors = leaf(x), leaf(w), leaf(b)
    y = ops.conv2d(*tensors, **options)
    L_Y = rng.normal(size=y.shape)
    y.backward(L_Y)
    P = ops.patches(x, (R, S), **options)
    rows, matrix = P.data, w.reshape(R * S * C, K)
    np.testing.assert_allclose(y.data.reshape(-1, K), rows @ matrix + b, rtol=1e-12)
    L_rows = L_Y.reshape(-1, K)
    np.testing.assert_allclose(tensors[1].grad.reshape(-1, K), rows.T @ L_rows, rtol=1e-11)
    np.testing.assert_allclose(tensors[2].grad, L_rows.sum(0), rtol=1e-12)
    L_P = L_rows @ matrix.T
    L_X = ops.unpatches(L_P, x.shape, (R, S), **options)
    np.testing.assert_allclose(tensors[0].grad, L_X.data, rtol=1e-11, atol=1e-12)


# Larger images, where faster ways of computing the same may take over


def by_definition(x, w, b, L_Y, stride, padding, groups=1):
    """Values and gradients in float64, by products of whole shifted images."""
    (top, bottom), (left, right) = margins(padding)
    (_, H, W, C), (R, S, _, K), (sh, sw) = x.shape, w.shape, pair(stride)
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    Ho, Wo = L_Y.shape[1:3]
    y, L_padded, L_W = np.zeros(L_Y.shape) + b, np.zeros(padded.shape), np.zeros(w.shape)
    for r, s in itertools.product(range(R), range(S)):
        where = (slice(None), slice(r, r + sh * (Ho - 1) + 1, sh), slice(s, s + sw * (Wo - 1) + 1, sw))
        for c, k in slices(C, K, groups):
            pixels = padded[(*where, c)]
            y[..., k] += pixels @ w[r, s, :, k]
            L_padded[(*where, c)] += L_Y[..., k] @ w[r, s, :, k].T
            L_W[r, s, :, k] = np.tensordot(pixels, L_Y[..., k], ((0, 1, 2), (0, 1, 2)))
    return y, L_padded[:, top : top + H, left : left + W], L_W, L_Y.sum((0, 1, 2))


LARGE = [  # images, filters, stride, padding, groups
    ((4, 32, 32, 3), (3, 3, 3, 64), 1, 1, 1),
    ((3, 28, 28, 32), (3, 3, 32, 32), 1, 1, 1),
    ((5, 14, 14, 64), (3, 3, 64, 64), 1, 1, 1),
    ((2, 7, 7, 96), (3, 3, 96, 64), 1, 1, 1),
    ((1, 15, 17, 64), (3, 3, 64, 32), 1, 1, 1),
    ((2, 16, 16, 64), (3, 3, 64, 3), 1, 1, 1),
    ((2, 33, 31, 32), (3, 3, 32, 48), 2, ((0, 1), (0, 1)), 1),
    ((2, 16, 16, 64), (3, 3, 64, 64), 2, 1, 1),
    ((3, 16, 16, 64), (1, 1, 64, 96), 1, 0, 1),
    ((2, 20, 20, 32), (5, 5, 32, 16), 1, 2, 1),
    ((2, 16, 16, 64), (3, 3, 16, 64), 1, 1, 4),
    ((2, 16, 16, 32), (3, 3, 1, 32), 1, 1, 32),
    ((2, 18, 18, 64), (3, 3, 64, 64), 1, 0, 1),
    ((40, 8, 8, 16), (3, 3, 16, 16), 1, 1, 1),
    ((1, 64, 64, 32), (4, 4, 32, 32), 2, 1, 1),
]


@pytest.mark.parametrize(("x", "w", "stride", "padding", "groups"), LARGE, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_convolutions_by_definition(x, w, stride, padding, groups, dtype, rng, way):
    size = output_size(x, np.empty(w), stride, padding, 1)
    K, taps = w[3], w[0] * w[1] * w[2]
    exact = [rng.normal(size=shape).astype(np.float32) for shape in (x, w, (K,), (x[0], *size, K))]
    exact[1] /= np.float32(taps**0.5)
    tensors = [leaf(a.astype(dtype)) for a in exact[:3]]
    y = ops.conv2d(*tensors, stride=stride, padding=padding, groups=groups)
    y.backward(exact[3].astype(dtype))
    results = [y.data, *(t.grad for t in tensors)]
    definition = by_definition(*(a.astype(np.float64) for a in exact), stride, padding, groups)
    for ours, theirs in zip(results, definition, strict=True):
        assert ours.dtype == dtype
        norm = np.sqrt(np.mean(theirs**2))
        worst = np.abs(ours - theirs).max() / norm
        assert worst < (5e-5 if dtype == np.float32 else 1e-12)
    # the adjoint of the same convolution: its forward pass is L_X, its gradients are conv2d of x and the same L_W
    transposed = [leaf(exact[3].astype(dtype)), leaf(tensors[1].data)]
    extra = tuple(
        n - ((m - 1) * s - sum(p) + r)
        for n, m, s, p, r in zip(x[1:3], size, pair(stride), margins(padding), w[:2], strict=True)
    )
    out = ops.conv_transpose2d(*transposed, stride=stride, padding=padding, output_padding=extra, groups=groups)
    out.backward(tensors[0].data)
    results = [out.data, transposed[0].grad, transposed[1].grad]
    for ours, theirs in zip(results, (definition[1], definition[0] - exact[2], definition[2]), strict=True):
        worst = np.abs(ours - theirs).max() / np.sqrt(np.mean(theirs**2))
        assert worst < (5e-5 if dtype == np.float32 else 1e-12)


def test_results_do_not_lie_in_memory_that_the_next_call_overwrites(rng):
    def arrays(seed):
        r = np.random.default_rng(seed)
        return r.normal(size=(2, 9, 9, 8)), r.normal(size=(3, 3, 8, 8)), r.normal(size=8), r.normal(size=(2, 9, 9, 8))

    a, b = [[leaf(v) for v in arrays(seed)[:3]] for seed in (1, 2)]
    ya, yb = ops.conv2d(*a, padding=1), ops.conv2d(*b, padding=1)
    ta, tb = ops.conv_transpose2d(*a, padding=1), ops.conv_transpose2d(*b, padding=1)
    (yb * arrays(2)[3]).sum().backward()
    (ya * arrays(1)[3]).sum().backward()
    for seed, tensors, y, t in ((1, a, ya, ta), (2, b, yb, tb)):
        x, w, bias, L_Y = arrays(seed)
        exact = by_definition(x, w, bias, L_Y, 1, 1)
        np.testing.assert_allclose(y.data, exact[0], atol=1e-11)
        for tensor, gradient in zip(tensors, exact[1:], strict=True):
            np.testing.assert_allclose(tensor.grad, gradient, atol=1e-10)
        np.testing.assert_allclose(t.data, by_definition(x, w, 0, x, 1, 1)[1] + bias, atol=1e-11)
    assert not np.shares_memory(a[0].grad, b[0].grad)


def test_convolutions_in_several_threads(rng):
    x, w = rng.normal(size=(4, 24, 24, 16)), rng.normal(size=(3, 3, 16, 16))
    expected = ops.conv2d(x, w, padding=1).data
    results = {}

    def work(scale):
        images = x * scale
        results[scale] = [ops.conv2d(images, w, padding=1).data / scale for _ in range(10)]

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # change threads as often as possible
    try:
        threads = [threading.Thread(target=work, args=(scale,)) for scale in (1.0, 2.0, 4.0)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(before)
    assert len(results) == 3
    for y in itertools.chain(*results.values()):
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


def test_the_same_call_gives_the_same_bits(rng):
    x, w = rng.normal(size=(5, 14, 14, 32)).astype(np.float32), rng.normal(size=(3, 3, 32, 32)).astype(np.float32)
    runs = []
    for _ in range(2):
        tensors = leaf(x), leaf(w)
        y = ops.conv2d(*tensors, padding=1)
        y.backward(np.ones_like(y.data))
        runs.append([y.data.tobytes(), *(t.grad.tobytes() for t in tensors)])
    assert runs[0] == runs[1]


@pytest.mark.parametrize("function", [ops.conv2d, ops.conv_transpose2d])
def test_an_empty_batch(function, way):
    x, w, b = leaf(np.zeros((0, 4, 4, 3))), leaf(np.ones((3, 3, 3, 3))), leaf(np.ones(3))
    y = function(x, w, b, padding=1)
    assert y.shape == (0, 4, 4, 3)
    y.backward(np.zeros(y.shape))
    assert x.grad.shape == (0, 4, 4, 3)
    assert not w.grad.any()
    assert not b.grad.any()


def test_no_channels(way):
    x, w, b = leaf(np.zeros((2, 4, 4, 0))), leaf(np.ones((3, 3, 0, 5))), leaf(np.arange(5.0))
    y = ops.conv2d(x, w, b, padding=1)
    np.testing.assert_array_equal(y.data, np.zeros((2, 4, 4, 5)) + b.data)
    y.backward(np.ones(y.shape))
    assert x.grad.shape == x.shape and w.grad.shape == w.shape and b.grad.tolist() == [32] * 5
    y = ops.conv2d(leaf(np.ones((2, 4, 4, 3))), leaf(np.ones((3, 3, 3, 0))), padding=1)
    assert y.shape == (2, 4, 4, 0)
    y.backward(np.ones(y.shape))


@pytest.mark.parametrize("function", [ops.conv2d, ops.conv_transpose2d])
def test_promotion(function, way):
    x, w = leaf(np.ones((1, 3, 3, 2), np.float32)), leaf(np.ones((2, 2, 2, 2)))
    y = function(x, w)
    assert y.dtype == np.float64
    y.sum().backward()
    assert (x.grad.dtype, w.grad.dtype) == (np.float32, np.float64)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("shape", "filters", "stride"),
    [((1, 4, 4, 64), (3, 3, 64, 50), 1), ((1, 16, 20, 64), (1, 1, 64, 40), 1), ((2, 32, 32, 16), (3, 3, 16, 24), 2)],
)
def test_an_image_that_is_shared_by_threads(shape, filters, stride, threads, rng, monkeypatch):
    monkeypatch.setattr(patches, "MULTIPLICATIONS_WORTH_SHARING", 0)
    X, W, b = rng.standard_normal(shape), rng.standard_normal(filters), rng.standard_normal(filters[3])
    options = {"stride": stride, "padding": filters[0] // 2}
    expected = ops.conv2d(X, W, b, **options).data
    E, R = rng.standard_normal((len(X), filters[3])), rng.standard_normal(expected.shape)
    with workers.threads(threads):
        np.testing.assert_allclose(ops.conv2d(X, W, b, **options).data, expected, rtol=1e-12, atol=1e-12)
        Y = convolution.conv2d_add(X, W, b, E, R, **options).data
    np.testing.assert_allclose(Y, expected + E[:, None, None] + R, rtol=1e-12, atol=1e-12)
