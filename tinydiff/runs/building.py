"""From settings to objects: the data, the network and the diffusion that a RunConfig asks for."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import numpy as np

from tinydiff import data as datasets
from tinydiff.data import Dataset
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.errors import InputError, named
from tinydiff.machine.terminal import say
from tinydiff.ops.arguments import largest_divisor
from tinydiff.random import INIT, Generator
from tinydiff.runs import checkpoint, limits
from tinydiff.runs.checkpoint import Pipeline
from tinydiff.runs.config import RunConfig
from tinydiff.unet import UNet


def starting_point(config: RunConfig, resume: bool) -> Pipeline | None:
    """The pipeline that `config.init` names, if it names one; for a run that is resumed, its own checkpoint is as good."""
    if config.init is None:
        return None
    own = checkpoint.find(config.out) if resume else None
    return checkpoint.load(own or config.init)


def load_data(config: RunConfig, start: Pipeline | None = None) -> Dataset:
    """The images, in the size and channels of the network to start from; what could not be read is reported on stderr.
    InputError where nothing can be used."""
    return datasets.load(
        config.data,
        image_size=config.image_size if start is None or config.image_size else start.image_size,
        channels=None if start is None else start.unet.in_channels,
        labels=config.labels,
        flip=config.flip,
        holdout=config.holdout,
        seed=config.seed,
        report=say,
    )


def resolve(config: RunConfig, data: Dataset, start: Pipeline | None = None) -> RunConfig:
    """The settings with everything decided that was left to the data or to the network to start from. InputError where
    they do not fit."""
    height, width = data.image_size
    if height != width:
        raise InputError(f"the images are {height}x{width}; {named('image_size')} makes them square")
    if start is not None:
        return _resolve_start(config, data, start)
    _check_size(config, height)
    widest = config.channels * max(config.mults)
    if widest > limits.WIDTH:
        raise InputError(
            f"{named('channels')} times {named('mults')} gives {widest} channels, and a level has at most {limits.WIDTH}"
        )
    limits.require_weights([config.channels * m for m in config.mults], config.blocks, copies=4)
    limits.require_step(config.batch_size, height, config.channels)
    limits.require_step(config.batch_size * config.accumulate, height, data.channels)
    labels = data.labels is not None if config.labels is None else config.labels
    label_dropout = config.label_dropout
    if not labels:
        if label_dropout:
            raise InputError(f"{named('label_dropout', label_dropout)} needs labels, and this run has none")
        label_dropout = 0.0
    elif label_dropout is None:
        label_dropout = 0.1
    return dataclasses.replace(
        config,
        image_size=height,
        labels=labels,
        label_dropout=label_dropout,
        attention=_attention(config, height),
        groups=_groups(config),
    )


def _resolve_start(config: RunConfig, data: Dataset, start: Pipeline) -> RunConfig:
    unet, diffusion = start.unet, start.diffusion
    labels = unet.num_classes is not None
    if config.labels and not labels:
        raise InputError(f"{named('labels', True)}: the network of {config.init} was trained without labels")
    if labels and (data.labels is None or config.labels is False):
        raise InputError(f"the network of {config.init} needs labels, and this run has none")
    guided = unet.null_label is not None
    if config.label_dropout and not guided:
        raise InputError(
            f"{named('label_dropout', config.label_dropout)}: the network of {config.init} has no null label"
        )
    return dataclasses.replace(
        config,
        image_size=start.image_size,
        labels=labels,
        label_dropout=(0.1 if config.label_dropout is None else config.label_dropout) if guided else 0.0,
        channels=unet.config["channels"],
        mults=tuple(int(m) for m in unet.config["channel_mults"]),
        blocks=unet.config["blocks_per_level"],
        attention=tuple(unet.config["attention_resolutions"]),
        groups=unet.config["groups"],
        dropout=float(unet.config["dropout"]),
        timesteps=diffusion.schedule.T,
        predict=diffusion.predict,
        variance=diffusion.variance,
    )


def _check_size(config: RunConfig, size: int) -> None:
    """InputError unless every level but the last can halve the images."""
    factor = 2 ** (len(config.mults) - 1)
    if size % factor:
        given = named("image_size", size) if config.image_size else f"the images are {size}x{size}"
        fitting = [str(n) for n in (size // factor * factor, (size // factor + 1) * factor) if n]
        raise InputError(
            f"{given}: for the {len(config.mults)} levels of {named('mults', config.mults)} the size must be divisible by "
            f"{factor}, so give {named('image_size')} {' or '.join(fitting)}"
        )


def _attention(config: RunConfig, size: int) -> tuple[int, ...]:
    """The sizes of feature maps with attention: 16 or else the largest below it. InputError for one the network
    lacks."""
    sizes = [size // 2**level for level in range(len(config.mults))]
    if config.attention is None:
        return tuple(s for s in sizes if s <= 16)[:1]
    missing = [s for s in config.attention if s not in sizes]
    if missing:
        raise InputError(
            f"{named('attention', missing[0])}: a network for {size}x{size} images with {len(sizes)} levels has feature maps "
            f"of {', '.join(map(str, sizes))}"
        )
    return config.attention


def _groups(config: RunConfig) -> int:
    common = math.gcd(*(config.channels * m for m in config.mults))
    if config.groups is None:
        fitting = [g for g in (32, 16, 8) if common % g == 0]
        if not fitting:
            raise InputError(
                f"{named('channels', config.channels)} is not divisible by 32, 16 or 8; choose another or give "
                f"{named('groups')}"
            )
        return fitting[0]
    if common % config.groups:
        raise InputError(
            f"{named('channels', config.channels)} with {named('mults', config.mults)} does not divide into "
            f"{named('groups', config.groups)}; {named('groups', largest_divisor(common, config.groups))} would do"
        )
    return config.groups


def build_network(config: RunConfig, data: Dataset) -> UNet:
    """The U-Net of resolved settings, freshly initialised from the seed."""
    settings: dict[str, Any] = {
        "image_size": config.image_size,
        "in_channels": data.channels,
        "out_channels": data.channels * (2 if config.variance == "learned" else 1),
        "channels": config.channels,
        "channel_mults": config.mults,
        "blocks_per_level": config.blocks,
        "attention_resolutions": config.attention,
        "groups": config.groups,
        "dropout": config.dropout,
        "num_classes": None,
        "null_label": None,
    }
    if config.labels and data.num_classes is not None:
        guided = bool(config.label_dropout)
        settings |= {"num_classes": data.num_classes + guided, "null_label": data.num_classes if guided else None}
    return UNet(**settings, generator=Generator(config.seed).at(INIT))


def build_diffusion(config: RunConfig) -> Diffusion:
    """The diffusion of the settings. The linear schedule's betas 1e-4..0.02 are scaled by 1000/T, each at most 0.999,
    so that any T ends in noise."""
    T = config.timesteps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of too few steps; the command line says it in its own words
        if config.schedule == "cosine":
            schedule = Schedule.cosine(T)
        elif config.schedule == "sigmoid":
            schedule = Schedule.sigmoid(T)
        else:
            schedule = Schedule.from_betas(np.minimum(np.linspace(1e-4, 0.02, T) * (1000 / T), 0.999))
    return Diffusion(schedule, config.predict, config.variance)
