"""The settings in which a U-Net may differ from the paper's, so that diffusers' checkpoints can be read and written."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinydiff import ops
from tinydiff.errors import InputError

ACTIVATIONS = {"silu": ops.silu, "swish": ops.silu, "relu": ops.relu, "gelu": ops.gelu}

_CHOICES: dict[str, tuple[Any, ...]] = {
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "flip_sin_to_cos": (False, True),
    "time_embedding_type": ("positional", "learned"),
    "add_attention": (True, False),
    "mid_block_type": ("UNetMidBlock2D", None),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "act_fn": tuple(ACTIVATIONS),
    "center_input_sample": (False, True),
}


@dataclass(frozen=True)
class Variant:
    """How a U-Net differs from the paper's, which the defaults describe. Names and meanings are those of diffusers'
    UNet2DModel, whose own defaults are others. InputError for values that are not supported.

    norm_eps: added to the variance in group normalisation.
    downsample_padding: of the stride-2 convolutions, on all sides; 0: one row and column, right and bottom only.
    downsample_type, upsample_type: "conv", or "resnet": a residual block that resamples, at levels with attention.
    flip_sin_to_cos, freq_shift: see `tinydiff.unet.time_embedding`.
    time_embedding_type: "positional", or "learned": a table with a row for each of `num_train_timesteps`.
    time_embedding_dim: features of the time embedding (None: 4 channels).
    attention_head_dim: channels of an attention head (None: one head).
    add_attention: whether the middle has attention.
    attn_norm_num_groups: groups of the normalisation in the middle's attention (None: as elsewhere, or no
        normalisation where the time scales and shifts).
    mid_block_type: "UNetMidBlock2D", or None for no middle.
    mid_block_scale_factor: what the sums of residual connections in the middle are divided by.
    resnet_time_scale_shift: "default": the time is added before a block's second normalisation; "scale_shift": it
        scales and shifts the result (Nichol & Dhariwal, 2021).
    act_fn: "silu" ("swish"), "relu" or "gelu"; the time embedding and the last layer have SiLU in any case.
    center_input_sample: whether the network sees 2 x - 1 instead of x.
    up_attention_resolutions: where the way up has attention, if not where the way down has it (not a name of diffusers,
        which lists the types of all blocks instead).
    """

    norm_eps: float = 1e-6
    downsample_padding: int = 0
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    flip_sin_to_cos: bool = False
    freq_shift: float = 1
    time_embedding_type: str = "positional"
    num_train_timesteps: int | None = None
    time_embedding_dim: int | None = None
    attention_head_dim: int | None = None
    add_attention: bool = True
    attn_norm_num_groups: int | None = None
    mid_block_type: str | None = "UNetMidBlock2D"
    mid_block_scale_factor: float = 1
    resnet_time_scale_shift: str = "default"
    act_fn: str = "silu"
    center_input_sample: bool = False
    up_attention_resolutions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, supported in _CHOICES.items():
            if (value := getattr(self, name)) not in supported:
                raise InputError(f"{name} must be one of {', '.join(map(repr, supported))}, not {value!r}")
        for name in ("num_train_timesteps", "time_embedding_dim", "attention_head_dim", "attn_norm_num_groups"):
            if (value := getattr(self, name)) is not None:
                check_whole(name, value)
        check_whole("downsample_padding", self.downsample_padding, least=0)
        check_number("norm_eps", self.norm_eps, above=0)
        check_number("mid_block_scale_factor", self.mid_block_scale_factor, above=0)
        check_number("freq_shift", self.freq_shift)
        if self.time_embedding_type == "learned" and self.num_train_timesteps is None:
            raise InputError("time_embedding_type 'learned' needs num_train_timesteps")

    @classmethod
    def read(cls, settings: dict[str, Any]) -> Variant:
        """The variant of UNet's keyword arguments; TypeError for a name that is none of them."""
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := [name for name in settings if name not in known]:
            raise TypeError(f"UNet has no argument {unknown[0]!r}; the settings of a variant are {', '.join(known)}")
        return cls(**settings)


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """InputError unless the value is an int of at least `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")


def check_number(name: str, value: Any, above: float = -math.inf) -> None:
    """InputError unless the value is a finite number greater than `above`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < math.inf:
        limit = "" if above == -math.inf else f" greater than {above}"
        raise InputError(f"{name} must be a finite number{limit}, not {value!r}")
