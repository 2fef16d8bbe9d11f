"""The U-Net that predicts the noise in an image.

The network of Ho et al. (2020), appendix B: residual blocks of group normalisation, SiLU and 3x3 convolutions, to which
the time is added as a bias for each channel; self-attention at chosen resolutions; a way down that halves the
resolution after each level but the last; and a way up that takes back everything made on the way down ("skips").

    x (N, H, W, C) -> conv_in -> down_blocks[0] -> ... -> down_blocks[-1] -> mid_block -+
    y (N, H, W, C) <- conv_out <- up_blocks[-1] <- ... <- up_blocks[0] <----------------+

It is diffusers' UNet2DModel weight for weight, with the same attribute names. Settings of that model that differ from
the paper's network are options here, see `tinydiff.unet.variant`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from tinydiff import nn, ops
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, is_array, is_float, to_device
from tinydiff.errors import InputError
from tinydiff.machine.pages import keep_freed_memory
from tinydiff.ops.arguments import channels_first, largest_divisor
from tinydiff.ops.rounding import cast
from tinydiff.precision import held
from tinydiff.random import Generator
from tinydiff.unet.blocks import (
    DownBlock,
    Downsample,
    MidBlock,
    ResBlock,
    Time,
    TimestepEmbedding,
    UpBlock,
    Upsample,
    activated,
    make_attention,
    time_embedding,
)
from tinydiff.unet.variant import ACTIVATIONS, Variant, check_number, check_whole


class UNet(nn.Module):
    """The U-Net of the DDPM paper (Ho et al., 2020, app. B); the default arguments make its CIFAR-10 network, for
    images 32x32x3.

    image_size: height and width of the images, divisible by 2^(levels - 1).
    in_channels, out_channels: of the images and of the output (None: the same; twice as many for a learned variance).
    channels, channel_mults: level i of len(channel_mults) has channels * channel_mults[i]; the first factor is 1.
    blocks_per_level: residual blocks of each level on the way down; there is one more on the way up.
    attention_resolutions: image sizes at which every residual block is followed by self-attention.
    groups: of group normalisation; divides the channels of every level.
    dropout: probability of dropping an element in every residual block, in training mode.
    num_classes: for a labelled model, how many labels it knows, 0..num_classes-1, the null label included; None: no
        labels.
    null_label: the label that means "no label", in a model that was trained with label dropout; None: there is none.
    generator: what the initial weights are drawn from (None: the default generator of `tinydiff.nn`).
    variant: settings in which the network differs from the paper's, by name: see `tinydiff.unet.variant.Variant`.

    unet(x, t, labels=None): x (N, H, W, in_channels), t integers 1..T -> (N, H, W, out_channels), see `forward`.
    InputError for arguments of the constructor that do not fit together.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        out_channels: int | None = None,
        channels: int = 128,
        channel_mults: Sequence[float] = (1, 2, 2, 2),
        blocks_per_level: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        groups: int = 32,
        dropout: float = 0.0,
        num_classes: int | None = None,
        null_label: int | None = None,
        *,
        generator: Generator | None = None,
        **variant: Any,
    ) -> None:
        v = self.variant = Variant.read(variant)
        out_channels = in_channels if out_channels is None else out_channels
        names = ("image_size", "in_channels", "out_channels", "channels", "blocks_per_level", "groups")
        numbers = (image_size, in_channels, out_channels, channels, blocks_per_level, groups)
        for name, value in zip(names, numbers, strict=True):
            check_whole(name, value)
        for name, values in (("channel_mults", channel_mults), ("attention_resolutions", attention_resolutions)):
            if not isinstance(values, tuple | list):
                raise InputError(f"{name} must be a tuple of numbers, such as (1, 2), not {values!r}")
        check_number("dropout", dropout)
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must be at least 0 and below 1, not {dropout}")
        _check_labels(num_classes, null_label)
        widths = _widths(channels, channel_mults, groups)
        attention_up = attention_resolutions if v.up_attention_resolutions is None else v.up_attention_resolutions
        sizes = _sizes(image_size, len(widths), (*attention_resolutions, *attention_up))
        if v.time_embedding_type == "positional" and channels // 2 == v.freq_shift:
            raise InputError(f"channels={channels} with freq_shift={v.freq_shift} leave the time without frequencies")
        keep_freed_memory()  # before there are weights, so that they too lie in large pages
        self.image_size, self.in_channels, self.out_channels = image_size, in_channels, out_channels
        self.num_classes, self.null_label = num_classes, null_label

        self.config: dict[str, Any] = {
            "image_size": image_size,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "channels": channels,
            "channel_mults": tuple(channel_mults),
            "blocks_per_level": blocks_per_level,
            "attention_resolutions": tuple(attention_resolutions),
            "groups": groups,
            "dropout": dropout,
            "num_classes": num_classes,
            "null_label": null_label,
            **dataclasses.asdict(v),
        }  # UNet(**unet.config) makes such a network again
        features = v.time_embedding_dim or 4 * channels
        resnet = partial(ResBlock, features=features, groups=groups, dropout=dropout, variant=v, generator=generator)
        attention = partial(make_attention, variant=v, generator=generator)
        last = len(widths) - 1

        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1, generator=generator)
        self.time_proj = None
        if v.time_embedding_type == "learned":
            self.time_proj = nn.Embedding(v.num_train_timesteps or 0, channels, generator=generator)
        self.time_embedding = TimestepEmbedding(channels, features, generator)
        self.class_embedding = None if num_classes is None else nn.Embedding(num_classes, features, generator=generator)

        width, skips = channels, [channels]
        self.down_blocks = []
        for i, out in enumerate(widths):
            block = DownBlock([resnet(width if j == 0 else out, out) for j in range(blocks_per_level)])
            attended = sizes[i] in attention_resolutions
            block.attentions = [attention(out, groups) for _ in block.resnets] if attended else []
            if i < last:
                if attended and v.downsample_type == "resnet":
                    block.downsamplers = [resnet(out, out, resample="down")]
                else:
                    block.downsamplers = [Downsample(out, v.downsample_padding, generator)]
            skips += [out] * (blocks_per_level + (i < last))
            self.down_blocks.append(block)
            width = out

        self.mid_block = None
        if v.mid_block_type is not None:
            middle = partial(resnet, width, width, divisor=v.mid_block_scale_factor)
            self.mid_block = MidBlock([middle(), middle()], v.mid_block_scale_factor)
            if v.add_attention:
                norm = v.attn_norm_num_groups or (groups if v.resnet_time_scale_shift == "default" else None)
                if norm is not None and width % norm:
                    raise InputError(f"attn_norm_num_groups={norm} must divide the {width} channels of the middle")
                self.mid_block.attentions = [attention(width, norm)]

        self.up_blocks = []
        for i, out in reversed(list(enumerate(widths))):
            inputs = [width if j == 0 else out for j in range(blocks_per_level + 1)]
            up_block = UpBlock([resnet(n + skips.pop(), out) for n in inputs])
            attended = sizes[i] in attention_up
            up_block.attentions = [attention(out, groups) for _ in up_block.resnets] if attended else []
            if i > 0:
                if attended and v.upsample_type == "resnet":
                    up_block.upsamplers = [resnet(out, out, resample="up")]
                else:
                    up_block.upsamplers = [Upsample(out, generator)]
            self.up_blocks.append(up_block)
            width = out

        self.conv_norm_out = nn.GroupNorm(groups, channels, v.norm_eps)
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1, init_scale=0, generator=generator)

    def forward(self, x: Any, t: Any, labels: Any = None) -> Tensor:
        """The network's prediction (N, H, W, out_channels) for images.

        x: (N, H, W, in_channels), floating point in [-1, 1]. t: integers 1..T, a number or (N,). labels: an int or
        (N,); None means the null label, or no label where there are none. ValueError or TypeError for images, times or
        labels that do not fit.
        """
        x = x if isinstance(x, Tensor) else Tensor(x)
        size, C = self.image_size, self.in_channels
        if x.ndim != 4 or x.shape[1:] != (size, size, C):
            hint = channels_first(x.shape, C) if x.shape[2:] == (size, size) else ""
            raise ValueError(f"x must be images (N, {size}, {size}, {C}), not of shape {x.shape}{hint}")
        if not is_float(x.dtype):
            raise TypeError(f"x must be floating point in [-1, 1], not {x.dtype}")
        time = Time(self._time(t, labels, len(x)), [*self.down_blocks, self.mid_block, *self.up_blocks])
        if self.variant.center_input_sample:
            x = x * 2 - 1
        h = self.conv_in(x)
        wide = h.dtype
        h = cast(h, held())  # in a block of `precision.mixed` all maps from here on have 16 bits
        skips = [h]
        for down_block in self.down_blocks:
            h = down_block(h, time, skips)
        if self.mid_block is not None:
            h = self.mid_block(h, time)
        for up_block in self.up_blocks:
            h = up_block(h, time, skips)
        return self.conv_out(cast(activated(ops.silu, self.conv_norm_out, h), wide))

    def _time(self, t: Any, labels: Any, n: int) -> Tensor:
        """The embedding of time t and labels for n images, (n, features), with the activation applied."""
        weight = self.conv_in.weight
        t = _integers("t", t, n, weight.device)
        if weight.device == "cpu" and n and t.min() < 1:
            raise ValueError(f"t counts from 1 (the first step) to T, but the smallest is {t.min()}")
        if self.time_proj is not None:
            h = self.time_proj(t - 1)
        else:
            v = self.variant
            h = time_embedding(t - 1, weight.shape[-1], v.freq_shift, v.flip_sin_to_cos, weight.dtype)
        h = self.time_embedding(h)
        if self.class_embedding is not None:
            h = h + self.class_embedding(self._known_labels(labels, n))
        elif labels is not None:
            raise ValueError("this UNet was made without num_classes, so it takes no labels")
        return ACTIVATIONS[self.variant.act_fn](h)

    def _known_labels(self, labels: Any, n: int) -> Any:
        """Labels (n,), the null label for None. ValueError where there is none and for a label that is out of range."""
        known = f"labels in 0..{(self.num_classes or 0) - 1}"
        if labels is None and self.null_label is None:
            raise ValueError(f"this UNet needs {known}: it has no null label")
        device = self.conv_in.weight.device
        labels = _integers("labels", self.null_label if labels is None else labels, n, device)
        if device == "cpu" and n and not (labels.min() >= 0 and labels.max() < self.num_classes):
            raise ValueError(f"this UNet knows {known}, but was given {labels.min()}..{labels.max()}")
        return labels


