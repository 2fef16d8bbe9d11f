"""Weights and pipelines in the forms in which others save them: which of them are read, and what is said of the rest."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tinydiff.errors import InputError
from tinydiff.machine.files import open_file, read_json
from tinydiff.machine.terminal import quoted
from tinydiff.runs import diffusers, tensorfile

_STEM = "diffusion_pytorch_model"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_NO_PICKLES = "a pickle, which tinydiff does not open, as it could run any code"


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """The weights in a folder of diffusers, in one file or in several with an index, of a variant such as fp16 if there is no
    other. InputError for none, and for pickles."""
    file = folder / f"{_STEM}.safetensors"
    if file.exists():
        return tensorfile.read(file)
    indices = sorted(folder.glob(f"{_STEM}.safetensors.index*.json"))
    if indices:
        return _read_parts(indices[0])
    pickles = sorted(path for path in folder.glob(f"{_STEM}*") if path.suffix in _PICKLES)
    variants = sorted(folder.glob(f"{_STEM}.*.safetensors"))
    if len(variants) == 1 and "-of-" not in variants[0].name:
        return tensorfile.read(variants[0])
    if pickles and not variants:
        raise InputError(
            f"{pickles[0]} is {_NO_PICKLES}; convert it once, where PyTorch is installed, with: {_conversion(pickles[0], file)}",
            limit=None,
        )
    others = sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", *_PICKLES))
    if others:
        raise InputError(f"{folder} has no {file.name}, which holds the weights, but {', '.join(others[:5])}")
    return tensorfile.read(file)


def _read_parts(index: Path) -> dict[str, np.ndarray]:
    parts = read_json(index).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise InputError(f"{index} has no weight_map, the list of files that the weights are in")
    state: dict[str, np.ndarray] = {}
    for part in sorted(set(parts.values())):
        arrays = tensorfile.read(index.parent / Path(part).name)
        lost = [name for name in parts if parts[name] == part and name not in arrays]
        twice = [name for name in arrays if name in state or parts.get(name, part) != part]
        if lost or twice:
            what = f"lacks {lost[0]}" if lost else f"holds {twice[0]}, which is another file's"
            raise InputError(f"{index} does not belong to the files beside it: {Path(part).name} {what}")
        state |= arrays
    return state


def _conversion(pickled: Path, file: Path) -> str:
    code = f"import torch, safetensors.torch as s; s.save_file(torch.load({str(pickled)!r}, weights_only=True), {str(file)!r})"
    return "python -c " + (quoted(code) if set(code) & set('"$`\\!') or not code.isprintable() else f'"{code}"')


def check_pipeline(file: Path) -> None:
    """InputError for the model_index.json of a pipeline that tinydiff cannot draw from, such as one with a text encoder."""
    if not file.exists():
        return
    index = read_json(file)
    kinds = {name: value for name, value in index.items() if isinstance(value, list) and value != [None, None]}
    odd = [name for name in kinds if name not in ("unet", "scheduler")]
    for name, known in (("unet", diffusers.NETWORKS), ("scheduler", diffusers.SCHEDULERS)):
        kind = (kinds.get(name) or [None])[-1]
        if isinstance(kind, str) and kind not in known:
            odd.append(kind)
    if odd:
        raise InputError(
            f"{file}: a {index.get('_class_name', 'pipeline')} has {', '.join(odd)}, which is not supported; supported: a "
            "UNet2DModel and a scheduler of a DDPM's noise, as in DDPMPipeline and DDIMPipeline"
        )


def cannot_be_read(path: Path) -> InputError:
    """The sentence on what is at a path where neither a run nor a checkpoint is."""
    if path.is_dir():
        weights = sorted(p.name for p in path.iterdir() if p.suffix in (".safetensors", *_PICKLES))
        more = f", only {', '.join(weights[:5])} and no config.json, which describes the network" if weights else ""
        return InputError(f"{path} cannot be read: it has no checkpoint{more}")
    if not path.exists():
        what = "no such file or folder"
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
            what += "; if it is a name on Hugging Face: nothing is downloaded here, so get it and give its folder"
        return InputError(f"{path} cannot be read: {what}")
    whole = "a folder that save_pretrained of diffusers wrote"
    if path.suffix.lower() in _PICKLES or _starts_as_pickle(path):
        return InputError(f"{path} is {_NO_PICKLES}; give {whole} with safetensors")
    if path.suffix == ".safetensors":
        return InputError(f"{path} is the weights alone; give the folder that has their config.json, or {whole}")
    return InputError(f"{path} cannot be read: it is a file; give the folder of a run, a checkpoint, or {whole}")


def _starts_as_pickle(path: Path) -> bool:
    try:
        with open_file(path) as file:
            return file.read(1) == b"\x80"
    except (OSError, InputError):
        return False
