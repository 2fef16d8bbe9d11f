"""Operations on float16: as exact as half precision can be, whatever they count, square or add up on the way."""

import numpy as np
import pytest

from tests.ops.test_arguments import CALLS
from tinydiff import nn, ops
from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor
from tinydiff.ops.convolution import upsample_conv2d
from tinydiff.random import Generator

# These only move elements, or add them up in float32 themselves; all others are asked to compute in float32.
MOVERS = (
    "Reshape Transpose BroadcastTo Concatenate Split GetItem Pad PadByIndex Embedding UpsampleNearest2d Patches Cast"
)


def run(fn, arrays, dtype, scale=1.0):
    """Value and gradients for a fixed random cotangent of that scale; all numbers are those of half precision."""
    xs = [Tensor(a.astype(np.float16).astype(dtype), requires_grad=True) for a in arrays]
    y = fn(*xs)
    L_Y = np.asarray(np.random.default_rng(1).uniform(0.5, 1.5, y.shape) * scale).astype(np.float16)
    y.backward(L_Y.astype(dtype))
    return [y.data, *(x.grad for x in xs)]


def check(fn, *arrays, scale=1.0):
    exact = run(fn, arrays, np.float64, scale)
    for what, half, wide in zip(("value", *"abc"), run(fn, arrays, np.float16, scale), exact, strict=False):
        assert half.dtype == np.float16, what
        assert np.isfinite(wide).all(), what
        np.testing.assert_allclose(
            half.astype(np.float64), wide, rtol=6e-4, atol=1e-5 * np.abs(wide).max() + 1e-7, err_msg=what
        )


@pytest.mark.parametrize("name", CALLS)
def test_every_operation_is_exact_to_half_precision(name):
    function, lists = CALLS[name]
    check(function, *(np.array(a) for a in lists), scale=0.1)


def test_every_function_computes_in_float32_or_moves_elements():
    found, waiting = set(), [Function]
    while waiting:
        kinds = [kind for kind in waiting.pop().__subclasses__() if kind.__module__.startswith("tinydiff.ops")]
        found |= {kind for kind in kinds if kind.__module__ != "tinydiff.ops.broadcasting"}
        waiting += kinds
    assert {kind.__name__ for kind in found if not (kind.widens_half or kind.takes_half)} == {*MOVERS.split()}


MANY = np.ones(70_000)
IMAGE = np.ones((1, 260, 260, 1))  # of more pixels than half can count
LARGE = np.random.default_rng(0).uniform(200, 400, (3, 8))  # whose squares overflow

