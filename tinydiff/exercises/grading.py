"""Whether what a learner wrote is right, and the next hint.

A file is graded with the exercise's own forward pass and inputs, so changes to those of the file neither help nor hurt. How
often a file was checked is kept beside it, in FILE.attempts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.errors import InputError
from tinydiff.exercises.task import Task
from tinydiff.gradcheck import GradientError, gradcheck
from tinydiff.gradcheck.report import Report
from tinydiff.gradcheck.target import load_module

SEEDS = (0, 1)  # of the inputs


@dataclass
class Grade:
    """ok: whether all gradients are right. text: what to tell. report: of the gradient check, if there was one."""

    ok: bool
    text: str
    report: Report | None = None


def grade(task: Task, path: str | Path, hints: Sequence[str], help_after: int) -> Grade:
    """Checks the functions that a learner wrote into a file.

    hints: told one at a time, from the first failure on. help_after: the failure from which on the whole report of the
    gradient check is told, with the line that is wrong. Before it, only which gradients are wrong is told; from the
    second failure on also what the error looks like, and the hints begin with the third.

    InputError where the file cannot be read or run, or lacks a function.
    """
    path = Path(path)
    backward = _read(path, task)
    checked = ""
    for seed in SEEDS:
        inputs = task.module.inputs(np.random.default_rng(seed))
        try:
            report = gradcheck(task.forward, inputs, backward=backward, wrt=task.wrt, name=path.name)
        except GradientError as error:
            if isinstance(error.__cause__, NotImplementedError):
                return Grade(False, f"{error.__cause__}: fill in its body in {path}")
            return Grade(False, _failure(error.report, _count(path), hints, help_after), error.report)
        names = ", ".join(f"L_{verdict.name}" for verdict in report.verdicts)
        checked = f"{names} at {len(SEEDS)} sets of inputs, and by the probes {', '.join(report.probes)}"
    attempts = _count(path)
    tries = "the first attempt" if attempts == 1 else f"attempt {attempts}"
    return Grade(True, f"right, at {tries}. Checked were {checked}.", report)


def _failure(report: Report, attempts: int, hints: Sequence[str], help_after: int) -> str:
    told = attempts if help_after == 1 else attempts - 2  # how many hints
    parts = []
    if attempts >= help_after:
        parts.append(str(report))
    else:
        wrong = [f"L_{v.name}" for v in report.verdicts if not v.ok]
        verb = "is" if len(wrong) == 1 else "are"
        which = f"{' and '.join(wrong)} {verb} wrong" if wrong else "it is wrong in some cases"
        right = ", ".join(f"L_{v.name}" for v in report.verdicts if v.ok)
        parts.append(f"{which}; right: {right or 'none'}. The next attempt is told more.")
        if attempts > 1 and report.findings and report.findings[0].diagnoses:
            parts.append(f"It looks like: {report.findings[0].diagnoses[0]}")
    if told > 0:
        number = min(told, len(hints))
        parts.append(f"Hint{f' {number} of {len(hints)}' if len(hints) > 1 else ''}: {hints[number - 1]}")
    return "\n\n".join(parts)


def _read(path: Path, task: Task) -> Any:
    if path.suffix != ".py":
        raise InputError(f"{path} is not a Python file (.py)")
    module = load_module(str(path))
    missing = [name for name in task.to_write if not callable(getattr(module, name, None))]
    if missing:
        raise InputError(
            f"{path} has no function {missing[0]}; tinydiff exercise {task.name} writes a file that has one"
        )
    return module.backward


def _count(path: Path) -> int:
    """How often the file was checked, this time included. 1 where it cannot be kept."""
    place = path.with_suffix(".attempts")
    attempts = 0
    with suppress(OSError, ValueError):
        attempts = max(0, int(place.read_text(encoding="ascii")[:9]))
    with suppress(OSError):
        place.write_text(f"{attempts + 1}\n", encoding="ascii")
    return attempts + 1
