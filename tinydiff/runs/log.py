"""log.csv, a row for each step, and grad_norms.csv. They are for people and for the loss curve; a run neither needs them nor
stops because of them."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from tinydiff.errors import InputError, RunFailed
from tinydiff.machine import files
from tinydiff.machine.terminal import say
from tinydiff.runs.atomic import write_file

COLUMNS = ("step", "loss", "grad_norm", "lr", "images_per_second")
RANKS = "ranks"  # a column of runs that several ranks have worked on; empty in older rows, which one process made
LOSS_SCALE = "loss_scale"  # a column of runs in fp16; empty in rows of other precisions
HOLDOUT = "holdout_loss"  # a last column, of runs that measure it; empty in most rows
_SOMETIMES = RANKS, LOSS_SCALE, HOLDOUT  # columns that not every log has, in this order, and that may be empty
_LEFT_OUT = "loss", "grad_norm"  # may be empty in a row with a loss scale: of a step that overflowed
_SOME = tuple(product((False, True), repeat=len(_SOMETIMES)))  # which of them a log may have
_DIGITS = {"images_per_second": ".1f", LOSS_SCALE: ".0f"}
_AT_ONCE, _OFTEN = 8192, 2.0  # bytes of rows that wait to be written, and seconds that they wait at most
_MOST_WAITING = 64 << 20  # bytes, where they cannot be


class Log:
    """A log of a run that is in progress, a CSV file at a path. Rows that cannot be written are told once and
    wait for better times. columns: the first is the number of a step."""

    def __init__(self, path: Path, columns: Sequence[str] = COLUMNS) -> None:
        self.path, self.columns = path, tuple(columns)
        self._written = time.monotonic()
        self._file: int | None = None
        self._waiting = b""
        self._told = False

    def open(self, step: int) -> None:
        """Opens the log behind the row of `step`: those of later steps, which a resumed run makes again, go. A log with
        anything else in it than such rows is kept aside, as log.csv.damaged."""
        try:
            rows: list[dict[str, str]] = []
            damaged = False
            if os.path.lexists(self.path):
                rows, damaged = _parse(self.path, self.columns)
            known = {*self.columns, *(c for row in rows for c in row)}  # what was measured before, and now no more
            always = tuple(c for c in self.columns if c not in _SOMETIMES)
            self.columns = always + tuple(c for c in _SOMETIMES if c in known)
            if damaged:
                aside = self.path.with_name(self.path.name + ".damaged")
                os.replace(self.path, aside)
                say(f"{self.path} holds more than rows of steps: it is kept as {aside.name}, and the rows go on")
            kept = [",".join(row.get(c, "") for c in self.columns) for row in rows if int(row["step"]) <= step]
            write_file(self.path, ("\n".join([",".join(self.columns), *kept]) + "\n").encode())
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
        except (OSError, InputError, RunFailed) as error:
            self._tell(error)

    def add(self, step: int, *numbers: float | None, **sometimes: float | None) -> None:
        """Adds the row of a step: losses, norms and rates are written so that equal floats are equal text. None and what is not
        finite become empty.

        numbers: of the columns behind the step's that every log has. sometimes: of others, by name, which are left out where
        the log has no such column."""
        always = [c for c in self.columns[1:] if c not in _SOMETIMES]
        others = [c for c in self.columns if c in _SOMETIMES]
        pairs = [*zip(always, numbers, strict=True), *((c, sometimes.get(c)) for c in others)]
        texts = ["" if x is None or not math.isfinite(x) else format(x, _DIGITS.get(c, ".9g")) for c, x in pairs]
        self._waiting += f"{step},{','.join(texts)}\n".encode()
        full = len(self._waiting) >= _AT_ONCE or time.monotonic() - self._written >= _OFTEN
        if full and not self._told:
            self._write()

    def flush(self) -> None:
        """Brings all rows to the disk, as far as that can be done."""
        if self._file is not None and self._write():
            try:
                os.fsync(self._file)
            except OSError as error:
                self._tell(error)

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self.flush()
        if self._file is not None:
            descriptor, self._file = self._file, None
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _write(self) -> bool:
        self._written = time.monotonic()
        if self._file is None:
            self._waiting = b""
            return False
        try:
            while self._waiting:  # of what a full disk takes a part of, the rest waits
                self._waiting = self._waiting[os.write(self._file, self._waiting) :]
        except OSError as error:
            self._tell(error)
            self._waiting = self._waiting[:_MOST_WAITING]
            return False
        return True

    def _tell(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            reason = getattr(error, "strerror", None) or error
            say(f"warning: {self.path} cannot be written ({reason}); the run goes on without it")


def read_log(path: Path) -> list[dict[str, str]]:
    """The complete rows of the log.csv at a path, which may be written to meanwhile, with held-out loss and number of ranks where
    they are there.
    A step that overflowed in fp16 may lack its loss and its gradient's norm.
    Whatever else is in it, such as a row that a crash cut short, is left out; a missing file and one that cannot be read have
    none."""
    try:
        return _parse(path, COLUMNS)[0]
    except (OSError, InputError):
        return []


def _parse(path: Path, columns: tuple[str, ...]) -> tuple[list[dict[str, str]], bool]:
    """The rows, by column, and whether anything else is in the file but the start of a last row."""
    with files.open_file(path) as file:
        *lines, _ = file.read().split(b"\n")  # what has no end is not complete
    plain = tuple(c for c in columns if c not in _SOMETIMES)
    known = [(*plain, *(c for c, there in zip(_SOMETIMES, some, strict=True) if there)) for some in _SOME]
    headers = {",".join(names).encode(): names for names in known}
    columns = headers.get(lines[0].strip() if lines else b"", plain)
    rows, odd = [], False
    for line in lines:
        row = _row(line, columns)
        if row is not None:
            rows.append(row)
        elif line.strip() and line.strip() not in headers:
            odd = True
    return rows, odd


def _row(line: bytes, columns: tuple[str, ...]) -> dict[str, str] | None:
    try:
        fields = line.decode("ascii").strip().split(",")
        step = fields[0]
        if len(fields) != len(columns) or not step.isdecimal() or len(step) > 18:
            return None
        found = dict(zip(columns, fields, strict=True))
        empty = _SOMETIMES + _LEFT_OUT * bool(found.get(LOSS_SCALE))
        found = {name: text for name, text in found.items() if text or name not in empty}
        return found if all(math.isfinite(float(text)) for text in found.values()) else None
    except ValueError:
        return None
