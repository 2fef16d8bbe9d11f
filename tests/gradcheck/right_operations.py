"""Operations, layers and losses that are right, each with inputs to check it at: none of them may be accused."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from tinydiff import nn, ops, random
from tinydiff.autograd.function import Function
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.diffusion.decoder import bin_log_prob
from tinydiff.ops.batch_normalization import BatchNorm
from tinydiff.ops.convolution import conv2d_add, upsample_conv2d
from tinydiff.ops.normalization import group_norm_silu
from tinydiff.unet import ResBlock
from tinydiff.unet.variant import Variant


class Right(NamedTuple):
    name: str
    fn: Callable[..., Any]
    inputs: list[Any]
    options: dict[str, Any]


class _InSingle(Function):
    """Computes in float32 whatever it is given: its differences are noisy."""

    def forward(self, X):
        Y = np.tanh(X.astype(np.float32))
        self.save(Y)
        return Y.astype(np.float64) if X.dtype == np.float64 else Y

    def backward(self, L_Y):
        (Y,) = self.saved
        return L_Y * (1 - Y * Y)


def cases(seed: int) -> Iterator[Right]:
    """All of them, at inputs drawn from the seed."""
    for family in (_elementwise, _products, _images, _reductions, _arrays, _losses, _whole, _by_hand, _awkward):
        rng = np.random.default_rng([seed, 77])
        for name, fn, inputs, *options in family(rng, seed):
            yield Right(name, fn, inputs, options[0] if options else {})


def _elementwise(rng, seed):
    for name in ("relu", "silu", "sigmoid", "tanh", "gelu", "softplus", "erf", "exp", "abs", "sin", "cos", "positive"):
        yield name, getattr(ops, name), [rng.normal(size=(6, 7))]
    yield "gelu tanh", lambda x: ops.gelu(x, "tanh"), [rng.normal(size=(6, 7))]
    for name in ("log", "sqrt"):
        yield name, getattr(ops, name), [rng.uniform(0.1, 2, size=(6, 7))]
    for name in ("add", "subtract", "multiply", "maximum", "minimum"):
        yield name, getattr(ops, name), [rng.normal(size=(4, 5)), rng.normal(size=(5,))]
        yield f"{name} alike", getattr(ops, name), [rng.normal(size=(4, 5)), rng.normal(size=(4, 5))]
    yield "divide", ops.divide, [rng.normal(size=(4, 5)), rng.uniform(0.5, 2, size=(4, 1))]
    yield "power", ops.power, [rng.uniform(0.2, 2, size=(4, 5)), rng.normal(size=(4, 1))]
    yield "power of 0", lambda x: x**3, [rng.integers(-1, 2, size=(4, 5)).astype(float)]
    base, exponent = rng.integers(0, 3, size=(4, 5)).astype(float), rng.uniform(1.5, 2.5, size=(4, 5))
    yield "power of 0 by exponent", ops.power, [base, exponent], {"wrt": [1]}
    yield "power 0", lambda x: x**0, [rng.integers(-1, 2, size=(4, 5)).astype(float)]
    yield "negative", ops.negative, [rng.normal(size=(4, 5))]
    condition = rng.random((4, 5)) < 0.5
    yield "where", ops.where, [condition, rng.normal(size=(4, 5)), rng.normal(size=(5,))]
    yield "clip", lambda x: ops.clip(x, -1, 0.5), [rng.normal(size=(6, 7))]
    yield "dropout", lambda x: ops.dropout(x, 0.3, random.Generator(seed)), [rng.normal(size=(4, 5))]


def _products(rng, seed):
    yield "linear", ops.linear, [rng.normal(size=(5, 4)), rng.normal(size=(4, 3)), rng.normal(size=3)]
    yield "linear 3-d", ops.linear, [rng.normal(size=(2, 5, 4)), rng.normal(size=(4, 3))]
    yield "linear square", ops.linear, [rng.normal(size=(4, 4)), rng.normal(size=(4, 4)), rng.normal(size=4)]
    yield "matmul", ops.matmul, [rng.normal(size=(2, 3, 4)), rng.normal(size=(4, 5))]
    yield "matmul square", ops.matmul, [rng.normal(size=(4, 4)), rng.normal(size=(4, 4))]
    yield "matmul vector", ops.matmul, [rng.normal(size=4), rng.normal(size=(2, 4, 5))]
    a, b = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 4, 5))
    yield "einsum", lambda a, b: ops.einsum("bij,bjk->bik", a, b), [a, b]
    yield "einsum sum", lambda a: ops.einsum("ijk->k", a), [rng.normal(size=(2, 3, 4))]
    yield "einsum diagonal", lambda a: ops.einsum("ii->i", a), [rng.normal(size=(4, 4))]
    q, k, v = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 5, 3))
    yield "attention", ops.attention, [q, k, v]
    mask = np.tri(3, 5, 2, dtype=bool)
    yield "attention with a bias", ops.attention, [q, k, v, rng.normal(size=(3, 5))]
    yield "attention masked", lambda q, k, v: ops.attention(q, k, v, mask=mask[: q.shape[1]]), [q, k, v]


def _images(rng, seed):
    settings = [{}, {"padding": 1}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}]
    settings.append({"padding": ((0, 1), (0, 1)), "stride": 2})
    for options in settings:
        x, w, b = rng.normal(size=(2, 6, 5, 3)), rng.normal(size=(3, 3, 3, 4)), rng.normal(size=4)
        yield f"conv2d {options}", lambda x, w, b, options=options: ops.conv2d(x, w, b, **options), [x, w, b]
    x, w = rng.normal(size=(2, 5, 6, 4)), rng.normal(size=(3, 2, 2, 6))
    yield "conv2d groups", lambda x, w: ops.conv2d(x, w, groups=2, padding=1), [x, w]
    x, w, b = rng.normal(size=(2, 4, 3, 4)), rng.normal(size=(3, 3, 5, 4)), rng.normal(size=5)

    def transposed(x, w, b):
        return ops.conv_transpose2d(x, w, b, stride=2, padding=1, output_padding=1)

    yield "conv_transpose2d", transposed, [x, w, b]
    x, w, b = rng.normal(size=(2, 4, 5, 3)), rng.normal(size=(3, 3, 3, 2)), rng.normal(size=2)
    terms = [rng.normal(size=(2, 2)), rng.normal(size=(2, 4, 5, 2))]
    yield "conv2d_add", lambda *a: conv2d_add(*a, padding=1), [x, w, b, *terms]
    yield "upsample_conv2d", upsample_conv2d, [x, w, b]
    yield "patches", lambda x: ops.patches(x, 3, padding=1), [rng.normal(size=(2, 5, 4, 2))]
    p = rng.normal(size=(2 * 5 * 4, 3 * 3 * 2))
    yield "unpatches", lambda p: ops.unpatches(p, (2, 5, 4, 2), 3, padding=1), [p]
    yield "upsample", ops.upsample_nearest2d, [rng.normal(size=(2, 3, 4, 2))]
    yield "avg_pool2d", lambda x: ops.avg_pool2d(x, 3, 2, 1), [rng.normal(size=(2, 6, 5, 3))]
    yield "max_pool2d", lambda x: ops.max_pool2d(x, 3, 2, 1), [rng.normal(size=(2, 6, 5, 3))]
    yield "max_pool2d with ties", lambda x: ops.max_pool2d(x, 2), [rng.integers(0, 2, size=(2, 4, 6, 2)).astype(float)]
    for mode in ("constant", "reflect", "edge"):
        yield f"pad {mode}", lambda x, mode=mode: ops.pad(x, ((1, 2), (0, 1)), mode), [rng.normal(size=(4, 5))]


def _reductions(rng, seed):
    yield "flatten", lambda x: ops.flatten(x, 1), [rng.normal(size=(3, 2, 2))]
    for name in ("sum", "mean", "var", "std", "norm", "max", "min"):
        for axis in (None, 1, (0, 2)):
            function = getattr(ops, name)
            yield f"{name} {axis}", lambda x, f=function, axis=axis: f(x, axis), [rng.normal(size=(3, 4, 5))]
    for name in ("softmax", "log_softmax", "logsumexp"):
        yield name, getattr(ops, name), [rng.normal(size=(3, 5))]
    x, w, b = rng.normal(size=(3, 4, 5, 6)), rng.normal(size=6), rng.normal(size=6)
    yield "group_norm", lambda x, w, b: ops.group_norm(x, 2, w, b), [x, w, b]
    yield "group_norm_silu", lambda x, w, b: group_norm_silu(x, 2, w, b), [x, w, b]
    yield "batch_norm", lambda x, w, b: ops.batch_norm(x, w, b), [x, w, b]
    yield "layer_norm", ops.layer_norm, [rng.normal(size=(3, 7)), rng.normal(size=7), rng.normal(size=7)]
    yield "batch_norm with its statistics", lambda x, w, b: BatchNorm.apply(x, w, b, eps=1e-5), [x, w, b]


def _arrays(rng, seed):
    yield "reshape", lambda x: ops.reshape(x, -1), [rng.normal(size=(3, 4))]
    yield "transpose", lambda x: ops.transpose(x, (1, 2, 0)), [rng.normal(size=(3, 4, 5))]
    yield "broadcast_to", lambda x: ops.broadcast_to(x, (3, 4, 5)), [rng.normal(size=(4, 1))]
    yield "concatenate", lambda a, b: ops.concatenate([a, b], 1), [rng.normal(size=(3, 4)), rng.normal(size=(3, 2))]
    yield "stack", lambda a, b: ops.stack([a, b], 1), [rng.normal(size=(3, 4)), rng.normal(size=(3, 4))]
    yield "split", lambda x: ops.split(x, [1, 3], 1), [rng.normal(size=(3, 4, 5))]
    yield "split in axis 0", lambda x: ops.split(x, 2), [rng.normal(size=(4, 3))]
    yield "getitem", lambda x: x[1:, ::2], [rng.normal(size=(3, 4, 5))]
    yield "getitem repeated", lambda x: x[np.array([0, 2, 0, 0])], [rng.normal(size=(4, 5))]
    yield "embedding", ops.embedding, [rng.integers(0, 5, size=(2, 4)), rng.normal(size=(5, 3))]


def _losses(rng, seed):
    for reduction in ("mean", "sum", "none"):
        inputs = [rng.normal(size=(4, 5)), rng.normal(size=(4, 5))]
        yield f"mse {reduction}", lambda p, y, reduction=reduction: ops.mse_loss(p, y, reduction), inputs
    yield "cross_entropy", ops.cross_entropy, [rng.normal(size=(4, 5)), rng.integers(0, 5, size=4)]
    bytes_ = rng.integers(0, 256, size=(4, 5)) / 127.5 - 1
    inputs = [rng.uniform(-1.2, 1.2, size=(4, 5)), rng.uniform(-6, 1, size=(4, 5))]
    yield "log probability of bytes", lambda m, v: bin_log_prob(m, v, bytes_[: m.shape[0], : m.shape[1]]), inputs
    generator = random.Generator(seed)

    def noisy(x):
        return ops.mse_loss(x, generator.normal(x.shape, np.float64))

    yield "loss with noise", noisy, [rng.normal(size=(4, 5))]
    numpy_noise = np.random.default_rng(seed)
    options = {"generator": numpy_noise}
    yield (
        "loss with NumPy's noise",
        lambda x: (x * numpy_noise.normal(size=x.shape)).sum(),
        [rng.normal(size=5)],
        options,
    )


def _whole(rng, seed):
    x, w, v = rng.normal(size=(16, 8)), rng.normal(size=(8, 32)), rng.normal(size=(32, 4))
    yield "relu network", lambda x, w, v: ops.mean(ops.linear(ops.relu(ops.linear(x, w)), v)), [x, w, v]
    layers = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    _redraw(layers, rng)
    yield "module", layers, [rng.normal(size=(5, 4))]
    x, w = rng.normal(size=(2, 4, 5, 3)), rng.normal(size=(3, 3, 3, 4))
    attention = nn.Attention(4, 2, groups=2)
    _redraw(attention, rng)
    yield "attention module", attention, [rng.normal(size=(1, 2, 3, 4))]
    block = ResBlock(2, 4, features=3, groups=2, dropout=0.2, variant=Variant(), generator=None)
    _redraw(block, rng)
    block.train(random.Generator(seed))
    yield "residual block", block, [rng.normal(size=(1, 3, 4, 2)), rng.normal(size=(1, 3))]
    denoiser = _Denoiser()
    _redraw(denoiser, rng)
    diffusion, noise = Diffusion(Schedule.linear(), predict="v"), random.Generator(seed)
    images = rng.normal(size=(3, 4, 4, 1))
    yield "training loss", lambda: diffusion.loss(denoiser, images, noise), [], {"parameters": denoiser}
    yield "block", lambda x, w: ops.silu(ops.group_norm(ops.conv2d(x, w, padding=1), 2)), [x, w]
    yield "used twice", lambda x: x * x + ops.sum(x) * x, [rng.normal(size=(4, 5))]
    yield "unused input", lambda x, y: x * 2.0, [rng.normal(size=(4, 5)), rng.normal(size=3)]


class _Denoiser(nn.Module):
    """The smallest model that has an image, a time and a weight."""

    def __init__(self):
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t, labels=None):
        return self.conv(x) * np.cos(0.01 * np.asarray(t)).reshape(-1, 1, 1, 1)


def _redraw(module, rng):
    """Random parameters, also where a layer starts at zero."""
    for p in module.parameters():
        p.data = rng.normal(size=p.shape).astype(np.float32)


def _by_hand(rng, seed):
    def affine(x, w, b):
        return x @ w + b

    def affine_backward(L, x, w, b):
        return L @ w.T, x.T @ L, L.sum(0)

    inputs = [rng.normal(size=(5, 4)), rng.normal(size=(4, 3)), rng.normal(size=3)]
    yield "by hand: affine", affine, inputs, {"backward": affine_backward}

    def relu(x):
        return np.maximum(x, 0), x

    yield "by hand: relu", relu, [rng.normal(size=(4, 5))], {"backward": lambda L, x: L * (x > 0), "cache": True}

    def cross_entropy(scores, y):
        P = np.exp(scores - scores.max(1, keepdims=True))
        P /= P.sum(1, keepdims=True)
        return -np.log(P[np.arange(len(y)), y]).mean(), (P, y)

    def cross_entropy_backward(L, cache):
        P, y = cache
        L_scores = P.copy()
        L_scores[np.arange(len(y)), y] -= 1
        return L * L_scores / len(y)

    options = {"backward": cross_entropy_backward, "cache": True}
    yield "by hand: cross entropy", cross_entropy, [rng.normal(size=(3, 4)), rng.integers(0, 4, size=3)], options

    def squared_error(prediction, target):
        return float(((prediction - target) ** 2).mean())

    def squared_error_backward(L, prediction, target):
        return L * 2 * (prediction - target) / prediction.size

    inputs = [rng.normal(size=(3, 4)), rng.normal(size=(3, 4))]
    yield "by hand: squared error", squared_error, inputs, {"backward": squared_error_backward, "wrt": 0}

    def product(a, b):  # of equal shapes only, by whatever NumPy does with others
        return a * b

    inputs = [rng.normal(size=(4, 5)), rng.normal(size=(4, 5))]
    yield "by hand: product", product, inputs, {"backward": lambda L, a, b: (L * b, L * a)}


def _awkward(rng, seed):
    """Right, and hard to differentiate numerically."""
    yield "relu at 0", ops.relu, [rng.integers(-2, 3, size=(4, 5)).astype(float)]
    yield "max with ties", lambda x: ops.max(x, 1), [rng.integers(0, 2, size=(4, 5)).astype(float)]
    yield "abs at 0", ops.abs, [np.zeros((3, 4))]
    yield "clip at its bound", lambda x: ops.clip(x, 0, 1), [rng.integers(0, 2, size=(4, 5)).astype(float)]
    yield "sqrt near 0", ops.sqrt, [np.array([1e-8, 1e-4, 1.0, 2.0])]
    yield "log near 0", ops.log, [np.array([1e-10, 1e-3, 0.5, 2.0])]
    yield "a minimum", lambda x: ops.mse_loss(x, np.ones((4, 5))), [np.ones((4, 5))]
    yield "large inputs", lambda x: x * x, [1e6 * rng.normal(size=(4, 5))]
    yield "small inputs", lambda x: x * x, [1e-6 * rng.normal(size=(4, 5))]
    yield "a large offset", lambda x: x + 1e6, [rng.normal(size=(4, 5))]
    yield "saturated", ops.sigmoid, [40 * rng.normal(size=(4, 5))]
    yield "many scales", ops.exp, [np.linspace(-30, 20, 11)]
    yield (
        "masked logarithm",
        lambda x: ops.log_softmax(ops.where(np.tri(4, 5, 1) > 0, x, -np.inf)),
        [rng.normal(size=(4, 5))],
    )
    yield "constant", lambda x: ops.layer_norm(x), [rng.normal(size=(5, 1))]
    yield "empty", ops.silu, [np.zeros((0, 3))]
    yield "scalar", lambda x: x * x, [np.asarray(rng.normal())]
    yield "one element", ops.tanh, [rng.normal(size=(1, 1))]
    yield "float32 inside", _InSingle, [rng.normal(size=(4, 5))]
    yield "many kinks", lambda x: ops.mean(ops.abs(x)), [rng.normal(size=(50, 60))]
    low, high = rng.normal(size=(4, 5)) - 0.5, rng.normal(size=(5,)) + 0.5  # low is above high here and there
    yield "clip between arrays", ops.clip, [rng.normal(size=(4, 5)), low, high]
    base, exponent = rng.integers(0, 3, size=(4, 5)).astype(float), rng.uniform(0.3, 0.7, size=(4, 5))
    yield "root of 0 by exponent", ops.power, [base, exponent], {"wrt": [1]}
    equal = rng.integers(0, 2, size=(2, 4, 5)).astype(float)
    yield "minimum of equal elements", ops.minimum, [*equal]
    yield "pad with an array", lambda x, v: ops.pad(x, ((1, 2), (0, 1)), "constant", v), [equal[0] + 0.5, np.array(0.3)]
    yield "clip at arrays", ops.clip, [equal[0], equal[1], equal[1] + 1]
