"""Between tinydiff's objects and the configuration files of diffusers.

A key that is absent has diffusers' default, as it would there. What tinydiff cannot represent is refused in one
sentence that names the key, the value and what is supported. What only concerns how diffusers' samplers go about their
work, not what the model is, is read over.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.errors import InputError
from tinydiff.machine.files import check_numbers
from tinydiff.random import Generator
from tinydiff.runs import limits
from tinydiff.unet import UNet
from tinydiff.unet.variant import Variant

DIFFUSERS_VERSION = "0.42.0"  # whose configurations these are
_DOWN = {"DownBlock2D": False, "AttnDownBlock2D": True}  # type of block -> whether it has attention
_UP = {"UpBlock2D": False, "AttnUpBlock2D": True}
_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_VARIANCES = {
    "fixed_small": "posterior",
    "fixed_small_log": "posterior",  # the same variance, taken by way of its logarithm
    "fixed_large": "beta",
    "learned_range": "learned",
}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# UNet2DModel's defaults; a Variant's settings have the same names there
_UNET_DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "dropout": 0.0,
    "class_embed_type": None,
    "num_class_embeds": None,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "num_train_timesteps": None,
}
# The defaults of DDPMScheduler and DDIMScheduler, and of the others for what they have
_SCHEDULER_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "variance_type": "fixed_small",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "predict_epsilon": None,  # in old files, where false means "sample"
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "rescale_betas_zero_snr": False,
    # how diffusers' samplers go about their work
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "set_alpha_to_one": True,
    "tensor_format": None,
    "timestep_values": None,
}
_DDPM = ("DDPMScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler")
# Classes of other samplers for models that were trained as a DDPM is, with the defaults that are not those above.
_HIGHER = {"beta_start": 0.00085, "beta_end": 0.012}
_SAMPLERS: dict[str, dict[str, float]] = {
    "PNDMScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverSinglestepScheduler": {},
    "DPMSolverSDEScheduler": _HIGHER,
    "DEISMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "SASolverScheduler": {},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": _HIGHER,
    "KDPM2DiscreteScheduler": _HIGHER,
    "KDPM2AncestralDiscreteScheduler": _HIGHER,
    "LMSDiscreteScheduler": {},
}
SCHEDULERS, NETWORKS = (*_DDPM, *_SAMPLERS), ("UNet2DModel",)  # classes that are read
# Settings of how those go about their work.
_OF_SAMPLERS = {
    "solver_order", "algorithm_type", "solver_type", "lower_order_final", "euler_at_final", "use_karras_sigmas",
    "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "final_sigmas_type", "lambda_min_clipped",
    "use_dynamic_shifting", "time_shift_type", "flow_shift", "shift_terminal", "interpolation_type", "sigma_min", "sigma_max",
    "noise_sampler_seed", "skip_prk_steps", "predict_x0", "disable_corrector", "solver_p", "predictor_order",
    "corrector_order", "tau_func",
}  # fmt: skip
_NOT_SUCH = {"use_flow_sigmas": False, "timestep_type": "discrete"}  # with other values the model is of another kind

# of the settings of a Variant that say how large something is
_LARGEST = {
    "time_embedding_dim": 4 * limits.WIDTH,
    "attention_head_dim": limits.WIDTH,
    "attn_norm_num_groups": limits.WIDTH,
    "num_train_timesteps": limits.TIMESTEPS,
    "downsample_padding": 8,
}


def _is_width(value: Any) -> bool:
    return type(value) is int and 0 < value <= limits.WIDTH


def unet_config(unet: UNet) -> dict[str, Any]:
    """The unet/config.json of a network."""
    c, levels = unet.config, len(unet.config["channel_mults"])
    sizes = [c["image_size"] >> i for i in range(levels)]
    up = unet.variant.up_attention_resolutions
    down_attended = [size in c["attention_resolutions"] for size in sizes]
    up_attended = down_attended if up is None else [size in up for size in sizes]
    variant = dataclasses.asdict(unet.variant)
    del variant["up_attention_resolutions"]
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        "sample_size": c["image_size"],
        "in_channels": c["in_channels"],
        "out_channels": c["out_channels"],
        "block_out_channels": [round(c["channels"] * m) for m in c["channel_mults"]],
        "down_block_types": ["AttnDownBlock2D" if attended else "DownBlock2D" for attended in down_attended],
        "up_block_types": ["AttnUpBlock2D" if attended else "UpBlock2D" for attended in reversed(up_attended)],
        "layers_per_block": c["blocks_per_level"],
        "norm_num_groups": c["groups"],
        "dropout": c["dropout"],
        "class_embed_type": None,
        "num_class_embeds": c["num_classes"],
        **variant,
    }


def unet_from_config(config: Mapping[str, Any], null_label: int | None, where: str) -> UNet:
    """The network that a unet/config.json describes, with weights yet to be loaded.

    InputError, which begins with `where`, for what tinydiff does not support.
    """
    with at(where):
        check_numbers(dict(config), "the configuration")
        read = _Reader(config, _UNET_DEFAULTS, NETWORKS)
        size = read["sample_size"]
        if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
            size = size[0]
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= limits.IMAGE_SIZE:
            raise read.refused(
                "sample_size", f"the side of square images, a whole number from 1 to {limits.IMAGE_SIZE}"
            )
        if read["class_embed_type"] is not None:
            raise read.refused("class_embed_type", "null, with num_class_embeds for a labelled network")
        widths = read.block_list("block_out_channels", f"whole numbers from 1 to {limits.WIDTH}", _is_width)
        if len(widths) > limits.LEVELS:
            raise read.refused("block_out_channels", f"at most {limits.LEVELS} levels")
        if size % 2 ** (len(widths) - 1):
            raise read.refused("sample_size", f"multiples of {2 ** (len(widths) - 1)} with {len(widths)} levels")
        groups, blocks = read.whole("norm_num_groups"), read.whole("layers_per_block", limits.BLOCKS)
        limits.require_weights(widths, blocks)
        if any(width % groups for width in widths):
            raise read.refused("norm_num_groups", f"what divides all of block_out_channels = {widths}")
        down = read.block_list("down_block_types", " and ".join(_DOWN), _DOWN.__contains__, len(widths))
        up = read.block_list("up_block_types", " and ".join(_UP), _UP.__contains__, len(widths))
        sizes = [size >> i for i in range(len(widths))]
        attended = tuple(n for n, kind in zip(sizes, down, strict=True) if _DOWN[kind])
        attended_up = tuple(n for n, kind in zip(sizes, reversed(up), strict=True) if _UP[kind])
        variant = {f.name: read[f.name] for f in dataclasses.fields(Variant) if f.name in _UNET_DEFAULTS}
        for key, most in _LARGEST.items():
            if type(variant[key]) is int and variant[key] > most:
                raise read.refused(key, f"at most {most}")
        return UNet(
            size,
            read.whole("in_channels", limits.IMAGE_CHANNELS),
            read.whole("out_channels", limits.IMAGE_CHANNELS),
            channels=widths[0],
            channel_mults=tuple(w // widths[0] if w % widths[0] == 0 else w / widths[0] for w in widths),
            blocks_per_level=blocks,
            attention_resolutions=attended,
            groups=groups,
            dropout=read["dropout"],
            num_classes=None if read["num_class_embeds"] is None else read.whole("num_class_embeds", limits.CLASSES),
            null_label=null_label,
            generator=Generator(0),  # the default one shall not move on because a checkpoint was read
            up_attention_resolutions=None if attended_up == attended else attended_up,
            **variant,
        )


def scheduler_config(diffusion: Diffusion) -> dict[str, Any]:
    """The scheduler/scheduler_config.json of a diffusion. ValueError for a respaced schedule, which is one for sampling
    and not the one that the model was trained with."""
    schedule = diffusion.schedule
    if schedule.timesteps[-1] != schedule.T:
        raise ValueError("a respaced schedule is for sampling only: save the diffusion that the model was trained with")
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "num_train_timesteps": schedule.T,
        **_betas(schedule),
        "variance_type": _name_of(diffusion.variance, _VARIANCES),
        "prediction_type": _name_of(diffusion.predict, _PREDICTIONS),
        "clip_sample": diffusion.clip_x0,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1.0,
        "rescale_betas_zero_snr": False,
        "timestep_spacing": "trailing",
        "steps_offset": 0,
    }


def diffusion_from_config(config: Mapping[str, Any], unet: UNet, where: str, min_snr: float | None = None) -> Diffusion:
    """The diffusion that a scheduler_config.json describes, for a network.

    InputError, which begins with `where`, for what tinydiff does not support and for what the network does not fit.
    """
    with at(where):
        defaults, name = _SCHEDULER_DEFAULTS, config.get("_class_name")
        if isinstance(name, str) and name in _SAMPLERS:
            config = {key: value for key, value in config.items() if key not in _OF_SAMPLERS}
            defaults = defaults | {"clip_sample": False} | _NOT_SUCH | _SAMPLERS[name]
            if config.get("variance_type", 0) is None:
                config = config | {"variance_type": "fixed_small"}
        check_numbers(dict(config), "the configuration")
        read = _Reader(
            config,
            defaults,
            SCHEDULERS,
            "those of a DDPM's noise, as DDPM, DDIM, PNDM, DPMSolver, DEIS, UniPC, Euler, Heun, LMS",
        )
        for key, value in _NOT_SUCH.items():
            if key in defaults and read[key] != value:
                raise read.refused(key, _shown(value))
        prediction = read.one_of("prediction_type", _PREDICTIONS)
        if read["predict_epsilon"] is False:
            prediction = "sample"
        variance = _VARIANCES[read.one_of("variance_type", _VARIANCES)]
        clip = read.one_of("clip_sample", (True, False))
        if read["thresholding"]:
            raise read.refused("thresholding", "false")
        if clip and read["clip_sample_range"] != 1:
            raise read.refused("clip_sample_range", "1.0")
        if unet.out_channels != unet.in_channels * (2 if variance == "learned" else 1):
            channels = f"{unet.in_channels} input and {unet.out_channels} output channels"
            raise read.refused(
                "variance_type",
                "learned_range where the network has twice as many output as input channels, fixed_small or "
                f"fixed_large where it has the same number; this one has {channels}",
            )
        schedule = _schedule(read)
        if read["rescale_betas_zero_snr"]:
            schedule = schedule.zero_terminal_snr()
        return Diffusion(schedule, _PREDICTIONS[prediction], variance, clip, min_snr)


def _betas(schedule: Schedule) -> dict[str, Any]:
    """How a scheduler_config.json gives the betas: by a formula where that makes the very same, else as numbers."""
    T, beta = schedule.T, schedule.beta
    settings = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None}
    if beta[-1] < 1:
        with warnings.catch_warnings(action="ignore"):  # how noisy x_T is was said when the schedule was made
            if np.array_equal(beta, Schedule.linear(T, beta[1], beta[-1]).beta):
                return settings | {"beta_start": float(beta[1]), "beta_end": float(beta[-1])}
            if np.array_equal(beta, Schedule.cosine(T).beta):
                return settings | {"beta_schedule": "squaredcos_cap_v2"}
    return settings | {"trained_betas": beta[1:].tolist()}


def _schedule(read: _Reader) -> Schedule:
    T, betas = read.whole("num_train_timesteps", limits.TIMESTEPS), read["trained_betas"]
    kind = read.one_of("beta_schedule", ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"))
    start, end = read["beta_start"], read["beta_end"]
    with warnings.catch_warnings(action="ignore"):
        if betas is not None:
            if not isinstance(betas, list) or len(betas) != T:
                raise read.refused("trained_betas", f"a list of num_train_timesteps = {T} numbers")
            return Schedule.from_betas(betas)
        if kind == "linear":
            return Schedule.linear(T, start, end)
        if kind == "scaled_linear":
            return Schedule.from_betas(np.linspace(start**0.5, end**0.5, T) ** 2)
        if kind == "sigmoid":
            return Schedule.from_betas(start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, T))))
        return Schedule.cosine(T)


def current_names(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights under diffusers' present names, from those or from the older ones of attention (query, key, value,
    proj_attn)."""
    renamed = {}
    for name, array in state.items():
        path = name.split(".")
        if len(path) > 3 and path[-4] == "attentions":  # attentions, which one, layer, weight or bias
            path[-2] = _OLD_ATTENTION.get(path[-2], path[-2])
        renamed[".".join(path)] = array
    return renamed


