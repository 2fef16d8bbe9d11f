"""A run on disk: checkpoints as diffusers' pipeline folders, written so that a crash at any moment loses nothing.

    checkpoint/
      unet/diffusion_pytorch_model.safetensors    the (averaged) weights, in PyTorch's layout     unet/config.json
      scheduler/scheduler_config.json             schedule, prediction, variance
      tinydiff.json                               what diffusers has no place for: format, null label, class names
      training_state.safetensors                  what training goes on from; absent from a pipeline saved for use
      model_index.json                            what the parts are; appears last: a folder that has it is complete

The folder is replaced as a whole, see `atomic.py`. Whoever reads takes `checkpoint`, else a complete `checkpoint.new`, else
`checkpoint.old`: whatever step the writer died in, one of them is there. Nothing is ever unpickled.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.backend import to_numpy
from tinydiff.data import pixels
from tinydiff.diffusion import Diffusion, sample
from tinydiff.errors import InputError
from tinydiff.machine.files import check_numbers, read_json
from tinydiff.random import SAMPLING, Generator
from tinydiff.runs import diffusers, drawing, formats, others, tensorfile
from tinydiff.runs.atomic import LAST, beside, is_complete, write_folder
from tinydiff.runs.compiled import compile_sampling
from tinydiff.unet import UNet

INDEX = LAST
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
TRAINING_STATE = "training_state.safetensors"
EXTRAS = "tinydiff.json"


class Pipeline:
    """A trained model with the process it was trained for, as `td.load` gives it.

    unet: the network. diffusion: a `td.diffusion.Diffusion`. class_names: of the labels 0, 1, ..., or None.
    """

    def __init__(self, unet: UNet, diffusion: Diffusion, class_names: Sequence[str] | None = None) -> None:
        self.unet, self.diffusion = unet, diffusion
        self.class_names = None if class_names is None else list(class_names)

    @property
    def image_size(self) -> int:
        """The side of its square images, in pixels."""
        return self.unet.image_size

    def sample(
        self,
        n: int = 1,
        labels: Any = None,
        sampler: str = "ddpm",
        steps: int | Sequence[int] | None = None,
        eta: float = 0.0,
        guidance: float | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> np.ndarray:
        """n images, uint8 (n, H, W, C); the same for the same arguments.

        labels: for a labelled model, a class or n of them, by number or by name. seed: of the noise. sampler, steps, eta,
        guidance, progress: as for `td.diffusion.sample`. InputError for arguments that are impossible, or not
        possible for this model.
        """
        for name, value, least, end in (("n", n, 1, 2**31), ("seed", seed, 0, 2**64)):
            if isinstance(value, bool) or not hasattr(value, "__index__") or not least <= value < end:
                raise InputError(f"{name} must be a whole number of at least {least} and below {end}, not {value!r}")
        labels = self._numbers(labels)
        shape = (n, self.image_size, self.image_size, self.unet.in_channels)
        generator = Generator(seed).at(SAMPLING)
        compile_sampling(self.unet, [n], labels, guidance)
        x = sample(self.unet, self.diffusion, shape, generator, sampler, steps, eta, labels, guidance, progress)
        return to_numpy(pixels.to_bytes(x))

    def inpaint(
        self, image: np.ndarray, mask: np.ndarray, n: int = 1, labels: Any = None, steps: int | None = None,
        guidance: float | None = None, jump: int = 10, rounds: int = 10, seed: int = 0, progress: bool = True,
    ) -> np.ndarray:  # fmt: skip
        """n images, uint8 (n, H, W, C), that keep an image where a mask is False; the model draws the rest (RePaint; Lugmayr et
        al., 2022).

        image: uint8 (H, W, C). mask: bool (H, W), True where to draw. labels, seed: as for `sample`. steps, guidance, jump,
        rounds, progress: as for `td.diffusion.inpaint`; steps None: 50. InputError where they do not fit the model.
        """
        options = steps, self._numbers(labels), guidance, jump, rounds, progress
        return drawing.fill_in(self.unet, self.diffusion, image, mask, n, seed, *options)

    def interpolate(
        self, a: Any, b: Any, n: int = 9, labels: Any = None, steps: int | None = None, guidance: float | None = None,
        progress: bool = True,
    ) -> np.ndarray:  # fmt: skip
        """n images, uint8 (n, H, W, C), on the way from a to b: DDIM without noise from noises on an arc (Song et al., 2021).

        a, b: seeds, whose first sample is that end, or images uint8 (H, W, C), which `td.diffusion.ddim_invert` encodes.
        labels: one class for all, by number or by name. steps: None: 50. guidance, progress: as for `sample`.
        InputError where they do not fit the model.
        """
        given = steps, self._numbers(labels), guidance, progress
        return drawing.between(self.unet, self.diffusion, a, b, n, *given)

    def _numbers(self, labels: Any) -> Any:
        """Labels with the numbers of classes in the place of their names."""
        if isinstance(labels, str):
            return class_number(labels, self.unet, self.class_names, f"labels={labels!r}")
        named = isinstance(labels, list | tuple) or (isinstance(labels, np.ndarray) and labels.dtype.kind in "UO")
        if named and any(isinstance(label, str) for label in labels):
            return [self._numbers(str(label) if isinstance(label, str) else label) for label in labels]
        return labels

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a folder at a path, which `td.load` and diffusers' DDPMPipeline.from_pretrained open.

        An earlier pipeline in that place is replaced. InputError where something else is there or nothing can be
        written; RunFailed for a full disk, with the earlier pipeline kept.
        """
        path = Path(path)
        own = {INDEX, EXTRAS, "unet", "scheduler"}
        if path.exists() and not (path.is_dir() and own >= {entry.name for entry in path.iterdir()}):
            raise InputError(f"{path} holds something else than a pipeline: choose a new folder")
        write_folder(path, _pipeline_files(self.unet, self.diffusion, self.class_names))


