"""The folder of a run: what is where, what may be overwritten, and how it begins.

config.toml     everything needed to repeat the run        samples/      previews and what `tinydiff sample` draws
log.csv         one row for each step                      samples.png, samples.gif, loss.png     the end, as pictures
grad_norms.csv  gradients by module, if asked for          events.out.tfevents.*  the log for TensorBoard, if asked for
profile.csv     where the time went, if that was measured  evaluation/   what `tinydiff evaluate` found
checkpoint/     see `checkpoint.py`                        .lock         see `lock.py`
.starting.toml  the settings of a run that has not begun      .overwritten  what --force is about to remove

A run begins in this order: `.starting.toml`, the checkpoint of step 0, then `.starting.toml` becomes config.toml. So a run has a
checkpoint from its first moment, and one that has none any more has lost it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.autograd.profile import Profile
from tinydiff.errors import InputError, named
from tinydiff.runs import board, checkpoint, lock
from tinydiff.runs.atomic import (
    beside,
    check_outside,
    check_removable,
    check_replaceable,
    is_complete,
    make_folder,
    remove,
    remove_all,
    remove_temporary,
    repair,
    sync,
    temporary_files,
    write_file,
    writing,
)
from tinydiff.runs.config import TrainConfig
from tinydiff.runs.log import COLUMNS, HOLDOUT, LOSS_SCALE, RANKS, Log, read_log

__all__ = ["COLUMNS", "RunFolder", "read_log"]

# What a run and the commands on it write: --force removes these and nothing else.
_FILES = (
    "log.csv",
    "log.csv.damaged",
    "grad_norms.csv",
    "grad_norms.csv.damaged",
    "grad_norms.csv.new",
    "profile.csv",
    "loss.png",
    "samples.png",
    "samples.gif",
    "config.toml.new",
    "log.csv.new",
)
EVALUATION = (
    "report.txt", "bits_per_dim.csv", "bits_per_dim.png", "features.safetensors", "features.safetensors.new",
    "neighbours.csv", "neighbours.png", "samplers.csv", "samplers.png",
)  # fmt: skip
_SAMPLES = re.compile(r"step_\d{6,}\.png|(step-\d+_)?(ddpm|ddim|dpm\+\+)_(.*_)?seed-\d+\.png")
_ASIDE = ".overwritten"  # where what --force removes is moved first
_OLD = 3600  # seconds; a temporary file of another command that is older belongs to nobody


class RunFolder:
    """Paths and files of a run, and its logs. Failing writes raise InputError (an unwritable place) or RunFailed (a
    full disk)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config_file, self.log_file = self.path / "config.toml", self.path / "log.csv"
        self.samples, self.profile_file = self.path / "samples", self.path / "profile.csv"
        self.start_file, self.checkpoint = self.path / ".starting.toml", self.path / "checkpoint"
        self._lock, self._log = lock.Lock(self.path), Log(self.log_file)
        self._norms: Log | None = None
        self._board: board.Board | None = None
        self._ranks, self._was_locked = 1, False

    # ------------------------------------------------------------------------------------------- what is there

    def is_run(self) -> bool:
        """Whether a run is there, or what a killed process left of one. A lock of this process says nothing."""
        left = self._was_locked if self._lock.held else os.path.lexists(self.path / lock.NAME)
        return left or self._has_begun() or os.path.lexists(self.start_file)

    def _has_begun(self) -> bool:
        return os.path.lexists(self.config_file) or checkpoint.find_own(self.path) is not None

    def starts_again(self) -> bool:
        """Whether a run was killed before its first checkpoint was complete: its settings are in `start_file`."""
        return self.start_file.is_file() and checkpoint.find_own(self.path) is None

    def check_free(self, force: bool = False, called: Callable[[str], str] = named) -> None:
        """InputError if something is there, unless it is a run and `force` is set. called: see `TrainConfig.called`."""
        check_outside(self.path)
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise InputError(f"{self.path} is not a folder; choose another {called('out')}")
        if not self.path.is_dir() or (not self._has_begun() and not any(self._others())):
            return
        if not self.is_run():
            raise InputError(f"{self.path} holds files that are not a run of tinydiff; choose another {called('out')}")
        if not force:
            raise InputError(
                f"{self.path} already holds a run; {called('resume')} goes on with it, {called('force')} overwrites it"
            )
        if os.path.lexists(self.samples) and not self.samples.is_dir() and not self.samples.is_symlink():
            raise InputError(f"{self.samples} is a file, where a run keeps its pictures; move it away")

    def _others(self) -> Iterator[str]:
        """What is in the folder beside the remains of a run that never began."""
        ours = {lock.NAME, self.start_file.name, "config.toml.new"}
        for entry in os.scandir(self.path):
            empty = entry.name == "samples" and entry.is_dir() and not any(os.scandir(entry.path))
            draft = entry.name == "checkpoint.new" and not is_complete(Path(entry.path))
            temporary = entry.name.startswith((".starting.toml.", "..starting.toml.")) and entry.name.endswith(".tmp")
            if not (entry.name in ours or empty or draft or temporary):
                yield entry.name

    def check_seen(self) -> None:
        """Nothing: who writes here sees it."""

    def check_resumable(self) -> None:
        """InputError unless there is a run with a checkpoint, or one that was killed before it began."""
        if not (self._has_begun() or os.path.lexists(self.start_file)):
            raise InputError(f"there is no run to resume in {self.path}")
        if checkpoint.find_own(self.path) is None and not self.start_file.is_file():
            what = f"is incomplete: it has no {checkpoint.INDEX}" if self.checkpoint.is_dir() else "is missing"
            raise InputError(
                f"the checkpoint of the run in {self.path} {what}, and a run has one from its start: put it back, or begin "
                f"again with {named('force', True)}"
            )

    # ---------------------------------------------------------------------------------------------- the beginning

    @property
    def locked(self) -> bool:
        """Whether this process has the right to write."""
        return self._lock.held

    def acquire(self) -> None:
        """Makes the folder if it is not there, and becomes the only process that writes to it, until `close`. InputError
        where another one does."""
        check_outside(self.path)
        with writing(self.path):
            make_folder(self.path)
            self._was_locked = os.path.lexists(self.path / lock.NAME)
        self._lock.acquire()

    def begin(self, config: TrainConfig, extra: dict[str, dict[str, Any]], force: bool = False) -> None:
        """Empties the folder of an old run, where `check_free` has nothing against it, and leaves the settings of a new one
        there; `begun` follows when there is a checkpoint. config, extra: those settings, as for `TrainConfig.text`. force:
        whether to overwrite a run."""
        self.check_free(force, config.called)
        self._was_locked = self.is_run()  # should all marks of it go, but for the lock
        with writing(self.path):
            make_folder(self.path)
            check_replaceable(self.config_file)
            self._remove_run()
            write_file(self.start_file, config.text(extra).encode())
            make_folder(self.samples)

    def begun(self) -> None:
        """The run has a checkpoint now, so its settings get their name."""
        with writing(self.config_file):
            self.start_file.replace(self.config_file)
            sync(self.path)

    def create(self, config: TrainConfig, extra: dict[str, dict[str, Any]], force: bool = False) -> None:
        """`begin(config, extra, force)` and `begun` at once."""
        self.begin(config, extra, force)
        self.begun()

    def _remove_run(self) -> None:
        """Removes what a run writes, and only that; where any of it cannot be removed, nothing. config.toml stays until another
        replaces it: it marks a run."""
        found = [self.start_file, self.checkpoint, *beside(self.checkpoint), *(self.path / name for name in _FILES)]
        found += temporary_files(self.path) + board.files_in(self.path)
        folders = ((self.samples, _SAMPLES.fullmatch), (self.path / "evaluation", EVALUATION.__contains__))
        for folder, ours in folders:
            if folder.is_symlink():
                found.append(folder)
            elif folder.is_dir():
                found += temporary_files(folder)
                for entry in os.scandir(folder):
                    if ours(entry.name) and not entry.is_dir(follow_symlinks=False):
                        found.append(Path(entry.path))
        remove_all([path for path in found if os.path.lexists(path)], self.path / _ASIDE)
        for folder, _ in folders:
            with contextlib.suppress(OSError):  # somebody's files are in it, or it is not there
                folder.rmdir()
        sync(self.path)

    def put_in_order(self) -> None:
        """Puts the newest checkpoint in its place, and removes what killed processes left."""
        with writing(self.path):
            repair(self.checkpoint)
            check_removable(self.checkpoint)  # by the next save
            check_replaceable(self.config_file)
            remove_temporary(self.path)
            make_folder(self.samples)
            for name in ("config.toml.new", "log.csv.new", _ASIDE):
                remove(self.path / name)
            for entry in list(os.scandir(self.samples)):
                if entry.name.startswith(".step_") and entry.name.endswith(".tmp"):
                    os.unlink(entry.path)
            remove_temporary(self.samples, _OLD)

    def rewrite_config(self, config: TrainConfig, extra: dict[str, dict[str, Any]]) -> None:
        """Records settings that a resume changed."""
        write_file(self.config_file, config.text(extra).encode())
        with writing(self.config_file):
            remove(self.start_file)

    # -------------------------------------------------------------------------------------------------- the files

    def open_log(
        self, step: int, holdout: bool = False, modules: Sequence[str] = (), tensorboard: bool = False, ranks: int = 1,
        loss_scale: bool = False,
    ) -> None:  # fmt: skip
        """Opens the logs behind the row of `step`: rows and previews of later steps, which a resumed run makes again, go.
        holdout: whether log.csv has a column for the loss on held-out images. modules: those whose gradients have rows in
        grad_norms.csv. tensorboard: whether its event files are written, too. ranks: how many train; log.csv says so from the first
        time on that they are several. loss_scale: whether log.csv has a column for it."""
        self._ranks = ranks
        self._log.columns = (*COLUMNS, *[RANKS] * (ranks > 1), *[LOSS_SCALE] * loss_scale, *[HOLDOUT] * holdout)
        norms_file = self.path / "grad_norms.csv"
        self._norms = Log(norms_file, ("step", *modules)) if modules else None
        self._board = board.Board(self.path) if tensorboard else None
        for log in (self._log, self._norms, self._board):
            if log is not None:
                log.open(step)
        with writing(self.samples):
            for preview in self.samples.glob("step_*.png"):
                number = preview.stem.removeprefix("step_")
                if number.isdigit() and int(number) > step:
                    preview.unlink()

    def log(
        self, step: int, loss: float, grad_norm: float, lr: float, images_per_second: float,
        holdout_loss: float | None = None, norms: Sequence[float] | None = None, loss_scale: float | None = None,
    ) -> None:  # fmt: skip
        """Adds a row. Losses and norms are written so that equal floats are equal text. norms: of the modules."""
        sometimes = {RANKS: self._ranks, LOSS_SCALE: loss_scale, HOLDOUT: holdout_loss}
        self._log.add(step, loss, grad_norm, lr, images_per_second, **sometimes)
        if self._norms is not None and norms is not None:
            self._norms.add(step, *norms)
        if self._board is not None:
            values = {"loss/train": loss, "loss/holdout": holdout_loss, "gradient/norm": grad_norm, "training/lr": lr,
                      "training/images_per_second": images_per_second, "training/loss_scale": loss_scale}  # fmt: skip
            names = self._norms.columns[1:] if self._norms is not None else ()
            self._board.add(step, values | {f"gradient_of/{n}": x for n, x in zip(names, norms or (), strict=False)})

    def show(self, step: int, name: str, picture: np.ndarray) -> None:
        """Adds a picture, uint8 (H, W, C), to what TensorBoard shows, if that is asked for."""
        if self._board is not None:
            self._board.picture(step, name, picture)

    def flush(self) -> None:
        """Brings the rows of the logs to the disk, as far as that can be done."""
        for log in (self._log, self._norms, self._board):
            if log is not None:
                log.flush()

    def close(self) -> None:
        """Closes the logs and lets other processes write to the folder. The mark of a run that a failure leaves without
        anything else stays."""
        for log in (self._log, self._norms, self._board):
            if log is not None:
                log.close()
        self._lock.release(keep=self._was_locked and not (self._has_begun() or os.path.lexists(self.start_file)))

    def save_profile(self, profile: Profile) -> None:
        write_file(self.profile_file, profile.csv().encode())

    def preview_file(self, step: int) -> Path:
        return self.samples / f"step_{step:06d}.png"
