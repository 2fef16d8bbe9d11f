"""The gradients of a step: those of its parts, and of all ranks, added up."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tinydiff import random
from tinydiff.autograd import places
from tinydiff.autograd.profile import section
from tinydiff.backend import module_for, to_numpy
from tinydiff.optim import Adam, gathered
from tinydiff.ranks.nccl import Nccl, connect, require_one_device
from tinydiff.runs.inputs import Inputs
from tinydiff.runs.loss_scale import LossScale
from tinydiff.runs.not_finite import OTHERWISE, first_non_finite
from tinydiff.runs.replays import Cut
from tinydiff.runs.sums import Sums


class Gradients:
    """Computes the gradients of steps 1, 2, ... and leaves them in the parameters of `optimizer`.

    plain: the inputs of a step, which know network, settings, device and ranks. inputs: gives those that are computed from.
    loss_scale: what losses are multiplied with before their gradients go back; those of a step are left so.
    """

    def __init__(self, optimizer: Adam, plain: Inputs, inputs: Callable[[], Inputs], loss_scale: LossScale) -> None:
        self.optimizer, self._inputs, self._loss_scale = optimizer, inputs, loss_scale
        self.unet, self.parts, self.device, self.world = plain.unet, plain.config.accumulate, plain.device, plain.world
        self._nccl: Nccl | None = None
        self._share: Any = None  # dL/d(loss of a part), on the device
        self._sums = Sums(optimizer.parameters if self.device == "cuda" and self.parts > 1 else ())

    def __call__(self, step: int) -> list[Any]:
        """The losses of all parts of a step, arrays (), in their order; the gradient of their mean is in the parameters."""
        losses = self.own(step)
        if self.world.size == 1:
            return losses
        if self._nccl is not None:
            return self._summed_by_nccl(losses)
        with section("waiting for other ranks"):
            self.world.wait()
        with section("sums over ranks"):
            self.world.sum([p.grad for p in self.optimizer.parameters if p.grad is not None])
            found = self.world.gather([float(loss) for loss in losses])
        return [np.array(loss) for part in zip(*found, strict=True) for loss in part]

    def connect(self) -> None:
        """Before the first step, on all ranks at once: several GPUs are connected. InputError where that is not possible."""
        if self.world.size > 1:
            require_one_device(self.world, self.device)
            self._nccl = connect(self.world) if self.device == "cuda" else None

    def cut(self, update: Callable[[list[Any]], Any]) -> Cut | None:
        """How a step is cut at the sum over ranks; None for a process alone. update: what is done with the losses after it."""
        if self.world.size == 1:
            return None
        return Cut(
            self.parts * self.world.size,
            self.own,
            self._summed_by_nccl,
            update,
            lambda here: all(self.world.gather(here)),
        )

    def _summed_by_nccl(self, losses: list[Any]) -> list[Any]:
        with section("sums over ranks"):
            learned = [p for p in self.optimizer.parameters if p.grad is not None]
            pieces, parts = gathered([p.grad for p in learned])
            places.keep_all(learned, parts)
            assert self._nccl is not None
            self._nccl.sum(pieces)
            found = self._nccl.gather(module_for(self.device).stack(losses))
        return list(found.T.reshape(-1))

    def own(self, step: int) -> list[Any]:
        """The losses of this rank's parts, and its share of the gradient."""
        batch = self._inputs().batch(step)
        self.unet.train(batch.dropout)
        self.optimizer.zero_grad()
        losses = []
        for part in range(self.parts):
            with section("forward, between operations"):
                loss = batch.loss(part)
            with section("backward, sums of gradients"):
                if self._share is None or self._share.dtype != loss.dtype:
                    share = 1 / (self.parts * self.world.size)
                    self._share = module_for(self.device).asarray(share, loss.dtype)
                self._sums.before(first=part == 0)
                scale = self._loss_scale.state
                loss.backward(self._share if scale is None else scale[:1].reshape(()) * self._share)
                self._sums.after()
            losses.append(loss.data)
        return losses

    def drop(self, plain: Inputs, n: int) -> None:
        """Computes the gradients of a batch of n images, and forgets them. plain: the inputs that know the images."""
        x0, labels = plain.data.batch(1, n, plain.generator)
        x0 = module_for(self.device).asarray(x0)
        t, eps = plain.diffusion.draw(x0, plain.generator.at(random.TIME, 1))
        self.unet.train(plain.generator.at(random.DROPOUT, 1))
        self.optimizer.zero_grad()
        plain.diffusion.loss(self.unet, x0, None, labels if self.unet.num_classes else None, t, eps).backward()
        self.optimizer.zero_grad()

    def first_non_finite(self, step: int) -> str:
        """What made the first value of a step that is not finite, on any rank."""
        causes = self.world.gather(first_non_finite(partial(self.own, step), self.optimizer.parameters))
        rank, cause = next(((i, c) for i, c in enumerate(causes) if c != OTHERWISE), (0, OTHERWISE))
        return f"{cause} on rank {rank}" if self.world.size > 1 else cause

    def checksums(self) -> str:
        """Of the weights: equal for equal ones."""
        return str([zlib.crc32(to_numpy(p.data).tobytes()) for p in self.optimizer.parameters])
