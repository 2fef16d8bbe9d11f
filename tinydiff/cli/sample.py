"""`tinydiff sample`."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from tinydiff.backend import host_threads, resolve_device
from tinydiff.cli.numbers import number, whole_number
from tinydiff.cli.outputs import check_new
from tinydiff.errors import InputError, at_work, before_work
from tinydiff.machine.terminal import tell

_UNFIT = re.compile(r"[^\w.+-]")  # characters of a class's name that names of files had better not have


def add_command(commands: Any) -> None:
    """Adds `sample` to the subcommands of an argument parser; the parsed arguments' `run` runs it."""
    sample = commands.add_parser("sample", help="draw pictures", description="Draws pictures from a trained model.")
    sample.add_argument("path", metavar="RUN|CHECKPOINT")
    sample.add_argument("--n", type=whole_number, help="number of pictures [16; with labels 10 for each class]")
    sample.add_argument("--sampler", default="ddim", help="ddpm, ddim or dpm++ [ddim]")
    sample.add_argument("--steps", type=whole_number, help="steps [50; ddpm: all T]")
    sample.add_argument("--eta", type=number, default=0.0, help="noise of ddim, from 0 to 1 [0]")
    sample.add_argument("--label", help="class to draw, by name or number [all, one per row]")
    sample.add_argument("--guidance", type=number, help="of classifier-free guidance; 1: none [2 where possible]")
    sample.add_argument("--seed", type=whole_number, default=0, help="seed of the noise [0]")
    sample.add_argument("--device", default="auto", help="auto, cpu or cuda [auto]")
    sample.add_argument("--threads", type=whole_number, help="CPU threads [all]")
    sample.add_argument("--out", metavar="FILE.png", help="where to [RUN/samples/..., or samples.png for a checkpoint]")
    sample.add_argument("--gif", metavar="FILE.gif", help="an animation of the denoising as well")
    sample.add_argument("--force", action="store_true", help="overwrite the files that --out and --gif name")
    sample.add_argument("--raw", action="store_true", help="the raw weights instead of the averaged (EMA) ones")
    sample.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from tinydiff.machine.threads import threads
    from tinydiff.random import SAMPLING, Generator
    from tinydiff.runs import checkpoint, limits, pictures
    from tinydiff.runs.sheets import draw_sheet

    a = arguments
    if a.n is not None and a.n < 1:
        raise InputError(f"--n must be at least 1, not {a.n}")
    if not 0 <= a.seed < 2**64:
        raise InputError(f"--seed must be at least 0 and below 2**64, not {a.seed}")
    if a.threads is not None and not 1 <= a.threads <= limits.THREADS:
        raise InputError(f"--threads must be at least 1 and at most {limits.THREADS}, not {a.threads}")
    pipeline = checkpoint.load(a.path, raw=a.raw)
    unet, diffusion = pipeline.unet, pipeline.diffusion
    device = resolve_device(a.device)
    unet.to(device)
    label = None if a.label is None else _label(a.label, unet, pipeline.class_names)
    steps = a.steps if a.steps is not None or a.sampler == "ddpm" else min(50, diffusion.schedule.T)
    out = Path(a.out) if a.out else _default_output(Path(a.path), a, checkpoint.read_step(a.path))
    for given in (a.out, a.gif):
        check_new(given, a.force)
    with before_work():
        pictures.check_place(out, ".png")
        if a.gif:
            pictures.check_place(a.gif, ".gif")
    with threads(host_threads(device, a.threads)):
        generator = Generator(a.seed).at(SAMPLING)
        sheet = draw_sheet(
            unet, diffusion, generator, a.n, label, a.sampler, steps, a.eta, a.guidance, animate=a.gif is not None
        )
    with at_work():
        pictures.save_png(out, sheet.picture())
        if a.gif:
            pictures.save_gif(a.gif, sheet.animation())
    for file in filter(None, (out, a.gif)):
        tell(file)
    return 0


def _label(text: str, unet: Any, names: Sequence[str] | None) -> int:
    """A class given by its name or its number. InputError for one that the model does not know."""
    from tinydiff.runs.checkpoint import class_number
    from tinydiff.runs.sheets import class_count

    classes = class_count(unet) or 0
    if text not in (names or ()) and text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < classes:
        return int(text)
    return class_number(text, unet, names, f"--label {text}")


def _default_output(path: Path, a: argparse.Namespace, step: int | None = None) -> Path:
    """A file that is named by all that decides what is drawn, the training step included, so that no other samples are
    overwritten."""
    if not (path / "config.toml").exists():
        names = (Path(f"samples{'' if i == 1 else f'_{i}'}.png") for i in count(1))
        return next(name for name in names if not os.path.lexists(name))
    label = None if a.label is None else _UNFIT.sub("_", a.label)[:60]
    given = {"steps": a.steps, "eta": a.eta or None, "label": label, "guidance": a.guidance, "n": a.n}
    parts = [a.sampler, *(f"{name}-{value}" for name, value in given.items() if value is not None)]
    trained = [] if step is None else [f"step-{step}"]
    return path / "samples" / ("_".join([*trained, *parts, *["raw"] * a.raw, f"seed-{a.seed}"]) + ".png")
