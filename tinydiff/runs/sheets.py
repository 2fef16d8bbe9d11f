"""Sheets of samples: many pictures drawn from a model, laid out one class per row, as one picture or as an
animation."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinydiff.backend import to_numpy
from tinydiff.data import pixels
from tinydiff.diffusion import Diffusion
from tinydiff.diffusion.sampler import chain_of
from tinydiff.machine.terminal import bar, say
from tinydiff.random import Generator
from tinydiff.runs import memory, pictures
from tinydiff.runs.compiled import compile_sampling
from tinydiff.runs.progress import duration
from tinydiff.unet import UNet

PIXELS_AT_ONCE = 1 << 17  # a hundred pictures of 36x36: more at once take memory and no less time
_FRAMES = 30
_LONG = 60  # seconds; sampling that takes longer is announced
MOST = 1000  # pictures on a sheet, unless more are asked for
GUIDANCE = 2.0  # where a model can be guided: after a short training plain samples are often of no class
_PICTURE_SIDE, _ANIMATION_SIDE = 560, 280  # pictures are enlarged by a whole number to about here


@dataclass(frozen=True)
class Sheet:
    """Samples in `columns` columns: `frames` are the images uint8 (n, H, W, C) on the way from noise, the last of them
    done."""

    frames: list[np.ndarray]
    columns: int

    def picture(self) -> np.ndarray:
        """The finished images as one picture, uint8 (H', W', C)."""
        return self._grid(self.frames[-1], _PICTURE_SIDE)

    def animation(self) -> list[np.ndarray]:
        """The way there as pictures for a GIF, which grows with the size of its frames."""
        return [self._grid(frame, _ANIMATION_SIDE) for frame in self.frames]

    def _grid(self, frame: np.ndarray, side: int) -> np.ndarray:
        scale = max(1, min(4, round(side / (self.columns * frame.shape[2]))))
        return pictures.grid(frame, self.columns, scale=scale)


def draw_sheet(
    unet: UNet,
    diffusion: Diffusion,
    generator: Generator,
    n: int | None = None,
    label: int | None = None,
    sampler: str = "ddim",
    steps: int | None = None,
    eta: float = 0.0,
    guidance: float | None = None,
    animate: bool = False,
    progress: bool = True,
    each: int = 10,
) -> Sheet:
    """Draws n pictures on a sheet; with `animate` it keeps the way there as well.

    With labels and none given, each class has a row, n shared out evenly: by default `each` for each class, but at most
    `MOST` pictures, and where there are more classes than that, only the first. Otherwise n is 16 by default. Samples of a
    class are guided by `GUIDANCE` if the model can be and nothing else is said (1:
    plain). Picture batch k comes from step k of the generator's stream. Other arguments as for `diffusion.sample`.
    InputError for more pictures than this machine has memory for.
    """
    classes = class_count(unet) if label is None else None
    if n is None:
        n, classes = (16, None) if classes is None else _share(classes, each, progress)
    size, channels = unet.image_size, unet.in_channels
    memory.require(_bytes_of_sheet(n, size, channels, animate), f"{n:,} pictures on one sheet")
    columns, labels = math.ceil(n**0.5), None if label is None else np.full(n, label)
    if classes is not None:
        columns = -(-n // classes)
        labels = np.repeat(np.arange(classes), columns)[:n]

    if guidance is None and labels is not None and unet.null_label is not None:
        guidance = GUIDANCE
    batch = max(1, PIXELS_AT_ONCE // size**2)
    count, begun = -(-n // batch), time.monotonic()
    batches = []
    for k in range(count):
        chosen = slice(k * batch, min((k + 1) * batch, n))
        chain = chain_of(
            unet,
            diffusion,
            (chosen.stop - chosen.start, size, size, channels),
            generator.at(generator.stream, generator.step + k),
            sampler,
            steps,
            eta,
            None if labels is None else labels[chosen],
            guidance,
            watched=animate,
        )
        if k == 0:  # now that all arguments are known to be right
            compile_sampling(unet, [min(batch, n), n - (count - 1) * batch], labels, guidance)
        total = diffusion.schedule.T if steps is None else steps
        name = "sampling" if count == 1 else f"sampling, batch {k + 1} of {count}"
        batches.append(_watch(chain, total, animate, name if progress else None))
        if progress and k == 0 and (left := (time.monotonic() - begun) * (count - 1)) > _LONG:
            say(f"{n:,} pictures take {count:,} batches, another {duration(left)} or so")
    return Sheet([np.concatenate(parts) for parts in zip(*batches, strict=True)], columns)


def work_of_sheet(unet: UNet, each: int = 10) -> int:
    """How often a sheet of the default number of pictures has the network look at a picture in a step, in all."""
    classes = class_count(unet)
    return 16 if classes is None else _share(classes, each, False)[0] * (1 + (unet.null_label is not None))


def _share(classes: int, each: int, tell: bool) -> tuple[int, int]:
    """(n, classes): the pictures on a sheet of so many classes, and the classes that it shows."""
    columns, shown = max(1, min(each, MOST // classes)), min(classes, MOST)
    if tell and shown < classes:
        say(f"the sheet shows the first {shown:,} of {classes:,} classes, a picture each")
    elif tell and columns < each:
        say(f"the sheet shows {columns} picture{'s' * (columns > 1)} of each of the {classes:,} classes, not {each}")
    return columns * shown, shown


def _bytes_of_sheet(n: int, size: int, channels: int, animate: bool) -> int:
    """Memory that drawing and saving so many pictures takes at least: twice each frame, where batches are joined, then its
    sheet (measured: 4 to 6 times the pictures, 85 to 160 times with an animation)."""
    return n * size**2 * channels * (3 * (_FRAMES if animate else 1) + 1)


def require_sheet(unet: UNet, n: int) -> None:
    """InputError for more pictures on one sheet than this machine has memory for."""
    memory.require(_bytes_of_sheet(n, unet.image_size, unet.in_channels, False), f"{n:,} pictures on one sheet")


def class_count(unet: UNet) -> int | None:
    """The number of classes that the network can draw, None without labels: the null label, which is the last, is
    none."""
    if unet.num_classes is None:
        return None
    return unet.num_classes - (unet.null_label is not None)


def _watch(chain: Any, total: int, animate: bool, name: str | None) -> list[np.ndarray]:
    """Runs a chain of sampling steps, with a bar of that name if it has one; the images uint8 of some steps, evenly
    chosen, and of the last."""
    if name is not None:
        chain = bar(chain, total, name)
    kept = {round(i * (total - 1) / (_FRAMES - 1)) for i in range(_FRAMES)} if animate else {total - 1}
    return [to_numpy(pixels.to_bytes(step.x)) for i, step in enumerate(chain) if i in kept]
