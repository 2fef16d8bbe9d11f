"""`tinydiff exercise` and `tinydiff puzzle`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tinydiff.cli.outputs import check_new
from tinydiff.errors import InputError, before_work
from tinydiff.machine.terminal import tell


def add_command(commands: Any) -> None:
    """Adds `exercise` and `puzzle` to the subcommands of an argument parser; the parsed arguments' `run` runs them."""
    exercise = commands.add_parser(
        "exercise",
        help="write a backward pass",
        description="Backward passes to write, from the chain rule to a diffusion model's loss. Without a name, lists them. "
        "With one, writes a file to fill in. --check grades it, by a gradient check, and gives the next hint. Exit status 0 if "
        "it is right.",
    )
    exercise.add_argument("name", metavar="NAME", nargs="?", help="or its number, or the beginning of its name")
    exercise.add_argument("--solution", action="store_true", help="print the model solution")
    puzzle = commands.add_parser(
        "puzzle",
        help="find the mistake in a backward pass",
        description="Backward passes with one mistake each. Without a number, lists them. With one, writes the file to mend. "
        "--check says whether it is right, counts the attempts, and tells more with each. Exit status 0 if it is right.",
    )
    puzzle.add_argument("name", metavar="N", nargs="?", help="its number")
    for command, run in ((exercise, _exercise), (puzzle, _puzzle)):
        command.add_argument("--check", metavar="FILE.py", help="grade this file")
        command.add_argument("--out", metavar="FILE.py", help="where to write the file [its name, in this folder]")
        command.add_argument("--force", action="store_true", help="overwrite a file that is there")
        command.set_defaults(run=run)


def _exercise(arguments: argparse.Namespace) -> int:
    from tinydiff.exercises import grade, task, tasks

    _check_flags(arguments, "exercise")
    if arguments.name is None:
        lines = [f"{t.number:3}  {t.name:22} {t.title}" for t in tasks()]
        tell("\n".join([*lines, "", "tinydiff exercise NAME writes a file to fill in."]))
        return 0
    chosen = task(arguments.name)
    if arguments.solution:
        tell(chosen.solution())
        return 0
    if arguments.check is None:
        return _write(arguments, f"{chosen.name}.py", chosen.file(), f"exercise {chosen.name}")
    result = grade(chosen, arguments.check, chosen.hints, help_after=1)
    following = next((t for t in tasks() if t.number == chosen.number + 1), None)
    after = f"\nThe next one: tinydiff exercise {following.name}" if following and result.ok else ""
    tell(f"{chosen.name}: {result.text}{after}")
    return 0 if result.ok else 1


def _puzzle(arguments: argparse.Namespace) -> int:
    from tinydiff.exercises import PUZZLES, grade, puzzle

    _check_flags(arguments, "puzzle")
    if arguments.name is None:
        lines = [f"{p.number:3}  {p.task.title}" for p in PUZZLES]
        tell("\n".join([*lines, "", "tinydiff puzzle N writes a file with one mistake in its backward pass."]))
        return 0
    chosen = puzzle(arguments.name)
    if arguments.check is None:
        return _write(arguments, f"puzzle_{chosen.number}.py", chosen.file(), f"puzzle {chosen.number}")
    result = grade(chosen.task, arguments.check, [chosen.hint], help_after=4)
    after = f"\nThe next one: tinydiff puzzle {chosen.number + 1}" if result.ok and chosen.number < len(PUZZLES) else ""
    tell(f"puzzle {chosen.number}: {result.text}{after}")
    return 0 if result.ok else 1


def _check_flags(arguments: argparse.Namespace, command: str) -> None:
    given = [flag for flag in ("check", "out", "solution", "force") if getattr(arguments, flag, None)]
    if arguments.name is None and given:
        raise InputError(f"--{given[0]} needs to know which {command}: see tinydiff {command}")
    if arguments.check is not None and (others := [flag for flag in given if flag != "check"]):
        raise InputError(f"--check writes nothing, so --{others[0]} has no meaning beside it")
    if getattr(arguments, "solution", False) and (others := [flag for flag in given if flag != "solution"]):
        raise InputError(f"--solution writes nothing, so --{others[0]} has no meaning beside it")


def _write(arguments: argparse.Namespace, name: str, text: str, command: str) -> int:
    path = arguments.out or name
    if Path(path).suffix != ".py":
        raise InputError(f"--out must name a Python file (.py), not {path}")
    check_new(path, arguments.force)
    with before_work():
        Path(path).write_text(text, encoding="utf-8", newline="\n")
    tell(f"written to {path}. When it is done: tinydiff {command} --check {path}")
    return 0
