"""Sentences name a parameter as the caller knows it: Python's callers by its name, the command line's by its flag."""

import numpy as np
import pytest
from PIL import Image

import tinydiff as td
from tinydiff.cli.entry import main
from tinydiff.errors import InputError, named, spelling


def test_named():
    assert named("image_size") == "image_size"
    assert [named("device", "cpu"), named("mults", (1, 2)), named("labels", True), named("lr", 1e-3)] == [
        'device="cpu"',
        "mults=(1, 2)",
        "labels=True",
        "lr=0.001",
    ]
    with pytest.raises(ZeroDivisionError), spelling(lambda name, *value: name.upper()):
        assert named("image_size", 8) == "IMAGE_SIZE"
        raise ZeroDivisionError
    assert named("image_size", 8) == "image_size=8"


def test_the_command_line_spells_names_as_flags():
    from tinydiff.cli.entry import _flag

    assert [_flag("image_size"), _flag("image_size", 8), _flag("mults", (1, 2)), _flag("device", "cpu")] == [
        "--image-size",
        "--image-size 8",
        "--mults 1,2",
        "--device cpu",
    ]
    assert [_flag("labels", True), _flag("labels", False), _flag("terms", None)] == [
        "--labels",
        "--no-labels",
        "--all-terms",
    ]


def test_pictures_that_are_not_square(tmp_path, capsys):
    Image.fromarray(np.zeros((6, 9), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"not square, so give image_size to crop and scale to$"):
        td.data.load(tmp_path)
    assert main(["train", "--data", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    assert "not square, so give --image-size to crop and scale to\n" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"so give image_size to"):  # the command leaves nothing behind
        td.data.load(tmp_path)


@pytest.mark.skipif(td.backend.cupy() is not None, reason="for machines without a GPU")
def test_a_device_that_is_not_there(tmp_path, capsys):
    with pytest.raises(InputError, match=r'device="cpu"$'):
        td.Tensor([1.0]).to("cuda")
    assert main(["train", "--device", "cuda", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.endswith("use --device cpu\n")
