"""Layers, with their initial weights.

Initial weights are drawn from the `generator` given to a layer's constructor, in the order in which layers are made.
Layers made without one share a generator of this module. So two layers made alike differ, and the same program makes
the same weights each time; `manual_seed` starts that generator anew.

Constructors raise ValueError for sizes that are not whole numbers of at least 1, or that do not divide where they must.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor
from tinydiff.nn.module import Buffer, Module, Parameter
from tinydiff.ops.arguments import largest_divisor
from tinydiff.ops.batch_normalization import normalize_batch
from tinydiff.ops.fully_connected import linears
from tinydiff.random import INIT, Generator, is_replaying

_default_generator = Generator(0).at(INIT)


def manual_seed(seed: int) -> None:
    """Starts anew the generator that layers made without `generator=` draw their weights from.

    seed: an integer in 0..2^64-1; at first it is 0.
    """
    global _default_generator
    _default_generator = Generator(seed).at(INIT)


def xavier_uniform(
    shape: tuple[int, ...], fan_in: int, fan_out: int, scale: float, generator: Generator | None
) -> np.ndarray:
    """Weights of the given shape, float32, uniform on [-a, a] with a = sqrt(6 scale / (fan_in + fan_out)).

    That is Glorot & Bengio, 2010, eq. 16, for scale 1. The variance is 2 scale / (fan_in + fan_out).
    fan_in, fan_out: how many inputs an output depends on, and how many outputs an input reaches.
    scale: 0 stands for 1e-10, as in the DDPM paper's code: the layer begins close to zero, but gradients still pass
        through it.
    generator: what the weights are drawn from; None for the one that all layers share.
    """
    bound = math.sqrt(6 * (scale or 1e-10) / (fan_in + fan_out))
    draws = (generator or _default_generator).uniform(shape)
    draws *= np.float32(2 * bound)
    draws -= np.float32(bound)
    return draws


class Sequential(Module):
    """Modules and functions called one after another: each of `layers` gets the result of the one before, as in
    Sequential(Linear(2, 8), td.ops.relu, Linear(8, 1)). They are named by position: "0.weight". TypeError for a layer that
    cannot be called, and for a class in the place of a layer."""

    def __init__(self, *layers: Callable[[Any], Any]) -> None:
        for i, layer in enumerate(layers):
            if isinstance(layer, type):
                raise TypeError(
                    f"Sequential takes layers, but number {i} is the class {layer.__name__}: make one of it"
                )
            if not callable(layer):
                raise TypeError(
                    f"Sequential takes modules and functions, but number {i} is of type {type(layer).__name__}"
                )
        self.layers = layers

    def attributes(self) -> Iterator[tuple[str, Any]]:
        return ((str(i), layer) for i, layer in enumerate(self.layers))

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, i: int) -> Any:
        return self.layers[i]

    def forward(self, x: Any) -> Any:
        """x through all layers in turn; shapes are those of the layers."""
        for layer in self.layers:
            x = layer(x)
        return x


class Linear(Module):
    """The fully connected layer x W + b (source A, 4.1.1): x (..., in_features) -> (..., out_features).

    in_features, out_features: sizes of the last axis. The weight is (in_features, out_features).
    bias: whether there is a bias, (out_features,), at first 0.
    init_scale: `scale` of `xavier_uniform`, which draws the weight. generator: what it is drawn from; None for the
    shared one.
    """

    torch_axes: ClassVar[Mapping[str, tuple[int, ...]]] = {"weight": (1, 0)}

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        init_scale: float = 1.0,
        generator: Generator | None = None,
    ) -> None:
        _check_sizes("Linear", in_features=in_features, out_features=out_features)
        shape = (in_features, out_features)
        self.weight = Parameter(xavier_uniform(shape, in_features, out_features, init_scale, generator))
        self.bias = Parameter(np.zeros(out_features, np.float32)) if bias else None

    def forward(self, x: Any) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        return ops.linear(x, self.weight, self.bias)


_linear, _call = Linear.forward, Module.__call__


def project(x: Any, layers: Sequence[Any]) -> Sequence[Tensor]:
    """layer(x) for each of the layers, such as the q, k and v of attention: x (..., D) -> a list of (..., M).

    Plain `Linear` layers are computed in one operation.
    """
    plain = all([computes_by(layer, _linear) for layer in layers])
    return linears(x, [(layer.weight, layer.bias) for layer in layers]) if plain else [layer(x) for layer in layers]


def computes_by(module: Any, *forwards: Any) -> bool:
    """Whether calling the module runs one of the given `forwards` (functions, such as `Linear.forward`) on it.

    It does not where the module's or a subclass's forward replaces it, the class has another `__call__` or there are hooks.
    """
    if getattr(module, "_hooks", None) is not None:
        return False
    f: Any = getattr(module, "forward", None)
    return getattr(f, "__func__", None) in forwards and f.__self__ is module and type(module).__call__ is _call


class Conv2d(Module):
    """A convolution of images with learned filters, see `ops.conv2d`: x (N, H, W, in_channels) -> (N, Ho, Wo,
    out_channels).

    in_channels, out_channels: divisible by groups. kernel_size: (R, S) in pixels, or an int.
    stride, padding, dilation, groups: as for `ops.conv2d`. The weight is (R, S, in_channels / groups, out_channels).
    bias: whether there is a bias, (out_channels,), at first 0.
    init_scale: `scale` of `xavier_uniform`, which draws the weight. generator: what it is drawn from; None for the
    shared one.
    """

    torch_axes: ClassVar[Mapping[str, tuple[int, ...]]] = {"weight": (3, 2, 0, 1)}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        init_scale: float = 1.0,
        generator: Generator | None = None,
    ) -> None:
        R, S = kernel_size if isinstance(kernel_size, tuple | list) else (kernel_size, kernel_size)
        _check_sizes("Conv2d", in_channels=in_channels, out_channels=out_channels, groups=groups)
        _check_sizes("Conv2d", kernel_height=R, kernel_width=S)
        if in_channels % groups or out_channels % groups:
            channels = f"{in_channels} input and {out_channels} output channels"
            raise ValueError(f"Conv2d: {channels} do not divide into {groups} groups")
        shape = (R, S, in_channels // groups, out_channels)
        fans = R * S * in_channels // groups, R * S * out_channels // groups
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.weight = Parameter(xavier_uniform(shape, *fans, init_scale, generator))
        self.bias = Parameter(np.zeros(out_channels, np.float32)) if bias else None

    def forward(self, x: Any) -> Tensor:
        """x (N, H, W, in_channels) -> (N, Ho, Wo, out_channels)."""
        return ops.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class GroupNorm(Module):
    """Group normalisation of x (N, ..., channels) with a weight and a bias for each channel (Wu & He, 2018), see
    `ops.group_norm`.

    groups: how many; divides channels. eps: added to the variance. The weight is (channels,), at first 1; the bias, at
    first 0.
    """

    def __init__(self, groups: int, channels: int, eps: float = 1e-5) -> None:
        _check_sizes("GroupNorm", groups=groups, channels=channels)
        if channels % groups:
            fits = largest_divisor(channels, groups)
            raise ValueError(f"GroupNorm: {channels} channels do not divide into {groups} groups; {fits} would do")
        self.groups, self.eps = groups, eps
        self.weight = Parameter(np.ones(channels, np.float32))
        self.bias = Parameter(np.zeros(channels, np.float32))

    def forward(self, x: Any) -> Tensor:
        """x (N, ..., channels) -> the same shape."""
        return ops.group_norm(x, self.groups, self.weight, self.bias, self.eps)


class LayerNorm(Module):
    """Layer normalisation of x (..., features) over its last axis (Ba et al., 2016), see `ops.layer_norm`.

    eps: added to the variance. The weight is (features,), at first 1; the bias, at first 0.
    """

    def __init__(self, features: int, eps: float = 1e-5) -> None:
        _check_sizes("LayerNorm", features=features)
        self.eps = eps
        self.weight = Parameter(np.ones(features, np.float32))
        self.bias = Parameter(np.zeros(features, np.float32))

    def forward(self, x: Any) -> Tensor:
        """x (..., features) -> the same shape."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class BatchNorm(Module):
    """Batch normalisation of x (N, ..., channels) with a weight and a bias for each channel (Ioffe & Szegedy, 2015), see
    `ops.batch_norm`.

    In training mode the mean and variance are those of the batch, and running averages follow them. In evaluation mode
    they are the running averages; the gradient does not pass through these. A block under `recompute` moves them once.

    eps: added to the variance. momentum: the share of a batch in the running averages, in [0, 1]; None for the plain mean
    over all batches. The weight is (channels,), at first 1; the bias, at first 0. ValueError in training mode for fewer
    than 2 elements in a channel.

    The names are PyTorch's. So is the running variance, which divides by one less than the number of elements.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        _check_sizes("BatchNorm", channels=channels)
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(f"BatchNorm: momentum must be in [0, 1] or None, not {momentum}")
        self.eps, self.momentum = eps, momentum
        self.weight = Parameter(np.ones(channels, np.float32))
        self.bias = Parameter(np.zeros(channels, np.float32))
        self.running_mean = Buffer(np.zeros(channels, np.float32))
        self.running_var = Buffer(np.ones(channels, np.float32))
        self.num_batches_tracked = Buffer(np.array(0, np.int64))

    def forward(self, x: Any) -> Tensor:
        """x (N, ..., channels) -> the same shape."""
        if not self.training:
            mean, variance = self.running_mean.data.copy(), self.running_var.data.copy()
            return ops.batch_norm(x, self.weight, self.bias, mean, variance, self.eps)
        y, mean, variance = normalize_batch(x, self.weight, self.bias, self.eps)
        if not is_replaying():
            m = y.size // y.shape[-1]
            self._follow(mean.data, variance.data * (m / (m - 1)))
        return y

    def _follow(self, mean: Any, variance: Any) -> None:
        self.num_batches_tracked.data += 1
        share = 1 / int(self.num_batches_tracked.data) if self.momentum is None else self.momentum
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            running.data += share * (value - running.data)


class Embedding(Module):
    """A row of a learned table for each index: integers (...) in 0..entries-1 -> (..., features).

    The weight is (entries, features), at first standard normal. generator: what it is drawn from; None for the shared
    one.
    """

    def __init__(self, entries: int, features: int, *, generator: Generator | None = None) -> None:
        _check_sizes("Embedding", entries=entries, features=features)
        self.weight = Parameter((generator or _default_generator).normal((entries, features)))

    def forward(self, indices: Any) -> Tensor:
        """indices (...), integers -> (..., features)."""
        return ops.embedding(indices, self.weight)


class Dropout(Module):
    """In training mode an element becomes 0 with probability p, and the others are divided by 1 - p (Srivastava et al.,
    2014).

    p: in [0, 1). The draws come from the generator given to `train`; ValueError in training mode with p > 0 and no
    generator.
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p must be at least 0 and below 1, not {p}")
        self.p = p

    def forward(self, x: Any) -> Any:
        """x, of any shape, with elements dropped in training mode; x itself in evaluation mode."""
        if not self.training or self.p == 0:
            return x
        if self.generator is None:
            raise ValueError(f"Dropout with p={self.p} needs a generator in training mode: call train(generator)")
        return ops.dropout(x, self.p, self.generator)


