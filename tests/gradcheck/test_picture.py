"""tinydiff/gradcheck/picture.py: where the error sits."""

import numpy as np
import pytest
from PIL import Image

from tinydiff.gradcheck.picture import draw, panel_axes, relative_error, save_png


def test_the_wrong_places_are_dark():
    right, got = np.ones((4, 6)), np.ones((4, 6))
    got[1, 2], got[3, 5] = 2.0, 1.3
    lines = draw(got, right)
    assert "2 of 24 elements are wrong" in lines[0]
    assert lines[1:] == ["+------+", "|      |", "|  █   |", "|      |", "|     ▒|", "+------+"]


def test_axes_that_tell_most_are_shown():
    right, got = np.zeros((2, 5, 6, 3)), np.zeros((2, 5, 6, 3))
    got[:, 0, :, 1] = 1
    assert panel_axes(relative_error(got, right)) == (1, 3)
    assert "rows: axis 1, columns: axis 3" in draw(got, right)[0]
    assert panel_axes(np.zeros(7)) == (0,)


def test_large_planes_are_shrunk_without_losing_errors():
    right, got = np.zeros((1000, 1000)), np.zeros((1000, 1000))
    got[617, 3] = 1
    lines = draw(got, right)
    assert len(lines) <= 15 and max(map(len, lines[1:])) <= 50
    assert sum(line.count("█") for line in lines[1:]) == 1


def test_unknown_and_infinite_elements():
    right, got = np.array([1.0, np.nan, 1.0]), np.array([1.0, 2.0, np.nan])
    lines = draw(got, right)
    assert lines[2] == "| !|" and "1 of 2 sampled elements are wrong, of 3 in all" in lines[0]


def test_of_a_sampled_array_the_sample_is_shown(tmp_path):
    right, got = np.full((500, 700), np.nan), np.zeros((500, 700))
    right[np.ix_([3, 77, 401], [5, 600])] = 0
    got[77, 600] = 1
    assert draw(got, right)[1:] == ["+--+", "|  |", "| █|", "|  |", "+--+"]
    save_png(tmp_path / "e.png", got, right, "x")


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_number_needs_no_picture(shape):
    assert draw(np.ones(shape), np.zeros(shape)) == []


@pytest.mark.parametrize("shape", [(), (7,), (4, 6), (2, 5, 6, 3)])
def test_png(tmp_path, shape):
    got = np.zeros(shape)
    right = np.ones(shape)
    save_png(tmp_path / "e.png", got, right, "x")
    with Image.open(tmp_path / "e.png") as image:
        pixels = np.asarray(image)
    assert (pixels == [255, 0, 0]).all(-1).any()  # the right gradient is 1 everywhere: red
    assert (pixels == [255, 255, 255]).all(-1).any()
