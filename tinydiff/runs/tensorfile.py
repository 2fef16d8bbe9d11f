"""Files of named arrays in the safetensors format: 8 bytes with the length of a JSON header, the header, the arrays.

Reading is the `safetensors` library's work. Writing is done here: array by array, so that nothing is held twice and
arrays on the GPU come over one at a time, with the permissions that any new file gets, and with the operating system's
own errors, by which the caller can tell a full disk from a forbidden place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.backend import to_numpy
from tinydiff.errors import InputError
from tinydiff.machine.files import check_regular

_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "uint8": "U8"}


def write(path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes arrays, on any device, and text beside them. OSError where that cannot be done."""
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))  # so that every array is aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in names:
        array = arrays[name]
        end = offset + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype.name], "shape": array.shape, "data_offsets": (offset, end)}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            array = to_numpy(arrays[name])
            file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file. InputError where there is none, or where it is damaged or was cut off."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    lacks = f"{path} holds numbers of a kind that NumPy lacks, save them as float32"
    check_regular(path)
    try:
        arrays = load_file(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (
        TypeError,
        KeyError,
        AttributeError,
    ) as error:  # the library's for BF16, as its version has it, and for other kinds
        widened = _widened(path)
        if widened is None:
            raise InputError(f"{lacks}: {error}") from None
        arrays = widened
    except (
        SafetensorError,
        ValueError,
        ArithmeticError,
    ) as error:  # NumPy's and the library's, for odd headers
        raise InputError(f"{path} is damaged or was cut off: {error}") from None
    for name, array in arrays.items():
        if array.dtype.name == "bfloat16":
            arrays[name] = array.astype(np.float32)
        elif array.dtype.kind not in "fiub":  # a package such as ml_dtypes, if it is loaded, gives NumPy more kinds
            raise InputError(f"{lacks}: {name} is {array.dtype}")
    return arrays


def _widened(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a file that holds BF16, which is the upper half of float32; None where it holds kinds that NumPy lacks."""
    from safetensors import SafetensorError, deserialize

    kinds = {name: kind for kind, name in _NAMES.items()}
    try:
        parts = deserialize(path.read_bytes())
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} is damaged or was cut off: {error}") from None
    arrays = {}
    for name, part in parts:
        if part["dtype"] == "BF16":
            values = (np.frombuffer(part["data"], "<u2").astype(np.uint32) << 16).view(np.float32)
        elif part["dtype"] in kinds:
            values = np.frombuffer(part["data"], np.dtype(kinds[part["dtype"]]).newbyteorder("<"))
        else:
            return None
        arrays[name] = values.reshape(part["shape"])
    return arrays


def read_metadata(path: Path) -> dict[str, str]:
    """The text beside the arrays. InputError as for `read`."""
    from safetensors import SafetensorError, safe_open

    check_regular(path)
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} is damaged or was cut off: {error}") from None
