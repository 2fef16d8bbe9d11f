"""Infinities, NaN, ties and tensors in unusual places, and every geometry of a transposed convolution, as in PyTorch."""

import itertools

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
torch = pytest.importorskip("torch")
F = torch.nn.functional

SPECIAL = [-np.inf, -2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0, np.inf, np.nan]


def compare(ours, theirs, *arrays, L_Y=None, atol=0.0):
    """Values, and the gradients of all arrays for a random cotangent or the given one."""
    xs = [Tensor(a.copy(), requires_grad=True) for a in arrays]
    ts = [torch.tensor(a, requires_grad=True) for a in arrays]
    y, t = ours(*xs), theirs(*ts)
    np.testing.assert_allclose(y.data, t.detach().numpy(), rtol=1e-12, atol=atol)
    L_Y = np.random.default_rng(1).normal(size=y.shape) if L_Y is None else np.full(y.shape, L_Y)
    y.backward(L_Y)
    t.backward(torch.tensor(L_Y))
    for x, a in zip(xs, ts, strict=True):
        np.testing.assert_allclose(x.grad, a.grad.numpy(), rtol=1e-12, atol=atol)


def grid(*values):
    return np.array(list(itertools.product(*values))).T.copy()


@pytest.mark.parametrize("L_Y", [1.0, np.inf])
def test_relu(L_Y):
    compare(ops.relu, F.relu, np.array(SPECIAL), L_Y=L_Y)


@pytest.mark.parametrize("name", ["abs", "sigmoid", "tanh", "softplus", "erf", "exp", "sqrt", "log"])
def test_activations(name):
    compare(getattr(ops, name), getattr(F if name == "softplus" else torch, name), np.array(SPECIAL))


@pytest.mark.parametrize("L_Y", [1.0, np.inf])
@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_maximum_and_minimum(name, L_Y):
    compare(getattr(ops, name), getattr(torch, name), *grid(SPECIAL, SPECIAL), L_Y=L_Y)


@pytest.mark.parametrize("name", ["max", "min"])
@pytest.mark.parametrize("row", [*itertools.product([0.0, 1.0, np.inf, -np.inf, np.nan], repeat=3)], ids=str)
def test_extremes(name, row):
    compare(getattr(ops, name), getattr(torch, name), np.array(row), L_Y=1.5)


def test_power():
    compare(ops.power, torch.pow, *grid(SPECIAL, [*SPECIAL, 3.0, -3.0]), L_Y=1.5)


@pytest.mark.parametrize("exponent", [-2, -1.5, -1, 0, 1, 1.5, 2, 3, np.inf], ids=str)
def test_power_by_a_number(exponent):
    compare(lambda x: x**exponent, lambda x: x**exponent, np.array(SPECIAL))


LIMITS = [-np.inf, -1.0, 0.0, 1.0, np.inf, np.nan]


def test_clip_by_tensors():
    """Also low = high and low > high, with a gradient for each limit."""
    x, low, high = grid(LIMITS, LIMITS, LIMITS)
    compare(ops.clip, torch.clamp, x, low, high, L_Y=1.5)
    compare(lambda x, low: ops.clip(x, low), lambda x, low: torch.clamp(x, min=low), x, low, L_Y=1.5)
    compare(lambda x, high: ops.clip(x, None, high), lambda x, high: torch.clamp(x, max=high), x, high, L_Y=1.5)


@pytest.mark.parametrize("L_Y", [None, np.inf])
@pytest.mark.parametrize("shapes", [((4,), (4, 1), ()), ((2, 3), (3,), (2, 1)), ((), (3,), (2, 1))], ids=str)
def test_clip_broadcasts(shapes, L_Y, rng):
    x, low, high = (rng.normal(size=shape) for shape in shapes)

    def theirs(*tensors):
        return torch.clamp(*torch.broadcast_tensors(*tensors))  # its backward needs equal shapes

    compare(ops.clip, theirs, x, low - 0.5, high + 0.5, L_Y=L_Y, atol=1e-14)


def test_attention_with_a_tensor_as_scale_and_as_mask(rng):
    q, k, v, mask = (rng.normal(size=shape) for shape in ((2, 3, 4), (2, 5, 4), (2, 5, 3), (3, 5)))
    mask[1, 2], mask[2] = -np.inf, [0, -np.inf, -np.inf, 0, 1]

    def theirs(q, k, v, mask, scale):
        return F.softmax(scale * q @ k.swapaxes(1, 2) + mask, -1) @ v

    compare(lambda *a: ops.attention(*a), theirs, q, k, v, mask, np.array(0.7), atol=1e-14)


def geometries(count):
    rng = np.random.default_rng(5)
    while count:
        stride, dilation, padding, filters = (
            tuple(rng.integers(*r, 2).tolist()) for r in ((1, 4), (1, 6), (0, 4), (1, 4))
        )
        size = tuple(rng.integers(1, 6, 2).tolist())
        extra = tuple(int(rng.integers(max(s, d))) for s, d in zip(stride, dilation, strict=True))
        groups = int(rng.choice([1, 1, 2]))
        channels = (int(rng.choice([1, 2, 5])) * groups, int(rng.choice([1, 2, 8])) * groups)
        results = (
            (n - 1) * s - 2 * p + d * (r - 1) + 1 + e
            for n, s, p, d, r, e in zip(size, stride, padding, dilation, filters, extra, strict=True)
        )
        if min(results) > 0:
            count -= 1
            options = {"stride": stride, "padding": padding, "output_padding": extra, "dilation": dilation}
            yield size, channels, filters, options | {"groups": groups}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("size", "channels", "filters", "options"), list(geometries(80)), ids=str)
def test_conv_transpose2d(size, channels, filters, options, dtype, rng):
    C, K = channels
    arrays = rng.normal(size=(2, *size, K)), rng.normal(size=(*filters, C // options["groups"], K)), rng.normal(size=C)
    xs = [Tensor(a.astype(dtype), requires_grad=True) for a in arrays]
    x, w, b = (torch.tensor(x.data.astype(np.float64), requires_grad=True) for x in xs)
    y = ops.conv_transpose2d(*xs, **options)
    nchw, kcrs = x.permute(0, 3, 1, 2).contiguous(), w.permute(3, 2, 0, 1).contiguous()
    t = F.conv_transpose2d(nchw, kcrs, b, **options).permute(0, 2, 3, 1)
    assert y.shape == tuple(t.shape)
    L_Y = rng.normal(size=y.shape).astype(dtype)
    y.backward(L_Y)
    t.backward(torch.tensor(L_Y.astype(np.float64)))
    atol = 1e-11 if dtype == np.float64 else 1e-4
    np.testing.assert_allclose(y.data, t.detach().numpy(), atol=atol)
    for ours, theirs in zip(xs, (x, w, b), strict=True):
        np.testing.assert_allclose(ours.grad, theirs.grad.numpy(), atol=atol)
