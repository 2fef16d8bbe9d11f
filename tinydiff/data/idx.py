"""MNIST's IDX files, gzipped or not: a big-endian header, then bytes.

Header (yann.lecun.com/exdb/mnist): two zero bytes, the data type (0x08 for unsigned bytes), the number of dimensions,
then each dimension as 32 bits. Images have three, labels one.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from tinydiff.data.dataset import Dataset
from tinydiff.data.layouts import renumbered
from tinydiff.errors import InputError
from tinydiff.machine import limits
from tinydiff.machine.files import open_file

_NAME = re.compile(r"^(?P<stem>.*?)images[-.]idx3-ubyte(\.gz)?$")
_HOLDS = {1: "labels", 3: "images"}


def looks_like_idx(path: Path) -> bool:
    """Whether the file at a path is read as IDX: by its name, by `.gz`, or by its first bytes."""
    if re.search(r"idx\d-ubyte(\.gz)?$", path.name) or path.suffix.lower() == ".gz":
        return True
    with open_file(path) as file:
        start = file.read(4)
    return start[:2] == b"\x1f\x8b" or (start[:3] == b"\0\0\x08" and start[3:] in (b"\x01", b"\x03"))


def find_images(folder: Path) -> Path | None:
    """The images file of a folder of IDX files: the only one, or the only one with "train" in its name; None if there
    is none.

    InputError where several remain.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), reverse=True):  # a file replaces its gzipped copy
        if _NAME.match(path.name) and not path.name.startswith(".") and path.is_file():
            found[path.name.removesuffix(".gz").replace(".idx3", "-idx3")] = path
    choices = sorted(found.values())
    if len(choices) > 1:
        choices = [path for path in choices if "train" in path.name.lower()] or choices
    if len(choices) > 1:
        names = ", ".join(path.name for path in choices)
        raise InputError(f"{folder} holds several sets of IDX images, so give the path of one of {names}")
    return choices[0] if choices else None


def read_idx(path: Path, labels: bool | None = None) -> Dataset:
    """Images (N, H, W, 1) from MNIST's IDX format, with labels.

    path: a pathlib.Path, of a file of images or of a folder with one. Of MNIST's two sets the training set is read.
    labels: True demands them, None takes them if they are there, False ignores them. They are in the file in the same
        folder that has `labels` for `images` and `idx1` for `idx3` in its name.

    InputError for a file that is missing, cut off, too long, or of another kind.
    """
    if path.is_dir():
        images_path = find_images(path)
        if images_path is None:
            raise InputError(f"{path} holds no IDX images, named like train-images-idx3-ubyte or the same with .gz")
        path = images_path
    images = _read(path, dimensions=3)
    if not images.size:
        raise InputError(f"{path} holds no images: its header gives {_times(images.shape)}")
    values = None
    if labels is not False:
        labels_path = _labels_beside(path)
        if labels_path is not None:
            values = _read(labels_path, dimensions=1)
            if len(values) != len(images):
                raise InputError(
                    f"{labels_path} holds {len(values)} labels, but {path.name} holds {len(images)} images"
                )
        elif labels:
            raise InputError(
                f"{path} has no labels in its folder: a file with the same name, but labels for images and idx1 for idx3"
            )
    notes = []
    if values is None and labels is None and (match := _NAME.match(path.name)):
        notes.append(f"there are no labels: no {match['stem']}labels-idx1-ubyte is in its folder")
    if "emnist" in path.name.lower():
        notes.append("EMNIST's pictures are stored with rows and columns exchanged, and are read as they are stored")
    found = None if values is None else renumbered(values)
    if found is not None and found.said:
        notes.append(found.said)
    return Dataset(
        images[..., None], None if found is None else found.labels, None if found is None else found.names, name=path.name,
        source=str(path), notes=notes,
    )  # fmt: skip


def _labels_beside(path: Path) -> Path | None:
    match = _NAME.match(path.name)
    if match is None:
        return None
    for ending in ("-idx1-ubyte", ".idx1-ubyte", "-idx1-ubyte.gz", ".idx1-ubyte.gz"):
        candidate = path.with_name(match["stem"] + "labels" + ending)
        if candidate.is_file():
            return candidate
        unpacked = path.parent.parent / (match["stem"] + "labels-idx1-ubyte") / candidate.name
        if path.parent.name.startswith(match["stem"] + "images") and unpacked.is_file():  # a folder for each file
            return unpacked
    return None


def _read(path: Path, dimensions: int) -> np.ndarray:
    """The array of a file: its header, and then as many bytes as that allows, however many a gzipped file unpacks to."""
    wanted = f"{_HOLDS[dimensions]} need 0x{0x0800 + dimensions:08x}"
    header = 4 + 4 * dimensions
    with _content(path) as (file, size):
        start = file.read(header)
        if len(start) < 4:
            raise InputError(f"{path} is cut off: it has {len(start)} bytes, fewer than the 4 an IDX file begins with")
        if start[:2] != b"\0\0":
            raise InputError(f"{path} is not an IDX file: it begins with 0x{start[:4].hex()}, and {wanted}")
        if start[2] != 0x08:
            raise InputError(
                f"{path} holds IDX data of type 0x{start[2]:02x}, and only unsigned bytes, type 0x08, are images"
            )
        if start[3] != dimensions:
            what = f", it holds {_HOLDS[start[3]]}" if start[3] in _HOLDS else ""
            raise InputError(f"{path} has {start[3]} dimension{'s' * (start[3] != 1)}{what}, and {wanted}")
        if len(start) < header:
            raise InputError(f"{path} is cut off: it has {len(start)} bytes, less than its header of {header}")
        shape = tuple(int(d) for d in np.frombuffer(start, ">u4", dimensions, offset=4))
        expected = math.prod(shape)
        content = _at_most(file, expected + 1, path)
        more = header + len(content)
        if len(content) > expected:
            more = size if size is not None else header + len(content) + len(file.read(_STEP))
    if len(content) != expected:
        wrong = "is cut off" if len(content) < expected else "has bytes after its end"
        at_least = "at least " if size is None and more - header - expected > _STEP else ""
        raise InputError(
            f"{path} {wrong}: its header gives {_times(shape)}, which makes {header + expected} bytes in all, "
            f"but it has {at_least}{more}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


_STEP = 1 << 20  # bytes


def _at_most(file: BinaryIO, count: int, path: Path) -> bytes:
    """Up to so many bytes, and no memory for more than there are. InputError beyond what this machine has."""
    everything, _ = limits.memory()
    most, pieces, have = count if everything is None else min(count, everything // 2), [], 0
    while have < most and (piece := file.read(min(_STEP, most - have))):
        pieces.append(piece)
        have += len(piece)
    if have == most < count:
        raise InputError(f"{path} holds more images than fit into memory: {most:,} bytes and more")
    return b"".join(pieces)


@contextmanager
def _content(path: Path) -> Iterator[tuple[BinaryIO, int | None]]:
    """A file to read, unpacked if it is gzipped (its name does not matter), and its size, None where it is packed."""
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(2)
            file.seek(0)
            if start == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield cast(BinaryIO, unpacked), None
                return
            if path.suffix.lower() == ".gz" and start != b"\0\0":
                raise InputError(f"{path} is named .gz, but it is neither gzipped nor an IDX file ({size} bytes)")
            yield file, size
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} cannot be unpacked, its gzip data is damaged: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
