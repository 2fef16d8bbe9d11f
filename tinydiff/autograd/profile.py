"""Where the time of a training step goes: sections of the loop, and every operation's forward and backward pass in
them.

    times = profile.Profile()
    for ...:
        with times.step():
            with profile.section("data"):
                ...
    print(times.table())

Times are exclusive: the time of an operation does not count for its section, so the rows add up to the whole. Without a
measurement, a section costs a function call and an operation a comparison.
"""

from __future__ import annotations

import csv
import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tinydiff.autograd import tape
from tinydiff.backend import synchronize

K = TypeVar("K")


@dataclass
class Row:
    """Calls and seconds of one operation or section. Forward and backward are separate; a section has forward alone."""

    calls: int = 0
    forward: float = 0.0
    backward_calls: int = 0
    backward: float = 0.0

    @property
    def seconds(self) -> float:
        return self.forward + self.backward

    def add(self, other: Row) -> None:
        self.calls, self.forward = self.calls + other.calls, self.forward + other.forward
        self.backward_calls, self.backward = self.backward_calls + other.backward_calls, self.backward + other.backward


class Key(NamedTuple):
    """What a row describes: its kind, "operation" or "section", its name, and for an operation the shapes of its
    inputs."""

    kind: str
    name: str
    shapes: str = ""


class Profile:
    """Times of the measuring thread. `steps` counts the measured steps, for times per step. clock: gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.rows: dict[Key, Row] = {}
        self.beside: dict[str, Row] = {}  # what happens between steps
        self.steps = 0
        self._clock, self._inner = clock, [0.0]  # for each section that is open: seconds spent further inside

    @property
    def seconds(self) -> float:
        """Seconds of all steps together."""
        return sum(row.seconds for row in self.rows.values())

    @contextmanager
    def step(self) -> Iterator[None]:
        """A block that is one step: its sections and operations are timed, if this thread runs them."""
        before, _active.profile = getattr(_active, "profile", None), self
        try:
            with tape.observing(self.observe), self.section("everything else"):
                yield
            self.steps += 1
        finally:
            _active.profile = before

    @contextmanager
    def between(self, name: str) -> Iterator[None]:
        """A block between steps, such as saving, timed as a whole under its name and not as part of a step."""
        start = self._clock()
        yield
        self.beside.setdefault(name, Row()).add(Row(1, self._clock() - start))

    def section(self, name: str) -> AbstractContextManager[None]:
        """A block whose time, without that of sections and operations inside it, counts for the row of this name."""
        return self._timed(Key("section", name))

    def observe(self, op: Any, phase: str, arguments: Any, options: dict[str, Any]) -> Any:
        """Runs the phase, "forward" or "backward", of an operation op with its arguments (arrays) and options, and counts it;
        see `tape.observing`."""
        shapes = ", ".join("x".join(map(str, shape)) or "number" for shape in op.shapes if shape is not None)
        with self._timed(Key("operation", type(op).__name__, shapes), phase == "backward"):
            return getattr(op, phase)(*arguments, **options)

    @contextmanager
    def _timed(self, key: Key, backward: bool = False) -> Iterator[None]:
        self._inner.append(0.0)
        synchronize()
        start = self._clock()
        try:
            yield
        finally:
            synchronize()
            elapsed = self._clock() - start
            own = elapsed - self._inner.pop()
            self._inner[-1] += elapsed
            self.rows.setdefault(key, Row()).add(Row(0, 0.0, 1, own) if backward else Row(1, own))

    def csv(self) -> str:
        """A table as CSV, a row for each operation with inputs of the same shapes: calls and milliseconds per step, and the share
        of all time."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        columns = ("calls", "forward_ms", "backward_calls", "backward_ms", "share")
        writer.writerow((*Key._fields, *columns))
        n, total = max(self.steps, 1), self.seconds or 1.0
        for key, row in _largest_first(self.rows):
            times = (row.calls / n, 1e3 * row.forward / n, row.backward_calls / n, 1e3 * row.backward / n)
            writer.writerow((*key, *(f"{x:.6g}" for x in (*times, row.seconds / total))))
        return text.getvalue()

    def save(self, path: Path) -> None:
        """Writes `csv()` to a path."""
        path.write_text(self.csv(), encoding="utf-8", newline="")

    def table(self) -> str:
        """Text for people: operations by name, the costliest with their shapes, the other parts of a step."""
        operations: dict[str, Row] = {}
        sections: dict[str, Row] = {}
        everything = Row()
        for key, row in self.rows.items():
            group = operations if key.kind == "operation" else sections
            group.setdefault(key.name, Row()).add(row)
            if key.kind == "operation":
                everything.add(row)
        shaped = {f"{k.name}  {k.shapes}": row for k, row in self.rows.items() if k.kind == "operation"}
        return "\n".join(
            [
                f"one step takes {1e3 * self.seconds / max(self.steps, 1):.1f} ms (mean of {self.steps})",
                f"{'':<33}{'calls':>7}{'forward ms':>12}{'backward ms':>13}{'share':>8}",
                *(self._line(name, row) for name, row in _largest_first(operations)),
                self._line("all operations", everything),
                "",
                *(self._line(name, row) for name, row in _largest_first(sections)),
                "",
                "the costliest, with the shapes of their inputs:",
                *(
                    f"{row.seconds / (self.seconds or 1):5.1%}  {row.calls / max(self.steps, 1):g} x {name}"
                    for name, row in _largest_first(shaped)[:6]
                ),
                *(f"between the steps: {name}, {row.calls} times, {row.forward:.2f} s in all"
                  for name, row in self.beside.items()),
            ]
        )  # fmt: skip

    def _line(self, name: str, row: Row) -> str:
        n = max(self.steps, 1)
        backward = f"{1e3 * row.backward / n:13.2f}" if row.backward_calls else " " * 13
        share = row.seconds / (self.seconds or 1)
        return f"{name:<33}{row.calls / n:7.4g}{1e3 * row.forward / n:12.2f}{backward}{share:8.1%}"


def _largest_first(rows: Mapping[K, Row]) -> list[tuple[K, Row]]:
    return sorted(rows.items(), key=lambda item: -item[1].seconds)


_active = threading.local()


def section(name: str) -> AbstractContextManager[None]:
    """A section of the training loop with this name; it is timed if this thread is being measured."""
    profile: Profile | None = getattr(_active, "profile", None)
    return nullcontext() if profile is None else profile.section(name)
