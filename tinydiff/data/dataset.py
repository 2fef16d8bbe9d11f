"""Images in memory as bytes, and the endless chain of batches drawn from them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tinydiff.data.pixels import gather_batch, to_float
from tinydiff.errors import InputError
from tinydiff.random import DATA_ORDER, FLIPS, Generator, as_integers, words_of_steps

MOST_CLASSES = 65_536  # a larger label is not a class number
HOLDOUT_STEP = 0xFFFFFFFF  # of the data-order stream, for the choice of what is held out; no epoch reaches it


@dataclass(eq=False, repr=False)
class Dataset:
    """Images in memory, with labels or without.

    images: uint8 (N, H, W, C) with 1 to 4 channels.
    labels: integers (N,) in 0..num_classes-1, or None. They become int64.
    class_names: of the labels 0, 1, ..., or None.
    num_classes: None: as many as there are class names, or the largest label plus one.
    name: for people. source: what a run records to find the data again.
    skipped: (path, reason) of each picture that could not be read.
    flip: mirror half the images of a batch.
    held_out: the Dataset of images kept from training, or None.
    fitted: what was done to images that came in another shape, for people.
    notes: how the data were read where that was to be decided, and what was left out, for people.

    InputError for other arrays.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    class_names: list[str] | None = None
    num_classes: int | None = None
    name: str = "images"
    source: str = "images"
    skipped: list[tuple[str, str]] = field(default_factory=list)
    flip: bool = False
    held_out: Dataset | None = None
    fitted: str = ""
    notes: list[str] = field(default_factory=list)
    _orders: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        images = np.ascontiguousarray(self.images)
        if images.ndim != 4 or images.dtype != np.uint8 or 0 in images.shape or images.shape[-1] > 4:
            raise InputError(
                f"{self.source}: images must be uint8 (N, H, W, C), all at least 1 and C at most 4, "
                f"not {images.dtype} {images.shape}"
            )
        self.images = images
        if self.labels is None:
            self.class_names = self.num_classes = None
            return
        labels = np.asarray(self.labels)
        if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
            raise InputError(
                f"{self.source}: labels must be integers ({len(images)},), one for each image, "
                f"not {labels.dtype} {labels.shape}"
            )
        if self.num_classes is None:
            self.num_classes = int(labels.max()) + 1 if self.class_names is None else len(self.class_names)
            self.num_classes = max(1, min(self.num_classes, MOST_CLASSES))
        wrong = (labels < 0) | (labels >= self.num_classes)
        if wrong.any():
            at = int(wrong.argmax())
            raise InputError(
                f"{self.source}: labels must be in 0..{self.num_classes - 1}, but that of image {at} is {labels[at]}"
            )
        self.labels = np.ascontiguousarray(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        height, width = self.image_size
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        return f"Dataset({self.name!r}, {len(self)} images {height}x{width}x{self.channels}{classes})"

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W), in pixels."""
        return self.images.shape[1], self.images.shape[2]

    @property
    def channels(self) -> int:
        """C: 1 for grey, 3 for colour, one more with transparency."""
        return self.images.shape[3]

    def images_at(self, indices: Any) -> np.ndarray:
        """The images at some indices, integers (n,), as the network sees them: float32 (n, H, W, C) in [-1, 1],
        never mirrored."""
        return to_float(self.images[np.asarray(indices)])

    def batch(self, step: int, batch_size: int, generator: Generator) -> tuple[np.ndarray, np.ndarray | None]:
        """The batch of training step `step` = 1, 2, ...: x float32 (B, H, W, C) in [-1, 1] and labels int64 (B,) or
        None.

        batch_size: B. generator: its seed orders the images and chooses those to mirror; its own state stays as it is.

        The data is an endless chain of epochs, each in its own random order: position p of the chain is element p % N
        of the permutation of epoch p // N, and batch k takes positions (k-1)·B to k·B-1. So every epoch visits every
        image once, a batch is full even if N is less than B, and a batch depends on its arguments and the seed alone.
        ValueError for numbers below 1.
        """
        if step < 1 or batch_size < 1:
            raise ValueError(f"batch takes a step and a batch size from 1 on, not {step} and {batch_size}")
        indices, mirrored = (
            None if a is None else a[0] for a in self.chosen(range(step, step + 1), batch_size, generator)
        )
        return gather_batch(self.images, indices, mirrored), None if self.labels is None else self.labels[indices]

    def chosen(self, steps: range, batch_size: int, generator: Generator) -> tuple[np.ndarray, np.ndarray | None]:
        """The indices of the images of several steps' batches, int64 (steps, B), and which of them are mirrored, bool
        (steps, B), or None for none. steps: consecutive ones. batch_size, generator: as for `batch`."""
        n, first, end = len(self), (steps.start - 1) * batch_size, (steps.stop - 1) * batch_size
        indices = np.concatenate(
            [
                self._order(generator, epoch)[max(first - epoch * n, 0) : end - epoch * n]
                for epoch in range(first // n, (end - 1) // n + 1)
            ]
        ).reshape(len(steps), batch_size)
        if not self.flip:
            return indices, None
        return indices, as_integers(words_of_steps(generator.seed, FLIPS, steps, batch_size), 0, 2) == 1

    def hold_out(self, fraction: float, generator: Generator) -> Dataset:
        """The data without a random share, which becomes its `held_out`, without flips. Both keep their order.

        fraction: the share, in [0, 1); 0 holds out nothing. generator: its seed makes the choice. InputError for
        another fraction and where one side gets no image.
        """
        check_share(fraction)
        if fraction == 0:
            return replace(self, held_out=None)
        n = len(self)
        count = round(fraction * n)
        if not 0 < count < n:
            raise InputError(
                f"{self.source}: holding out {fraction:g} of {n} image{'s' * (n != 1)} leaves {n - count} to train on "
                f"and {count} held out, and at least one of each is needed"
            )
        order = generator.at(DATA_ORDER, HOLDOUT_STEP).permutation(n)
        held_out = self._part(np.sort(order[:count]), name=f"{self.name}, held out", flip=False)
        return self._part(np.sort(order[count:]), skipped=self.skipped, held_out=held_out)

    def _part(self, indices: np.ndarray, **changes: Any) -> Dataset:
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, **{"skipped": [], "held_out": None} | changes, images=self.images[indices], labels=labels)

    def _order(self, generator: Generator, epoch: int) -> np.ndarray:
        """The permutation of an epoch; the last two are kept, since a batch may lie across the border."""
        key = generator.seed, epoch
        if key not in self._orders:
            while len(self._orders) > 1:
                del self._orders[next(iter(self._orders))]
            self._orders[key] = generator.at(DATA_ORDER, epoch).permutation(len(self))
        return self._orders[key]


def scaled_from(sizes: Collection[tuple[int, int]]) -> str:
    """What was done to images of these sizes (H, W) by `fit` of `pixels.py`, for people."""
    crop = "cropped and " if any(height != width for height, width in sizes) else ""
    return f"{crop}scaled from {'x'.join(map(str, *sizes)) if len(sizes) == 1 else 'several sizes'}"


def check_share(fraction: float) -> None:
    """InputError unless the share of images to hold out, the fraction, is in [0, 1)."""
    if not 0 <= fraction < 1:
        raise InputError(f"the share to hold out must be at least 0 and less than 1, not {fraction}")
