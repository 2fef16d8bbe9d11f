"""`tinydiff sample`."""

from __future__ import annotations

import argparse
import math
import os
import re
import zlib
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.backend import host_threads, resolve_device
from tinydiff.cli.numbers import number, whole_number
from tinydiff.cli.outputs import check_new
from tinydiff.errors import InputError, at_work, before_work
from tinydiff.machine.files import read_bytes
from tinydiff.machine.terminal import tell
from tinydiff.ranks import world

_MOST_BYTES = 1 << 30  # of a picture's file
_UNFIT = re.compile(r"[^\w.+-]")  # characters of a class's name that names of files had better not have


def add_command(commands: Any) -> None:
    """Adds `sample` to the subcommands of an argument parser; the parsed arguments' `run` runs it."""
    sample = commands.add_parser("sample", help="draw pictures", description="Draws pictures from a trained model.")
    sample.add_argument("path", metavar="RUN|CHECKPOINT")
    sample.add_argument("--n", type=whole_number, help="number of pictures [16; with labels 10 for each class]")
    sample.add_argument("--sampler", help="ddpm, ddim or dpm++ [ddim]")
    sample.add_argument("--steps", type=whole_number, help="steps [50; ddpm: all T]")
    sample.add_argument("--eta", type=number, help="noise of ddim, from 0 to 1 [0]")
    sample.add_argument("--label", help="class to draw, by name or number [all, one per row]")
    sample.add_argument("--guidance", type=number, help="of classifier-free guidance; 1: none [2 where possible]")
    sample.add_argument("--seed", type=whole_number, default=0, help="seed of the noise [0]")
    sample.add_argument("--device", default="auto", help="auto, cpu or cuda [auto]")
    sample.add_argument("--threads", type=whole_number, help="CPU threads [all]")
    sample.add_argument("--precision", default="float32", help="on a GPU: float32, tf32, fp16, bf16 or auto [float32]")
    sample.add_argument("--out", metavar="FILE.png", help="where to [RUN/samples/..., or samples.png for a checkpoint]")
    sample.add_argument("--gif", metavar="FILE.gif", help="an animation of the denoising as well")
    sample.add_argument("--force", action="store_true", help="overwrite the files that --out and --gif name")
    sample.add_argument("--raw", action="store_true", help="the raw weights instead of the averaged (EMA) ones")
    given = sample.add_argument_group("other uses of a model")
    given.add_argument(
        "--folder", metavar="DIR", help="--n pictures as PNG files, for tools such as FID; goes on with its own"
    )
    given.add_argument("--inpaint", metavar="PICTURE", help="draw a part of a picture anew (RePaint); --n ways [8]")
    given.add_argument("--mask", metavar="MASK", help="with --inpaint: white where to draw, as large as the picture")
    given.add_argument("--rounds", type=whole_number, help="with --inpaint: how often each stretch is drawn [10]")
    given.add_argument("--jump", type=whole_number, help="with --inpaint: steps of a stretch [10]")
    given.add_argument(
        "--interpolate", nargs=2, metavar=("A", "B"), help="--n pictures between two seeds or picture files [9]"
    )
    sample.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from tinydiff.machine.threads import threads
    from tinydiff.random import SAMPLING, Generator
    from tinydiff.runs import arithmetic, checkpoint, limits, pictures
    from tinydiff.runs.sheets import draw_sheet

    a, ranks = arguments, world()
    if ranks.size > 1 and a.folder is None:
        with ranks.together():
            raise InputError(f"{ranks.size} ranks would draw the same pictures; with --folder they share them out")
    if a.n is not None and a.n < 1:
        raise InputError(f"--n must be at least 1, not {a.n}")
    if not 0 <= a.seed < 2**64:
        raise InputError(f"--seed must be at least 0 and below 2**64, not {a.seed}")
    if a.threads is not None and not 1 <= a.threads <= limits.THREADS:
        raise InputError(f"--threads must be at least 1 and at most {limits.THREADS}, not {a.threads}")
    _check_uses(a)
    with ranks.together():
        pipeline = checkpoint.load(a.path, raw=a.raw)
        unet, diffusion = pipeline.unet, pipeline.diffusion
        device = resolve_device(a.device)
        a.precision = arithmetic.require(a.precision, device)
        unet.to(device)
        label = None if a.label is None else _label(a.label, unet, pipeline.class_names)
    sampler, eta = a.sampler or "ddim", a.eta or 0.0
    steps = a.steps if a.steps is not None or sampler == "ddpm" else min(50, diffusion.schedule.T)
    if a.folder is not None:
        from tinydiff.ranks.nccl import require_one_device
        from tinydiff.runs.many import draw_many
        from tinydiff.runs.shares import threads_of_rank

        settings = a.seed, sampler, steps, eta, label, a.guidance
        several = threads(host_threads(device, threads_of_rank(a.threads, ranks)))
        if ranks.size > 1:
            require_one_device(ranks, device)
        with ranks.working(), several, arithmetic.computing(a.precision, device):
            draw_many(Path(a.folder), unet, diffusion, a.n, *settings)
        tell(a.folder)
        return 0
    out = Path(a.out) if a.out else _default_output(Path(a.path), a, checkpoint.read_step(a.path))
    for given in (a.out, a.gif):
        check_new(given, a.force)
    with before_work():
        pictures.check_place(out, ".png")
        if a.gif:
            pictures.check_place(a.gif, ".gif")
    with threads(host_threads(device, a.threads)), arithmetic.computing(a.precision, device):
        if a.inpaint or a.interpolate:
            sheet = _inpainted(a, pipeline, label) if a.inpaint else _interpolated(a, pipeline, label)
        else:
            generator, animate = Generator(a.seed).at(SAMPLING), a.gif is not None
            how = a.n, label, sampler, steps, eta, a.guidance
            sheet = draw_sheet(unet, diffusion, generator, *how, animate=animate)
    with at_work():
        pictures.save_png(out, sheet.picture())
        if a.gif:
            pictures.save_gif(a.gif, sheet.animation())
    for file in filter(None, (out, a.gif)):
        tell(file)
    return 0


