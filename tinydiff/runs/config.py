"""What a run is made of: every flag of `tinydiff train`, its default, its bounds, and its place in config.toml.

A run's config.toml is the same thing that `--config` reads, so one run's file starts the next.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tomllib
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from tinydiff import optim
from tinydiff.errors import InputError, named
from tinydiff.machine.files import MOST_TEXT, check_text, read_bytes
from tinydiff.machine.numbers import parsed
from tinydiff.runs import formats, limits

STEPS = 1000  # unless they or minutes are given


def _setting(default: Any, section: str, help: str, check: Any = None, metavar: str | None = None) -> Any:
    return field(default=default, metadata={"section": section, "help": help, "check": check, "metavar": metavar})


def _at_least(least: float) -> Any:
    return lambda value: value >= least, f"at least {least}"


def _from_to(least: int, most: int) -> Any:
    return lambda value: least <= value <= most, f"at least {least} and at most {most}"


def _above(least: float) -> Any:
    return lambda value: value > least, f"greater than {least}"


def _within(low: float, high: float) -> Any:
    return lambda value: low <= value < high, f"at least {low} and below {high}"


def _one_of(*choices: str) -> Any:
    return lambda value: value in choices, "one of " + ", ".join(choices)


_POSITIVE_LIST = (
    lambda values: 0 < len(values) <= limits.LEVELS and min(values) >= 1 and max(values) <= limits.WIDTH,
    f"whole numbers of at least 1, such as 1,2,2, for at most {limits.LEVELS} levels",
)


@dataclass(frozen=True)
class TrainConfig:
    """How to train: what `Trainer` needs beside a network, a diffusion and data. Steps are optimiser steps.

    out: the folder of the run.
    steps: training steps in all, 1000 by default; a step sees batch_size * accumulate images. minutes: of training, after which
        a start ends, too; a resume goes on. With minutes and no steps, time alone is the end.
    batch_size: images whose activations are in memory at once. accumulate: batches whose gradients make one step.
    lr: learning rate of Adam. warmup: steps over which it rises to lr. lr_schedule: "constant" from there on, or "cosine", falling
        to 0 at step lr_steps; None: the steps of the first start. See `learning_rate`.
    clip: largest norm of the gradient; larger ones are scaled down; 0: never.
    ema: decay of the averaged weights, see `td.optim.EMA`. ema_start: steps before the averages begin.
    label_dropout: share of labels left out, for guidance, in [0, 1); None: 0.1 where the network has a null label.
    seed: of all random numbers, in 0..2^64-1.
    device: "auto", "cpu" or "cuda". threads: CPU threads; None: all that the process may use.
    precision: on a GPU from compute capability 8.0 on: "float32"; "tf32", products on tensor cores; "fp16" or "bf16", maps and
        their gradients in 16 bits as well; or "auto", bf16 where the device offers it. Elsewhere float32 alone. A run records
        which one it was; `tinydiff.precision` says what is held in which.
    save_every, preview_every: steps between checkpoints and between sheets of samples; preview_every=0: no sheets.
    holdout_every: steps between losses on the held-out images, if there are some; 0: none.
    grad_norm_every: steps between rows of grad_norms.csv, the norm of the gradient by module; 0: none.
    log: "csv", or "tensorboard" for TensorBoard's event files as well (extra `tensorboard`).

    InputError for values out of range.
    """

    out: str = _setting("runs/run", "training", "folder of the run", metavar="DIR")
    steps: int = _setting(
        None,
        "training",
        "training steps in all [1000; where minutes are given: as many as fit]",
        _from_to(1, limits.STEPS),
    )
    minutes: float | None = _setting(
        None, "training", "minutes of training after which to save and end; a resume goes on", _above(0)
    )
    batch_size: int = _setting(
        32, "training", "images whose activations are in memory at once", _from_to(1, limits.BATCH)
    )
    accumulate: int = _setting(1, "training", "batches whose gradients make one step", _from_to(1, limits.BATCH))
    lr: float = _setting(1e-3, "training", "learning rate of Adam", _above(0))
    warmup: int = _setting(100, "training", "steps over which the learning rate rises to its full value", _at_least(0))
    lr_schedule: str = _setting(
        "constant",
        "training",
        "learning rate after the warm-up: constant, or cosine, falling to 0",
        _one_of("constant", "cosine"),
    )
    lr_steps: int | None = _setting(
        None, "training", "step at which the cosine ends (the steps of the first start)", _from_to(1, limits.STEPS)
    )
    clip: float = _setting(
        1.0, "training", "largest norm of the gradient; larger ones are scaled down; 0: never", _at_least(0)
    )
    ema: float = _setting(0.999, "training", "decay of the averaged weights, less in the first steps", _within(0, 1))
    ema_start: int = _setting(0, "training", "steps before the averages begin", _from_to(0, limits.STEPS))
    label_dropout: float | None = _setting(
        None, "training", "share of labels left out, for guidance (0.1 where there are labels)", _within(0, 1)
    )
    seed: int = _setting(0, "training", "seed of all random numbers", _within(0, 2**64))
    device: str = _setting("auto", "training", "auto, cpu or cuda", _one_of("auto", "cpu", "cuda"))
    threads: int | None = _setting(
        None, "training", "CPU threads (all that the process may use)", _from_to(1, limits.THREADS)
    )
    precision: str = _setting(
        "float32",
        "training",
        "float32; on a GPU from compute capability 8.0 on also tf32, products on tensor cores, or fp16 and bf16, maps and their "
        "gradients in 16 bits; auto: bf16 where the device offers it",
        _one_of("float32", "tf32", "fp16", "bf16", "auto"),
    )
    save_every: int = _setting(500, "training", "steps between checkpoints", _at_least(1))
    preview_every: int = _setting(500, "training", "steps between previews; 0: none", _at_least(0))
    holdout_every: int = _setting(100, "training", "steps between losses on the images held out; 0: none", _at_least(0))
    grad_norm_every: int = _setting(
        0, "training", "steps between rows of grad_norms.csv, gradient norms by module; 0: none", _at_least(0)
    )
    log: str = _setting(
        "csv", "training", "csv, or tensorboard for its event files as well", _one_of("csv", "tensorboard")
    )

    def __post_init__(self) -> None:
        kinds = _kinds(type(self))
        if self.steps is None:
            object.__setattr__(self, "steps", STEPS if self.minutes is None else limits.STEPS)
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, PurePath):
                value = str(value)
                object.__setattr__(self, f.name, value)
            if isinstance(value, list):
                object.__setattr__(self, f.name, tuple(value))
            check_value(self.called(f.name), value, kinds[f.name], f.metadata["check"])
        if self.lr_schedule == "cosine" and self.lr_steps is None and self.last_step is None:
            raise InputError(
                f"{named('lr_schedule', 'cosine')} must know where to end, and {named('minutes')} does not say after how many "
                f"steps: give {named('lr_steps')}"
            )
        if self.lr_schedule == "constant" and self.lr_steps is not None:
            raise InputError(
                f"{named('lr_steps')} is the end of a cosine: give {named('lr_schedule', 'cosine')} as well"
            )

    @property
    def last_step(self) -> int | None:
        """The step that ends the run; None: its minutes alone do."""
        return None if self.minutes is not None and self.steps == limits.STEPS else self.steps

    def learning_rate(self, step: int) -> float:
        """The learning rate of training step 1, 2, ..."""
        if self.lr_schedule == "cosine":
            return optim.cosine(self.lr, step, self.lr_steps or self.steps, self.warmup)
        return optim.warmup(self.lr, step, self.warmup)

    @staticmethod
    def called(name: str) -> str:
        """What a setting, or an argument of `Trainer.run`, of this name is called by whoever gave it."""
        return named(name)

    def save(self, path: Path, extra: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Writes `text(extra)` to a path."""
        path.write_text(self.text(extra), encoding="utf-8")

    def text(self, extra: Mapping[str, Mapping[str, Any]] | None = None, without: Collection[str] = ()) -> str:
        """The format and the settings as TOML, in sections; None is left out, and so are the settings named in `without`.
        extra: more sections, by name."""
        sections: dict[str, dict[str, Any]] = {}
        for f in dataclasses.fields(self):
            if f.name not in without and not (f.name == "steps" and self.last_step is None):
                sections.setdefault(f.metadata["section"], {})[f.name] = getattr(self, f.name)
        for name, values in (extra or {}).items():
            sections.setdefault(name, {}).update(values)
        lines = [f"format = {formats.FORMAT}", ""]
        for section, values in sections.items():
            lines.append(f"[{section}]")
            lines += [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]
            lines.append("")
        return "\n".join(lines)


