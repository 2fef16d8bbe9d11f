"""The folder of a run: what is where, what may be overwritten, and the log.

config.toml     everything needed to repeat the run        samples/    previews, final samples
log.csv         one row for each step                      checkpoint/ see `checkpoint.py`
profile.csv     where the time went, if that was measured
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinydiff.autograd.profile import Profile
from tinydiff.errors import InputError, named
from tinydiff.runs.atomic import writing
from tinydiff.runs.config import TrainConfig

COLUMNS = ("step", "loss", "grad_norm", "lr", "images_per_second")


class RunFolder:
    """Paths and files of a run, and its log. Failing writes raise InputError (an unwritable place) or RunFailed (a
    full disk)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config_file, self.log_file = self.path / "config.toml", self.path / "log.csv"
        self.samples, self.profile_file = self.path / "samples", self.path / "profile.csv"
        self._log: Any = None

    def check_free(self, force: bool = False, called: Callable[[str], str] = named) -> None:
        """InputError if something is there, unless it is a run and `force` is set. called: see `TrainConfig.called`."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is not a folder; choose another {called('out')}")
        if self.path.is_dir() and any(self.path.iterdir()):
            if not self.config_file.exists():
                raise InputError(
                    f"{self.path} holds files that are not a run of tinydiff; choose another {called('out')}"
                )
            if not force:
                raise InputError(
                    f"{self.path} already holds a run; {called('resume')} goes on with it, {called('force')} overwrites it"
                )

    def create(self, config: TrainConfig, extra: dict[str, dict[str, Any]], force: bool = False) -> None:
        """Makes the folder with its config.toml, where `check_free` has nothing against it; the files of an old run (no
        others) are removed."""
        self.check_free(force, config.called)
        if self.config_file.exists():
            self._remove_run()
        with writing(self.path):
            self.samples.mkdir(parents=True, exist_ok=True)
            draft = self.path / "config.toml.new"
            config.save(draft, extra)
            draft.replace(self.config_file)

    def _remove_run(self) -> None:
        with writing(self.path):
            for name in ("checkpoint", "checkpoint.new", "checkpoint.old", "samples", "evaluation"):
                shutil.rmtree(self.path / name, ignore_errors=True)
            for file in (
                self.log_file,
                self.profile_file,
                self.path / "loss.png",
                self.config_file,
            ):  # config.toml last: it marks a run
                file.unlink(missing_ok=True)

    def rewrite_config(self, config: TrainConfig, extra: dict[str, dict[str, Any]]) -> None:
        """Records settings that a resume changed."""
        with writing(self.path):
            draft = self.path / "config.toml.new"
            config.save(draft, extra)
            draft.replace(self.config_file)

    def open_log(self, step: int) -> None:
        """Opens log.csv behind the row of `step`: rows and previews of later steps, which a resumed run makes again,
        go."""
        with writing(self.log_file):
            kept = [row for row in read_log(self.log_file) if int(row["step"]) <= step]
            draft = self.path / "log.csv.new"
            with open(draft, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(kept)
            draft.replace(self.log_file)
            for preview in self.samples.glob("step_*.png"):
                number = preview.stem.removeprefix("step_")
                if number.isdigit() and int(number) > step:
                    preview.unlink()
            self._log = self.log_file.open("a", newline="", encoding="utf-8")

    def log(self, step: int, loss: float, grad_norm: float, lr: float, images_per_second: float) -> None:
        """Adds a row. Losses and norms are written so that equal floats are equal text."""
        with writing(self.log_file):
            self._log.write(f"{step},{loss:.9g},{grad_norm:.9g},{lr:.9g},{images_per_second:.1f}\n")

    def flush(self) -> None:
        if self._log is not None:
            with writing(self.log_file):
                self._log.flush()

    def close(self) -> None:
        if self._log is not None:
            log, self._log = self._log, None
            with writing(self.log_file):
                log.close()

    def save_profile(self, profile: Profile) -> None:
        with writing(self.profile_file):
            profile.save(self.profile_file)

    def preview_file(self, step: int) -> Path:
        return self.samples / f"step_{step:06d}.png"


def read_log(path: Path) -> list[dict[str, str]]:
    """The complete rows of a log.csv; a row that a crash cut short is left out, a missing file has none."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
    return [row for row in rows if set(row) == set(COLUMNS) and row["step"].isdigit()]
