"""The command line. Every mistake in what it was given ends in one sentence on stderr and exit status 2."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import tinydiff
from tinydiff import doctor, flags
from tinydiff.backend import host_threads, resolve_device
from tinydiff.bench import command as bench
from tinydiff.errors import InputError, RunFailed
from tinydiff.evaluation import command as evaluation

INTERRUPTED = 128  # plus the signal's number: 130 for SIGINT, 141 for SIGPIPE, 143 for SIGTERM


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status: 0 done, 1 the run failed, 2 wrong input, 130 and 143 interrupted, 141
    nobody reads the output any more."""
    try:
        status = _run(argv)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a failure can be told
        return status
    except BrokenPipeError:  # somebody closed our output, as `head` does
        _drop_output()
        return INTERRUPTED + 13
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # files say so themselves; this is the output
            raise
        _drop_output()
        return _fail(f"the output cannot be written: {error.strerror}", 1)


def _drop_output() -> None:
    """So that flushing it at exit is quiet."""
    with suppress(OSError, AttributeError):  # it may be no file, or closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: Sequence[str] | None) -> int:
    # Numbers out of range are told in our own words; NumPy's would come first, with lines of source.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"tinydiff\.")
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit:  # after --help and --version
        return 0
    except InputError as error:
        return _fail(error, 2)
    try:
        return arguments.run(arguments)
    except InputError as error:
        return _fail(error, 2)
    except RunFailed as error:
        return _fail(error, 1)
    except MemoryError:
        training = arguments.command in ("train", "doctor")
        advice = "; a smaller --batch-size with a larger --accumulate needs less" if training else ""
        return _fail(f"out of memory{advice}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED + signal.SIGINT)


def _fail(message: object, status: int) -> int:
    with suppress(OSError):  # of standard error: then only the status tells
        print(f"tinydiff: {message}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="tinydiff", description="Trains and samples small diffusion models (DDPMs) without PyTorch.")
    parser.add_argument("--version", action="version", version=f"tinydiff {tinydiff.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_sample(commands)
    info = commands.add_parser(
        "info", help="tell what a run or checkpoint is", description="Tells what a run or checkpoint is."
    )
    info.add_argument("path", metavar="RUN|CHECKPOINT")
    info.set_defaults(run=_info)
    _add_gradcheck(commands)
    evaluation.add_command(commands)
    doctor.add_command(commands)
    bench.add_command(commands)
    return parser


# ------------------------------------------------------------------------------------------------------- tinydiff train


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train a model",
        description="Trains a DDPM and draws samples. Settings: defaults, then --config, then flags.",
        argument_default=argparse.SUPPRESS,
    )
    flags.add_to(train)
    train.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    wish = flags.read(vars(arguments))
    trainer = flags.build(wish)
    if not wish.resume:
        trainer.check_start(force=wish.force)  # before anything is announced
    _say_what_will_happen(trainer)
    step = trainer.run(wish.resume, wish.force, wish.profile)
    out = trainer.config.out
    if trainer.stopped_by is not None:
        print(f"stopped after step {step}; go on with: tinydiff train --resume --out {out}", file=sys.stderr)
        return INTERRUPTED + trainer.stopped_by
    print(f"done: {out} (samples.png, samples.gif, checkpoint); draw more with: tinydiff sample {out}")
    return 0


def _say_what_will_happen(trainer: Any) -> None:
    from tinydiff.progress import say

    data, unet, config = trainer.data, trainer.unet, trainer.config
    height, width = data.image_size
    classes = f" in {data.num_classes} classes" if unet.num_classes else ""
    held_out = f", {len(data.held_out)} held out" if data.held_out is not None else ""
    fitted = f", {data.fitted}" if data.fitted else ""
    say(f"data: {len(data)} images {height}x{width}x{data.channels}{classes} from {data.name}{fitted}{held_out}")
    say(f"network: {sum(p.size for p in unet.parameters()):,} parameters")
    say(
        f"training: {config.steps} steps of {config.batch_size * config.accumulate} images, then samples, in {config.out}"
    )
    final = trainer.diffusion.schedule.alpha_bar[-1]
    if final > 0.01:
        say(f"warning: alpha_bar_T is {final:.3g}: x_T still shows the image, samples will be off; raise --timesteps")


# ------------------------------------------------------------------------------------------------------ tinydiff sample


def _add_sample(commands: Any) -> None:
    sample = commands.add_parser("sample", help="draw pictures", description="Draws pictures from a trained model.")
    sample.add_argument("path", metavar="RUN|CHECKPOINT")
    sample.add_argument("--n", type=_whole_number, help="number of pictures [16; with labels 10 for each class]")
    sample.add_argument("--sampler", default="ddim", help="ddpm, ddim or dpm++ [ddim]")
    sample.add_argument("--steps", type=_whole_number, help="steps [50; ddpm: all T]")
    sample.add_argument("--eta", type=float, default=0.0, help="noise of ddim, from 0 to 1 [0]")
    sample.add_argument("--label", help="class to draw, by name or number [all, one per row]")
    sample.add_argument("--guidance", type=float, help="of classifier-free guidance; 1: none [2 where possible]")
    sample.add_argument("--seed", type=_whole_number, default=0, help="seed of the noise [0]")
    sample.add_argument("--device", default="auto", help="auto, cpu or cuda [auto]")
    sample.add_argument("--threads", type=_whole_number, help="CPU threads [all]")
    sample.add_argument("--out", metavar="FILE.png", help="where to [RUN/samples/..., or samples.png for a checkpoint]")
    sample.add_argument("--gif", metavar="FILE.gif", help="an animation of the denoising as well")
    sample.add_argument("--raw", action="store_true", help="the raw weights instead of the averaged (EMA) ones")
    sample.set_defaults(run=_sample)


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _sample(arguments: argparse.Namespace) -> int:
    from tinydiff import checkpoint, images
    from tinydiff.random import SAMPLING, Generator
    from tinydiff.sheets import class_count, draw_sheet
    from tinydiff.workers import threads

    a = arguments
    if a.n is not None and a.n < 1:
        raise InputError(f"--n must be at least 1, not {a.n}")
    if not 0 <= a.seed < 2**64:
        raise InputError(f"--seed must be at least 0 and below 2**64, not {a.seed}")
    if a.threads is not None and a.threads < 1:
        raise InputError(f"--threads must be at least 1, not {a.threads}")
    pipeline = checkpoint.load(a.path, raw=a.raw)
    unet, diffusion = pipeline.unet, pipeline.diffusion
    device = resolve_device(a.device)
    unet.to(device)
    label = None if a.label is None else _label(a.label, class_count(unet), pipeline.class_names)
    steps = a.steps if a.steps is not None or a.sampler == "ddpm" else min(50, diffusion.schedule.T)
    out = Path(a.out) if a.out else _default_output(Path(a.path), a)
    images.check_place(out, ".png")
    if a.gif:
        images.check_place(a.gif, ".gif")
    with threads(host_threads(device, a.threads)):
        generator = Generator(a.seed).at(SAMPLING)
        sheet = draw_sheet(
            unet, diffusion, generator, a.n, label, a.sampler, steps, a.eta, a.guidance, animate=a.gif is not None
        )
    images.save_png(out, sheet.picture())
    if a.gif:
        images.save_gif(a.gif, sheet.animation())
    print(*filter(None, (out, a.gif)), sep="\n")
    return 0


def _label(text: str, classes: int | None, names: Sequence[str] | None) -> int:
    """A class given by its name or its number. InputError for one that the model does not know."""
    if classes is None:
        raise InputError("--label is for models trained with labels; this one was trained without")
    if names and text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < classes:
        return int(text)
    known = f"0..{classes - 1}" if not names else ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    raise InputError(f"--label {text}: the model's classes are {known}")


def _default_output(path: Path, a: argparse.Namespace) -> Path:
    """A file that is named by all that decides what is drawn, so that no other samples are overwritten."""
    if not (path / "config.toml").exists():
        names = (Path(f"samples{'' if i == 1 else f'_{i}'}.png") for i in count(1))
        return next(name for name in names if not name.exists())
    given = {"steps": a.steps, "eta": a.eta or None, "label": a.label, "guidance": a.guidance, "n": a.n}
    parts = [a.sampler, *(f"{name}-{value}" for name, value in given.items() if value is not None)]
    return path / "samples" / ("_".join([*parts, *["raw"] * a.raw, f"seed-{a.seed}"]) + ".png")


# -------------------------------------------------------------------------------------------------------- tinydiff info


def _info(arguments: argparse.Namespace) -> int:
    from tinydiff.info import describe

    print(describe(Path(arguments.path)))
    return 0


# --------------------------------------------------------------------------------------------------- tinydiff gradcheck


def _add_gradcheck(commands: Any) -> None:
    check = commands.add_parser(
        "gradcheck",
        help="check a gradient",
        description="Checks the gradient of a function of tensors, of a td.Function, or of a backward pass in plain NumPy. "
        "With --kernels, checks tinydiff's own CUDA kernels, run on the host. Exit status 0 if no error was found, 1 if one was.",
    )
    check.add_argument(
        "target", metavar="MODULE:FUNCTION", nargs="?", help="or MODULE:FORWARD,BACKWARD; MODULE may be a .py file"
    )
    check.add_argument("--kernels", action="store_true", help="check every CUDA kernel of tinydiff against float64")
    check.add_argument("--shape", action="append", default=[], metavar="4,3", help="of each argument in turn [guessed]")
    check.add_argument("--seed", type=_whole_number, default=0, help="of the random numbers [0]")
    check.add_argument("--png", metavar="FILE.png", help="a picture of where the error is")
    check.set_defaults(run=_gradcheck)


def _gradcheck(arguments: argparse.Namespace) -> int:
    if arguments.kernels:
        if arguments.target is not None or arguments.shape or arguments.png:
            raise InputError(
                "gradcheck --kernels checks tinydiff's own kernels: it takes no function, --shape or --png"
            )
        from tinydiff.gradcheck.families import check_kernels

        return 0 if check_kernels(arguments.seed) else 1
    if arguments.target is None:
        raise InputError("gradcheck needs MODULE:FUNCTION, what to check, or --kernels")
    from tinydiff.gradcheck.target import check_target

    report = check_target(arguments.target, shapes=arguments.shape, seed=arguments.seed, png=arguments.png)
    print(report)
    return 0 if report.ok else 1