def class_number(name: str, unet: UNet, names: Sequence[str] | None, said: str) -> int:
    """The number of the class called `name`.

    unet: the network, which knows how many classes there are. names: what they are called, or None.
    InputError, which begins with `said`, for a name that the model does not know; names near to it are told.
    """
    if unet.num_classes is None:
        raise InputError(f"{said}: this model was trained without labels, so it takes none")
    if names and name in names:
        return list(names).index(name)
    classes = unet.num_classes - (unet.null_label is not None)
    folded = {known.casefold(): known for known in names or ()}
    near = [folded[known] for known in difflib.get_close_matches(name.casefold(), folded, 3)]
    if not names:
        hint = f"its classes have no names, only the numbers 0..{classes - 1}"
    elif near:
        hint = f"near to it: {', '.join(near)}"
    else:
        hint = f"its classes are {', '.join(names[:20])}{', ...' * (len(names) > 20)}"
    raise InputError(f"{said}: the model knows no such class; {hint}")


def save(
    run: str | os.PathLike[str],
    unet: UNet,
    diffusion: Diffusion,
    class_names: Sequence[str] | None = None,
    training_state: tuple[Mapping[str, Any], Mapping[str, str]] | None = None,
) -> Path:
    """Writes RUN/checkpoint with the network's weights as they are; returns its path.

    run: the folder RUN. unet, diffusion, class_names: as for `Pipeline`.
    training_state: arrays, and text beside them, that `load_training_state` gives back; "raw.NAME" are the weights in
        training where the network's are averages.

    InputError for a place that cannot be written; RunFailed for a full disk, with the earlier checkpoint kept.
    """
    files = _pipeline_files(unet, diffusion, class_names)
    if training_state is not None:
        arrays, metadata = training_state
        files = {TRAINING_STATE: lambda path: tensorfile.write(path, arrays, metadata), **files}
    path = Path(run) / "checkpoint"
    write_folder(path, files)
    return path


def load(path: str | os.PathLike[str], raw: bool = False) -> Pipeline:
    """The `Pipeline` of a run, of a checkpoint, or of a folder that diffusers saved. Its network is on the CPU, in eval
    mode.

    path: of that folder. raw: with the weights in training instead of their averages. InputError, which names the file,
    where there is no checkpoint, or one that is damaged or has settings that tinydiff does not support.
    """
    return _read(path, lambda folder: _load(folder, raw))


