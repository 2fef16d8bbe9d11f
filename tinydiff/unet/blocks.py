"""The parts of the U-Net: residual blocks, the levels that hold them, and the time that all of them take."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from tinydiff import nn, ops
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module
from tinydiff.errors import InputError
from tinydiff.ops.convolution import conv2d_add, upsample_conv2d
from tinydiff.ops.fully_connected import linears
from tinydiff.ops.normalization import group_norm_silu
from tinydiff.random import Generator
from tinydiff.unet.variant import ACTIVATIONS, Variant


class ResBlock(nn.Module):
    """shortcut(x) + conv2(f(norm2(conv1(f(norm1(x))) + time))): x (N, H, W, in_channels) -> (N, H, W, out_channels).

    time (N, features) is the time embedding with the activation f applied; its projection time_emb_proj(time) is added.
    A `Time` may carry that projection already. resample: None, "up" or "down", for a block that also doubles or halves
    the resolution; divisor: what the sum is divided by.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        features: int,
        groups: int,
        dropout: float,
        variant: Variant,
        generator: Generator | None,
        resample: str | None = None,
        divisor: float = 1,
    ) -> None:
        self.scale_shift = variant.resnet_time_scale_shift == "scale_shift"
        self.activation, self.resample, self.divisor = ACTIVATIONS[variant.act_fn], resample, divisor
        projected = out_channels * (2 if self.scale_shift else 1)
        self.norm1 = nn.GroupNorm(groups, in_channels, variant.norm_eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, generator=generator)
        self.time_emb_proj = nn.Linear(features, projected, generator=generator)
        self.norm2 = nn.GroupNorm(groups, out_channels, variant.norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, init_scale=0, generator=generator)
        self.conv_shortcut = None
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1, generator=generator)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = activated(self.activation, self.norm1, x)
        if self.resample is not None:
            resample = ops.upsample_nearest2d if self.resample == "up" else partial(ops.avg_pool2d, window=2)
            x, h = resample(x), resample(h)
        time = time.projected_by(self.time_emb_proj) if isinstance(time, Time) else self.time_emb_proj(time)
        if self.scale_shift:
            scale, shift = ops.split(ops.expand_dims(time, (1, 2)), 2, axis=-1)
            h = self.dropout(self.activation(self.norm2(self.conv1(h)) * (scale + 1) + shift))
        else:
            h = _convolved(self.conv1, h, embedding=time)
            h = self._dropped_norm2(h)
        x = x if self.conv_shortcut is None else self.conv_shortcut(x)
        h = _convolved(self.conv2, h, residual=x)
        return h if self.divisor == 1 else h / self.divisor

    def _dropped_norm2(self, h: Tensor) -> Tensor:
        """dropout(activation(norm2(h))). On a GPU in one operation, which draws the mask again instead of keeping it; on a
        CPU drawing costs more than the memory."""
        drop, norm = self.dropout, self.norm2
        usual = h.device == "cuda" and self.activation is ops.silu
        usual = usual and nn.computes_by(drop, _dropout) and nn.computes_by(norm, _group_norm)
        if usual and drop.training and drop.p > 0 and _draws_usually(drop.generator):
            return group_norm_silu(h, norm.groups, norm.weight, norm.bias, norm.eps, dropout=(drop.p, drop.generator))
        return drop(activated(self.activation, norm, h))


class DownBlock(nn.Module):
    """A level of the way down. Every result, that of downsampling included, is kept among the skips."""

    def __init__(self, resnets: list[ResBlock]) -> None:
        self.resnets = resnets
        self.attentions: list[nn.Attention] = []
        self.downsamplers: list[Any] = []

    def blocks(self) -> list[Any]:
        return [*self.resnets, *self.downsamplers]

    def forward(self, h: Tensor, time: Tensor, skips: list[Tensor]) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            h = resnet(h, time)
            if self.attentions:
                h = self.attentions[i](h)
            skips.append(h)
        for downsample in self.downsamplers:
            h = downsample(h, time)
            skips.append(h)
        return h


class MidBlock(nn.Module):
    """The middle: a residual block, attention, a residual block."""

    def __init__(self, resnets: list[ResBlock], divisor: float) -> None:
        self.resnets, self.divisor = resnets, divisor
        self.attentions: list[nn.Attention] = []

    def blocks(self) -> list[Any]:
        return self.resnets

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        h = self.resnets[0](h, time)
        for attention in self.attentions:
            h = attention(h) if self.divisor == 1 else attention(h) / self.divisor
        return self.resnets[1](h, time)


class UpBlock(nn.Module):
    """A level of the way up. Every residual block sees the last remaining skip, beside what comes from below."""

    def __init__(self, resnets: list[ResBlock]) -> None:
        self.resnets = resnets
        self.attentions: list[nn.Attention] = []
        self.upsamplers: list[Any] = []

    def blocks(self) -> list[Any]:
        return [*self.resnets, *self.upsamplers]

    def forward(self, h: Tensor, time: Tensor, skips: list[Tensor]) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            h = resnet(ops.concatenate([h, skips.pop()], axis=-1), time)
            if self.attentions:
                h = self.attentions[i](h)
        for upsample in self.upsamplers:
            h = upsample(h, time)
        return h


class Downsample(nn.Module):
    """Halves the resolution: 3x3 convolution with stride 2. padding: on all sides; 0: right and bottom only."""

    def __init__(self, channels: int, padding: int, generator: Generator | None) -> None:
        pad = padding or ((0, 1), (0, 1))
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=pad, generator=generator)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        return self.conv(h)


