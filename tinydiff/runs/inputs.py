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

MASKS = "dropout masks"  # what a checkpoint calls the way in which they are drawn
BY_IMAGE, BY_PART = (
    "by image",
    "by part",
)  # the latter: one part after another, in runs that were begun before there was the other


class Batch(NamedTuple):
    """A step's batch. dropout: what the network draws from. loss: the loss of part 0, 1, ... of the batch."""

    dropout: Generator
    loss: Callable[[int], Tensor]


class PartOfDraws(Generator):
    """Draws for some images of a batch what they would get if all images were drawn for: so it does not matter how a batch is cut
    into parts, nor who computes them.

    generator: draws for all. images: of the batch.

    That holds where the numbers of a part fill whole blocks of four, as they do but for odd sizes; else what an image gets
    depends on the size of the parts.
    """

    def __init__(self, generator: Generator, images: int) -> None:
        super().__init__(*generator.state)
        self.images, self.rows = images, slice(0, images)

    def begin(self, rows: slice) -> None:
        """From here on it draws for these images, from the start."""
        self.offset, self.rows = 0, rows

    def advance(self, n: int) -> Any:
        """The state before a draw of n elements for the images of this part. The generator moves past a draw for all."""
        count = self.rows.stop - self.rows.start
        if count == self.images:
            return super().advance(n)
        each = -(-n // count)
        if n != count * each or n % 4:
            each = -(-each // 4) * 4  # each image begins a block
        seed, stream, step, offset, *clock = super().advance(each * self.images)
        return seed, stream, step, offset + each * self.rows.start // 4, *clock


class Inputs:
    """Makes the batch of each step on the host and moves it to the device.

    unet, diffusion, data, config: as for `Trainer`. label_dropout: the share of labels that become the null label.
    generator: its seed makes all choices. device: the resolved one. world: the ranks that share a batch; None: this process.
    masks: BY_IMAGE or BY_PART; several ranks draw by image in any case.
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
        masks: str = BY_IMAGE,
    ) -> None:
        self.unet, self.diffusion, self.data, self.config = unet, diffusion, data, config
        self.label_dropout, self.generator, self.device = label_dropout, generator, device
        self.world, self.masks = world or World(), masks
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

        dropout = PartOfDraws(self.generator.at(random.DROPOUT, step), self.images)

        def loss(part: int) -> Tensor:
            self.begin_part(dropout, part)
            x0_part, labels_part, *noise = (None if a is None else a[self.rows(part)] for a in (x0, labels, t, eps))
            return self.diffusion.loss(self.unet, x0_part, generator, labels_part, *noise)

        return Batch(dropout, loss)

    def launched(self, step: int) -> None:
        """Called when everything of a step has been given to the device, before its result is waited for."""

    def reports(self, steps: range) -> list[tuple[list[float], float]]:
        """Losses and norm of steps whose updates were `prepared`, up to the first that is not finite."""
        raise NotImplementedError("updates are not prepared here: the optimiser returns their results")

    def begin_part(self, dropout: PartOfDraws, part: int) -> None:
        """Before the draws of a part."""
        if self.masks == BY_IMAGE or self.world.size > 1:
            dropout.begin(self.rows(part))

    def rows(self, part: int) -> slice:
        """The images of a part of this rank. Part 0 of each rank comes before part 1 of any."""
        first = (part * self.world.size + self.world.rank) * self.batch_size
        return slice(first, first + self.batch_size)

    def own_rows(self, part: int) -> slice:
        """Where the images of a part are among those of this rank."""
        return slice(part * self.batch_size, (part + 1) * self.batch_size)

    @property
    def own(self) -> np.ndarray:
        """The numbers of this rank's images in the batch."""
        return np.concatenate([np.arange(self.images)[self.rows(part)] for part in range(self.config.accumulate)])

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
