"""Everything that `tinydiff evaluate` does: the parts in order, the text they print, and the files they write.

Several ranks share out what the network computes: the terms of the bound, the samples. The rest is done by rank 0, which alone
writes and prints.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tinydiff.backend import host_threads, resolve_device
from tinydiff.data import Dataset
from tinydiff.diffusion.sampler import SAMPLERS
from tinydiff.errors import InputError, RunFailed, at_work, before_work, named
from tinydiff.evaluation import samplers
from tinydiff.evaluation.bits import BitsPerDim, measure_bits
from tinydiff.evaluation.features import extractor
from tinydiff.evaluation.frechet import frechet_distance, moments
from tinydiff.evaluation.neighbours import MEMORISED, Neighbours, memorised, nearest
from tinydiff.evaluation.subject import Subject, choose, load_subject
from tinydiff.machine import threads
from tinydiff.machine.terminal import is_terminal, say, tell
from tinydiff.ranks import world
from tinydiff.ranks.nccl import require_one_device
from tinydiff.runs import arithmetic, fingerprint, limits, memory, pictures
from tinydiff.runs.atomic import check_outside, check_place
from tinydiff.runs.folder import EVALUATION as RESULTS
from tinydiff.runs.folder import RunFolder
from tinydiff.runs.many import fingerprint_of
from tinydiff.runs.resuming import versions
from tinydiff.runs.shares import threads_of_rank

PARTS = ("bits", "frechet", "neighbours", "samplers")

_SUSPECTS, _NEIGHBOURS = 10, 4  # rows of the sheet of neighbours, and training images in each


@dataclass(frozen=True)
class Settings:
    """What to evaluate and how thoroughly. InputError for values out of range.

    data: images to evaluate instead of the held-out ones. training_images: evaluate the run's own. only: of PARTS.
    images: how many for bits/dim. terms: how many of its steps t; None: all.
    raw: the weights in training instead of their averages. clip: whether to limit the predicted x0; None: as the
    checkpoint says.
    samples: drawn for distance and neighbours by `sampler` in `steps`. each: samples for each way in the comparison,
    step_counts its
        steps.
    seed: of images, steps and noise. device, threads, precision: as for training.
    out: the folder for results; None: evaluation/ in the run. force: whether to overwrite files of their names in another
        folder than that.
    png_folder: a new folder for the samples as files.
    """

    data: str | None = None
    training_images: bool = False
    only: tuple[str, ...] = PARTS
    images: int | None = 200
    terms: int | None = 50
    raw: bool = False
    clip: bool | None = None
    samples: int = 256
    sampler: str = "ddim"
    steps: int = 50
    each: int = 64
    step_counts: tuple[int, ...] = (10, 25, 50)
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    precision: str = "float32"
    out: str | None = None
    force: bool = False
    png_folder: str | None = None

    def __post_init__(self) -> None:
        unknown = [part for part in self.only if part not in PARTS]
        if unknown or not self.only:
            raise InputError(f"{named('only')} takes {', '.join(PARTS)}, not {', '.join(map(repr, unknown)) or 'none'}")
        least = {"images": 2, "terms": 3, "samples": 2, "steps": 1, "each": 2, "threads": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise InputError(f"{named(name)} must be at least {bound}, not {value}")
        if self.threads is not None and self.threads > limits.THREADS:
            raise InputError(f"{named('threads')} must be at most {limits.THREADS}, not {self.threads}")
        if not self.step_counts or min(self.step_counts) < 1:
            raise InputError(f"{named('step_counts')} must be whole numbers of at least 1, such as 10,25,50")
        if self.sampler not in SAMPLERS:
            raise InputError(f"{named('sampler')} must be one of {', '.join(SAMPLERS)}, not {self.sampler!r}")
        if not 0 <= self.seed < 2**64:
            raise InputError(f"{named('seed')} must be at least 0 and below 2**64, not {self.seed}")


def evaluate(
    path: str | os.PathLike[str], settings: Settings | None = None, report: Callable[[str], None] = tell
) -> Path:
    """Evaluates the run at `path`; returns the folder with the results. `report` is called with the text, piece by
    piece.

    settings: None: the defaults. InputError for a run without the images that are needed, for settings that do not fit
    it, and for more samples than this machine has memory for.
    """
    path, settings, ranks = Path(path), settings or Settings(), world()
    with_training = set(settings.only) != {"bits"} or settings.png_folder is not None
    with ranks.together():
        given = settings.data, settings.training_images, settings.raw, settings.clip, with_training
        subject = load_subject(path, *given)
        pixels, most = subject.unet.image_size**2 * subject.unet.in_channels, max(settings.samples, settings.each)
        memory.require(2 * most * pixels * ranks.local_size, f"{most:,} samples")  # twice, where batches are joined
        device = resolve_device(settings.device)
        settings = replace(settings, precision=arithmetic.require(settings.precision, device))
        subject.unet.to(device)
        is_run = settings.out is None and RunFolder(path).config_file.exists()
        folder = path / "evaluation" if is_run else Path(settings.out or "evaluation")
        if ranks.rank == 0:
            if not is_run and not settings.force:
                _check_new(folder)
            _make_folder(folder)
            if settings.png_folder is not None:
                _make_folder(Path(settings.png_folder), empty=True)
    several = threads.threads(host_threads(device, threads_of_rank(settings.threads, ranks)))
    with ranks.working(), several, arithmetic.computing(settings.precision, device):
        if ranks.size > 1:
            require_one_device(ranks, device)
            model, images = (
                fingerprint_of(subject.unet, subject.diffusion),
                fingerprint.of(subject.test, subject.test.labels is not None),
            )
            told = {"versions": versions(), "settings": repr(settings), "models": model, "images": images.text()}
            ranks.require_same(told)
        return _Evaluation(path, subject, settings, folder, report).run()


class _Evaluation:
    """The parts of one evaluation. What several of them need is computed once."""

    def __init__(
        self, path: Path, subject: Subject, settings: Settings, folder: Path, report: Callable[[str], None]
    ) -> None:
        self.path, self.subject, self.settings, self.folder, self._report = path, subject, settings, folder, report
        self.first = world().rank == 0  # the others help to compute
        self.text: list[str] = []
        self._unheard: Exception | None = None  # why `report` failed

    def run(self) -> Path:
        try:
            with at_work():
                return self._run()
        except RunFailed:
            if self._unheard is None:
                raise
        raise self._unheard

    def _run(self) -> Path:
        only, subject = self.settings.only, self.subject
        clipped = "clipped to [-1, 1]" if subject.diffusion.clip_x0 else "not clipped"
        computed = "" if self.settings.precision == "float32" else f", computed in {self.settings.precision}"
        self.say(f"{self.path}: {subject.weights}, predicted x0 {clipped}{computed}")
        if subject.test.fitted:
            self.say(
                f"The {subject.test_name} were {subject.test.fitted} to fit the network: the figures are not those of the "
                "original images."
            )
        for note in subject.test.notes:
            self.say(f"The {subject.test_name}: {note}.")
        if "bits" in only:
            self.bits()
        if {"frechet", "neighbours"} & set(only) or self.settings.png_folder is not None:
            self.draw()
        if {"frechet", "samplers"} & set(only) and self.first:
            self.prepare_distance()
        if "frechet" in only and self.first:
            self.frechet()
        if "neighbours" in only and self.first:
            self.neighbours()
        if "samplers" in only:
            self.samplers()
        if self.first:
            pictures.write_file(self.folder / "report.txt", ("\n".join(self.text) + "\n").encode())
        self._tell(f"\nresults: {self.folder}")
        return self.folder

    def say(self, text: str) -> None:
        self._tell(text)
        self.text.append(text)

    def _tell(self, text: str) -> None:
        if not self.first:
            return
        try:
            self._report(text)
        except Exception as error:  # the caller's, or of an output that nobody reads: no failure of the work
            self._unheard = error
            raise

    def bits(self) -> None:
        settings, subject = self.settings, self.subject
        test = choose(subject.test, settings.images, settings.seed)
        steps = "every t" if settings.terms is None else f"about {settings.terms} of the t"
        say(f"bits/dim: {len(test)} images at {steps}")
        result = measure_bits(
            subject.unet, subject.diffusion, test.images, test.labels, settings.terms, settings.seed,
            progress=is_terminal(),
        )  # fmt: skip
        if not math.isfinite(result.total().bits):
            raise RunFailed(f"the bound is {result.total().bits}: the model predicts NaN or infinity")
        if not self.first:
            return
        of = "" if len(test) == len(subject.test) else f" of {len(subject.test)}"
        self.say(f"\nBits per dimension (upper bound) of {len(test)}{of} {subject.test_name}")
        if not subject.held_out:
            self.say(
                "The model was trained on these images: the number says nothing about others, and flatters the model."
            )
        self.say(result.table())
        self.say(self._errors_explained(result))
        pictures.write_file(self.folder / "bits_per_dim.csv", result.csv().encode())
        title = f"{result.total().bits:.4f} +- {result.total().error:.4f} bits/dim, {subject.weights}"
        plot = result.plot(title)
        if plot is not None:
            pictures.write_file(self.folder / "bits_per_dim.png", plot)

    def _errors_explained(self, result: BitsPerDim) -> str:
        by_images, by_steps = result.errors()
        T, n = self.subject.diffusion.schedule.T, len(result.steps)
        if n == T:
            return f"Standard error {by_images:.6f} from the choice of images; all {T} terms are evaluated."
        return (
            f"Standard errors {by_images:.6f} from the choice of images and {by_steps:.6f} from the choice of {n} of the "
            f"{T} steps; {named('terms', None)} removes the second."
        )

    def draw(self) -> None:
        s = self.settings
        steps = min(s.steps, self.subject.diffusion.schedule.T)
        say(f"drawing {s.samples} samples")
        self.drawn = self.subject.draw(s.samples, s.sampler, steps, s.seed)
        self.how_drawn = f"{s.samples} samples by {s.sampler} in {steps} steps"
        if s.png_folder is not None and self.first:
            for i, picture in enumerate(self.drawn):
                pictures.save_png(Path(s.png_folder) / f"{i:06d}.png", picture)
            self.say(f"\n{self.how_drawn}, as PNG files: {s.png_folder}")

    def prepare_distance(self) -> None:
        training = self._training()
        say("features: training the small network, or taking it from the last time")
        self.extract = extractor(training, self.folder / "features.safetensors")
        self.reference = moments(self.extract(training.images))

    def distance(self, pictures: np.ndarray) -> float:
        """The Frechet distance of images uint8 (n, H, W, C) to the training images; NaN on ranks that only help."""
        if not self.first:
            return math.nan
        return frechet_distance(*moments(self.extract(pictures)), *self.reference)

    def frechet(self) -> None:
        self.say(f"\nFrechet distance to the {len(self._training())} training images")
        self.say(f"{self.distance(self.drawn):10.4f}   {self.how_drawn}")
        if self.subject.held_out and len(self.subject.test) > 1:
            test = choose(self.subject.test, self.settings.samples, self.settings.seed)
            self.say(f"{self.distance(test.images):10.4f}   {len(test)} {self.subject.test_name}: the best to expect")
        self.say(
            "On features of a small autoencoder trained on this run's own images: compare it with such numbers for the\n"
            f"same data and the same number of images (fewer give more), never with FID. For FID, {named('png_folder')}."
        )

    def neighbours(self) -> None:
        training = self._training()
        search = f"{len(training)} training images" + (", mirrored ones included" if training.flip else "")
        found = nearest(self.drawn, training.images, _NEIGHBOURS, training.flip)
        closest = found.distance[:, 0]
        self.say(f"\nDistance to the nearest of {search} (root mean square, in grey levels of 255)")
        self.say(f"{'':<52}{'least':>8}{'5%':>8}{'median':>8}")
        self.say(_quantiles(self.how_drawn, closest))
        if self.subject.held_out:
            test = choose(self.subject.test, self.settings.samples, self.settings.seed)
            expected = nearest(test.images, training.images, 1, training.flip).distance[:, 0]
            self.say(_quantiles(f"{len(test)} {self.subject.test_name}", expected))
            self.say(
                f"{memorised(closest, expected):.1%} of the samples are nearer to a training image than {MEMORISED:.0%} "
                "of those images are: far more than that means memorisation."
            )
            if (expected == 0).any():
                self.say(f"{(expected == 0).sum()} of those images are in the training set as well.")
        else:
            self.say("Without images that the model has not seen there is nothing to compare this with.")
        pictures.write_file(self.folder / "neighbours.csv", _neighbours_csv(found).encode())
        pictures.save_png(self.folder / "neighbours.png", _neighbours_sheet(self.drawn, training.images, found))
        self.say("neighbours.png: the samples nearest to a training image, each in a row with its neighbours")

    def samplers(self) -> None:
        s = self.settings
        say(f"comparing samplers: {s.each} samples each")
        results = samplers.compare(self.subject, self.distance, s.step_counts, s.each, s.seed)
        if not self.first:
            return
        self.say(f"\nSamplers from the same noise, {s.each} samples each: Frechet {samplers.table(results)}")
        if self.subject.held_out and len(self.subject.test) > 1:
            test = choose(self.subject.test, s.each, s.seed)
            self.say(f"{len(test)} {self.subject.test_name}: {self.distance(test.images):.3f}, the best to expect")
        pictures.write_file(self.folder / "samplers.csv", samplers.csv(results).encode())
        pictures.save_png(self.folder / "samplers.png", samplers.sheet(results))

    def _training(self) -> Dataset:
        assert self.subject.training is not None  # loaded for every part but the bits
        return self.subject.training


def _quantiles(name: str, values: np.ndarray) -> str:
    return f"{name:<52}{values.min():>8.2f}{np.quantile(values, 0.05):>8.2f}{np.median(values):>8.2f}"


def _neighbours_csv(found: Neighbours) -> str:
    lines = ["sample,neighbour,training_image,distance,mirrored"]
    for i, row in enumerate(zip(found.index, found.distance, found.mirrored, strict=True)):
        lines += [f"{i},{k},{j},{d:.6g},{int(m)}" for k, (j, d, m) in enumerate(zip(*row, strict=True), 1)]
    return "\n".join(lines) + "\n"


def _neighbours_sheet(drawn: np.ndarray, training: np.ndarray, found: Neighbours) -> np.ndarray:
    """The samples nearest to a training image, the nearest first, each before its neighbours, as one picture."""
    rows = []
    for i in np.argsort(found.distance[:, 0], kind="stable")[:_SUSPECTS]:
        others = [
            training[j, :, ::-1] if m else training[j] for j, m in zip(found.index[i], found.mirrored[i], strict=True)
        ]
        rows += [drawn[i], np.full_like(drawn[i], 255), *others]  # white between the sample and the others
    cells = np.stack(rows)
    columns = 2 + found.index.shape[1]
    return pictures.grid(cells, columns, scale=max(1, min(4, round(560 / (columns * cells.shape[2])))))


def _check_new(folder: Path) -> None:
    """InputError if a folder, which is not a run's own, holds files of the names that are written."""
    for name in RESULTS:
        if os.path.lexists(folder / name):
            raise InputError(
                f"{folder / name} is there already; give another {named('out')}, or {named('force', True)} to overwrite the results"
                " in that folder"
            )


def _make_folder(path: Path, empty: bool = False) -> Path:
    check_outside(path / "report.txt")
    try:
        path.mkdir(parents=True, exist_ok=True)
        if empty and any(path.iterdir()):
            raise InputError(f"{path} holds files already; {named('png_folder')} takes a new or an empty folder")
        with before_work():
            check_place(path / "report.txt")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
    return path
