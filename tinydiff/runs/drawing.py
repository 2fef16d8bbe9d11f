"""What a trained model makes of given pictures and of seeds: parts filled in, and pictures between two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tinydiff.backend import module_for, to_numpy
from tinydiff.data import pixels
from tinydiff.diffusion import Diffusion, ddim_invert, inpaint, sample, slerp
from tinydiff.diffusion.model import model_device
from tinydiff.errors import InputError
from tinydiff.random import SAMPLING, Generator
from tinydiff.runs.sheets import PIXELS_AT_ONCE
from tinydiff.unet import UNet

STEPS = 50  # unless others are given
REFINEMENTS = 3  # of each step of an encoding: the ends of an interpolation are the pictures then


def fill_in(
    unet: UNet, diffusion: Diffusion, picture: np.ndarray, drawn: np.ndarray, n: int, seed: int, steps: int | None,
    labels: Any, guidance: float | None, jump: int, rounds: int, progress: bool,
) -> np.ndarray:  # fmt: skip
    """n pictures, uint8 (n, H, W, C), that agree with a picture (H, W, C) but where drawn (H, W), bool, is True (RePaint; Lugmayr
    et al., 2022). Other arguments as for `Pipeline.inpaint`."""
    steps = min(STEPS, diffusion.schedule.T) if steps is None else steps
    x0, drawn = _as_input(picture, unet), np.asarray(drawn)
    size = unet.image_size
    if drawn.shape != (size, size) or drawn.dtype != bool:
        raise InputError(f"the mask must be bool of shape {(size, size)}, not {drawn.dtype} of shape {drawn.shape}")
    if not drawn.any():
        raise InputError("the mask leaves nothing to draw: what is to be drawn is white in it, True in an array")
    known = module_for(model_device(unet)).asarray(~drawn[..., None])
    at_once = max(1, PIXELS_AT_ONCE // size**2)
    found = []
    for k, first in enumerate(range(0, n, at_once)):
        count = min(at_once, n - first)
        given = x0[None].repeat(count, axis=0)
        chosen = labels[first : first + count] if np.ndim(labels) else labels
        options = {"jump": jump, "rounds": rounds, "labels": chosen, "guidance": guidance, "progress": progress}
        x = inpaint(unet, diffusion, given, known, Generator(seed).at(SAMPLING, k), steps, **options)
        found.append(to_numpy(pixels.to_bytes(x)))
    return np.concatenate(found)


def between(
    unet: UNet, diffusion: Diffusion, a: Any, b: Any, n: int, steps: int | None, labels: Any, guidance: float | None,
    progress: bool,
) -> np.ndarray:  # fmt: skip
    """n pictures, uint8 (n, H, W, C), from a to b, each a seed or a picture (H, W, C): their noises are joined by an arc, see
    `slerp`, and drawn by DDIM without noise. Other arguments as for `Pipeline.interpolate`."""
    if n < 2:
        raise InputError(f"an interpolation has its two ends at least, so n must be at least 2, not {n}")
    steps = min(STEPS, diffusion.schedule.T) if steps is None else steps
    if any(isinstance(end, np.ndarray) for end in (a, b)):
        diffusion = replace(diffusion, clip_x0=False)  # what is encoded comes back only where nothing is cut off

    def noise(end: Any) -> Any:
        if not isinstance(end, np.ndarray):
            shape = unet.image_size, unet.image_size, unet.in_channels
            return Generator(end).at(SAMPLING).normal(shape, np.float32, model_device(unet))
        x0 = _as_input(end, unet)[None]
        return ddim_invert(unet, diffusion, x0, steps, labels, guidance, refinements=REFINEMENTS)[0]

    x_T, found = slerp(noise(a), noise(b), np.linspace(0, 1, n).tolist()), []
    at_once = max(1, PIXELS_AT_ONCE // unet.image_size**2)
    for first in range(0, n, at_once):
        part = x_T[first : first + at_once]
        x = sample(unet, diffusion, part.shape, Generator(0), "ddim", steps, 0.0, labels, guidance, progress, x_T=part)
        found.append(to_numpy(pixels.to_bytes(x)))
    return np.concatenate(found)


def _as_input(picture: np.ndarray, unet: UNet) -> Any:
    """A picture as the network sees it, float32 (H, W, C) on its device. InputError where it does not fit."""
    shape = unet.image_size, unet.image_size, unet.in_channels
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape != shape:
        what = f"{picture.dtype} of shape {picture.shape}" if isinstance(picture, np.ndarray) else repr(picture)
        raise InputError(f"the model takes pictures uint8 of shape {shape}, not {what}")
    return module_for(model_device(unet)).asarray(pixels.to_float(picture))
