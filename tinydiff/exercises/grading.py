"""Whether what a learner wrote is right, and the next hint.

A file is graded with the exercise's own forward pass and inputs, so changes to those of the file neither help nor hurt. How
often a file was checked is kept beside it, in FILE.attempts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from traceback import walk_tb
from typing import Any

import numpy as np

from tinydiff.errors import InputError, named
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
    gradient check is told, with the line that is wrong; what to write there, not before the third failure. Before it, only
    which gradients are wrong is told; from the second failure on also what the error looks like, and from the third the line
    and the hints. A hint is chosen that speaks of what is wrong. A backward pass that raises is no attempt.

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
            if raised := _raised(error.report, error.__cause__):
                stuck = " For a hint, write zeros of the right shape there." if help_after == 1 else ""
                return Grade(False, raised + stuck, error.report)
            failure = _failure(task, error.report, _count(path), hints, help_after)
            return Grade(False, _renamed(task, failure), error.report)
        names = ", ".join(f"L_{verdict.name}" for verdict in report.verdicts)
        checked = f"{names} at {len(SEEDS)} sets of inputs, and by the probes {', '.join(report.probes)}"
    attempts = _count(path)
    tries = "the first attempt" if attempts == 1 else f"attempt {attempts}"
    return Grade(True, f"right, at {tries}. Checked were {checked}.", report)


def _failure(task: Task, report: Report, attempts: int, hints: Sequence[str], help_after: int) -> str:
    told = attempts if help_after == 1 else attempts - 2  # how many hints
    finding = report.findings[0] if report.findings else None
    parts = []
    if attempts >= help_after:
        parts.append(_report(report, fix=attempts > 2))
    else:
        wrong = [f"L_{v.name}" for v in report.verdicts if not v.ok]
        verb = "is" if len(wrong) == 1 else "are"
        which = f"{' and '.join(wrong)} {verb} wrong" if wrong else "it is wrong in some cases"
        right = ", ".join(f"L_{v.name}" for v in report.verdicts if v.ok)
        parts.append(f"{which}; right: {right or 'none'}. The next attempt tells more.")
        if attempts > 1 and finding and finding.diagnoses:
            parts.append(f"It looks like: {finding.diagnoses[0]}")
        if told > 0 and finding and finding.blame:
            parts.append(f"The line: {finding.blame.file}:{finding.blame.line}: {finding.blame.text}")
    if told > 0:
        parts.append(_hint(task, report, hints, told))
    if help_after == 1 and attempts > 3:
        parts.append(f"tinydiff exercise {task.name} {named('solution', True)} prints the model solution.")
    return "\n\n".join(parts)


def _renamed(task: Task, text: str) -> str:
    """A gradient check calls what comes in L_Y; here it has the name that the exercise gives it."""
    inputs = signature(task.forward).parameters
    given = [name for name in signature(task.module.backward).parameters if name not in inputs]
    return re.sub(r"\bL_Y\b", given[0], text) if len(given) == 1 else text


def _report(report: Report, fix: bool) -> str:
    """The report without what only matters to the checker; fix: with the statement after which all would be right."""
    later = () if fix else ("      all gradients are right",)
    left_out = ("  probes: ", "  tolerance: ", "    differences with step h", *later)
    return "\n".join(line for line in str(report).splitlines() if not line.startswith(left_out)).rstrip()


def _raised(report: Report, error: BaseException | None) -> str | None:
    """What to tell where backward raised: the error, its line and the shapes there, without a hint, as it is no attempt yet."""
    blame = report.findings[0].blame if report.findings else None
    if blame is None or blame.code != "raises":
        return None
    told = f"{report.findings[0].message}\n  {blame.file}:{blame.line}: {blame.text}"
    frames = [frame for frame, line in walk_tb(error.__traceback__ if error else None) if line == blame.line]
    found = frames[-1].f_locals if frames else {}
    names = dict.fromkeys(re.findall(r"[A-Za-z_]\w*", blame.text))
    shapes = [f"{name} {found[name].shape}" for name in names if isinstance(found.get(name), np.ndarray)]
    there = f"\n  there: {', '.join(shapes)}" if shapes else ""
    return f"{told}{there}\nThis is not counted as an attempt."


def _hint(task: Task, report: Report, hints: Sequence[str], told: int) -> str:
    """The next hint: of those that name the variable of the first wrong line, if it is not a gradient of an input; else of
    all but those that speak of other gradients only, or say how to compute what is right already."""
    blame = next((f.blame for f in report.findings if f.blame), None)
    line = re.match(r"\s*([A-Za-z_]\w*)", blame.text) if blame else None
    wrong = {f"L_{v.name}" for v in report.verdicts if not v.ok} | {f"L_{f.input}" for f in report.findings if f.input}

    def naming(names: Iterable[str], end: str = "(?![A-Za-z0-9])") -> list[str]:
        return [h for h in hints if any(re.search(rf"\b{re.escape(n)}{end}", h) for n in names)]

    chosen = naming([line[1]]) if line and line[1] not in wrong else []
    if not chosen:
        others = {f"L_{name}" for name in signature(task.forward).parameters} - wrong if wrong else set()
        fine, bad = naming(others) + naming(blame.right if blame else (), " = "), naming(wrong)
        chosen = [h for h in hints if h in bad or h not in fine] or list(hints)
    hint = chosen[min(told, len(chosen)) - 1]
    number = f" {hints.index(hint) + 1} of {len(hints)}" if len(hints) > 1 else ""
    return f"Hint{number}: {hint}"


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
