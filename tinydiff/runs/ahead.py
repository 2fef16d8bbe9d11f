"""Steps of training that need nothing from the host: all that they take lies on the GPU before they begin.

The host computes the choices of many steps at once, with the code that the CPU uses: which images, whether mirrored, their
labels, times, levels of noise, and the numbers of Adam. A clock on the GPU (`tinydiff.cuda.clock`) lays out those of the
present step. The images are there as bytes. Noise and dropout are drawn where they are needed, at the clock's step.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from tinydiff import backend, optim, random
from tinydiff.autograd.profile import section
from tinydiff.autograd.tensor import Tensor
from tinydiff.cuda.clock import Clock
from tinydiff.cuda.updates import Prepared, adam_scalars, read_report
from tinydiff.data import Dataset
from tinydiff.data.pixels import gather_batch
from tinydiff.diffusion import Diffusion
from tinydiff.diffusion.loss import loss_at
from tinydiff.diffusion.times import Times, times_of
from tinydiff.dispatch import uses_kernels
from tinydiff.machine.terminal import say
from tinydiff.ops.optim import LEAST_SCALE
from tinydiff.random import Generator, as_integers, words_of_steps
from tinydiff.runs.inputs import Batch, Inputs, PartOfDraws
from tinydiff.runs.loss_scale import LossScale
from tinydiff.runs.memory import show

DATA_SHARE = 0.25  # of the GPU's free memory: what the data may take
REPORTS = 512  # steps whose losses and norms the GPU remembers


def possible(inputs: Inputs) -> bool:
    """Whether steps can be prepared: on a GPU, by our own kernels, and where no subclass computes batch or loss otherwise."""
    own = type(inputs.data).batch is Dataset.batch and type(inputs.data).chosen is Dataset.chosen
    own = own and type(inputs.diffusion).loss is Diffusion.loss and type(inputs.diffusion).draw is Diffusion.draw
    return inputs.device == "cuda" and own and uses_kernels()


def prepared(
    inputs: Inputs, optimizer: optim.Adam, ema: optim.EMA, needed: int = 0, loss_scale: LossScale | None = None
) -> Inputs:
    """`Ahead`; the inputs themselves, with a line that says so, where the GPU has too little memory for it."""
    try:
        return Ahead(inputs, optimizer, ema, needed, loss_scale)
    except MemoryError:  # CuPy's OutOfMemoryError is one
        say(
            "the GPU has too little memory to prepare steps there: each is prepared by the machine, without a CUDA graph"
        )
    return inputs


class Ahead(Inputs):
    """The inputs of steps, prepared on the GPU.

    inputs: of which data, network and settings are taken. optimizer, ema: whose updates are prepared. needed: the bytes that
    a step takes in addition to what is on the GPU now; data that leave less than that stay on the host. loss_scale: of the run;
    where there is one, reports have it behind the losses.
    """

    prepared: Prepared

    def __init__(
        self,
        inputs: Inputs,
        optimizer: optim.Adam,
        ema: optim.EMA,
        needed: int = 0,
        loss_scale: LossScale | None = None,
    ) -> None:
        common = inputs.unet, inputs.diffusion, inputs.data, inputs.config, inputs.label_dropout, inputs.generator
        super().__init__(*common, inputs.device, inputs.world, inputs.masks)
        self.optimizer, self.ema = optimizer, ema
        n, xp = len(self.own), backend.module_for(self.device)
        found = times_of(self.diffusion, np.ones(1, np.int64))._asdict()
        self._times = [name for name, column in found.items() if column is not None]
        columns: dict[str, tuple[Any, int]] = {"index": (np.int64, n), "t": (np.int64, n), "adam": (np.float32, 5)}
        if self.unet.num_classes is not None:
            columns["label"] = np.int64, n
        columns |= {name: (np.float32, n) for name in self._times if name != "t"}
        if self.data.flip:
            columns["mirrored"] = np.uint8, n
        self.clock = Clock(xp, columns, self._rows)
        self.noise = Generator(self.generator.seed, random.NOISE, clock=self.clock.count)
        self._scaled = loss_scale is not None and loss_scale.state is not None
        numbers = 2 + self.config.accumulate * self.world.size + self._scaled
        self.report_ring, self.failed = xp.zeros((REPORTS, numbers), np.float32), xp.zeros(1, np.uint32)
        self.prepared = Prepared(self.clock.now["adam"], self.clock.count, self.report_ring, self.failed)
        self._settings: Any = None
        self.source = _place(self, needed)

    def batch(self, step: int) -> Batch:
        """The batch of step 1, 2, ...: from the step before on nothing is copied, but for the rows of many steps at once."""
        with section("data"):
            self.prepare(step)
            self.clock.go_to(step)
            now = self.clock.now
            x0 = gather_batch(self.source.images, now["index"], now.get("mirrored"))
        times = Times(**{name: now[name] for name in self._times})
        each, eps = x0[0].size, None
        if (
            self.images > self.batch_size and each * self.batch_size % 4
        ):  # parts begin where no block of random words does
            with section("noise and times"):
                eps = self.noise.at(random.NOISE).normal((self.images, *x0.shape[1:]), np.float32, self.device)
        dropout = PartOfDraws(self.noise.at(random.DROPOUT), self.images)

        def loss(part: int) -> Tensor:
            rows = self.own_rows(part)
            self.begin_part(dropout, part)
            state = (self.noise.seed, random.NOISE, 0, self.rows(part).start * each // 4, self.clock.count)
            noise = state if eps is None else eps[self.rows(part)]
            labels = now["label"][rows] if "label" in now else None
            return loss_at(self.diffusion, self.unet, x0[rows], times.rows(rows), noise, labels)

        return Batch(dropout, loss)

    def prepare(self, step: int) -> None:
        """Copies to the GPU what a step needs and is not there yet: rows, every so many steps, and images that do not lie
        there."""
        optimizer, ema, config = self.optimizer, self.ema, self.config
        counts = optimizer.steps[0] - (step - 1), ema.updates - (step - 1)
        rates = config.lr, config.warmup, config.lr_schedule, config.lr_steps or config.steps
        numbers = *rates, optimizer.betas, optimizer.eps, optimizer.weight_decay, ema.decay, ema.start, *counts
        if self._settings != numbers:  # at first, and where one was changed
            self._settings = numbers
            self.clock.forget()
            self.failed[...] = 0
        self.clock.prepare(step)
        self.source.stage(step)

    def launched(self, step: int) -> None:
        self.source.stage(step + 1)

    def reports(self, steps: range) -> list[tuple[list[float], float]]:
        ring, found = backend.to_numpy(self.report_ring, read_note=False), []
        for step in steps:
            losses, norm = read_report(ring[step % REPORTS], backend.pending_note())
            found.append((losses, norm))
            skipped = self._scaled and losses[-1] > LEAST_SCALE
            if (
                not skipped and not np.isfinite([*losses, norm]).all()
            ):  # the GPU knew, and left everything as it was from here on
                undone = steps.stop - step
                self.optimizer.steps = [count - undone for count in self.optimizer.steps]
                self.ema.updates -= undone
                break
        return found

    def _rows(self, steps: range) -> dict[str, np.ndarray]:
        """The numbers of several steps, as `Inputs` would choose them for each."""
        indices, mirrored = self.data.chosen(steps, self.images, self.generator)
        words = words_of_steps(self.generator.seed, random.TIME, steps, self.images)
        times = times_of(self.diffusion, as_integers(words, 1, self.diffusion.schedule.T + 1))._asdict()
        own = self.own
        rows = {name: times[name][:, own] for name in self._times}
        rows["index"] = self.source.indices(steps, indices[:, own])
        rows["adam"] = np.stack([self._adam(step) for step in steps])
        if self.unet.num_classes is not None:
            assert self.data.labels is not None
            dropped = self.dropped(self.data.labels[indices], steps)
            assert dropped is not None
            rows["label"] = dropped[:, own]
        if mirrored is not None:
            rows["mirrored"] = mirrored[:, own]
        return rows

    def _adam(self, step: int) -> np.ndarray:
        """The numbers of Adam's update in a step."""
        *_, updates, averaged = self._settings
        optimizer, ema = self.optimizer, copy.copy(self.ema)
        ema.updates = averaged + step - 1
        lr = self.config.learning_rate(step)
        decay = 0.0 if optimizer.coupled else optimizer.weight_decay
        return adam_scalars(max(1, updates + step), lr, optimizer.betas, optimizer.eps, decay, ema.current_decay)