@dataclass(frozen=True)
class RunConfig(TrainConfig):
    """Everything that `tinydiff train` can be told: the data, the network and the diffusion as well."""

    data: str = _setting(
        "glyphs", "data", "glyphs (built in), or a folder of pictures, IDX, CIFAR-10 or .npz/.npy file"
    )
    image_size: int | None = _setting(
        None, "data", "height and width to resize and crop to (the data's own)", _from_to(1, limits.IMAGE_SIZE)
    )
    labels: bool | None = _setting(None, "data", "train with class labels (where the data has some)")
    flip: bool = _setting(False, "data", "mirror images at random")
    holdout: float = _setting(0.0, "data", "share of the images to keep out of training", _within(0, 1))
    channels: int = _setting(32, "network", "channels of the first level", _from_to(1, limits.WIDTH))
    mults: tuple[int, ...] = _setting((1, 2, 2), "network", "channels of each level, as multiples", _POSITIVE_LIST)
    blocks: int = _setting(1, "network", "residual blocks of each level", _from_to(1, limits.BLOCKS))
    attention: tuple[int, ...] | None = _setting(
        None,
        "network",
        "sizes of feature maps with attention, such as 16,8, or none (16, or the largest level below it)",
    )
    groups: int | None = _setting(
        None,
        "network",
        "groups of the normalisations (the largest of 32, 16, 8 that divides the channels)",
        _at_least(1),
    )
    dropout: float = _setting(0.0, "network", "dropout in the residual blocks", _within(0, 1))
    schedule: str = _setting(
        "linear", "diffusion", "of the noise: linear, cosine or sigmoid", _one_of("linear", "cosine", "sigmoid")
    )
    timesteps: int = _setting(1000, "diffusion", "steps T of the diffusion", _from_to(1, limits.TIMESTEPS))
    predict: str = _setting(
        "v",
        "diffusion",
        "what the network predicts: eps, x0 or v (short runs learn v soonest)",
        _one_of("eps", "x0", "v"),
    )
    variance: str = _setting(
        "beta", "diffusion", "of the reverse steps: beta, posterior or learned", _one_of("beta", "posterior", "learned")
    )
    init: str | None = _setting(
        None, "network", "checkpoint whose network and weights to start from", metavar="CHECKPOINT"
    )