def _check_uses(a: argparse.Namespace) -> None:
    """InputError for flags that do not go together."""
    uses = [name for name in ("folder", "inpaint", "interpolate") if getattr(a, name) is not None]
    if len(uses) > 1:
        raise InputError(f"--{uses[0]} and --{uses[1]} are different uses: give one of them")
    use = uses[0] if uses else None
    if (a.inpaint is None) != (a.mask is None):
        raise InputError("--inpaint and --mask belong together: the mask is white where the picture is to be drawn")
    unfit = {
        "folder": ("out", "gif"),
        "inpaint": ("sampler", "eta", "gif"),
        "interpolate": ("sampler", "eta", "gif"),
    }.get(use or "", ())
    for name in (*unfit, *(("jump", "rounds") if use != "inpaint" else ())):
        if getattr(a, name) is not None:
            what = f"--{use} and --{name} do not go together" if name in unfit else f"--{name} is for --inpaint"
            raise InputError(what)
    if use == "folder" and a.n is None:
        raise InputError(f"--folder {a.folder}: say how many pictures with --n")
    for name in ("jump", "rounds"):
        if getattr(a, name) is not None and getattr(a, name) < 1:
            raise InputError(f"--{name} must be at least 1, not {getattr(a, name)}")
    if use == "interpolate" and a.n is not None and a.n < 2:
        raise InputError(f"--interpolate draws its two ends at least: --n must be at least 2, not {a.n}")


def _inpainted(a: argparse.Namespace, pipeline: Any, label: int | None) -> Any:
    from tinydiff.data.folder import read_picture
    from tinydiff.data.pixels import resize
    from tinydiff.machine.terminal import is_terminal
    from tinydiff.runs.sheets import GUIDANCE, Sheet, require_sheet

    unet, n = pipeline.unet, 8 if a.n is None else a.n
    require_sheet(unet, n)
    picture = read_picture(Path(a.inpaint), unet.in_channels)
    mask = read_picture(Path(a.mask), 1)
    if picture.shape[:2] != mask.shape[:2]:
        sizes = " and ".join(f"{height}x{width}" for height, width, _ in (picture.shape, mask.shape))
        raise InputError(f"--mask must have the size of the picture: height and width are {sizes}", limit=700)
    picture, mask = (resize(image[None], unet.image_size)[0] for image in (picture, mask))
    guidance = GUIDANCE if a.guidance is None and label is not None and unet.null_label is not None else a.guidance
    options = {"jump": a.jump or 10, "rounds": a.rounds or 10, "seed": a.seed, "progress": is_terminal()}
    images = pipeline.inpaint(picture, mask[..., 0] > 127, n, label, a.steps, guidance, **options)
    return Sheet([images], math.ceil(n**0.5))


