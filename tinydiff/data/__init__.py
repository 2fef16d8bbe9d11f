"""Images to train on: the built-in glyphs, a folder or archive of pictures, IDX files, CIFAR, or NumPy arrays."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from tinydiff.data import sources
from tinydiff.data.arrays import read_arrays
from tinydiff.data.cifar import batches_in, pickles_in, read_cifar, unpickled
from tinydiff.data.dataset import Dataset, check_share, scaled_from
from tinydiff.data.folder import holds_pictures, picture_endings, read_folder
from tinydiff.data.glyphs import SIZE, draw_glyphs
from tinydiff.data.idx import find_images, looks_like_idx, read_idx
from tinydiff.data.layouts import on_white
from tinydiff.data.pixels import convert_channels, resize
from tinydiff.data.unread import first_unread, unread
from tinydiff.errors import InputError
from tinydiff.machine.files import open_file
from tinydiff.random import Generator

__all__ = ["Dataset", "draw_glyphs", "load", "read_arrays", "read_cifar", "read_folder", "read_idx"]

_LONG = 700  # characters of a message with advice to copy
KINDS = "a folder of pictures, a .zip or .tar of them, MNIST's IDX files, CIFAR's binary versions, or .npz or .npy with images"


def load(
    name_or_path: str | os.PathLike[str],
    image_size: int | None = None,
    channels: int | None = None,
    labels: bool | None = None,
    flip: bool = False,
    holdout: float = 0.0,
    seed: int = 0,
    report: Callable[[str], None] | None = None,
) -> Dataset:
    """The images of a file or folder, or the built-in digits, in memory as a `Dataset`.

    name_or_path: "glyphs" for the built-in digits (a folder of that name is `./glyphs`), or the path of a folder of
        pictures or of a .zip or .tar of them; of IDX images, a file or a folder of them (the training set, if there are
        two); of a folder with CIFAR-10's data_batch_*.bin, or a single one; or of an .npy or .npz file, see `read_arrays`.
    image_size: scale the middle square of every image to this many pixels a side; None: as they are.
    channels: 1 for grey, 3 for colour, without alpha then, on white; None: as they are.
    labels: True demands labels, False drops them; None takes what the files give. For a folder of pictures that is
        none, and with True its sub-folders are the classes.
    flip: mirror half the images of a batch.
    holdout: the share of images kept out of training, in [0, 1); they are in `.held_out`.
    seed: of the glyphs and of the choice of images held out.
    report: called with a line for each picture that is skipped because it cannot be read; None: a warning.

    InputError, one sentence that names the file, for anything that cannot be used.
    """
    if image_size is not None and image_size < 1:
        raise InputError(f"the image size must be at least 1 pixel, not {image_size}")
    if channels is not None and channels not in (1, 2, 3, 4):
        raise InputError(f"channels must be 1 for grey or 3 for colour, not {channels}")
    check_share(holdout)
    if name_or_path == "glyphs":
        data = draw_glyphs(image_size=SIZE if image_size is None else image_size, seed=seed)
    else:
        path = Path(os.path.expanduser(name_or_path))
        source = os.path.abspath(path)
        data = _read(path, image_size, channels, labels, report)
        data = replace(data, name=os.path.basename(source) or source, source=source)
    images, fitted = data.images, data.fitted
    if image_size is not None and data.image_size != (image_size, image_size):
        images, fitted = resize(images, image_size), scaled_from({data.image_size})
    if channels not in (None, data.channels):
        try:
            if channels in (1, 3) and data.channels in (2, 4):
                images = on_white(images)
            images = convert_channels(images, channels)
        except InputError as error:
            raise InputError(f"{data.source}: {error}") from error
        fitted = f"{fitted}{', ' * bool(fitted)}made {'grey' if channels == 1 else 'colour'}"
    data = replace(data, images=images, labels=None if labels is False else data.labels, flip=flip, fitted=fitted)
    return data.hold_out(holdout, Generator(seed))


def _read(
    path: Path,
    image_size: int | None,
    channels: int | None,
    labels: bool | None,
    report: Callable[[str], None] | None,
) -> Dataset:
    """The data at a path, read by the kind of file or folder that is there."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise InputError(
            f"there is no {path}, and nothing is downloaded; data is {KINDS}, or the built-in glyphs"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from error
    try:
        if stat.S_ISDIR(mode):
            return _read_folder(path, image_size, channels, labels, report)
        if stat.S_ISREG(mode):
            if path.suffix.lower() in (".npy", ".npz"):
                return read_arrays(path, labels, image_size)
            if path.suffix.lower() == ".bin":
                return read_cifar(path)
            if said := unread(path):
                raise InputError(f"{path} {said}", limit=_LONG)
            if sources.kind_of(path) is not None:
                return _read_archive(path, image_size, channels, labels, report)
            if looks_like_idx(path):
                return read_idx(path, labels)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if re.fullmatch(r"(data|test)_batch(_\d)?|train|test", path.name) and stat.S_ISREG(mode):
        with open_file(path) as file:
            pickled = file.read(1) == b"\x80"
        if pickled:
            raise InputError(f"{path} is {unpickled(10 if 'batch' in path.name else 100)}")
    if stat.S_ISREG(mode) and path.suffix.lower() in picture_endings()[0]:
        raise InputError(f"{path} is one picture; give its folder, {path.parent}, to train on the pictures in it")
    raise InputError(f"{path} is not data that can be trained on, which is {KINDS}")