# With --resume these may differ from what the run was started with; nothing that was computed depends on them.
FREE_ON_RESUME = (
    "out", "steps", "minutes", "save_every", "preview_every", "holdout_every", "grad_norm_every", "log", "device", "threads",
)  # fmt: skip
# What runs of 0.1.0 do not record: they were made as the defaults are.
SINCE_0_1_0 = (
    "minutes", "lr_schedule", "lr_steps", "ema_start", "holdout_every", "grad_norm_every", "log",
)  # fmt: skip


def flag(name: str) -> str:
    """The flag of a setting: "batch_size" -> "--batch-size"."""
    return "--" + name.replace("_", "-")


def load(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, by name. InputError for a file that is missing or broken or of a later format, for
    unknown settings, and for values out of range."""
    if not os.path.lexists(path):
        raise InputError(f"there is no configuration file {path}")
    content = read_bytes(path, MOST_TEXT)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:4]:
        raise InputError(f"cannot read the configuration {path}: it is UTF-16; save it as UTF-8")
    try:
        return parse(content.decode("utf-8-sig"), path)  # some editors put a mark at the beginning
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read the configuration {path}: {error}") from None


def parse(text: str, where: object) -> dict[str, Any]:
    """The settings in a text of TOML, by name. where: the file, for messages. InputError as in `load`."""
    try:
        sections = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not TOML, or a number of thousands of digits
        raise InputError(f"cannot read the configuration {where}: {error}") from None
    formats.check(sections, where)
    sections.pop("format", None)
    fields = {f.name: f for f in dataclasses.fields(RunConfig)}
    settings = {}
    for section, values in sections.items():
        if not isinstance(values, dict):
            raise InputError(f"{where}: {section!r} stands outside of a section; known are {_sections()}")
        for name, value in values.items():
            if name not in fields or fields[name].metadata["section"] != section:
                raise InputError(f"{where}: there is no setting {name!r} in section [{section}]")
            check_value(f"{where}: {name}", value, _kinds(RunConfig)[name], fields[name].metadata["check"])
            settings[name] = value
    return settings


def check_value(name: str, value: Any, kind: Any, check: Any) -> None:
    """InputError, a sentence on `name`, unless the value is of its kind and within its bounds. An int passes for a
    float."""
    optional = type(None) in typing.get_args(kind)
    if value is None and optional:
        return
    kind = next((k for k in typing.get_args(kind) if k is not type(None)), kind) if optional else kind
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, tuple | list) or not all(type(v) is int for v in value):
            raise InputError(f"{name} must be whole numbers such as 1,2,2, not {_brief(value)}")
    elif kind is float:
        if type(value) not in (int, float) or not -math.inf < value < math.inf:
            raise InputError(f"{name} must be a finite number, not {_brief(value)}")
        if abs(value) > 1e300:  # a whole number of hundreds of digits is none of Python's floats
            raise InputError(f"{name} must be a number of a usual size, not {_brief(value)}")
    elif type(value) is not kind:
        names = {int: "a whole number", str: "a text", bool: "true or false"}
        raise InputError(f"{name} must be {names[kind]}, not {_brief(value)}")
    elif kind is str:
        check_text(name, value)
    if check is not None and not check[0](value):
        raise InputError(f"{name} must be {check[1]}, not {_brief(value, quoted=False)}")


def _brief(value: Any, quoted: bool = True) -> str:
    """A value for a message, also where Python refuses to write so many digits."""
    try:
        return repr(value) if quoted else str(value)
    except ValueError:
        return "a number of thousands of digits"


def _kinds(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def parse_value(name: str, text: str) -> Any:
    """A setting as it is typed on the command line; InputError where it cannot be read."""
    kind = _kinds(RunConfig)[name]
    if isinstance(kind, types.UnionType):
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    try:
        if typing.get_origin(kind) is tuple:
            return () if text.strip().lower() in ("none", "") else tuple(parsed(part, int) for part in text.split(","))
        return parsed(text, kind) if kind in (int, float) else kind(text)
    except ValueError:
        what = {int: "a whole number", float: "a number"}.get(kind, "whole numbers such as 1,2,2")
        raise InputError(f"{flag(name)} must be {what}, not {text!r}") from None


def _sections() -> str:
    return ", ".join(dict.fromkeys(f"[{f.metadata['section']}]" for f in dataclasses.fields(RunConfig)))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
        return '"' + "".join(escapes.get(c, c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}") for c in value) + '"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value)
