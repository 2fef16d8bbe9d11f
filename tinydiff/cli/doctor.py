"""`tinydiff doctor`: what a training run would be like, found out before it starts.

It takes the flags of `tinydiff train`, loads the data, builds the network, does a few real steps and throws them away;
with --profile it tells where their time went. Nothing is written. Exit status 0: the run can start; 2: it cannot, with
one sentence that says why.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinydiff import backend, random
from tinydiff.autograd.profile import Profile
from tinydiff.cli import card, flags, processes
from tinydiff.errors import InputError, RunFailed
from tinydiff.machine import limits, threads
from tinydiff.machine.terminal import tell
from tinydiff.ranks import world
from tinydiff.runs import arithmetic, memory
from tinydiff.runs.memory import show
from tinydiff.runs.progress import duration

if TYPE_CHECKING:
    from tinydiff.data import Dataset
    from tinydiff.runs.trainer import Trainer

LONGEST = 30.0  # seconds that a step may take to be tried out
TRIES, BUDGET = 6, 10.0  # steps to time, and seconds after which no other is begun


def add_command(commands: Any) -> None:
    """Adds `doctor` to the subcommands of an argument parser; the parsed arguments' `run` runs it."""
    parser = commands.add_parser(
        "doctor",
        help="say before a training run what will happen",
        description="Takes the flags of train and says what would happen: data, network, memory, time, disk, folder. "
        "Writes nothing. Exit status 0 if the run can start, 2 if it cannot.",
        argument_default=argparse.SUPPRESS,
    )
    flags.add_to(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    with world().together():
        if world().size > 1:
            raise InputError("doctor looks at one process: start it without mpiexec")
    wish = flags.read(vars(arguments))
    trainer = flags.build(wish)
    examine(trainer, wish.resume, wish.force, Profile() if wish.profile else None)
    return 0


def examine(
    trainer: Trainer,
    resume: bool = False,
    force: bool = False,
    profile: Profile | None = None,
    say: Callable[[str], None] = tell,
) -> None:
    """Tells, line by line, what a run would be like, and where the time of its steps goes if there is a `profile` to fill.
    InputError, one sentence, where it cannot start. The trainer has taken a few steps afterwards and is not to be used."""
    warnings: list[str] = []

    def line(name: str, text: str) -> None:
        say(f"{name:<11}{text}")

    _data(trainer.data, trainer.unet.num_classes is not None, line, warnings)
    _fit(trainer, line, warnings)
    _network(trainer, line, warnings)
    _diffusion(trainer, line, warnings)
    _learning_rate(trainer, warnings)
    _folder(trainer, resume, force, line)
    _device(trainer, line, warnings)
    with threads.threads(backend.host_threads(trainer.device, trainer.config.threads)):
        steps = _memory_and_time(trainer, profile, line, warnings)
    _disk(trainer, steps, line)
    if profile is not None:
        untried = "no step was tried, so there is no profile"
        say(f"\n{profile.table()}\n" if profile.steps else untried)
    for warning in warnings:
        say(f"warning: {warning}")
    say("ready: the run can start" + (f"; {len(warnings)} warning{'s' * (len(warnings) > 1)}" if warnings else ""))


Line = Callable[[str, str], None]


def _data(data: Dataset, labelled: bool, line: Line, warnings: list[str]) -> None:
    images, (height, width) = data.images, data.image_size
    held_out = f", {len(data.held_out)} more held out" if data.held_out is not None else ""
    skipped = f", {len(data.skipped)} unreadable" if data.skipped else ""
    fitted = f", {data.fitted}" if data.fitted else ""
    line("data", f"{len(data)} images {height}x{width}x{data.channels} from {data.name}{fitted}{held_out}{skipped}")
    for note in data.notes:
        line("", note)
    low, high = int(images.min()), int(images.max())
    line("values", f"bytes {low}..{high}, mean {images.mean():.0f}, as {low / 127.5 - 1:.2g}..{high / 127.5 - 1:.2g}")
    flat = images.reshape(len(images), -1)
    constant = int((flat.min(axis=1) == flat.max(axis=1)).sum())
    copies = len(flat) - len({image.tobytes() for image in flat})
    if high - low < 128:
        hint = "; values meant as 0 to 1 must be multiplied by 255" if high <= 1 else ""
        warnings.append(f"the values span {low}..{high} of 0..255, so all images are nearly of one brightness{hint}")
    if constant:
        warnings.append(f"{constant} of {len(data)} images have one colour all over")
    if copies > max(constant - 1, 0):
        warnings.append(f"{copies} of {len(data)} images are exact copies of others")
    if data.channels == 3 and bool((images == images[..., :1]).all()):
        warnings.append("the images are grey but have three channels; one channel would train faster")
    if data.labels is None:
        line("classes", "no labels")
        return
    counts = np.bincount(data.labels, minlength=data.num_classes or 0)
    names = data.class_names or [str(i) for i in range(len(counts))]
    shown = ", ".join(f"{name} {count}" for name, count in list(zip(names, counts, strict=True))[:12])
    line("classes", f"{len(counts)}: {shown}{', ...' if len(counts) > 12 else ''}{'' if labelled else ' (not used)'}")
    if labelled and counts.min() == 0:
        missing = ", ".join(name for name, count in zip(names, counts, strict=True) if count == 0)
        warnings.append(f"no image shows class {missing}, so its samples will be noise")
    elif labelled and counts.max() > 10 * counts.min():
        warnings.append(f"the classes are of very different sizes, from {counts.min()} to {counts.max()} images")


def _fit(trainer: Trainer, line: Line, warnings: list[str]) -> None:
    """The size of a step and of the run against the data."""
    config, n = trainer.config, len(trainer.data)
    per_step = config.batch_size * config.accumulate
    parts = f" ({config.accumulate} batches of {config.batch_size})" if config.accumulate > 1 else ""
    if per_step > n:
        warnings.append(f"a step takes {per_step} images and there are {n}, so it sees some of them more than once")
    if config.last_step is None:
        line("steps", f"as many of {per_step} images{parts} as fit into {config.minutes:g} minutes")
        return
    epochs = config.steps * per_step / n
    line("steps", f"{config.steps} of {per_step} images{parts}: each image {epochs:.3g} times on average")
    if epochs < 1:
        warnings.append(
            f"{config.steps} steps see {epochs:.0%} of the images; --steps {-(-n // per_step)} see all once"
        )
    if config.warmup >= config.steps:
        warnings.append(f"--warmup {config.warmup} is not over before the run is, so --lr {config.lr:g} is never used")
    if config.lr_schedule == "cosine" and config.lr_steps is not None and config.lr_steps < config.steps:
        warnings.append(
            f"the learning rate is 0 from step --lr-steps {config.lr_steps} on, so later steps of {config.steps} change nothing"
        )


def _network(trainer: Trainer, line: Line, warnings: list[str]) -> None:
    unet = trainer.unet
    settings = unet.config
    widths = [round(settings["channels"] * mult) for mult in settings["channel_mults"]]
    sizes = [unet.image_size >> level for level in range(len(widths))]
    attention = sorted(
        {*settings["attention_resolutions"], *(settings["up_attention_resolutions"] or ())}, reverse=True
    )
    line("network", f"U-Net, {sum(p.size for p in unet.parameters()):,} parameters, {settings['groups']} groups")
    levels = (
        f"{s}x{s} with {w} channels{', attention' * (s in attention)}" for s, w in zip(sizes, widths, strict=True)
    )
    line("", "; ".join(levels))
    if 1 in attention:
        warnings.append("attention at 1x1 has one pixel to look at and changes nothing; leave 1 out of --attention")
    if sizes[-1] == 1 and min(widths) <= settings["groups"]:
        warnings.append("the lowest level has one pixel and one channel in each group, which normalisation turns to 0")
    for size in attention:
        if size >= 64:
            warnings.append(f"attention at {size}x{size} compares {size**2} pixels with each other: slow, much memory")


def _diffusion(trainer: Trainer, line: Line, warnings: list[str]) -> None:
    diffusion = trainer.diffusion
    final = float(diffusion.schedule.alpha_bar[-1])
    line("diffusion", f"T = {diffusion.schedule.T}, predicts {diffusion.predict}, alpha_bar_T = {final:.2g}")
    if final > 0.01:
        warnings.append(
            f"alpha_bar_T is {final:.3g}: x_T still shows {final**0.5:.0%} of the image, samples will be off; raise "
            "--timesteps"
        )


def _learning_rate(trainer: Trainer, warnings: list[str]) -> None:
    """Adam moves a weight by about the learning rate (Kingma and Ba, 2015, section 2.1), so one above the size of the
    weights replaces them at every step: such runs, warmed up or not, fell back to the loss they began with, or to NaN."""
    lr = trainer.config.lr
    arrays = [p.data for p in trainer.parameters if p.ndim > 1]
    size = (sum(float((a * a).sum()) for a in arrays) / sum(a.size for a in arrays)) ** 0.5
    if lr > size:
        warnings.append(
            f"--lr {lr:g} is more than the weights themselves, {size:.2g} (root mean square), and a step of Adam moves each "
            "by about that much: the run will hardly learn, if it does not diverge; 0.001 is usual"
        )


def _folder(trainer: Trainer, resume: bool, force: bool, line: Line) -> None:
    folder = trainer.folder
    existed = folder.is_run()
    trainer.check_start(resume, force)
    place = _existing(folder.path)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{folder.path} cannot be written: {place} is {'read-only' if place.is_dir() else 'a file'}")
    if resume:
        to_go = "" if trainer.config.last_step is None else f", {trainer.config.steps - trainer.step} to go"
        line("folder", f"{folder.path}: goes on after step {trainer.step}{to_go}")
    elif existed:
        line("folder", f"{folder.path}: the run in it will be overwritten (--force)")
    else:
        line("folder", f"{folder.path}: {'is empty' if folder.path.exists() else 'will be made'}")


def _device(trainer: Trainer, line: Line, warnings: list[str]) -> None:
    wish, usable = trainer.config.threads, limits.processors()
    count = wish or threads.available()
    if trainer.device == "cuda":
        total, free = backend.gpu_memory()
        precision = arithmetic.used(trainer.config.precision, "cuda")
        computing = "" if precision == "float32" else f"; computes in {precision}"
        line("device", f"GPU with {show(total)} of memory, {show(free)} free{computing}")
        return
    reason = backend.no_cuda() if trainer.config.device == "auto" else None
    line("device", f"CPU, {limits.processor_name()}, {count} thread{'s' * (count > 1)}")
    if (n := processes.best(trainer.config, sum(p.size for p in trainer.parameters))) > 1:
        line("", f"train shares each batch among {n} processes, which is faster; the times below are those of one")
    if reason:
        unused = f"no GPU is used: {reason.partition(';')[0]}"
        if backend.cupy() is None:
            line("", unused)
        else:  # there is one
            warnings.append(unused)
    if count > usable:
        given = f"--threads {wish}" if wish else f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}"
        warnings.append(f"{given}, and the process may use {usable} processors: more threads than that are slower")


