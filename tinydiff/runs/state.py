"""What training goes on from: averaged and raw weights, the optimiser's arrays, and how many steps made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff import optim
from tinydiff.diffusion import Diffusion
from tinydiff.errors import InputError
from tinydiff.runs import checkpoint, diffusers
from tinydiff.unet import UNet


def save(
    run: Path,
    unet: UNet,
    diffusion: Diffusion,
    class_names: Sequence[str] | None,
    optimizer: optim.Optimizer,
    ema: optim.EMA,
    metadata: Mapping[str, str],
) -> None:
    """Writes everything as the run's checkpoint; an interruption loses nothing. Errors as in `checkpoint.save`.

    run: the folder. unet, diffusion, class_names: as for `checkpoint.save`. optimizer, ema: their arrays and counters.
    metadata: more texts, by name.
    """
    arrays = {f"raw.{name}": p.data for name, p in unet.named_parameters()}
    arrays |= {f"adam.{name}": array for name, array in optimizer.state_dict().items()}
    if frozen := _frozen(unet):
        metadata = {**metadata, "frozen": " ".join(frozen)}
    with ema.applied():
        checkpoint.save(run, unet, diffusion, class_names, (arrays, {**metadata, "ema_updates": str(ema.updates)}))


def load(run: Path, unet: UNet, optimizer: optim.Optimizer, ema: optim.EMA) -> tuple[int, dict[str, str]]:
    """Puts a run's checkpoint into unet, optimizer and ema (the averages); returns its step and what else `save` was given as
    metadata. InputError, which names the file, where the checkpoint is damaged or not of this network."""
    averages = checkpoint.load_weights(run)
    arrays, metadata = checkpoint.load_training_state(run)
    parameters = list(unet.parameters())
    with diffusers.at(f"{run}: {checkpoint.TRAINING_STATE}"):
        step, updates = (checkpoint.read_count(metadata, name) for name in ("step", "ema_updates"))
        if differing := sorted(set(metadata.get("frozen", "").split()) ^ set(_frozen(unet))):
            raise InputError(
                f"the run was saved with other frozen weights: {differing[0]} was {'not ' * (differing[0] in _frozen(unet))}"
                "frozen; set its requires_grad as it was, or start a new run"
            )
        moments = _with_prefix("adam.", arrays)
        counts = np.asarray(moments.get("steps", step))
        if counts.dtype.kind not in "iu" or counts.max(initial=0) != step or updates != step:
            raise InputError("its numbers of steps contradict each other")
        unet.load_torch_state_dict(averages)
        averages = {f"average.{i}": p.data.copy() for i, p in enumerate(parameters)}
        unet.load_state_dict(_with_prefix("raw.", arrays))
        optimizer.load_state_dict(moments)
        ema.load_state_dict({"updates": np.array(updates), **averages})
    return step, metadata


def _frozen(unet: UNet) -> list[str]:
    return [name for name, p in unet.named_parameters() if not p.requires_grad]


def _with_prefix(prefix: str, arrays: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