def _integers(name: str, values: Any, n: int, device: str) -> Any:
    """One integer for each of n images, from one or from (n,), as int64 on the device."""
    values = values.data if isinstance(values, Tensor) else values
    values = values if is_array(values) else np.asarray(values)
    if values.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, not {values.dtype}")
    if values.shape not in ((), (n,)):
        raise ValueError(f"{name} must be one integer or {n}, one for each image, not of shape {values.shape}")
    values = to_device(values.astype("int64", copy=False), device)
    return array_module(values).broadcast_to(values, (n,))


def _widths(channels: int, mults: Sequence[float], groups: int) -> list[int]:
    """The channels of each level."""
    widths = [channels * m for m in mults]
    if not widths or widths[0] != channels or not all(w > 0 and abs(w - round(w)) < 1e-6 for w in widths):
        raise InputError(f"channel_mults must start with 1 and give whole numbers of channels, not {tuple(mults)}")
    for width in map(round, widths):
        if width % groups:
            fits = largest_divisor(math.gcd(*map(round, widths)), groups)
            raise InputError(
                f"groups={groups} must divide the channels of every level, but one has {width}: groups={fits} would do"
            )
    return [round(w) for w in widths]


def _sizes(image_size: int, levels: int, attention_resolutions: Sequence[int]) -> list[int]:
    """The size of the images at each level."""
    if image_size % 2 ** (levels - 1):
        raise InputError(f"image_size {image_size} must be divisible by {2 ** (levels - 1)} to have {levels} levels")
    sizes = [image_size >> i for i in range(levels)]
    if missing := [r for r in attention_resolutions if r not in sizes]:
        have = ", ".join(map(str, sizes))
        raise InputError(f"attention at resolution {missing[0]} is not possible: this network's resolutions are {have}")
    return sizes


def _check_labels(num_classes: int | None, null_label: int | None) -> None:
    if num_classes is not None:
        check_whole("num_classes", num_classes)
    if null_label is not None:
        check_whole("null_label", null_label, least=0)
        if num_classes is None or null_label >= num_classes:
            known = "but it has none" if num_classes is None else f"0..{num_classes - 1} (num_classes counts it too)"
            raise InputError(f"null_label={null_label} must be one of the network's labels, {known}")