def _memory_and_time(trainer: Trainer, profile: Profile | None, line: Line, warnings: list[str]) -> int:
    """Tells of both; returns the steps that are to come, which may be as many as fit into the minutes."""
    config, cuda = trainer.config, trainer.device == "cuda"
    everything: int | None
    free: int | None
    needed = trainer.memory_of_step()
    total = needed.total(config.batch_size)
    if cuda:
        memory.require_gpu(needed, config.batch_size)
        everything, free = backend.gpu_memory()
    else:
        everything, free = limits.memory()
        free = None if free is None else free + (limits.resident() or 0)
    if everything is not None and total > everything:
        fitting = needed.largest_batch(int(0.9 * everything))
        advice = f"--batch-size {fitting} fits" if fitting else "not even one image fits"
        raise InputError(
            f"a step on {config.batch_size} images needs about {show(total)} of memory, and this machine has "
            f"{show(everything)}; {advice} (--accumulate keeps the images per step)"
        )
    short = free is not None and total > 0.9 * free
    seconds, tried = _time(trainer, short, profile)
    peak = limits.peak_resident() if tried and not cuda else None
    if peak is not None and peak < 0.9 * needed.total(0):  # saving was not tried
        peak, total = None, needed.total(0)
    source = "estimated, give or take 20 %" if peak is None else "measured"
    line("memory", f"{show(peak or total)} ({source})" + (f"; {show(free)} are free" if free is not None else ""))
    parts = (
        f"weights {show(needed.weights)}, average {show(needed.average)}, Adam {show(needed.optimizer)}, gradients and "
        f"activations {show(needed.activations(config.batch_size))} ({show(needed.per_image)} an image)"
    )
    line("", parts)
    if short and free is not None:
        warnings.append(
            f"about {show(total)} of memory are needed and {show(free)} are free: the run may be stopped for lack of it; "
            "a smaller --batch-size with a larger --accumulate needs less"
        )
    speed = config.batch_size * config.accumulate / seconds
    how = f"median of {tried}" if tried else "scaled up from a small batch"
    line("speed", f"{seconds:.3g} s a step ({how}), {speed:.0f} images/s")
    steps = config.steps - trainer.step
    if config.minutes is not None:
        steps = max(1, min(steps, round(60 * config.minutes / seconds)))
    for i, text in enumerate(card.predicted(trainer, needed, steps)):
        line("" if i else card.NAME, text)
    try:
        _say_time(trainer, seconds, steps, line, warnings)
    except RunFailed as error:  # what the tried steps made of the network draws nothing
        raise InputError(f"the run would fail: {error}") from None
    return steps