def _name_of(value: Any, names: Mapping[str, Any]) -> str:
    return next(name for name, meaning in names.items() if meaning == value)


@contextmanager
def at(where: str) -> Iterator[None]:
    """Puts the place before the message of an error in the block, and makes it an InputError."""
    try:
        yield
    except (ValueError, TypeError, ArithmeticError) as error:
        raise InputError(f"{where}: {error}") from None


class _Reader:
    """A configuration with its defaults: reader[key], and sentences for what is not supported.

    InputError for the configuration of another class than `classes`, whose sentence may call them `called`, and for a key
    that `defaults` do not have, unless it is null or begins with an underscore, as what diffusers notes beside the settings
    does.
    """

    def __init__(
        self, config: Mapping[str, Any], defaults: Mapping[str, Any], classes: tuple[str, ...], called: str = ""
    ) -> None:
        self.config, self.defaults = config, defaults
        if config.get("_class_name", classes[0]) not in classes:
            raise self.refused("_class_name", called or " and ".join(classes))
        for key, value in config.items():
            if key not in defaults and not key.startswith("_") and value is not None:
                raise self.refused(key, "only null: tinydiff does not know this setting")

    def __getitem__(self, key: str) -> Any:
        return self.config[key] if key in self.config else self.defaults[key]

    def refused(self, key: str, supported: str) -> InputError:
        value = self.config.get(key, self.defaults.get(key))
        return InputError(f"{key} = {_shown(value)} is not supported; supported: {supported}")

    def one_of(self, key: str, supported: Iterable[Any]) -> Any:
        if isinstance(self[key], list | dict) or self[key] not in tuple(supported):
            raise self.refused(key, ", ".join(map(_shown, supported)))
        return self[key]

    def whole(self, key: str, most: int = 2**31) -> int:
        value = self[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refused(key, "a whole number of at least 1")
        if value > most:
            raise self.refused(key, f"at most {most}")
        return value

    def block_list(self, key: str, supported: str, fits: Any, length: int | None = None) -> list[Any]:
        """A list with an entry for each level of the network."""
        values = self[key]
        if not isinstance(values, list | tuple) or not values:
            raise self.refused(key, "a list with an entry for each level")
        for value in values:
            if not fits(value):
                raise InputError(f"{key} has {_shown(value)}, which is not supported; supported: {supported}")
        if length not in (None, len(values)):
            raise self.refused(key, f"{length} entries, as many as block_out_channels has")
        return list(values)


def _shown(value: Any) -> str:
    """As in a JSON file, not longer than one line."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 100 else text[:97] + "..."
