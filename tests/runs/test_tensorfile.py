"""Files of named arrays: the safetensors library reads what is written, and damage is told in one sentence."""

import json
import os

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tinydiff.errors import InputError
from tinydiff.runs import tensorfile


def arrays():
    return {
        "small": np.arange(3, dtype=np.uint8),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "number": np.array(7, np.int64),
        "empty": np.zeros((0, 3)),
        "é half": np.arange(5, dtype=np.float16)[::-2],
        "swapped": np.arange(3, dtype=">f8"),
        "ints": np.arange(2, dtype=np.int32),
    }


def test_the_library_reads_what_is_written(tmp_path):
    path = tmp_path / "a.safetensors"
    tensorfile.write(path, arrays(), {"format": "pt", "step": "7"})
    for read in (load_file(path), tensorfile.read(path)):
        assert read.keys() == arrays().keys()
        for name, array in arrays().items():
            assert read[name].dtype == array.dtype.newbyteorder("=") and read[name].shape == array.shape
            np.testing.assert_array_equal(read[name], array)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"format": "pt", "step": "7"} == tensorfile.read_metadata(path)


def test_every_array_is_aligned(tmp_path):
    path = tmp_path / "a.safetensors"
    tensorfile.write(path, arrays(), {})
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    for name, array in arrays().items():
        assert header[name]["data_offsets"][0] % array.dtype.itemsize == 0


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    tensorfile.write(tmp_path / "a", arrays(), {})
    assert os.stat(tmp_path / "a").st_mode == os.stat(tmp_path / "plain").st_mode


def test_files_of_the_library_are_read(tmp_path):
    save_file({"a": np.ones(3)}, tmp_path / "a", metadata=None)
    assert tensorfile.read(tmp_path / "a")["a"].tolist() == [1, 1, 1]
    assert tensorfile.read_metadata(tmp_path / "a") == {}


@pytest.mark.parametrize("kept", [0, 7, 8, 60, -1])
def test_a_file_that_was_cut_off(tmp_path, kept):
    path = tmp_path / "a.safetensors"
    tensorfile.write(path, arrays(), {"step": "7"})
    path.write_bytes(path.read_bytes()[:kept])
    for read in (tensorfile.read, tensorfile.read_metadata):
        with pytest.raises(InputError, match=r"a.safetensors is damaged or was cut off: "):
            read(path)


def test_a_header_that_is_no_header(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes((20).to_bytes(8, "little") + b"?" * 40)
    with pytest.raises(InputError, match=r"a.safetensors is damaged or was cut off: "):
        tensorfile.read(path)


def test_a_file_that_is_not_there(tmp_path):
    for read in (tensorfile.read, tensorfile.read_metadata):
        for path in (tmp_path / "none", tmp_path):
            with pytest.raises(InputError, match=f"{path} cannot be read: "):
                read(path)


@pytest.mark.parametrize("package", [None, "ml_dtypes"])
def test_bfloat16_becomes_float32_whatever_package_is_there(tmp_path, package):
    if package:
        pytest.importorskip(package, reason="gives NumPy bfloat16")
    header = json.dumps({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header + b"\x80\x3f")
    read = tensorfile.read(tmp_path / "a")["a"]
    assert read.dtype == np.float32 and read.tolist() == [1.0]


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError):
        tensorfile.write(tmp_path / "none" / "a", arrays(), {})