def _time(trainer: Trainer, short: bool, profile: Profile | None) -> tuple[float, int]:
    """Seconds per step, and the number of real steps that this is the median of; 0 for what was scaled up from a small
    batch, because a step takes too long or more memory than there is (`short`)."""
    config = trainer.config
    n = min(8, config.batch_size)
    start = time.perf_counter()
    trainer.try_batch(n)
    backend.synchronize()
    scaled = (time.perf_counter() - start) / n * config.batch_size * config.accumulate
    if short or scaled > LONGEST:
        return scaled, 0
    times: list[float] = []
    begun = time.perf_counter()
    try:
        for step in range(trainer.step + 1, min(trainer.step + TRIES, config.steps) + 1):
            start = time.perf_counter()
            with profile.step() if profile is not None and times else nullcontext():
                trainer.train_step(step)
            backend.synchronize()
            times.append(time.perf_counter() - start)
            if time.perf_counter() - begun > BUDGET:
                break
    except RunFailed as error:
        raise InputError(f"the run would fail: {error}") from None
    settled = times[1:] or times  # the first one makes the workspaces
    return statistics.median(settled), len(settled)


def _say_time(trainer: Trainer, seconds: float, left: int, line: Line, warnings: list[str]) -> None:
    config, last = trainer.config, trainer.step + left
    previews = last // config.preview_every - trainer.step // config.preview_every if config.preview_every else 0
    preview, final = _time_of_samples(trainer)
    pictures = previews * preview + final
    line(
        "time",
        f"about {duration(left * seconds + pictures)}: {left} steps {duration(left * seconds)}, "
        f"{previews} previews {duration(previews * preview)}, samples at the end {duration(final)}",
    )
    if previews * preview > left * seconds:
        warnings.append("the previews take longer than the training; a larger --preview-every, or 0, makes fewer")
    if min(config.save_every, left) * seconds > 3600:
        lost = duration(min(config.save_every, left) * seconds)
        warnings.append(f"a power cut may cost {lost} of work; a smaller --save-every loses less")


