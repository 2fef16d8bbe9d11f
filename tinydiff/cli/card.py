"""What a training run would take on a consumer's GPU with 8 GB: predicted, from the work and the memory of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tinydiff.runs.memory import Estimate, show
from tinydiff.runs.progress import duration

if TYPE_CHECKING:
    from tinydiff.runs.trainer import Trainer
    from tinydiff.unet import UNet

NAME = "8 GB card"
MEMORY = 7 << 30  # bytes: 8 GiB less what the driver, CUDA's context and a desktop take
FLOPS = 15e12  # per second in float32, as makers state for cards of that size (an RTX 4060: 15.1e12)
SHARE = 0.5  # of that, which convolutions in float32 reach where they are written well; no card has confirmed it


def predicted(trainer: Trainer, needed: Estimate, steps: int) -> list[str]:
    """Lines on memory and time of so many steps of a run. needed: what a step needs."""
    config = trainer.config
    on_card = Estimate(needed.weights, needed.average, needed.optimizer, needed.fixed, needed.per_image)
    memory = on_card.total(config.batch_size)
    if memory <= MEMORY:
        fits = "fits"
    else:
        most = on_card.largest_batch(MEMORY)
        fits = (
            f"does not fit; --batch-size {most} does (--accumulate keeps the images per step)"
            if most
            else "does not fit"
        )
    seconds = seconds_of_step(trainer.unet, config.batch_size * config.accumulate)
    return [
        f"predicted until run: {show(memory)} of {show(MEMORY)}, {fits}",
        f"{seconds:.2g} s a step, {steps} steps {duration(steps * seconds)} (float32, half of {FLOPS / 1e12:.0f} TFLOP/s)",
    ]


def seconds_of_step(unet: UNet, images: int) -> float:
    """Forward and backward pass of so many images; backward takes twice the FLOPs of forward."""
    from tinydiff.autograd.tape import no_grad
    from tinydiff.backend import module_for
    from tinydiff.diffusion.model import evaluating, model_device
    from tinydiff.study import trace

    labels = None if unet.num_classes is None or unet.null_label is not None else 0
    x = module_for(model_device(unet)).asarray(
        np.zeros((1, unet.image_size, unet.image_size, unet.in_channels), np.float32)
    )
    with evaluating(unet), no_grad(), trace(values=0) as recorded:
        unet(x, 1, labels)
    return 3 * recorded.cost().total.flops[0] * images / (SHARE * FLOPS)