class _OnDevice:
    """A data set that lies on the GPU as a whole."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def indices(self, steps: range, indices: np.ndarray) -> np.ndarray:
        return indices

    def stage(self, step: int) -> None:
        pass


class _Staged:
    """A data set that stays on the host. Two batches of it lie on the GPU: that of a step and, copied from pinned memory
    while the step is computed, that of the next."""

    def __init__(self, inputs: Inputs, xp: Any) -> None:
        self._inputs, self._n = inputs, len(inputs.own)
        shape = inputs.data.images.shape[1:]
        self.images = xp.zeros((2 * self._n, *shape), np.uint8)
        self._buffers = [backend.PinnedArray((self._n, *shape), np.uint8) for _ in range(2)]
        self._steps: list[int | None] = [None, None]

    def indices(self, steps: range, indices: np.ndarray) -> np.ndarray:
        """Where the images of the steps' batches will lie."""
        return np.arange(self._n) + np.array(steps)[:, None] % 2 * self._n

    def stage(self, step: int) -> None:
        half = step % 2
        if self._steps[half] == step:
            return
        indices, _ = self._inputs.data.chosen(range(step, step + 1), self._inputs.images, self._inputs.generator)
        buffer = self._buffers[half]
        np.take(self._inputs.data.images, indices[0, self._inputs.own], axis=0, out=buffer.writable())
        buffer.copy_to(self.images[half * self._n : (half + 1) * self._n])
        self._steps[half] = step


def _place(inputs: Inputs, needed: int) -> _OnDevice | _Staged:
    """The data on the GPU, or, where they would take too much of it, batches of them. A line tells of the latter."""
    xp, images = backend.module_for(inputs.device), inputs.data.images
    _, free = backend.gpu_memory()
    if images.nbytes <= min(DATA_SHARE * free, free - needed):
        try:
            return _OnDevice(xp.asarray(images))
        except MemoryError:  # CuPy's OutOfMemoryError is one: what is free may be in pieces
            pass
    say(
        f"the images take {show(images.nbytes)}, and {show(free)} of the GPU's memory are free: they stay in the machine's "
        "memory, and each batch is copied while the step before it is computed"
    )
    return _Staged(inputs, xp)
