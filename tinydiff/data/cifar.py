"""The binary versions of CIFAR-10 and CIFAR-100 (cs.toronto.edu/~kriz/cifar.html): records of a label byte, or of a coarse
and a fine one, and 3 x 32 x 32 colour bytes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinydiff.data.dataset import Dataset
from tinydiff.errors import InputError
from tinydiff.machine.files import read_bytes

_PIXELS = 3 * 32 * 32


class _Version(NamedTuple):
    """name: of the data set. labels: bytes of a record before the pixels, of which the last is the class. classes: how many. names:
    the file with theirs."""

    name: str
    labels: int
    classes: int
    names: str


_TEN = _Version("CIFAR-10", 1, 10, "batches.meta.txt")
_HUNDRED = _Version("CIFAR-100", 2, 100, "fine_label_names.txt")


def batches_in(folder: Path) -> list[Path]:
    """The training files of a folder, data_batch_1.bin and so on in order, or CIFAR-100's train.bin."""
    found = sorted(path for path in folder.glob("data_batch_*.bin") if path.is_file())
    hundred = folder / "train.bin"
    return found or ([hundred] if hundred.is_file() and (folder / _HUNDRED.names).is_file() else [])


def pickles_in(folder: Path) -> str | None:
    """What a folder of CIFAR's Python version holds, and the file to get instead; None for another folder."""
    for first, second, number in (("data_batch_1", "batches.meta", 10), ("train", "meta", 100)):
        if (folder / first).is_file() and (folder / second).is_file():
            return unpickled(number)
    return None


def unpickled(number: int) -> str:
    """The sentence about the Python version of CIFAR-`number`."""
    return (
        f"CIFAR-{number} as Python pickles, which are not read since they can run code; unpack the binary version instead, "
        f"cifar-{number}-binary.tar.gz of cs.toronto.edu/~kriz/cifar.html"
    )


def read_cifar(path: Path) -> Dataset:
    """CIFAR-10 or CIFAR-100 from its binary version, images (N, 32, 32, 3) with labels, of CIFAR-100 the fine ones.

    path: a pathlib.Path, of a folder with data_batch_*.bin or with CIFAR-100's train.bin (the training set), or of one .bin
    file, which is CIFAR-100's if it is called train.bin or test.bin. Class names come from batches.meta.txt or
    fine_label_names.txt in the same folder. InputError for a file that is not a whole number of records or has a label too
    large.
    """
    files = batches_in(path) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} holds no data_batch_*.bin, the training files of CIFAR-10's binary version")
    version = _HUNDRED if files[0].name in ("train.bin", "test.bin") else _TEN
    records = np.concatenate([_read(file, version) for file in files])
    planes = records[:, version.labels :].reshape(-1, 3, 32, 32)
    names = _class_names(files[0].with_name(version.names), version.classes)
    notes = ["CIFAR-100's labels are its 100 fine ones; the 20 coarse ones are not used"] if version is _HUNDRED else []
    labels = records[:, version.labels - 1]
    return Dataset(
        planes.transpose(0, 2, 3, 1), labels, names, version.classes, name=path.name, source=str(path), notes=notes
    )


def _read(path: Path, version: _Version) -> np.ndarray:
    content, size = np.frombuffer(read_bytes(path), np.uint8), version.labels + _PIXELS
    if not content.size or content.size % size:
        raise InputError(
            f"{path} has {content.size} bytes, not a multiple of {size}, the record of {version.name}'s binary version"
        )
    records = content.reshape(-1, size)
    labels = records[:, version.labels - 1]
    wrong = labels >= version.classes
    if wrong.any():
        at = int(wrong.argmax())
        raise InputError(
            f"{path} is not {version.name}: record {at} has label {labels[at]}, and labels are 0..{version.classes - 1}"
        )
    return records


def _class_names(path: Path, count: int) -> list[str] | None:
    """The names in the file, or None if it is not there or does not hold as many."""
    try:
        names = [line.strip() for line in read_bytes(path, 65_536).decode().splitlines() if line.strip()]
    except (InputError, UnicodeDecodeError):
        return None
    return names if len(names) == count else None
