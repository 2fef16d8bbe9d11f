"""What each of several ranks computes a step from: its images of the batch, and their part of every random choice.

The choices are those that one process would make for the same images, so what all ranks do together does not depend on how
many there are.
"""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from tinydiff import random
from tinydiff.autograd.profile import section
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import module_for
from tinydiff.data import Dataset
from tinydiff.data.pixels import gather_batch
from tinydiff.diffusion import Diffusion
from tinydiff.errors import InputError, named
from tinydiff.machine import threads
from tinydiff.random import Generator
from tinydiff.ranks import World
from tinydiff.ranks.team import Team
from tinydiff.runs.inputs import Batch, Inputs, PartOfDraws


class Shares(Inputs):
    """The inputs of one of several ranks; arguments as of `Inputs`."""

    def batch(self, step: int) -> Batch:
        """This rank's part of the batch of step 1, 2, ..."""
        mine = self.own
        with section("data"):
            x0, labels = self._images(step, mine)
            x0 = module_for(self.device).asarray(x0)
        with section("noise and times"):
            t, eps = self._noise(x0, step, mine)
        dropout = PartOfDraws(self.generator.at(random.DROPOUT, step), self.images)

        def loss(part: int) -> Tensor:
            here = self.own_rows(part)
            self.begin_part(dropout, part)
            of_part = None if labels is None else labels[here]
            return self.diffusion.loss(self.unet, x0[here], None, of_part, t[here], eps[here])

        return Batch(dropout, loss)

    def _images(self, step: int, mine: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Images and labels number `mine` of a step's batch."""
        steps = range(step, step + 1)
        if type(self.data).batch is not Dataset.batch or type(self.data).chosen is not Dataset.chosen:
            x0, labels = self.data.batch(step, self.images, self.generator)
            x0 = x0[mine]
        else:
            indices, mirrored = self.data.chosen(steps, self.images, self.generator)
            x0 = gather_batch(self.data.images, indices[0, mine], None if mirrored is None else mirrored[0, mine])
            labels = None if self.data.labels is None else self.data.labels[indices[0]]
        labels = None if self.unet.num_classes is None else self.dropped(labels, steps)
        return x0, None if labels is None else labels[mine]

    def _noise(self, x0: Any, step: int, mine: np.ndarray) -> tuple[Any, Any]:
        """t and eps for the images x0, number `mine` of a step's batch."""
        times, noise = self.generator.at(random.TIME, step), self.generator.at(random.NOISE, step)
        if type(self.diffusion).draw is not Diffusion.draw:
            everything = np.broadcast_to(np.zeros((), x0.dtype), (self.images, *x0.shape[1:]))
            t, eps = self.diffusion.draw(module_for(self.device).asarray(everything), times)
            return t[mine], eps[mine]
        t = times.integers(1, self.diffusion.schedule.T + 1, self.images)[mine]
        eps, n = module_for(self.device).empty_like(x0), self.batch_size
        for part in range(self.config.accumulate):
            first = self.rows(part).start * math.prod(x0.shape[1:])
            eps[part * n : (part + 1) * n] = _from(noise, first, (n, *x0.shape[1:]), x0.dtype, self.device)
        return t, eps


def _from(generator: Generator, first: int, shape: tuple[int, ...], dtype: Any, device: str) -> Any:
    """The normals of a draw from element number `first` on."""
    seed, stream, step, offset = generator.state
    later = Generator(seed, stream, step, offset + first // 4)
    return later.normal(first % 4 + math.prod(shape), dtype, device)[first % 4 :].reshape(shape)


def inputs_of(trainer: Any) -> Inputs:
    """What the steps of a `Trainer` are computed from, on this rank."""
    t = trainer
    common = t.unet, t.diffusion, t.data, t.config, t.label_dropout, t.generator, t.device, t.world, t.masks
    return (Inputs if t.world.size == 1 else Shares)(*common)


def share_of_batch(batch_size: int, world: World) -> int:
    """The images of a part that each rank computes. InputError where they cannot be shared out evenly."""
    if batch_size % world.size:
        below, above = (batch_size // world.size + i for i in (0, 1))
        fitting = [str(n * world.size) for n in (below, above) if n]
        raise InputError(
            f"{named('batch_size', batch_size)} cannot be shared out evenly to {world.size} ranks; {' or '.join(fitting)} can"
        )
    return batch_size // world.size


def threads_of_rank(wish: int | None, world: World) -> int | None:
    """CPU threads of each rank. Of a team, which shares the wish or the processors of one process: an equal part. Of other ranks:
    the wish, or else what OMP_NUM_THREADS says, or else its share of the processors that it may run on, where other ranks
    may as well. None: all that it may use."""
    if isinstance(world, Team):
        return max(1, (wish or threads.available()) // world.size)
    if wish or world.sharing == 1 or os.environ.get("OMP_NUM_THREADS"):
        return wish
    return max(1, threads.available() // world.sharing)


def all_threads(wish: int | None, world: World) -> AbstractContextManager[Any]:
    """A block in which rank 0 of a team works while the others wait: on the CPU threads of the whole team."""
    return threads.threads(wish) if isinstance(world, Team) else nullcontext()
