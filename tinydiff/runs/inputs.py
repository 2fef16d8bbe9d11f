"""What a step of training is computed from: images, labels, times and noise, which are functions of the seed and the
step alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tinydiff import random
from tinydiff.autograd.profile import section
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import module_for
from tinydiff.data import Dataset
from tinydiff.diffusion import Diffusion
from tinydiff.errors import InputError
from tinydiff.random import Generator, as_uniform, words_of_steps
from tinydiff.ranks import World
from tinydiff.runs.config import TrainConfig
from tinydiff.runs.sheets import class_count
from tinydiff.unet import UNet


class Batch(NamedTuple):
    """A step's batch. dropout: what the network draws from. loss: the loss of part 0, 1, ... of the batch."""

    dropout: Generator
    loss: Callable[[int], Tensor]


class Inputs:
    """Makes the batch of each step on the host and moves it to the device.

    unet, diffusion, data, config: as for `Trainer`. label_dropout: the share of labels that become the null label.
    generator: its seed makes all choices. device: the resolved one. world: the ranks that share a batch; None: this process.
    """

    prepared: Any = None  # of what the optimiser needs, nothing is on the device before it is called

    def __init__(
        self,
        unet: UNet,
        diffusion: Diffusion,
        data: Dataset,
        config: TrainConfig,
        label_dropout: float,
        generator: Generator,
        device: str,
        world: World | None = None,
    ) -> None:
        self.unet, self.diffusion, self.data, self.config = unet, diffusion, data, config
        self.label_dropout, self.generator, self.device = label_dropout, generator, device
        self.world = world or World()
        self.images = config.batch_size * config.accumulate  # of a step, on all ranks
        self.batch_size = config.batch_size // self.world.size  # of a part

    def batch(self, step: int) -> Batch:
        """The batch of step 1, 2, ..."""
        with section("data"):
            x0, labels = self.data.batch(step, self.images, self.generator)
            labels = None if self.unet.num_classes is None else self.dropped(labels, range(step, step + 1))
            x0 = module_for(self.device).asarray(x0)
        generator = self.generator.at(random.TIME, step)
        t = eps = None
        if self.config.accumulate > 1:  # one draw for all parts
            with section("noise and times"):
                t, eps = self.diffusion.draw(x0, generator)

        def loss(part: int) -> Tensor:
            x0_part, labels_part, *noise = (None if a is None else a[self.rows(part)] for a in (x0, labels, t, eps))
            return self.diffusion.loss(self.unet, x0_part, generator, labels_part, *noise)

        return Batch(self.generator.at(random.DROPOUT, step), loss)

    def launched(self, step: int) -> None:
        """Called when everything of a step has been given to the device, before its result is waited for."""

    def reports(self, steps: range) -> list[tuple[list[float], float]]:
        """Losses and norm of steps whose updates were `prepared`, up to the first that is not finite."""
        raise NotImplementedError("updates are not prepared here: the optimiser returns their results")

    def rows(self, part: int) -> slice:
        """The images of a part."""
        first = self.number(part) * self.batch_size
        return slice(first, first + self.batch_size)

    def number(self, part: int) -> int:
        """The number of a part of this rank among those of all ranks: part 0 of each comes before part 1 of any."""
        return part * self.world.size + self.world.rank

    def dropped(self, labels: np.ndarray | None, steps: range) -> np.ndarray | None:
        """Labels of the batches of several steps, one after another, of which a random share has become the null label (Ho
        and Salimans, 2022, algorithm 1)."""
        if labels is None or not self.label_dropout:
            return labels
        words = words_of_steps(self.generator.seed, random.LABEL_DROPOUT, steps, labels.size // len(steps))
        lost = (as_uniform(words) < self.label_dropout).reshape(labels.shape)
        assert self.unet.null_label is not None
        return np.where(lost, self.unet.null_label, labels)


def check_fit(unet: UNet, data: Dataset) -> None:
    """InputError where a network cannot be trained on data: for their sizes, channels or classes."""
    shape = (*data.image_size, data.channels)
    wanted = (unet.image_size, unet.image_size, unet.in_channels)
    if shape != wanted:
        raise InputError(f"the data's images are {shape} (height, width, channels), the network takes {wanted}")
    classes = class_count(unet)
    if classes is not None:
        if data.num_classes is None:
            raise InputError(f"the network has {classes} classes, but the data has no labels")
        if data.num_classes > classes:
            raise InputError(f"the data has {data.num_classes} classes, the network {classes}")


def label_dropout(unet: UNet, wanted: float | None) -> float:
    """The share of labels to leave out. wanted: None for 0.1 where there is a null label. InputError where there is none."""
    possible = unet.num_classes is not None and unet.null_label is not None
    if wanted and not possible:
        raise InputError("label dropout needs labels and a network with a null label")
    return (0.1 if wanted is None else wanted) if possible else 0.0
