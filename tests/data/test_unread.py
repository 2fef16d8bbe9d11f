"""Data sets that are not read are named, with what to do."""

import numpy as np
import pytest
from PIL import Image

from tinydiff.data import load
from tinydiff.errors import InputError


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("train_32x32.mat", "MATLAB's format, .* scipy.io.loadmat"),
        ("x.h5", "HDF5, .* h5py"),
        ("train-00000-of-00001.parquet", "a table of Arrow or Parquet"),
        ("mnist-train.tfrecord-00000-of-00001", "records of TensorFlow"),
        ("x.lmdb", "a database"),
        ("training.pt", "a pickle"),
        ("train.csv", r"np.loadtxt\(FILE, .*images=x\[:, 1:\]"),
        ("x.jsonl", "a table, .* or names as files"),
        ("film.MP4", "a film, .*ffmpeg"),
    ],
)
def test_files_of_other_forms(tmp_path, name, said):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match=rf"{name} is {said}" if "(" not in said else said):
        load(tmp_path / "data" / name)
    (tmp_path / "data" / "a.csv").write_text("x")
    with pytest.raises(InputError, match=r"holds no pictures; data.a?[^ ]* is "):
        load(tmp_path)


def test_one_picture_and_what_would_have_to_be_downloaded(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=rf"x.png is one picture; give its folder, {tmp_path},"):
        load(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"there is no ylecun.mnist, and nothing is downloaded"):
        load("ylecun/mnist")


def test_parts_of_a_data_set_are_no_classes(tmp_path):
    for name in ("train/cat", "train/dog", "test/cat"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "pets" / name / "x.png")
    for place in (tmp_path / "pets", tmp_path):
        with pytest.raises(InputError, match=rf"test and train are parts of a data set, .* {tmp_path}/pets/train$"):
            load(place, labels=True)
    assert load(tmp_path / "pets/train", labels=True).class_names == ["cat", "dog"] and len(load(tmp_path)) == 3


def test_a_class_whose_pictures_cannot_be_read_is_left_out(tmp_path):
    for name in ("ant", "bee", "cat"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((4, 4), len(name), np.uint8)).save(tmp_path / name / "x.png")
    (tmp_path / "bee/x.png").write_bytes(b"broken")
    data = load(tmp_path, labels=True, report=lambda line: None)
    assert data.class_names == ["ant", "cat"] and data.labels.tolist() == [0, 1]
    assert data.notes == ["left out, as none of their pictures can be read: bee"]