OUT_OF_RANGE = {
    "mean": (ops.mean, [MANY], 1),
    "mean of large numbers": (ops.mean, [LARGE * 100], 1),
    "max": (ops.max, [MANY], 1),
    "min": (lambda x: ops.min(x, 0), [MANY[:, None]], 1),
    "sum of large numbers that cancel": (ops.sum, [np.repeat([60_000.0, -60_000.0, 3.0], 10)], 1),
    "sum beyond 2048 ones": (ops.sum, [MANY[:5001]], 1),
    "var": (lambda x: ops.var(x, 1), [LARGE], 0.01),
    "var, ddof": (lambda x: ops.var(x, ddof=1), [MANY * np.resize([1, -1], 70_000)], 1),
    "logsumexp": (ops.logsumexp, [MANY], 1),
    "softmax": (ops.softmax, [np.zeros((2, 3000))], 1000),
    "log_softmax": (ops.log_softmax, [np.zeros((2, 3000))], 0.01),
    "layer_norm": (ops.layer_norm, [LARGE], 1),
    "group_norm": (lambda x: ops.group_norm(x, 2), [LARGE], 1),
    "group_norm of many pixels": (lambda x: ops.group_norm(x, 1), [np.resize(LARGE, (2, 2500, 2))], 1),
    "mse_loss": (ops.mse_loss, [LARGE, 0 * LARGE + 100], 0.01),
    "mse_loss of many": (ops.mse_loss, [2 * MANY, MANY], 1),
    "mse_loss, sum": (lambda p, t: ops.mse_loss(p, t, "sum"), [MANY[:5001] / 4, 0 * MANY[:5001]], 1),
    "cross_entropy": (lambda x: ops.cross_entropy(x, np.zeros(70_000, int)), [np.resize([0.0, 1.0], (70_000, 2))], 1),
    "cross_entropy of many classes": (lambda x: ops.cross_entropy(x, [5]), [np.zeros((1, 70_000))], 1),
    "avg_pool2d": (lambda x: ops.avg_pool2d(x, 260), [IMAGE], 1),
    "max_pool2d": (lambda x: ops.max_pool2d(x, 260), [IMAGE], 1),
    "matmul": (ops.matmul, [np.ones((2, 5001)), np.ones((5001, 3))], 1),
    "einsum": (lambda a, b: ops.einsum("nd,nm->dm", a, b), [np.ones((5001, 2)), np.ones((5001, 3))], 1),
    "linear": (ops.linear, [np.ones((5001, 2)), np.ones((2, 3)), np.ones(3)], 1),
    "conv2d": (lambda x, w, b: ops.conv2d(x, w, b), [IMAGE[:, :72, :72], np.ones((3, 3, 1, 2)), np.ones(2)], 1),
    "conv2d, groups": (
        lambda x, w: ops.conv2d(x, w, groups=2),
        [np.ones((1, 72, 72, 2)), np.ones((1, 1, 1, 2))],
        1,
    ),
    "upsample_conv2d": (upsample_conv2d, [IMAGE[:, :36, :36], np.ones((3, 3, 1, 2)), np.ones(2)], 1),
    "conv_transpose2d": (
        lambda x, w, b: ops.conv_transpose2d(x, w, b, stride=2),
        [IMAGE[:, :72, :72], np.ones((2, 2, 3, 1)), np.ones(3)],
        0.2,
    ),
    "a bias for many rows": (ops.add, [np.ones((5001, 2)), np.ones(2)], 1),
    "a weight for many rows": (ops.multiply, [np.full((5001, 2), 1e-4), np.ones(2)], 1e-3),
    "a limit for many": (lambda x, low: ops.clip(x, low), [0 * MANY[:5001], np.ones(1)], 1),
    "broadcast_to": (lambda x: ops.broadcast_to(x, (5001, 2)), [np.ones(2)], 1),
    "getitem": (lambda x: x[np.zeros(5001, int)], [np.ones(3)], 1),
    "embedding": (lambda w: ops.embedding(np.ones(5001, int), w), [np.ones((3, 2))], 1),
    "pad by the edge": (lambda x: ops.pad(x, ((3000, 2000),), "edge"), [np.ones(1)], 1),
    "pad with a value": (lambda x, v: ops.pad(x, ((3000, 2000),), value=v), [np.ones(1), np.array(2.0)], 1),
    "upsample_nearest2d": (lambda x: ops.upsample_nearest2d(x, 71), [np.ones((1, 1, 1, 1))], 1),
    "patches": (
        lambda x: ops.patches(x, (1, 71), dilation=(1, 1), padding=((0, 0), (70, 70))),
        [IMAGE[:, :1, :71]],
        40,
    ),
    "unpatches": (
        lambda p: ops.unpatches(p, (1, 1, 71, 1), (1, 71), padding=((0, 0), (70, 70))),
        [np.full((141, 71), 40.0)],
        1,
    ),
    "attention": (ops.attention, [np.zeros((2, 4)), np.ones((5001, 4)), np.ones((5001, 2))], 1),
    "attention with a mask": (
        lambda q, k, v, m: ops.attention(q, k, v, m),
        [np.ones((2, 4)) * 100, np.ones((9, 4)) * 300, np.ones((9, 2)), np.zeros((2, 9))],
        1,
    ),
    "gelu": (lambda x: ops.gelu(x, "tanh"), [np.array([50.0, -50, 300, -300])], 1),
    "divide": (ops.divide, [np.array([50_000.0, 1e-3]), np.array([10.0, 300.0])], 10),
    "power": (lambda x: x**3, [np.array([40.0, -39.0])], 0.1),
    "a number out of range": (lambda x: x * 1e-6, [np.array([60_000.0])], 1),
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_what_half_cannot_count_square_or_add(name):
    fn, arrays, scale = OUT_OF_RANGE[name]
    check(fn, *arrays, scale=scale)


def test_the_examples_of_an_issue():
    h = Tensor(np.ones(70_000, np.float16), requires_grad=True)
    h.mean().backward()
    assert h.grad[0] == np.float16(1 / 70_000)
    assert ops.mse_loss(np.full(300, 20.0, np.float16), np.zeros(300, np.float16)).item() == 400


@pytest.mark.parametrize("other", [np.float32, np.float64])
def test_half_with_a_wider_type_gives_the_wider(other):
    a, b = Tensor(np.ones(3, np.float16), requires_grad=True), Tensor(np.ones(3, other), requires_grad=True)
    for function in (ops.add, ops.power, ops.mse_loss, ops.matmul):
        y = function(a, b)
        assert y.dtype == other
        y.backward(np.ones(y.shape, other))
        assert (a.grad.dtype, b.grad.dtype) == (np.float16, other)


def test_dropout_keeps_what_it_keeps_in_float32():
    x = np.linspace(-3, 3, 1000)
    check(lambda a: ops.dropout(a, 0.3, Generator(4)), x)


def test_a_network_of_half_precision():
    """Weights, activations and gradients stay half from layer to layer."""
    layers = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 2))
    for p in layers.parameters():
        p.data = p.data.astype(np.float16)
    x = Tensor(np.random.default_rng(0).normal(size=(5000, 8)).astype(np.float16), requires_grad=True)
    y = layers(x)
    assert y.dtype == np.float16
    ops.mse_loss(y, np.zeros(y.shape, np.float16)).backward()
    assert all(p.grad.dtype == np.float16 and np.abs(p.grad).max() > 0 for p in (x, *layers.parameters()))