class Upsample(nn.Module):
    """Doubles the resolution: nearest neighbour, then 3x3 convolution."""

    def __init__(self, channels: int, generator: Generator | None) -> None:
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, generator=generator)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        if nn.computes_by(self.conv, _conv2d):
            return upsample_conv2d(h, self.conv.weight, self.conv.bias)
        return self.conv(ops.upsample_nearest2d(h))


_linear, _conv2d, _group_norm = nn.Linear.forward, nn.Conv2d.forward, nn.GroupNorm.forward
_resnet, _dropout = ResBlock.forward, nn.Dropout.forward
_levels = DownBlock.forward, MidBlock.forward, UpBlock.forward


class Time(Tensor):
    """The time embedding (N, features), activated, as levels and blocks take it: a tensor like any other.

    It carries the projections time_emb_proj(time) of the residual blocks of `levels`, computed in one operation instead
    of one for each block. A level, block or layer that a user has replaced is left out and computes its own projection
    when it is called: it may need none, or change the weights first.
    """

    __slots__ = ("_count", "_layers", "_projections")

    def __init__(self, time: Tensor, levels: Iterable[Any]) -> None:
        if time.requires_grad and time._node is None:
            time = time.reshape(time.shape)  # gradients of a leaf go to the leaf itself, not to its copy here
        super().__init__(time.data)
        self._version, self._count = time._version, time._version.count
        if time._node is not None:
            self._attach(time._node, time._index)
        blocks = [block for level in levels if nn.computes_by(level, *_levels) for block in level.blocks()]
        layers = [block.time_emb_proj for block in blocks if nn.computes_by(block, _resnet)]
        # by identity: a user's layer may not be hashable; the layers are held, so no other gets the same id
        self._layers = {id(layer): layer for layer in layers if nn.computes_by(layer, _linear)}
        projections = linears(time, [(layer.weight, layer.bias) for layer in self._layers.values()])
        self._projections = dict(zip(self._layers, projections, strict=True))

    def projected_by(self, layer: Any) -> Tensor:
        """layer(time): the projection that is carried, unless the time was changed in place since."""
        known = self._projections.get(id(layer)) if self._version.count == self._count else None
        return layer(self) if known is None else known


class TimestepEmbedding(nn.Module):
    """Linear, SiLU, Linear: (N, channels) -> (N, features)."""

    def __init__(self, channels: int, features: int, generator: Generator | None) -> None:
        self.linear_1 = nn.Linear(channels, features, generator=generator)
        self.linear_2 = nn.Linear(features, features, generator=generator)

    def forward(self, embedding: Any) -> Tensor:
        return self.linear_2(ops.silu(self.linear_1(embedding)))


def time_embedding(
    t: Any, channels: int, freq_shift: float = 1, flip_sin_to_cos: bool = False, dtype: Any = np.float32
) -> Any:
    """Times as sines and cosines: t (N,), counted from 0 -> (N, channels), on t's device.

    With half = channels // 2 and frequencies f_i = exp(-ln(10000) i / (half - freq_shift)), i = 0..half-1, a row is
    sin(t f_i), then cos(t f_i) (Vaswani et al., 2017, 3.5, in the order of the DDPM paper's code); the cosines come
    first if `flip_sin_to_cos`, and a 0 ends the row if channels is odd. Computed in float64, then cast to `dtype`.
    """
    xp, half = array_module(t), channels // 2
    frequencies = xp.exp(xp.arange(half) * (-math.log(10000) / (half - freq_shift)))
    angles = t.astype("float64")[:, None] * frequencies
    parts = [xp.cos(angles), xp.sin(angles)] if flip_sin_to_cos else [xp.sin(angles), xp.cos(angles)]
    return xp.concatenate([*parts, xp.zeros((len(t), channels % 2))], axis=1).astype(dtype)


def _draws_usually(generator: Any) -> bool:
    """Whether uniform numbers are those of the generator's state, so that kernels may draw them."""
    return getattr(generator.uniform, "__func__", None) is Generator.uniform


def make_attention(channels: int, groups: int | None, variant: Variant, generator: Generator | None) -> nn.Attention:
    head_dim = variant.attention_head_dim or channels
    if channels % head_dim:
        raise InputError(f"attention_head_dim={head_dim} must divide the {channels} channels of a level with attention")
    return nn.Attention(channels, channels // head_dim, groups, variant.norm_eps, init_scale=0, generator=generator)


def _convolved(conv: nn.Conv2d, h: Tensor, embedding: Any = None, residual: Any = None) -> Tensor:
    """conv(h) + embedding + residual, in one operation where the layer is a plain 3x3 convolution without hooks. embedding
    (N, channels) is added to all pixels of an image."""
    if nn.computes_by(conv, _conv2d):
        return conv2d_add(h, conv.weight, conv.bias, embedding, residual, padding=1)
    h = conv(h)
    h = h if embedding is None else h + ops.expand_dims(embedding, (1, 2))
    return h if residual is None else h + residual


def activated(activation: Any, norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """activation(norm(x)), in one operation where there is one and nothing else happens in the layer."""
    if activation is ops.silu and nn.computes_by(norm, _group_norm):
        return group_norm_silu(x, norm.groups, norm.weight, norm.bias, norm.eps)
    return activation(norm(x))