def _interpolated(a: argparse.Namespace, pipeline: Any, label: int | None) -> Any:
    from tinydiff.data.folder import read_picture
    from tinydiff.data.pixels import resize
    from tinydiff.machine.terminal import is_terminal
    from tinydiff.runs.sheets import GUIDANCE, Sheet, class_count, require_sheet

    unet, n = pipeline.unet, 9 if a.n is None else a.n

    def end(text: str) -> Any:
        if text.isascii() and text.isdecimal():
            if len(text) > 20 or int(text) >= 2**64:
                raise InputError(f"--interpolate {text}: a seed must be below 2**64")
            return int(text)
        return resize(read_picture(Path(text), unet.in_channels)[None], unet.image_size)[0]

    ends = [end(text) for text in a.interpolate]
    seeds = all(isinstance(e, int) for e in ends)
    classes = class_count(unet)
    rows: list[int | None] = [label]
    if label is None and classes is not None and (seeds or unet.null_label is None):
        rows = list(range(min(classes, 10)))  # one strip each
    require_sheet(unet, n * len(rows))
    guidance = a.guidance
    if guidance is None and seeds and rows[0] is not None and unet.null_label is not None:
        guidance = GUIDANCE  # what is encoded comes back best without it
    strips = [pipeline.interpolate(*ends, n, row, a.steps, guidance, is_terminal()) for row in rows]
    return Sheet([np.concatenate(strips)], n)


def _label(text: str, unet: Any, names: Sequence[str] | None) -> int:
    """A class given by its name or its number. InputError for one that the model does not know."""
    from tinydiff.runs.checkpoint import class_number
    from tinydiff.runs.sheets import class_count

    classes = class_count(unet) or 0
    if text not in (names or ()) and text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < classes:
        return int(text)
    return class_number(text, unet, names, f"--label {text}")


def _name(text: str) -> str:
    """A seed, or of a file its name and a few digits that tell its content from that of others of this name."""
    if not os.path.isfile(text):
        return _UNFIT.sub("_", text)[:40]
    return f"{_UNFIT.sub('_', Path(text).stem)[:40]}-{zlib.crc32(read_bytes(text, _MOST_BYTES)):08x}"


def _default_output(path: Path, a: argparse.Namespace, step: int | None = None) -> Path:
    """A file that is named by all that decides what is drawn, the training step included, so that no other samples are
    overwritten."""
    if not (path / "config.toml").exists():
        names = (Path(f"samples{'' if i == 1 else f'_{i}'}.png") for i in count(1))
        return next(name for name in names if not os.path.lexists(name))
    label = None if a.label is None else _UNFIT.sub("_", a.label)[:60]
    given = {"steps": a.steps, "eta": a.eta or None, "label": label, "guidance": a.guidance, "n": a.n}
    given |= {"precision": None if a.precision == "float32" else a.precision}
    use = a.sampler or "ddim"
    ends: list[str] | None = getattr(a, "interpolate", None)
    inpaint: str = getattr(a, "inpaint", None) or ""
    if inpaint or ends:
        named = [_name(text) for text in ends or (inpaint, a.mask)]
        use = "_".join(["ddim_interpolate" if ends else "ddpm_inpaint", *named])
        given |= {"jump": a.jump, "rounds": a.rounds}
    parts = [use, *(f"{name}-{value}" for name, value in given.items() if value is not None)]
    trained = [] if step is None else [f"step-{step}"]
    return path / "samples" / ("_".join([*trained, *parts, *["raw"] * a.raw, f"seed-{a.seed}"]) + ".png")
