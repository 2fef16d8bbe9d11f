"""What is measured of a run beside the loss of its steps: the loss on images kept out of training, the gradient by module.

Neither changes the run. Each row goes to the log when everything of its step is known.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from tinydiff.backend import array_module, module_for, to_numpy
from tinydiff.data import Dataset
from tinydiff.diffusion import Diffusion
from tinydiff.diffusion.model import evaluating
from tinydiff.nn import Module
from tinydiff.random import HOLDOUT, Generator
from tinydiff.runs.config import TrainConfig
from tinydiff.runs.folder import RunFolder
from tinydiff.unet import UNet

IMAGES = 256  # of the held-out ones, at most: forward passes alone, which cost as much as training on about 85


class Measures:
    """Measures after the steps where that is due, and adds rows to the logs of a run.

    folder, unet, diffusion, data, config: of the run. generator: its seed makes all choices. device: the resolved one.
    alone: gives a block to compute the held-out loss in.
    """

    def __init__(
        self, folder: RunFolder, unet: UNet, diffusion: Diffusion, data: Dataset, config: TrainConfig,
        generator: Generator, device: str, alone: Callable[[], AbstractContextManager[Any]],
    ) -> None:  # fmt: skip
        self._alone = alone
        self.folder, self.unet, self.diffusion, self.config = folder, unet, diffusion, config
        self.held_out, self.generator, self.device = data.held_out, generator, device

    @property
    def every(self) -> tuple[int, int]:
        """Steps between held-out losses, and between gradients by module; 0: none."""
        return self.config.holdout_every if self.held_out is not None else 0, self.config.grad_norm_every

    @property
    def wanted(self) -> tuple[bool, list[str]]:
        """Whether there are held-out losses; the modules whose gradients are measured."""
        return bool(self.every[0]), modules_of(self.unet) if self.every[1] else []

    def log(
        self, step: int, loss: float, norm: float, lr: float, speed: float,
        between: Callable[[str], AbstractContextManager[None]], loss_scale: float | None = None,
    ) -> None:  # fmt: skip
        """Adds the row of the step that has just been done. norm: of its gradient before clipping. between: gives a block whose
        time is measured under a name. loss_scale: with which the step was made, if there is one."""
        held, norms = None, None
        holdout, by_module = (bool(every) and step % every == 0 for every in self.every)
        try:
            if by_module:
                with between("gradients by module"):
                    norms = module_norms(self.unet, norm)
            if holdout:
                with between("held-out loss"), self._alone():
                    held = self.held_out_loss()
        finally:
            self.folder.log(step, loss, norm, lr, speed, held, norms, loss_scale)

    def held_out_loss(self) -> float:
        """`held_out_loss` of the weights as they are."""
        assert self.held_out is not None
        where = self.generator, self.config.batch_size, self.device
        return held_out_loss(self.unet, self.diffusion, self.held_out, *where)


def held_out_loss(
    unet: UNet, diffusion: Diffusion, data: Dataset, generator: Generator, batch_size: int, device: str
) -> float:
    """The training loss of the weights as they are, without dropout, on held-out images.

    Images, times and noise are the same at each call, so two of its values differ by the weights alone. The times are spread
    evenly over 1..T, which leaves less to chance than drawing them does.

    unet, diffusion: what is trained. data: the images, of which a random `IMAGES` are used. generator: its seed makes the
    choices. batch_size: images whose activations are in memory at once. device: the network's.
    """
    generator, n = generator.at(HOLDOUT), min(len(data), IMAGES)
    chosen = generator.permutation(len(data))[:n]
    t = 1 + ((generator.permutation(n) + 0.5) * diffusion.schedule.T / n).astype(np.int64)
    total = 0.0
    with evaluating(unet):
        for start in range(0, n, batch_size):
            rows = slice(start, start + batch_size)
            x0 = module_for(device).asarray(data.images_at(chosen[rows]))
            labels = None if unet.num_classes is None or data.labels is None else data.labels[chosen[rows]]
            eps = generator.normal(x0.shape, np.float32, device)
            total += len(x0) * diffusion.loss(unet, x0, None, labels, t[rows], eps).item()
    return total / n


def modules_of(network: Module) -> list[str]:
    """The names of the modules that have weights of their own, in order, such as "down_blocks.0.resnets.0.conv1"."""
    return list(dict.fromkeys(_owner(name) for name, _ in network.named_parameters()))


def module_norms(network: Module, norm: float) -> list[float]:
    """The Euclidean norm of the gradient of each of `modules_of`, before clipping.

    norm: of all gradients before clipping. Clipping may have scaled them since; their ratios are what they were.
    """
    squares: dict[str, list[Any]] = {name: [] for name in modules_of(network)}
    for name, p in network.named_parameters():
        if p.grad is not None and p.requires_grad:
            squares[_owner(name)].append((p.grad.astype("float64") ** 2).sum())
    given = [square for found in squares.values() for square in found]
    if not given:
        return [0.0] * len(squares)
    numbers = iter(to_numpy(array_module(given[0]).stack(given)))  # one copy from the device
    found = np.array([sum(float(next(numbers)) for _ in squares[name]) for name in squares])
    return [float(x) for x in np.sqrt(found) * (norm / max(np.sqrt(found.sum()), 1e-300))]


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]
