"""A comparison of samplers, step counts and variances: the same noise, one checkpoint, one sheet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinydiff.evaluation.subject import Subject, Way
from tinydiff.runs import pictures

_SHOWN = 10  # images of each row on the sheet
_MARGIN = 170  # pixels for the text on the left of the sheet
_TEXT_HEIGHT = 14


@dataclass(frozen=True)
class Comparison:
    """One way to sample: its images uint8 (n, H, W, C), their distance to the training images, and its time."""

    sampler: str
    variance: str
    steps: int
    pictures: np.ndarray
    distance: float
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.sampler} {self.variance}".strip()


def compare(
    subject: Subject, distance: Callable[[np.ndarray], float], step_counts: Sequence[int], n: int, seed: int
) -> list[Comparison]:
    """n samples by every sampler, with every variance where there is a choice, and every step count up to T.

    All start from the same x_T with the same labels. distance: of images uint8 (n, H, W, C) to the training images.
    """
    T = subject.diffusion.schedule.T
    variances = ["beta", "posterior"] + ["learned"] * (subject.diffusion.variance == "learned")
    kinds = [("ddpm", variance) for variance in variances] + [("ddim", ""), ("dpm++", "")]
    chosen = [(*kind, steps) for kind in kinds for steps in sorted({min(steps, T) for steps in step_counts})]
    ways = [
        Way(sampler, steps, replace(subject.diffusion, variance=variance or subject.diffusion.variance))
        for sampler, variance, steps in chosen
    ]
    return [
        Comparison(sampler, variance, steps, pictures, distance(pictures), seconds)
        for (sampler, variance, steps), (pictures, seconds) in zip(chosen, subject.draw_by(ways, n, seed), strict=True)
    ]


def table(results: Sequence[Comparison]) -> str:
    """Distances and seconds for each image, a line for each sampler and variance, columns by step count."""
    counts = sorted({r.steps for r in results})
    lines = ["distance, and seconds for an image, by steps", f"{'':<18}" + "".join(f"{c:>20}" for c in counts)]
    for name in dict.fromkeys(r.name for r in results):
        row = sorted((r for r in results if r.name == name), key=lambda r: r.steps)
        lines.append(
            f"{name:<18}" + "".join(f"{f'{r.distance:.3f} ({r.seconds / len(r.pictures):.3f} s)':>20}" for r in row)
        )
    return "\n".join(lines)


def csv(results: Sequence[Comparison]) -> str:
    lines = ["sampler,variance,steps,images,frechet_distance,seconds_per_image"]
    for r in results:
        seconds = r.seconds / len(r.pictures)
        lines.append(f"{r.sampler},{r.variance},{r.steps},{len(r.pictures)},{r.distance:.6g},{seconds:.4g}")
    return "\n".join(lines) + "\n"


def sheet(results: Sequence[Comparison]) -> np.ndarray:
    """A picture uint8 (H, W, C): a row for each way to sample, its name, steps and distance on the left; a column for
    each x_T."""
    from PIL import Image, ImageDraw, ImageFont

    shown = np.concatenate([r.pictures[:_SHOWN] for r in results])
    columns, side = len(shown) // len(results), shown.shape[1]
    scale = max(1, min(4, round(560 / (columns * side))), -(-2 * _TEXT_HEIGHT // side))
    grid = pictures.grid(shown, columns, scale=scale)
    texts = Image.new("L", (_MARGIN, len(grid)), 255)
    draw, font = ImageDraw.Draw(texts), ImageFont.load_default(_TEXT_HEIGHT - 2)
    for i, r in enumerate(results):
        middle = (i + 0.5) * (side * scale + 2)
        draw.text((8, middle - _TEXT_HEIGHT), f"{r.name}, {r.steps} steps", 0, font)
        draw.text((8, middle), f"distance {r.distance:.3f}", 110, font)
    margin: Any = np.asarray(texts)[:, :, None].repeat(grid.shape[2], 2)
    if grid.shape[2] in (2, 4):
        margin = margin.copy()
        margin[:, :, -1] = 255  # opaque
    return np.concatenate([margin, grid], 1)
