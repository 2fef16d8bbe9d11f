"""How many processes train a network on the CPU: `tinydiff train --processes N`, or what is fastest."""

from __future__ import annotations

import argparse
import os

from tinydiff.backend import resolve_device
from tinydiff.cli.numbers import whole_number
from tinydiff.errors import InputError
from tinydiff.machine import threads
from tinydiff.ranks import start_team, team, world
from tinydiff.runs.config import RunConfig, TrainConfig

# With 1.6 million parameters two processes of one thread did 1.1 to 1.5 times as many images a second as one of two, with 36
# million as many (tests/benchmarks/results/scale.md): each has to add up gradients and to change weights for itself.
MOST_PARAMETERS = 8_000_000


def add_to(parser: argparse.ArgumentParser) -> None:
    """Adds the flag."""
    parser.add_argument(
        "--processes",
        metavar="X",
        type=whole_number,
        help="processes that share each batch and the CPU threads [as many as threads, if the batch can be shared out so; 1 for "
        f"networks of more than {MOST_PARAMETERS // 10**6} million parameters]",
    )


def invite(arguments: argparse.Namespace, config: RunConfig, parameters: int) -> None:
    """Starts the other processes, for a command with these arguments, settings and number of parameters. InputError for a wish
    that cannot be."""
    if world().size > 1:
        if "processes" in arguments and not isinstance(world(), team.Team):
            raise InputError("--processes starts processes on this machine; those of mpiexec or srun are here already")
        return
    n = 1
    if "processes" in arguments:
        n = _wanted(arguments.processes, config)
    elif arguments.of_program:  # else a program calls it, and may have changed what other processes would not know of
        n = best(config, parameters)
    if n > 1:
        start_team(n, arguments.words)


def _wanted(n: int, config: RunConfig) -> int:
    if n < 1:
        raise InputError(f"--processes must be at least 1, not {n}")
    if n > 1 and resolve_device(config.device) != "cpu":
        raise InputError(
            f"--processes {n} is for the CPU; several GPUs are used by mpiexec or srun, with a rank for each"
        )
    if n > 1 and not team.possible():
        raise InputError(f"--processes {n} needs Linux")
    if config.batch_size % n:
        raise InputError(f"--batch-size {config.batch_size} cannot be shared out evenly to {n} processes")
    return n


def best(config: TrainConfig, parameters: int) -> int:
    """As many processes as there are threads, or the largest number below that among which the batch can be shared out evenly."""
    if parameters > MOST_PARAMETERS or os.environ.get("TINYDIFF_RANKS") == "0" or not team.possible():
        return 1
    if resolve_device(config.device) != "cpu":
        return 1
    most = min(config.threads or threads.available(), config.batch_size)
    return max(n for n in range(1, most + 1) if config.batch_size % n == 0)