def load_training_state(
    path: str | os.PathLike[str], arrays: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the text that `save` was given as training_state, from the run or checkpoint at a path; with
    arrays=False the text alone. InputError where there are none or the file is damaged."""

    def read(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        _extras(folder)
        others.check_pipeline(folder / INDEX)
        file = folder / TRAINING_STATE
        if not file.exists():
            raise InputError(f"{folder} was saved without what training needs to go on: it has no {TRAINING_STATE}")
        return tensorfile.read(file) if arrays else {}, tensorfile.read_metadata(file)

    return _read(path, read)


def load_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The (averaged) weights of the checkpoint at a path, by their present names and in PyTorch's layout. InputError
    as in `load`."""

    def read(folder: Path) -> dict[str, np.ndarray]:
        _extras(folder)
        return diffusers.current_names(
            others.read_weights(_either(folder / "unet/config.json", folder / "config.json").parent)
        )

    return _read(path, read)


def read_step(path: str | os.PathLike[str]) -> int | None:
    """The training step of the run's checkpoint at a path; None for a folder saved without its training state."""

    def read(folder: Path) -> int | None:
        _extras(folder)
        file = folder / TRAINING_STATE
        if not file.exists():
            return None
        metadata = tensorfile.read_metadata(file)
        with diffusers.at(str(file)):
            return read_count(metadata, "step")

    return _read(path, read)


def read_count(metadata: Mapping[str, str], name: str) -> int:
    """The number of steps under a name in the metadata of a training state, the text beside its arrays. InputError where
    there is none."""
    text = metadata.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise InputError(f"{name} must be a number of steps, not {text[:50]!r}")
    return int(text)


def find(path: str | os.PathLike[str]) -> Path | None:
    """The folder to read of the run, checkpoint or diffusers' folder at a path; None where there is none.

    It is `checkpoint`, or, where a writer died between two renames, the complete `checkpoint.new` or `checkpoint.old`.
    """
    path = Path(path)
    if any((path / name).is_file() for name in (INDEX, "config.json", "unet/config.json")):
        return path
    for target in (path, path / "checkpoint"):
        for folder in (target, *beside(target)):
            if is_complete(folder):
                return folder
    return None


def find_own(run: Path) -> Path | None:
    """The complete checkpoint that a run has written; None where there is none."""
    target = run / "checkpoint"
    return next((folder for folder in (target, *beside(target)) if is_complete(folder)), None)


def _pipeline_files(
    unet: UNet, diffusion: Diffusion, class_names: Sequence[str] | None
) -> dict[str, bytes | Callable[[Path], None]]:
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": diffusers.DIFFUSERS_VERSION,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    extras = {
        "format": formats.FORMAT,
        "null_label": unet.null_label,
        "class_names": None
        if class_names is None
        else [name.encode(errors="replace").decode() for name in class_names],
        "min_snr": diffusion.min_snr,
    }
    return {
        EXTRAS: _json(extras),
        "scheduler/scheduler_config.json": _json(diffusers.scheduler_config(diffusion)),
        "unet/config.json": _json(diffusers.unet_config(unet)),
        WEIGHTS: lambda path: tensorfile.write(path, unet.torch_state_dict(), {"format": "pt"}),
        INDEX: _json(index),
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _read(path: str | os.PathLike[str], read: Callable[[Path], Any]) -> Any:
    """read(folder) for the folder that `find` finds; again if a run in progress has replaced it meanwhile."""
    while True:
        folder = find(path)
        if folder is None:
            raise others.cannot_be_read(Path(path))
        identity = _identity(folder)
        try:
            result = read(folder)
        except InputError:
            if _identity(find(path)) in (identity, None):
                raise
        else:
            if _identity(find(path)) == identity:
                return result


def _identity(folder: Path | None) -> tuple[int, int] | None:
    """What tells a folder from a later one of the same name; None where it is gone."""
    if folder is None or not folder.exists():
        return None
    status = folder.stat()
    return status.st_ino, status.st_mtime_ns


def _load(folder: Path, raw: bool) -> Pipeline:
    extras = _extras(folder)
    others.check_pipeline(folder / INDEX)
    class_names = extras.get("class_names")
    if class_names is not None and not (isinstance(class_names, list) and all(isinstance(n, str) for n in class_names)):
        raise InputError(f"{folder / EXTRAS}: class_names must be a list of names, not {class_names!r}")
    config_file = _either(folder / "unet/config.json", folder / "config.json")
    scheduler_file = _either(folder / "scheduler/scheduler_config.json", folder / "scheduler_config.json")
    if not scheduler_file.exists() and config_file.exists():
        above = folder.parent / "scheduler" / "scheduler_config.json"
        what = f"give {folder.parent}, which has one" if above.exists() else "put one there"
        raise InputError(f"{folder} has a network and no scheduler_config.json, which says how it was trained: {what}")
    unet = diffusers.unet_from_config(read_json(config_file), extras.get("null_label"), str(config_file))
    diffusion = diffusers.diffusion_from_config(
        read_json(scheduler_file), unet, str(scheduler_file), extras.get("min_snr")
    )
    if raw:
        state = tensorfile.read(folder / TRAINING_STATE)
        weights = {name.removeprefix("raw."): array for name, array in state.items() if name.startswith("raw.")}
        with diffusers.at(str(folder / TRAINING_STATE)):
            unet.load_state_dict(weights)
    else:
        state = others.read_weights(config_file.parent)
        with diffusers.at(str(config_file.parent)):
            unet.load_torch_state_dict(diffusers.current_names(state))
    unet.eval()
    return Pipeline(unet, diffusion, class_names)


def _extras(folder: Path) -> dict[str, Any]:
    """What tinydiff.json holds, nothing in a folder of diffusers. InputError for a format that is not known."""
    file = folder / EXTRAS
    extras = read_json(file) if file.exists() else {}
    formats.check(extras, file)
    check_numbers(extras, file)
    for name, kinds in (("null_label", (int,)), ("min_snr", (int, float))):
        if extras.get(name) is not None and type(extras[name]) not in kinds:
            raise InputError(f"{file}: {name} must be a number, not {extras[name]!r}")
    return extras


def _either(nested: Path, flat: Path) -> Path:
    """Where a file is: in its part's folder or, as in older checkpoints, at the root."""
    return flat if flat.exists() and not nested.exists() else nested
