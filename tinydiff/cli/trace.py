"""`tinydiff trace`: a backward pass to look at."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tinydiff.cli.outputs import check_new
from tinydiff.errors import InputError, at_work, before_work
from tinydiff.machine.terminal import tell

if TYPE_CHECKING:
    from tinydiff.study import Trace


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `trace` to the subcommands of an argument parser; the parsed arguments' `run` runs it."""
    trace = commands.add_parser(
        "trace",
        help="see a backward pass",
        description="Runs a function that returns a loss, or one training step of a run, and shows every operation of its "
        "backward pass: the gradients that come in and go out, the work, the memory. Nothing of a run is changed.",
    )
    trace.add_argument("target", metavar="FILE.py:FUNCTION|RUN", help="a function without arguments, or a run's folder")
    trace.add_argument("--html", metavar="FILE.html", help="a page to step through the backward pass")
    trace.add_argument("--graph", metavar="FILE.svg", help="a picture of the graph; or FILE.png")
    trace.add_argument("--memory", metavar="FILE.png", help="what is kept for backward, step by step")
    trace.add_argument("--cost", action="store_true", help="FLOPs, bytes, memory and time by operation and module")
    trace.add_argument(
        "--sort",
        choices=("flops", "bytes", "saved", "time"),
        help="what the rows of --cost are ordered by; flops if not given",
    )
    trace.add_argument("--force", action="store_true", help="overwrite the files that are named")
    trace.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from tinydiff.runs.atomic import check_place, write_file
    from tinydiff.study import Trace, check_libraries
    from tinydiff.study.drawing import picture
    from tinydiff.study.memory import memory_picture
    from tinydiff.study.page import page

    wanted: list[tuple[str, tuple[str, ...], Callable[[Trace], bytes]]] = [
        (arguments.html, (".html",), lambda trace: page(trace, Path(arguments.target).name).encode()),
        (arguments.graph, (".svg", ".png"), lambda trace: picture(trace, Path(arguments.graph).suffix)),
        (arguments.memory, (".png",), memory_picture),
    ]
    if arguments.sort and not arguments.cost:
        raise InputError("--sort orders the rows of --cost: give both")
    files = [(Path(name), endings, make) for name, endings, make in wanted if name]
    for file, endings, _ in files:
        if file.suffix.lower() not in endings:
            raise InputError(f"{file} must end in {' or '.join(endings)}")
        check_new(str(file), arguments.force)
        with before_work():
            check_place(file)
    check_libraries(graph=arguments.html or arguments.graph, memory=arguments.memory)
    trace = Trace()
    _fill(trace, arguments.target)
    tell(trace)
    if arguments.cost:
        tell("")
        tell(trace.cost(arguments.sort or "flops"))
    for file, _, make in files:
        content = make(trace)
        with at_work():
            write_file(file, content)
        tell(file)
    return 0


def _fill(trace: Trace, target: str) -> None:
    """Runs what is to be traced."""
    if Path(target).is_dir() or ":" not in target:
        _training_step(trace, target)
        return
    from tinydiff.study.target import trace_target

    trace_target(target, trace)


def _training_step(trace: Trace, run: str) -> None:
    """The gradients of the step after the run's newest checkpoint."""
    from tinydiff.backend import host_threads
    from tinydiff.cli import flags
    from tinydiff.machine.threads import threads

    if not Path(run).is_dir():
        raise InputError(f"there is no run {run}; name a run's folder, or a function as FILE.py:FUNCTION")
    trainer = flags.build(flags.read({"out": run, "resume": True}))
    trainer.restore()
    with threads(host_threads(trainer.device, trainer.config.threads)), trace:
        trainer.gradients(trainer.step + 1)
    trace.note(f"this is step {trainer.step + 1} of {run}, with its own batch and noise; the run is as it was")
