"""An exercise, read from its file in tasks/, and the file that a learner gets."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tinydiff.errors import InputError
from tinydiff.exercises.tasks import ORDER

_SETTINGS = ("WRITE", "WRT", "HINTS")

IMPORTS = "\n\nimport numpy as np\n\nimport tinydiff as td"

TEST = """

def test_backward():  # for pytest
    td.gradcheck(forward, inputs(np.random.default_rng(0)), backward=backward{wrt})
"""


@dataclass(frozen=True)
class Task:
    """An exercise. name: that of its file; number: from 1 on, in the order of difficulty."""

    name: str
    number: int

    @cached_property
    def module(self) -> Any:
        """Its file, with forward(*inputs), the model's backward(*cotangents, *inputs) and inputs(rng)."""
        return importlib.import_module(f"tinydiff.exercises.tasks.{self.name}")

    @property
    def title(self) -> str:
        """The first line of its text."""
        return self.text.partition("\n")[0]

    @property
    def text(self) -> str:
        """What is to be done, with formulas and shapes."""
        return inspect.getdoc(self.module) or ""

    @property
    def forward(self) -> Callable[..., Any]:
        return self.module.forward

    @property
    def hints(self) -> list[str]:
        """Each says more than the one before."""
        return self.module.HINTS

    @property
    def to_write(self) -> list[str]:
        """The functions that the learner writes."""
        return self.module.WRITE

    @property
    def wrt(self) -> list[str] | None:
        """The names of the inputs that have a gradient; None for all of floating point."""
        return getattr(self.module, "WRT", None)

    @property
    def source(self) -> str:
        """Its file's text."""
        return inspect.getsource(self.module)

    def solution(self) -> str:
        """The source of the functions that the learner writes, as the model has them."""
        return "\n\n\n".join(inspect.getsource(getattr(self.module, name)).rstrip() for name in self.to_write)

    def file(self) -> str:
        """What a learner gets: the text, forward, inputs, the functions to write without a body, and a test that fails."""
        return learner_file(self, self.source, f"Exercise {self.number}: ", True)


def learner_file(task: Task, source: str, title: str, empty: bool) -> str:
    """The source of a task without its settings, with a test. title: what stands before the first line of the text; empty:
    whether the bodies of the functions to write are left out."""
    lines = source.split("\n")
    kept: list[str] = []
    for node in ast.parse(source).body:
        first, last = node.lineno - 1, node.end_lineno or node.lineno
        text = "\n".join(lines[first:last])
        if isinstance(node, ast.Expr):
            text = text.replace('"""', f'"""{title}', 1) + IMPORTS  # also where the task itself needs none
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in _SETTINGS:
            continue
        elif isinstance(node, ast.FunctionDef) and node.name in task.to_write and empty:
            head = "\n".join(lines[first : node.body[0].lineno - 1])
            text = f'{head}\n    raise NotImplementedError("{node.name} is to be written")'
        elif isinstance(node, ast.Import):
            continue
        before = "\n\n\n" if isinstance(node, ast.FunctionDef) else "\n\n"
        kept.append((before if kept else "") + text)
    wrt = f", wrt={task.wrt!r}".replace("'", '"') if task.wrt else ""
    return "".join(kept) + "\n" + TEST.format(wrt=wrt)


def tasks() -> Iterator[Task]:
    """All exercises, easy ones first."""
    return (Task(name, number) for number, name in enumerate(ORDER, 1))


def task(name: str) -> Task:
    """The exercise of a name, a number or the beginning of a name. InputError where there is none, or several."""
    key = name.lower().replace("-", "_")
    found = [t for t in tasks() if key in (t.name, str(t.number))] or [t for t in tasks() if t.name.startswith(key)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{name!r} can be {' or '.join(t.name for t in found)}")
    close = difflib.get_close_matches(key, ORDER, 1)
    meant = f"; is {close[0]} meant?" if close else "; tinydiff exercise lists them"
    raise InputError(f"there is no exercise {name!r}{meant}")
