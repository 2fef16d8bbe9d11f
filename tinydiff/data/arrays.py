"""Images from NumPy's own files: .npy with an array, .npz with `images` and perhaps `labels`."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from tinydiff.data.dataset import Dataset
from tinydiff.errors import InputError
from tinydiff.machine import limits
from tinydiff.machine.files import open_file

_STEP = 1 << 20  # bytes


def read_arrays(path: Path, labels: bool | None = None) -> Dataset:
    """Images uint8 (N, H, W) or (N, H, W, C) with 1 to 4 channels from an .npy or .npz file.

    path: the file's, a pathlib.Path. In an .npz the images are `images`, else `arr_0`, else the only uint8 array of three or four
        dimensions.
    labels: True demands an array `labels`, integers (N,); None takes it if there is one, False ignores it.

    Nothing is unpickled. InputError for anything else in the file.
    """
    try:
        with open_file(path) as file:
            return _read(path, file, labels)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file fails in zipfile, zlib, ast or NumPy, each in its own way
        reason = str(error).partition("\n")[0] or type(error).__name__
        if "pickle" in reason or "magic" in reason:  # NumPy's guesses for any file it does not know
            reason = "it is neither an .npy nor an .npz file, or it holds Python objects, which are not read"
        raise InputError(f"{path} cannot be read as a NumPy file: {reason}") from error


class _Header(NamedTuple):
    """What an .npy file says of its array before the array comes."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _read(path: Path, file: BinaryIO, labels: bool | None) -> Dataset:
    start = file.read(4)
    file.seek(0)
    if start[:2] != b"PK":
        header = _header(file)
        _check_images(path, header)
        if labels:
            raise InputError(f"{path} holds no array named labels, only {_listing({'images': header})}")
        return Dataset(_images(_array(path, file, header)), None, name=path.name, source=str(path))
    with zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        headers = {}
        for name, info in members.items():
            with archive.open(info) as member:
                if member.read(6) == b"\x93NUMPY":
                    with archive.open(info) as again:
                        headers[name] = _header(cast(BinaryIO, again))

        def read(name: str) -> np.ndarray:
            with archive.open(members[name]) as member:
                return _array(path, cast(BinaryIO, member), _header(cast(BinaryIO, member)))

        chosen = _pick_images(path, headers)
        _check_images(path, headers[chosen])
        values = None
        if labels is not False and "labels" in headers:
            found = headers["labels"]
            if found.dtype.kind not in "iu" or found.shape != headers[chosen].shape[:1]:
                raise InputError(
                    f"{path}: labels must be integers ({headers[chosen].shape[0]},), one for each image, not {found.dtype} "
                    f"{found.shape}"
                )
            values = read("labels")
        elif labels:
            raise InputError(f"{path} holds no array named labels, only {_listing(headers)}")
        return Dataset(_images(read(chosen)), values, name=path.name, source=str(path))


def _header(file: BinaryIO) -> _Header:
    """Reads the head of an .npy file; ValueError for one that makes no sense."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        header = _Header(*np.lib.format.read_array_header_1_0(file))
    elif version == (2, 0):
        header = _Header(*np.lib.format.read_array_header_2_0(file))
    else:
        raise ValueError(f"version {version} of .npy files is not read")
    if any(d < 0 for d in header.shape):
        raise ValueError(f"the shape {header.shape} makes no sense")
    if header.dtype.hasobject:
        raise ValueError("pickled objects")
    return header


def _array(path: Path, file: BinaryIO, header: _Header) -> np.ndarray:
    """The array behind its header, and no memory for more than there is."""
    everything, _ = limits.memory()
    if everything is not None and header.size > everything // 2:
        raise InputError(f"{path} holds {header.size:,} bytes in one array, more than fit into memory")
    pieces, have = [], 0
    while have < header.size and (piece := file.read(min(_STEP, header.size - have))):
        pieces.append(piece)
        have += len(piece)
    file.read(1)  # the end of an archived file, where its sum is checked
    if have < header.size:
        raise ValueError(f"it is cut off: {have:,} of {header.size:,} bytes are there")
    flat = np.frombuffer(b"".join(pieces), header.dtype)
    return flat.reshape(header.shape[::-1]).T if header.fortran else flat.reshape(header.shape)


def _pick_images(path: Path, arrays: dict[str, _Header]) -> str:
    for name in ("images", "arr_0"):
        if name in arrays:
            return name
    likely = [name for name, array in arrays.items() if array.dtype == np.uint8 and len(array.shape) in (3, 4)]
    if len(likely) != 1:
        raise InputError(f"{path} needs an array named images, uint8 (N, H, W, C), and holds {_listing(arrays)}")
    return likely[0]


def _check_images(path: Path, header: _Header) -> None:
    shape = header.shape
    if header.dtype != np.uint8 or len(shape) not in (3, 4) or 0 in shape:
        raise InputError(f"{path} must hold images as uint8 (N, H, W) or (N, H, W, C), not {header.dtype} {shape}")
    if len(shape) == 4 and shape[3] > 4:
        hint = ", the channels must come last" if shape[1] <= 4 else ""
        raise InputError(f"{path} must hold images (N, H, W, C) with 1 to 4 channels, not {shape}{hint}")


def _images(array: np.ndarray) -> np.ndarray:
    return array[..., None] if array.ndim == 3 else array


def _listing(arrays: dict[str, _Header]) -> str:
    return ", ".join(f"{name}: {array.dtype} {array.shape}" for name, array in arrays.items()) or "no arrays"
