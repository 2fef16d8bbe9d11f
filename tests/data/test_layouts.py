"""Layouts, ranges of values and forms of labels that others store."""

import numpy as np
import pytest

from tinydiff.data import load
from tinydiff.data.layouts import Unfit, classes, layout, on_white, to_bytes

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("stored", "expected", "said"),
    [
        (IMAGES[0], IMAGES[:1], "one picture (H, W, C)"),
        (IMAGES[:3, ..., 0], IMAGES[:3, ..., :1], "3 grey pictures (N, H, W); one picture (C, H, W) would be x[None]"),
        (IMAGES[0].transpose(2, 0, 1)[None], IMAGES[:1], "(N, C, H, W)"),
        (IMAGES[0, ..., :1], IMAGES[:1, ..., :1], "one picture (H, W, C)"),
        (IMAGES[0, ..., 0], IMAGES[:1, ..., :1], "one grey picture (H, W)"),
        (IMAGES.transpose(0, 3, 1, 2), IMAGES, "(N, C, H, W)"),
        (IMAGES.transpose(0, 3, 1, 2).reshape(5, 192), IMAGES, "8x8 in colour, a plane for red"),
        (IMAGES[..., 0].reshape(5, 64), IMAGES[..., :1], "each row is read as a picture of 8x8"),
        (IMAGES[..., 0].transpose(1, 2, 0), IMAGES[..., :1], "the number of pictures comes last, (H, W, N)"),
        (IMAGES.transpose(1, 2, 3, 0), IMAGES, "the number of pictures comes last, (H, W, C, N)"),
        (IMAGES[0, ..., :2], IMAGES[:1, ..., :2], "one picture (H, W, C)"),
        (IMAGES[..., 0], IMAGES[..., :1], ""),
        (IMAGES[:1, ..., 0], IMAGES[:1, ..., :1], ""),
        (IMAGES[..., :1], IMAGES[..., :1], ""),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_layouts(tmp_path, stored, expected, said, order):
    np.save(tmp_path / "x.npy", np.asarray(stored, order=order))
    data = load(tmp_path / "x.npy")
    np.testing.assert_array_equal(data.images, expected)
    assert said in " ".join(data.notes) and bool(said) == bool(data.notes)


def test_labels_decide_what_is_one_picture():
    assert layout((64, 64, 3)).one and not layout((64, 64, 3), 64).one
    assert layout((16, 16)).one and layout((16, 16), 16).shape == (16, 1, 4, 4)
    assert layout((8, 8, 20), 8).axes == (0, 1, 2, 3) and layout((8, 8, 20), 20).axes == (2, 0, 1, 3)
    assert layout((3, 9, 9)).said and not layout((3, 9, 9), 3).said


@pytest.mark.parametrize(
    ("shape", "line"),
    [
        ((8, 9, 3, 20), "x.transpose(3, 0, 1, 2)"),
        ((3, 20, 8, 9), "x.transpose(1, 2, 3, 0)"),
        ((20, 8, 9, 12), "x[..., :3]"),
        ((20, 1, 8, 8, 3), "np.squeeze(x)"),
        ((2, 20, 8, 8, 3), "x.reshape(-1, *x.shape[-3:])"),
        ((1000,), "x.reshape(-1, height, width)"),
        ((1000, 785), "images=x[:, 1:], labels=x[:, 0]"),
        ((1000, 30), "x.reshape(-1, height, width)"),
        ((0, 8, 8), "at least one image"),
    ],
)
def test_what_is_refused_says_how_to_convert(shape, line):
    with pytest.raises(Unfit) as caught:
        layout(shape)
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("values", "expected", "said"),
    [
        (np.array([0, 0.5, 1], np.float32), [0, 128, 255], "float32 values are read as [0, 1]"),
        (np.array([-1, 0, 1], np.float16), [0, 128, 255], "[-1, 1]"),
        (np.array([-0.5, 0, 0.5], ">f8"), [64, 128, 191], "float64 values are read as [-1, 1]"),
        (np.array([0, 127.4, 255]), [0, 127, 255], "[0, 255]"),
        (np.array([0, 65535], ">u2"), [0, 255], "uint16 values are read as 0..65535"),
        (np.array([0, 4095], np.uint16), [0, 255], "0..4095"),
        (np.array([0, 200], np.int64), [0, 200], "0..255"),
        (np.array([0, 1], np.int32), [0, 255], "black and white"),
        (np.array([False, True]), [0, 255], "bool values are read as black and white"),
        (np.array([0, 1], np.uint8), [0, 1], "multiply them by 255"),
        (np.array([0, 9], np.uint8), [0, 9], ""),
    ],
)
def test_ranges_of_values(values, expected, said):
    [out], told = to_bytes([values.reshape(1, -1)])
    assert out.dtype == np.uint8 and out[0].tolist() == expected
    assert said in told and bool(said) == bool(told)


@pytest.mark.parametrize(
    "values", [[-2.0, 2.0], [0.0, 5.0], [0.0, 1e4], [np.nan, 0.0], [0.0, np.inf], [-5, 5], [-500, 5], [0, 70000], [1j]]
)
def test_values_that_are_refused_name_a_line(values):
    with pytest.raises(Unfit, match=r"convert it in NumPy: np\.save\('new\.npy', "):
        to_bytes([np.array([values])])


def test_the_range_is_that_of_all_images_together():
    outs, _ = to_bytes([np.full((1, 2), 0.5), np.full((1, 2), 200.0)])
    assert [out.max() for out in outs] == [0, 200]


def test_transparent_images_on_white():
    assert on_white(np.array([[[[10, 0], [10, 255]]]], np.uint8)).tolist() == [[[[255], [10]]]]


@pytest.mark.parametrize(
    ("values", "labels", "names"),
    [
        (np.array([[1], [0], [2]], np.uint8), [1, 0, 2], None),
        (np.array([1.0, 0.0, 2.0]), [1, 0, 2], None),
        (np.eye(3)[[1, 0, 2]], [1, 0, 2], ["0", "1", "2"]),
        (np.eye(4, dtype=bool)[[1, 0, 1]], [1, 0, 1], ["0", "1", "2", "3"]),
        (np.array([True, False, True]), [1, 0, 1], None),
        (np.array([2002, 2000, 2001], ">u2"), [2, 0, 1], ["2000", "2001", "2002"]),
        (np.array([0, 900, 0]), [0, 1, 0], ["0", "900"]),
        (np.array([1, 2, 3]), [0, 1, 2], ["1", "2", "3"]),
        (np.array([0, 0, 2]), [0, 0, 2], None),
        (np.array([b"dog", b"cat", b"dog"]), [1, 0, 1], ["cat", "dog"]),
    ],
)
def test_forms_of_labels(values, labels, names):
    found = classes(values, 3)
    assert found.labels.tolist() == labels and found.names == names


@pytest.mark.parametrize(
    "values", [np.zeros(4, int), np.zeros((3, 2), int), np.array([0.5, 1, 2]), np.array([np.nan] * 3)]
)
def test_what_is_no_label(values):
    assert classes(values, 3) is None
