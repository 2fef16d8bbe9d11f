"""log.csv: a row for each step. It is for people and for the loss curve; a run neither needs it nor stops because of it."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

from tinydiff.errors import InputError, RunFailed
from tinydiff.machine import files
from tinydiff.machine.terminal import say
from tinydiff.runs.atomic import write_file

COLUMNS = ("step", "loss", "grad_norm", "lr", "images_per_second")
_HEADER = ",".join(COLUMNS)
_AT_ONCE = 8192  # bytes of rows that wait to be written
_MOST_WAITING = 64 << 20  # bytes, where they cannot be


class Log:
    """The log of a run that is in progress, a CSV file at a path. Rows that cannot be written are told once and
    wait for better times."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._waiting = b""
        self._told = False

    def open(self, step: int) -> None:
        """Opens the log behind the row of `step`: those of later steps, which a resumed run makes again, go. A log with
        anything else in it than such rows is kept aside as log.csv.damaged."""
        try:
            rows: list[dict[str, str]] = []
            damaged = False
            if os.path.lexists(self.path):
                rows, damaged = _parse(self.path)
            if damaged:
                aside = self.path.with_name(self.path.name + ".damaged")
                os.replace(self.path, aside)
                say(f"{self.path} holds more than rows of steps: it is kept as {aside.name}, and the rows go on")
            kept = [",".join(row.values()) for row in rows if int(row["step"]) <= step]
            write_file(self.path, ("\n".join([_HEADER, *kept]) + "\n").encode())
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
        except (OSError, InputError, RunFailed) as error:
            self._tell(error)

    def add(self, step: int, loss: float, grad_norm: float, lr: float, images_per_second: float) -> None:
        """Adds the row of a step: loss, grad_norm, lr, images_per_second, see `COLUMNS`. Losses and norms
        are written so that equal floats are equal text."""
        self._waiting += f"{step},{loss:.9g},{grad_norm:.9g},{lr:.9g},{images_per_second:.1f}\n".encode()
        if len(self._waiting) >= _AT_ONCE and not self._told:
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
    """The complete rows of the log.csv at a path. Whatever else is in it, such as a row that a crash cut short, is left
    out; a missing file and one that cannot be read have none."""
    try:
        return _parse(path)[0]
    except (OSError, InputError):
        return []


def _parse(path: Path) -> tuple[list[dict[str, str]], bool]:
    """The rows, by column, and whether anything else is in the file but the start of a last row."""
    with files.open_file(path) as file:
        lines = file.read().split(b"\n")
    rows, odd = [], False
    for i, line in enumerate(lines):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif line.strip() and line.strip() != _HEADER.encode() and i < len(lines) - 1:
            odd = True
    return rows, odd


def _row(line: bytes) -> dict[str, str] | None:
    try:
        fields = line.decode("ascii").strip().split(",")
        step, *numbers = fields
        if len(fields) != len(COLUMNS) or not step.isdecimal() or len(step) > 18:
            return None
        return dict(zip(COLUMNS, fields, strict=True)) if all(math.isfinite(float(n)) for n in numbers) else None
    except ValueError:
        return None
