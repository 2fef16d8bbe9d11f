"""`load`: what it takes for what, its options, and its refusals."""

import os

import numpy as np
import pytest
from PIL import Image

from tinydiff.data import load
from tinydiff.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for i in range(8):
        Image.fromarray(np.full((6, 6), 10 * i, np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_paths_of_every_type(folder, monkeypatch):
    assert load(folder).source == load(str(folder)).source == str(folder)
    monkeypatch.chdir(folder)
    data = load(".")
    assert data.source == str(folder) and data.name == folder.name
    monkeypatch.setenv("HOME", str(folder))
    assert load("~").source == str(folder)


def test_the_name_glyphs_is_the_built_in_set(folder, monkeypatch):
    (folder / "glyphs").mkdir()
    (folder / "0.png").rename(folder / "glyphs" / "0.png")
    monkeypatch.chdir(folder)
    built_in = load("glyphs", image_size=8)
    assert built_in.num_classes == 10 and (load("glyphs", image_size=8, seed=1).images != built_in.images).any()
    assert len(load("./glyphs")) == 1


def test_what_was_done_to_the_images_is_told(folder, tmp_path_factory):
    assert load(folder).fitted == load(folder, image_size=6).fitted == ""
    assert load(folder, image_size=4).fitted == "scaled from 6x6"
    Image.new("L", (9, 8)).save(folder / "wide.png")
    assert load(folder, image_size=8).fitted == "cropped and scaled from several sizes"
    file = tmp_path_factory.mktemp("arrays") / "x.npy"
    np.save(file, np.zeros((5, 6, 6, 3), np.uint8))
    assert load(file).fitted == load(file, image_size=6, channels=3).fitted == ""
    assert load(file, channels=1).fitted == "made grey"
    data = load(file, image_size=4, channels=1, holdout=0.2)
    assert data.fitted == data.held_out.fitted == "scaled from 6x6, made grey"


def test_options_reach_the_data(folder):
    data = load(folder, image_size=4, channels=3, flip=True, holdout=0.25, seed=2)
    assert data.images.shape == (6, 4, 4, 3) and data.held_out.images.shape == (2, 4, 4, 3)
    assert data.flip and not data.held_out.flip
    values = [*data.images[:, 0, 0, 0], *data.held_out.images[:, 0, 0, 0]]
    assert sorted(values) == [10 * i for i in range(8)]
    again, other = (load(folder, holdout=0.25, seed=seed).held_out.images[:, 0, 0, 0].tolist() for seed in (2, 5))
    assert again == data.held_out.images[:, 0, 0, 0].tolist() != other


def test_arrays_keep_their_shape_unless_asked(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 6, 10, 4), np.uint8))
    assert load(tmp_path / "x.npy", channels=4).images.shape == (3, 6, 10, 4)
    assert load(tmp_path / "x.npy", image_size=5).images.shape == (3, 5, 5, 4)
    np.save(tmp_path / "x.npy", np.tile(np.array([100, 200, 0, 51], np.uint8), (2, 6, 6, 1)))
    white = load(tmp_path / "x.npy", channels=3).images
    assert white.shape == (2, 6, 6, 3) and white[0, 0, 0].tolist() == [224, 244, 204]
    with pytest.raises(InputError, match=r"x\.npy: images of 4 channels cannot be made into 2"):
        load(tmp_path / "x.npy", channels=2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"image_size": 0}, "image size must be at least 1 pixel, not 0"),
        ({"channels": 5}, "channels must be 1 for grey or 3 for colour, not 5"),
        ({"channels": 0}, "not 0"),
        ({"holdout": 1.0}, "less than 1, not 1"),
        ({"holdout": float("nan")}, "less than 1, not nan"),
        ({"holdout": -0.5}, "at least 0"),
        ({"holdout": 0.05}, "leaves 8 to train on and 0 held out"),
        ({"holdout": 0.99}, "leaves 0 to train on and 8 held out"),
        ({"channels": 2}, "cannot be made into 2"),
    ],
)
def test_wrong_options(folder, options, sentence):
    with pytest.raises(InputError, match=sentence):
        load(folder, **options)


@pytest.mark.parametrize("name", ["glyph", "no/such/path", "x.npz", "train-images-idx3-ubyte.gz"])
def test_a_missing_path(tmp_path, name):
    with pytest.raises(InputError, match="or the built-in glyphs") as caught:
        load(tmp_path / name)
    assert str(caught.value).startswith(f"there is no {tmp_path / name}, and nothing is downloaded;")


def test_things_of_no_known_kind(tmp_path):
    (tmp_path / "x.txt").write_text("words")
    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    os.mkfifo(tmp_path / "pipe")
    for name in ("x.txt", "pipe"):
        with pytest.raises(
            InputError, match="is not data that can be trained on, which is a folder of pictures"
        ) as caught:
            load(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_paths_that_the_system_refuses(tmp_path):
    (tmp_path / "file").write_text("")
    for path, reason in [(tmp_path / "file" / "x", "Not a directory"), (tmp_path / ("x" * 300), "name too long")]:
        with pytest.raises(InputError, match=f"cannot be read: .*{reason}"):
            load(path)
    with pytest.raises(InputError, match="null"):
        load("a\0b")
