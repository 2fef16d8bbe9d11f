"""The flags that `tinydiff train` and `tinydiff doctor` share: to settings, and to the objects that they ask for."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinydiff.errors import InputError
from tinydiff.runs import config as configuration
from tinydiff.runs import lock
from tinydiff.runs.config import RunConfig

if TYPE_CHECKING:
    from tinydiff.runs.trainer import Trainer


@dataclass(frozen=True)
class Wish:
    """What was asked for: the settings, whether to go on with the run in `config.out` or to overwrite it, and whether to
    measure where the time goes, whether a resumed run may have other data, and whether steps may be CUDA graphs."""

    config: RunConfig
    resume: bool
    force: bool
    profile: bool
    data_changed: bool = False
    graph: bool = True


def add_to(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for every setting, and those that are no settings, such as --resume; only what is given appears among
    the arguments."""
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(RunConfig):
        section = field.metadata["section"]
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        flag = configuration.flag(field.name)
        default = "" if field.default is None else f" [{_shown(field.default)}]"
        help_text = (field.metadata["help"] + default).replace("%", "%%")
        if "bool" in str(field.type):
            action = argparse.BooleanOptionalAction if field.default is None else "store_true"
            groups[section].add_argument(flag, action=action, help=help_text)
        else:
            groups[section].add_argument(flag, help=help_text, metavar=field.metadata["metavar"] or "X")
    parser.add_argument("--config", metavar="FILE.toml", help="settings from a file, such as another run's config.toml")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--force", action="store_true", help="overwrite the run in --out")
    parser.add_argument(
        "--data-changed", action="store_true", help="with --resume: accept other data of the same size and classes"
    )
    parser.add_argument("--no-graph", action="store_true", help="on a GPU: do not replay steps as a CUDA graph")
    parser.add_argument("--profile", action="store_true", help="measure where the time goes, and tell at the end")


def read(given: Mapping[str, Any]) -> Wish:
    """The wish in the arguments of a parser that `add_to` made; InputError for values that make no sense, alone or
    together."""
    resume, force = given.get("resume", False), given.get("force", False)
    if resume and force:
        raise InputError("--resume goes on with a run and --force overwrites it; give one of them")
    if given.get("data_changed", False) and not resume:
        raise InputError("--data-changed is for --resume: a new run has no earlier data")
    flags = {
        f.name: given[f.name] if isinstance(given[f.name], bool) else configuration.parse_value(f.name, given[f.name])
        for f in dataclasses.fields(RunConfig)
        if f.name in given
    }
    from_file = configuration.load(Path(given["config"])) if "config" in given else {}
    if not resume and "lr_steps" not in flags and {"steps", "lr_schedule"} & set(flags):
        from_file.pop("lr_steps", None)  # the end of another run's cosine, which nobody asked for here
    settings = from_file | flags
    config = _resumed(settings) if resume else RunConfig(**settings)
    _check_init(config, flags)
    changed, graph = given.get("data_changed", False), not given.get("no_graph", False)
    return Wish(config, resume, force, given.get("profile", False), changed, graph)


def build(wish: Wish, invite: Callable[[RunConfig, int], None] = lambda config, parameters: None) -> Trainer:
    """Loads the data and makes network, diffusion and trainer; nothing is written. InputError where they do not fit.

    invite: called with the settings and the network's number of parameters before the trainer looks for other ranks."""
    from tinydiff.runs import building
    from tinydiff.runs.trainer import Trainer

    start = building.starting_point(wish.config, wish.resume)
    data = building.load_data(wish.config, start)
    config = building.resolve(wish.config, data, start)
    unet = building.build_network(config, data) if start is None else start.unet
    diffusion = building.build_diffusion(config) if start is None else start.diffusion
    invite(config, sum(p.size for p in unet.parameters()))
    return Trainer(unet, diffusion, data, config)


def _check_init(config: RunConfig, flags: Mapping[str, Any]) -> None:
    """InputError for a flag that contradicts --init: network and diffusion come from the checkpoint."""
    sections = {f.name: f.metadata["section"] for f in dataclasses.fields(RunConfig)}
    for name in flags if config.init is not None and "init" in flags else ():
        if name != "init" and sections[name] in ("network", "diffusion"):
            flag = configuration.flag(name)
            raise InputError(f"{flag} and --init do not go together: network and diffusion are those of {config.init}")


def _resumed(changes: dict[str, Any]) -> RunConfig:
    """The run's own settings; InputError for a change of any that its numbers depend on."""
    from tinydiff.runs import resuming  # which needs much that --help does without

    out = Path(changes.get("out", RunConfig.out))
    lock.check_free(out)
    before = RunConfig(**resuming.recorded(out))
    if changes.get("precision") == "auto":  # whatever the run was made in
        changes = changes | {"precision": before.precision}
    if "data" not in changes:
        resuming.require_data(before, out)
    after = dataclasses.replace(before, **changes)
    for name in changes:
        wanted, had = getattr(after, name), getattr(before, name)
        if name == "data" and wanted != had and resuming.knows_data(out):
            continue  # the fingerprint decides whether they are the same
        if name not in configuration.FREE_ON_RESUME and wanted != had:
            raise InputError(
                f"{configuration.flag(name)} {_shown(wanted)} differs from the {_shown(had)} of the run in {out}; "
                "a resumed run keeps its settings"
            )
    return dataclasses.replace(after, out=str(out))


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
