"""CIFAR-10's binary version (cs.toronto.edu/~kriz/cifar.html): records of a label byte and 3 x 32 x 32 colour bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tinydiff.data.dataset import Dataset
from tinydiff.errors import InputError
from tinydiff.machine.files import read_bytes

CLASSES = 10
RECORD = 1 + 3 * 32 * 32


def batches_in(folder: Path) -> list[Path]:
    """The training files of a folder, data_batch_1.bin and so on, in order."""
    return sorted(path for path in folder.glob("data_batch_*.bin") if path.is_file())


def read_cifar(path: Path) -> Dataset:
    """CIFAR-10 from its binary version, images (N, 32, 32, 3) with labels.

    path: a pathlib.Path, of a folder with data_batch_*.bin (the training set), or of one .bin file. Class names come from
    batches.meta.txt in the same folder. InputError for a file that is not a whole number of records or has a label
    above 9.
    """
    files = batches_in(path) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} holds no data_batch_*.bin, the training files of CIFAR-10's binary version")
    records = np.concatenate([_read(file) for file in files])
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    names = _class_names(files[0].with_name("batches.meta.txt"))
    return Dataset(planes.transpose(0, 2, 3, 1), records[:, 0], names, CLASSES, name=path.name, source=str(path))


def _read(path: Path) -> np.ndarray:
    content = np.frombuffer(read_bytes(path), np.uint8)
    if not content.size or content.size % RECORD:
        raise InputError(
            f"{path} has {content.size} bytes, not a multiple of {RECORD}, the record of CIFAR-10's binary version"
        )
    records = content.reshape(-1, RECORD)
    wrong = records[:, 0] >= CLASSES
    if wrong.any():
        at = int(wrong.argmax())
        raise InputError(f"{path} is not CIFAR-10: record {at} has label {records[at, 0]}, and labels are 0..9")
    return records


def _class_names(path: Path) -> list[str] | None:
    """The names in the file, or None if it is not there or does not hold ten."""
    try:
        names = [line.strip() for line in read_bytes(path, 65_536).decode().splitlines() if line.strip()]
    except (InputError, UnicodeDecodeError):
        return None
    return names if len(names) == CLASSES else None