def _read_folder(
    path: Path,
    image_size: int | None,
    channels: int | None,
    labels: bool | None,
    report: Callable[[str], None] | None,
) -> Dataset:
    """The data in a folder; a known data set may be up to two folders further down, where no pictures are."""
    found = _set_in(path, labels)
    if found is not None:
        return found()
    if not holds_pictures(path):
        below = [(place, read) for place in _folders_below(path) if (read := _set_in(place, labels)) is not None]
        below = [(place, read) for place, read in below if not isinstance(read, partial)] or below  # no pickles
        if len(below) > 1:  # a folder for each file of MNIST
            below = [(place, read) for place, read in below if "train" in place.name.lower()] or below
        if len(below) > 1:
            names = ", ".join(str(place.relative_to(path)) for place, _ in below)
            raise InputError(f"{path} holds several data sets, so give the path of one of {names}")
        if below:
            place, read = below[0]
            data = read()
            return replace(data, notes=[f"found in {place.relative_to(path)}", *data.notes])
        others = [p for p in sorted(path.iterdir()) if p.name.lower().endswith(_FILES) and not p.name.startswith(".")]
        if others:
            names = ", ".join(p.name for p in others[:5])
            raise InputError(f"{path} holds no pictures, but files that can be given by their own path: {names}")
        if other := first_unread([path, *_folders_below(path)]):
            raise InputError(f"{path} holds no pictures; {other[0].relative_to(path)} {other[1]}", limit=_LONG)
    return read_folder(path, image_size, channels, labels, report)


_FILES = (".npz", ".npy", *sources.ARCHIVES)


def _read_archive(
    path: Path,
    image_size: int | None,
    channels: int | None,
    labels: bool | None,
    report: Callable[[str], None] | None,
) -> Dataset:
    """The pictures in an archive, or the sentence on one that is not read."""
    if match := re.match(r"cifar-(10|100)-python", path.name.lower()):
        raise InputError(f"{path} holds {unpickled(int(match[1]))}")
    if sources.kind_of(path) == "other":
        raise sources.refused(path, "is an archive of a kind that is not read")
    return read_folder(path, image_size, channels, labels, report)


def _set_in(folder: Path, labels: bool | None) -> Callable[[], Dataset] | None:
    """What reads the data set of a known form that lies in a folder, None if there is none."""
    if batches_in(folder):
        return lambda: read_cifar(folder)
    if said := pickles_in(folder):
        return partial(_refuse, f"{folder} holds {said}")
    if find_images(folder):
        return lambda: read_idx(folder, labels)
    return None


def _refuse(sentence: str) -> Dataset:
    raise InputError(sentence)


def _folders_below(folder: Path) -> list[Path]:
    """The folders in a folder and in those, without hidden ones and what cannot be read."""
    found = []
    for pattern in ("*", "*/*"):
        found += [path for path in sorted(folder.glob(pattern)) if path.is_dir()]
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
