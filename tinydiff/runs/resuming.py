"""With which settings a run goes on: those in its config.toml, held against those that its checkpoint carries.

config.toml is for people, who may edit or lose it. So a checkpoint carries the settings too, and nothing that was computed with
one value goes on with another, or with a default.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.data import Dataset
from tinydiff.errors import InputError, named
from tinydiff.machine import limits, threads
from tinydiff.machine.terminal import say
from tinydiff.runs import arithmetic, checkpoint, config, fingerprint
from tinydiff.runs.config import FREE_ON_RESUME, SINCE_0_1_0, RunConfig, TrainConfig
from tinydiff.runs.folder import RunFolder
from tinydiff.version import __version__

SETTINGS = "settings"  # the name of the text in a checkpoint's training state
LEFT_OUT = ("out",)  # of that text: a run may move


def recorded(out: Path) -> dict[str, Any]:
    """The settings of the run in the folder `out`, by name. What config.toml lacks is taken from the checkpoint, and one line says
    so. InputError where there is no run, where its checkpoint is missing or incomplete, and where the two contradict each
    other in anything that a resume must not change. Nothing is written."""
    folder = RunFolder(out)
    folder.check_resumable()
    if folder.starts_again():
        return config.load(folder.start_file)
    carried = _carried(folder.path)
    if carried is None:  # saved by version 0.1.0
        written = config.load(folder.config_file)
        _check_complete(written, folder.config_file)
        return written
    if folder.start_file.is_file():  # config.toml, if there is one, is of the run that this one overwrites
        return carried | {"out": str(out)}
    try:
        written = config.load(folder.config_file)
    except InputError as error:
        say(f"{error}; the settings are taken from the checkpoint")
        return carried | {"out": str(out)}
    if missing := [name for name in carried if name not in written]:
        say(f"{folder.config_file} lacks {', '.join(missing)}: taken from the checkpoint")
    defaults = {f.name: f.default for f in dataclasses.fields(RunConfig)}
    for name, value in written.items():
        if name in FREE_ON_RESUME or value == carried.get(name, defaults[name] if name in SINCE_0_1_0 else None):
            continue
        if name != "data":  # which may have moved
            raise InputError(
                f"{folder.config_file} has {name} = {value}, and the run was made with {carried.get(name, 'its default')}; "
                "a resumed run keeps its settings"
            )
        say(f"{folder.config_file} names the data {value}, which the run knew as {carried.get(name)}")
    return carried | written


def settled(asked: TrainConfig, device: str, metadata: dict[str, str] | None = None) -> TrainConfig:
    """The settings with an end to their cosine and with a precision: what they say, what the checkpoint with this metadata
    carries, or the number of steps, which are those of the first start then, and the best precision of the resolved device.
    InputError where there is no checkpoint yet and the device does not offer the precision."""
    text = (metadata or {}).get(SETTINGS)
    known = tomllib.loads(text).get("training", {}) if text else {}
    if asked.lr_schedule == "cosine" and asked.lr_steps is None:
        asked = dataclasses.replace(asked, lr_steps=known.get("lr_steps") or asked.steps)
    if metadata is None or asked.precision == "auto":
        precision = known.get("precision") or arithmetic.require(asked.precision, device)
        asked = dataclasses.replace(asked, precision=precision)
    return asked


def metadata(
    settings: TrainConfig, record: dict[str, dict[str, Any]], device: str, n_threads: int | None, ranks: int
) -> dict[str, str]:
    """For a checkpoint: the settings, and where they were used. record: as for `Trainer`."""
    return {
        "seed": str(settings.seed),
        "environment": environment(device, n_threads, ranks),
        SETTINGS: settings.text(record, LEFT_OUT),
    }


def metadata_of(run: Path) -> dict[str, str] | None:
    """That of the newest checkpoint of the run in the folder `run`, None if there is none."""
    found = checkpoint.find_own(run)
    return None if found is None else checkpoint.load_training_state(found, arrays=False)[1]


def require_data(settings: RunConfig, out: Path) -> None:
    """InputError where the data of the run in `out` are not where its settings name them."""
    if settings.data != "glyphs" and not os.path.lexists(os.path.expanduser(settings.data)):
        raise InputError(
            f"the data of the run in {out} are gone from {settings.data}; if they have moved, give {named('data', 'NEW_PLACE')} "
            f"with {named('resume', True)}, or write the new place into {out / 'config.toml'}",
            limit=700,
        )


def knows_data(out: Path) -> bool:
    """Whether the checkpoint of the run in `out` carries a fingerprint of its data."""
    return fingerprint.NAME in (metadata_of(out) or {})


def _carried(run: Path) -> dict[str, Any] | None:
    found = checkpoint.find_own(run)
    assert found is not None
    _, metadata = checkpoint.load_training_state(found, arrays=False)
    text = metadata.get(SETTINGS)
    return None if text is None else config.parse(text, found / checkpoint.TRAINING_STATE)


def _check_complete(settings: dict[str, Any], file: Path) -> None:
    """InputError where a config.toml that stands alone lacks what every one has."""
    from_python = not {f.name for f in dataclasses.fields(RunConfig) if f.metadata["section"] == "network"} & set(
        settings
    )
    fields = dataclasses.fields(TrainConfig if from_python else RunConfig)
    needed = [f.name for f in fields if f.name == "steps" or (f.default is not None and f.name not in SINCE_0_1_0)]
    missing = [name for name in needed if name not in settings]
    if missing:
        raise InputError(f"{file} lacks {', '.join(missing)}: it is not as it was written, so the run cannot go on")


def compare_data(
    path: Path,
    data: Dataset,
    present: Callable[[], fingerprint.Fingerprint],
    metadata: dict[str, str],
    found: Path,
    accepted: bool,
) -> str | None:
    """What has changed in the data of the run in `path` since its checkpoint at `found`, if that is accepted; InputError as of
    `fingerprint.check`. present: gives the fingerprint of the data. metadata: the checkpoint's."""
    if fingerprint.NAME not in metadata:
        names = checkpoint.load(found).class_names
        if names and data.class_names and list(names) != list(data.class_names):
            raise InputError(
                f"the run in {path} learned the classes {', '.join(names[:8])} in this order, and those of the "
                f"data are now {', '.join(data.class_names[:8])}"
            )
        say("the run was saved without a fingerprint of its data, so whether these are the same cannot be told")
        return None
    before = fingerprint.read(metadata[fingerprint.NAME], found / checkpoint.TRAINING_STATE)
    return fingerprint.check(before, present(), accepted, path)


def versions() -> str:
    """Of everything that computes."""
    return f"tinydiff {__version__}, Python {platform.python_version()}, NumPy {np.__version__}"


def in_common(settings: TrainConfig, record: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What the ranks of a run must have in common before they begin, as texts by name. record: as for `Trainer`."""
    return {"versions": versions(), "settings": settings.text(record, (*LEFT_OUT, "device", "threads"))}


def compare_environment(metadata: dict[str, str], device: str, n_threads: int | None, ranks: int) -> None:
    """Says so where the checkpoint with this metadata was saved in another environment than the present one."""
    here, there = environment(device, n_threads, ranks), metadata.get("environment", "an unknown environment")
    if there != here:
        say(f"the run was made with {there}; with {here}, rounding may differ")


def environment(device: str, n_threads: int | None, ranks: int) -> str:
    """What rounding depends on: the same environment gives the same bits. n_threads: of each rank, None for all available."""
    n = n_threads or threads.available()
    spread = f"{n} threads" if ranks == 1 else f"{n} threads in each of {ranks} processes"
    return f"{versions()} with {limits.blas()}, {platform.machine()}, {device}, {spread}"
