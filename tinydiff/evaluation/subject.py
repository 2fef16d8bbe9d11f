"""What is evaluated: a trained model, the test images, and the images it was trained on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinydiff import data, nn
from tinydiff.backend import array_module, to_numpy
from tinydiff.data import Dataset
from tinydiff.data.pixels import to_bytes
from tinydiff.diffusion import Diffusion, sample
from tinydiff.errors import InputError, RunFailed, named
from tinydiff.evaluation.bits import EVALUATION, images_at_once
from tinydiff.machine.terminal import is_terminal
from tinydiff.random import SAMPLING, Generator
from tinydiff.ranks import even_parts, share_out, world
from tinydiff.runs import checkpoint
from tinydiff.runs.building import load_data
from tinydiff.runs.compiled import compile_sampling
from tinydiff.runs.config import RunConfig
from tinydiff.runs.folder import RunFolder
from tinydiff.runs.resuming import recorded, require_data
from tinydiff.runs.sheets import class_count
from tinydiff.unet import UNet


class Way(NamedTuple):
    """A way to draw samples: a sampler, its steps, and a diffusion instead of the model's own. A network with learned variance
    can be sampled with a fixed one: its variance channels are then left out."""

    sampler: str
    steps: int
    diffusion: Diffusion | None = None


@dataclass(frozen=True)
class Subject:
    """A model and its images.

    weights, test_name: descriptions for people. test: the images to evaluate on. held_out: whether the model has not
    seen them in training, as far as is known. training: what it was trained on; None where that was not asked for.
    """

    unet: UNet
    diffusion: Diffusion
    weights: str
    test: Dataset
    test_name: str
    held_out: bool
    training: Dataset | None

    def draw(self, n: int, sampler: str, steps: int, seed: int) -> np.ndarray:
        """n samples, uint8 (n, H, W, C). Their labels, for a labelled model, are as frequent as in the training data."""
        ((drawn, _),) = self.draw_by([Way(sampler, steps)], n, seed)
        return drawn

    def draw_by(self, ways: Sequence[Way], n: int, seed: int) -> list[tuple[np.ndarray, float]]:
        """n samples of each way, all from the same x_T with the same labels, and the seconds that they took. They are drawn in
        batches, batch k from step k of the stream of samples. Several ranks share the batches out, and all get the result."""
        batches = even_parts(n, images_at_once(self.unet.image_size))
        labels = self._labels(n, seed)
        compile_sampling(self.unet, sorted({b.stop - b.start for b in batches}), labels)
        jobs = [(way, k) for way in range(len(ways)) for k in range(len(batches))]
        jobs.sort(key=lambda job: -ways[job[0]].steps)  # the longest first

        def one(job: tuple[int, int]) -> tuple[np.ndarray, float]:
            start = time.perf_counter()
            way, k = job
            some = None if labels is None else labels[batches[k]]
            drawn = self._draw(ways[way], batches[k].stop - batches[k].start, some, Generator(seed).at(SAMPLING, k))
            return drawn, time.perf_counter() - start

        found = dict(zip(jobs, share_out(world(), jobs, one), strict=True))
        of_ways = [[found[way, k] for k in range(len(batches))] for way in range(len(ways))]
        return [(np.concatenate([x for x, _ in of_way]), sum(s for _, s in of_way)) for of_way in of_ways]

    def _draw(self, way: Way, n: int, labels: np.ndarray | None, generator: Generator) -> np.ndarray:
        diffusion = way.diffusion or self.diffusion
        fixed = self.diffusion.variance == "learned" and diffusion.variance != "learned"
        model = _WithoutVariance(self.unet) if fixed else self.unet
        shape = n, self.unet.image_size, self.unet.image_size, self.unet.in_channels
        how = generator, way.sampler, way.steps
        x = sample(model, diffusion, shape, *how, labels=labels, progress=is_terminal())
        if not bool(array_module(x).isfinite(x).all()):
            raise RunFailed(f"the model draws no pictures but NaN or infinity ({way.sampler}, {way.steps} steps)")
        return to_numpy(to_bytes(x))

    def _labels(self, n: int, seed: int) -> np.ndarray | None:
        classes = class_count(self.unet)
        if classes is None:
            return None
        if self.training is None or self.training.labels is None:
            return np.arange(n) % classes
        return self.training.labels[Generator(seed).at(EVALUATION).integers(0, len(self.training), n)]


class _WithoutVariance(nn.Module):
    """A network with learned variance, without its variance channels."""

    def __init__(self, unet: UNet) -> None:
        self.unet, self.num_classes, self.null_label = unet, unet.num_classes, unet.null_label

    def forward(self, x: Any, t: Any, labels: Any = None) -> Any:
        return self.unet(x, t, labels)[..., : self.unet.in_channels]


def load_subject(
    path: Path,
    data_path: str | None = None,
    training_images: bool = False,
    raw: bool = False,
    clip: bool | None = None,
    with_training: bool = True,
) -> Subject:
    """The model of a run with its held-out images or, if asked for, those at `data_path` or its training images.

    clip: whether to limit the predicted x0 to [-1, 1]; None: as the checkpoint says. with_training: whether the training
    images are needed. InputError where there are no such images or they do not fit the network.
    """
    if data_path is not None and training_images:
        raise InputError(
            f"{named('data')} names the images to evaluate and {named('training_images')} takes the run's own; give one"
        )
    pipeline = checkpoint.load(path, raw)
    unet, diffusion = pipeline.unet, pipeline.diffusion
    if clip is not None:
        diffusion = replace(diffusion, clip_x0=clip)
    step = checkpoint.read_step(path)
    weights = f"{'raw' if raw else 'averaged (EMA)'} weights" + ("" if step is None else f" of step {step}")
    training = _training_data(path) if with_training or data_path is None else None
    if training is not None:
        _check_fit(training, unet)
    test, name, held_out = _test_images(path, unet, training, data_path, training_images)
    _check_fit(test, unet)
    test = _with_fitting_labels(test, unet, pipeline.class_names)
    return Subject(unet, diffusion, weights, test, name, held_out, training)


def _training_data(path: Path) -> Dataset:
    if not RunFolder(path).config_file.exists():
        raise InputError(
            f"{path} has no config.toml, so the training images are not known; to evaluate a checkpoint alone, give "
            f"{named('data', 'PATH')} {named('only', ('bits',))}"
        )
    settings = RunConfig(**recorded(path))
    require_data(settings, path)
    return load_data(settings)


def _test_images(
    path: Path, unet: UNet, training: Dataset | None, data_path: str | None, training_images: bool
) -> tuple[Dataset, str, bool]:
    if data_path is not None:
        test = data.load(data_path, image_size=unet.image_size, channels=unet.in_channels)
        return test, f"images of {test.name} (from {data_path})", True
    assert training is not None
    if training_images:
        return training, f"TRAINING images of {training.name}", False
    if training.held_out is None:
        raise InputError(
            f"the run in {path} holds no images out ({named('holdout', 0)}), so it was trained on all of them: give "
            f"{named('data', 'PATH')} for others, or {named('training_images', True)} for its own, on which any "
            "model looks better than it is"
        )
    return training.held_out, f"held-out images of {training.name}", True


def _check_fit(images: Dataset, unet: UNet) -> None:
    shape, wanted = (*images.image_size, images.channels), (unet.image_size, unet.image_size, unet.in_channels)
    if shape != wanted:
        raise InputError(
            f"the images of {images.name} are {shape} (height, width, channels), the network takes {wanted}"
        )


def _with_fitting_labels(test: Dataset, unet: UNet, class_names: list[str] | None) -> Dataset:
    """The images with labels that the network knows, or without labels where it needs none."""
    known = class_count(unet)
    if known is not None and test.labels is not None and test.class_names is not None:
        names = class_names or [str(i) for i in range(known)]
        if test.class_names != names and set(test.class_names) <= set(names):  # some of the classes
            numbers = np.array([names.index(name) for name in test.class_names])
            test = replace(test, labels=numbers[test.labels], class_names=names, num_classes=known)
    other = known is not None and test.labels is not None and (test.num_classes or 0) > known
    if class_names is not None and test.class_names is not None and test.class_names != class_names:
        other = True
    if known is None or other:
        test = replace(test, labels=None)
    if known is not None and test.labels is None and unet.null_label is None:
        raise InputError(
            f"the network needs labels of its {known} classes, and the images of {test.name} have no such labels"
        )
    return test


def choose(images: Dataset, n: int | None, seed: int) -> Dataset:
    """n of the images, chosen at random, in their order; all of them where n is None or there are no more."""
    if n is None or n >= len(images):
        return images
    indices = np.sort(Generator(seed).at(EVALUATION).permutation(len(images))[:n])
    labels = None if images.labels is None else images.labels[indices]
    return replace(images, images=images.images[indices], labels=labels, skipped=[], held_out=None)