def _time_of_samples(trainer: Trainer) -> tuple[float, float]:
    """Seconds for a preview and for the samples at the end, from a sampling of two steps."""
    from tinydiff.runs.sheets import MOST, class_count, draw_sheet
    from tinydiff.runs.trainer import PREVIEW_STEPS

    classes, T = class_count(trainer.unet), trainer.diffusion.schedule.T
    tried, steps = min(2, T), min(PREVIEW_STEPS, T)
    start = time.perf_counter()
    draw_sheet(
        trainer.unet, trainer.diffusion, trainer.generator.at(random.PREVIEWS), steps=tried, progress=False, each=2
    )
    preview = (time.perf_counter() - start) / tried * steps
    return preview, preview * (1 if classes is None else max(1, min(5, MOST // (2 * classes))))


def _disk(trainer: Trainer, steps: int, line: Line) -> None:
    config, path = trainer.config, trainer.folder.path
    saved = 4 * sum(p.data.nbytes for p in trainer.parameters)  # averages, weights, and Adam's two
    last = trainer.step + steps
    previews = last // config.preview_every if config.preview_every else 0
    needed = 2 * saved + previews * 200_000 + 2_000_000 + 60 * last
    free = shutil.disk_usage(_existing(path)).free
    line("disk", f"{show(needed)}: two checkpoints of {show(saved)} while saving, pictures, log; {show(free)} are free")
    if needed > free:
        raise InputError(f"the run needs {show(needed)} on the disk of {path}, and {show(free)} are free")


def _existing(path: Path) -> Path:
    """The path, or the nearest above it that exists."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