class Attention(Module):
    """Self-attention over the pixels of images, with a residual: x (N, ..., channels) -> the same shape.

    y = x + (attention(q, k, v) W + b), where q, k and v are linear in group_norm(x) (Ho et al., 2020, app. B, with one
    head).

    heads: each of `heads` equal runs of channels attends separately, with scale (channels / heads)^-1/2.
    groups, eps: of the normalisation, see `ops.group_norm`; groups=None leaves it out.
    init_scale: `scale` of `xavier_uniform` for W. generator: what weights are drawn from; None for the shared one.

    The weights have the names that diffusers gives them.
    """

    def __init__(
        self,
        channels: int,
        heads: int = 1,
        groups: int | None = 32,
        eps: float = 1e-6,
        *,
        init_scale: float = 1.0,
        generator: Generator | None = None,
    ) -> None:
        _check_sizes("Attention", channels=channels, heads=heads)
        if channels % heads:
            raise ValueError(f"Attention: {channels} channels do not divide into {heads} heads")
        self.heads = heads
        self.group_norm = None if groups is None else GroupNorm(groups, channels, eps)
        self.to_q = Linear(channels, channels, generator=generator)
        self.to_k = Linear(channels, channels, generator=generator)
        self.to_v = Linear(channels, channels, generator=generator)
        self.to_out = [Linear(channels, channels, init_scale=init_scale, generator=generator)]

    def forward(self, x: Any) -> Tensor:
        """x (N, ..., channels) -> the same shape."""
        shape = x.shape
        h = x if self.group_norm is None else self.group_norm(x)
        h = ops.reshape(h, shape[0], math.prod(shape[1:-1]), shape[-1])
        q, k, v = (self._split(y) for y in project(h, (self.to_q, self.to_k, self.to_v)))
        y = ops.attention(q, k, v)
        if self.heads > 1:
            y = ops.reshape(ops.transpose(y, (0, 2, 1, 3)), h.shape)
        return x + ops.reshape(self.to_out[0](y), shape)

    def _split(self, h: Tensor) -> Tensor:
        """(N, L, C) -> (N, heads, L, C / heads), or as it is for one head."""
        if self.heads == 1:
            return h
        N, L, C = h.shape
        return ops.transpose(ops.reshape(h, N, L, self.heads, C // self.heads), (0, 2, 1, 3))


def _check_sizes(name: str, **sizes: Any) -> None:
    for what, size in sizes.items():
        if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name}: {what} must be a whole number of at least 1, not {size!r}")
