"""`tinydiff train`."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from tinydiff.cli import flags, processes
from tinydiff.cli.numbers import INTERRUPTED
from tinydiff.errors import InputError, at_work, before_work
from tinydiff.machine.terminal import quoted, say, tell
from tinydiff.ranks import team_ended, world


def add_command(commands: Any) -> None:
    """Adds `train` to the subcommands of an argument parser; the parsed arguments' `run` runs it."""
    train = commands.add_parser(
        "train",
        help="train a model",
        description="Trains a DDPM and draws samples. Settings: defaults, then --config, then flags.",
        argument_default=argparse.SUPPRESS,
    )
    flags.add_to(train)
    processes.add_to(train)
    train.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    with team_ended():
        return _train(arguments)


def _train(arguments: argparse.Namespace) -> int:
    before = world()
    with before.together():
        wish = flags.read(vars(arguments))
        trainer = flags.build(wish, partial(processes.invite, arguments))
    if world() is not before:
        with world().together():  # the others come from the block above
            pass
    with world().together():
        if not wish.resume:
            trainer.check_start(force=wish.force)  # before anything is announced
    _say_what_will_happen(trainer)
    try:
        step = trainer.run(wish.resume, wish.force, wish.profile, wish.data_changed, wish.graph)
    except (InputError, OSError):
        with at_work() if trainer.working else before_work():
            raise
    out = trainer.config.out
    if trainer.stopped_by is not None:
        say(f"stopped after step {step}; go on with: tinydiff train --resume --out {quoted(out)}")
        return INTERRUPTED + trainer.stopped_by
    if step < trainer.config.steps:
        say(
            f"{trainer.config.minutes:g} minutes are over after step {step}; "
            f"go on with: tinydiff train --resume --out {quoted(out)}"
        )
    tell(f"done: {out} (samples.png, samples.gif, checkpoint); draw more with: tinydiff sample {quoted(out)}")
    return 0


def _say_what_will_happen(trainer: Any) -> None:
    from tinydiff.runs import arithmetic

    data, unet, config = trainer.data, trainer.unet, trainer.config
    height, width = data.image_size
    classes = f" in {data.num_classes} classes" if unet.num_classes else ""
    held_out = f", {len(data.held_out)} held out" if data.held_out is not None else ""
    fitted = f", {data.fitted}" if data.fitted else ""
    say(f"data: {len(data)} images {height}x{width}x{data.channels}{classes} from {data.name}{fitted}{held_out}")
    for note in data.notes:
        say(f"data: {note}")
    say(f"network: {sum(p.size for p in unet.parameters()):,} parameters")
    steps = "steps" if config.last_step is None else f"{config.last_step} steps"
    steps += f" of {config.batch_size * config.accumulate} images"
    if config.minutes is not None:
        steps += f" for {config.minutes:g} minutes" + ("" if config.last_step is None else " at most")
    precision = arithmetic.used(config.precision, trainer.device)
    steps += "" if precision == "float32" else f" in {precision}"
    say(f"training: {steps}, then samples, in {config.out}")
    if config.lr_schedule == "cosine" and config.lr_steps is not None and config.lr_steps < (config.last_step or 0):
        say(f"warning: the learning rate is 0 from step {config.lr_steps} on, where the cosine ends")
    final = trainer.diffusion.schedule.alpha_bar[-1]
    if final > 0.01:
        say(f"warning: alpha_bar_T is {final:.3g}: x_T still shows the image, samples will be off; raise --timesteps")
