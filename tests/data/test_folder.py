"""Folders of pictures: formats, modes, order, classes, sizes, and pictures that cannot be read."""

import os
import warnings

import numpy as np
import pytest
from PIL import Image

from tinydiff.data import load
from tinydiff.errors import InputError

RNG = np.random.default_rng(0)


def colour(height=8, width=8):
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def grey(height=8, width=8):
    return RNG.integers(0, 256, (height, width), dtype=np.uint8)


def smooth(height=64, width=64):
    """A picture that JPEG hardly changes."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y / height, 255 * x / width, 128 + 0 * x], -1).astype(np.uint8)


def put(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def only(folder, **options):
    data = load(folder, **options)
    assert len(data) == 1
    return data.images[0]


# Formats and modes


@pytest.mark.parametrize("ending", ["png", "bmp", "ppm", "tif", "tga", "PNG"])
def test_exact_formats(tmp_path, ending):
    x = put(tmp_path / f"x.{ending}", colour())
    np.testing.assert_array_equal(only(tmp_path), x)


@pytest.mark.parametrize("options", [{}, {"quality": 95, "progressive": True}, {"subsampling": 0}])
def test_jpeg(tmp_path, options):
    x = put(tmp_path / "x.jpg", smooth(), **options)
    assert np.abs(only(tmp_path).astype(int) - x).mean() < 3


def test_webp_and_gif(tmp_path):
    x = put(tmp_path / "webp" / "x.webp", colour(), lossless=True)
    np.testing.assert_array_equal(only(tmp_path / "webp"), x)
    frames = [Image.fromarray(np.full((8, 8), v, np.uint8)) for v in (10, 200)]
    (tmp_path / "gif").mkdir()
    frames[0].save(tmp_path / "gif" / "x.gif", save_all=True, append_images=frames[1:])
    assert (only(tmp_path / "gif") == 10).all()  # the first frame of an animation


def test_grey_stays_grey(tmp_path):
    x = put(tmp_path / "x.png", grey())
    np.testing.assert_array_equal(only(tmp_path), x[..., None])
    np.testing.assert_array_equal(only(tmp_path, channels=3), np.stack([x] * 3, -1))


def test_grey_stored_in_colour_is_grey(tmp_path):
    x = grey()
    put(tmp_path / "x.png", np.stack([x] * 3, -1))
    np.testing.assert_array_equal(only(tmp_path), x[..., None])


def test_one_coloured_picture_makes_all_coloured(tmp_path):
    x = [put(tmp_path / f"{i}.png", grey()) for i in range(3)]
    x.append(put(tmp_path / "3.png", colour()))
    x.append(put(tmp_path / "4.png", grey()))
    data = load(tmp_path)
    assert data.images.shape == (5, 8, 8, 3)
    for got, pixels in zip(data.images, x, strict=True):
        np.testing.assert_array_equal(got, pixels if pixels.ndim == 3 else np.stack([pixels] * 3, -1))


def test_colour_to_grey_is_pillows(tmp_path):
    x = put(tmp_path / "x.png", colour())
    np.testing.assert_array_equal(only(tmp_path, channels=1)[..., 0], np.asarray(Image.fromarray(x).convert("L")))


def test_black_and_white(tmp_path):
    x = grey() > 127
    Image.fromarray(x).save(tmp_path / "x.png")
    np.testing.assert_array_equal(only(tmp_path)[..., 0], x * 255)


def test_palette(tmp_path):
    x = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 8, 7]]], np.uint8)
    Image.fromarray(x).quantize(4).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as file:
        assert file.mode == "P"
    np.testing.assert_array_equal(only(tmp_path), x)


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_grey_of_sixteen_bits_is_scaled_not_clipped(tmp_path, ending):
    x = np.array([[0, 257, 32896, 65535], [128, 129, 65406, 65407], [300, 9000, 20000, 40000], [1, 2, 3, 4]], np.uint16)
    if ending == "pgm":
        (tmp_path / "x.pgm").write_bytes(b"P5 4 4 65535\n" + x.astype(">u2").tobytes())
    else:
        Image.fromarray(x).save(tmp_path / f"x.{ending}")
    np.testing.assert_array_equal(only(tmp_path)[..., 0], np.rint(x / 257))


def test_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.tif")  # no cyan, all magenta and yellow: red
    np.testing.assert_array_equal(only(tmp_path), np.full((8, 8, 3), (255, 0, 0)))
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    data = load(tmp_path)
    assert np.abs(data.images[0].astype(int) - (255, 0, 0)).max() < 6


def test_transparent_parts_are_white(tmp_path):
    x = np.zeros((2, 2, 4), np.uint8)
    x[0, 0], x[0, 1], x[1, 0] = (10, 20, 30, 255), (0, 0, 0, 0), (255, 0, 0, 128)
    put(tmp_path / "rgba" / "x.png", x)
    expected = [[(10, 20, 30), (255, 255, 255)], [(255, 127, 127), (255, 255, 255)]]
    assert np.abs(only(tmp_path / "rgba").astype(int) - expected).max() <= 1
    put(tmp_path / "la" / "x.png", np.array([[[7, 255], [7, 0]], [[0, 51], [255, 255]]], np.uint8))
    got = only(tmp_path / "la")
    assert got.shape == (2, 2, 1) and got[..., 0].tolist() == [[7, 255], [204, 255]]
    picture = Image.new("P", (2, 2), 0)
    picture.putpalette([5, 6, 7, 50, 60, 70])
    picture.putpixel((1, 1), 1)
    (tmp_path / "p").mkdir()
    picture.save(tmp_path / "p" / "x.png", transparency=0)
    np.testing.assert_array_equal(only(tmp_path / "p"), [[[255] * 3, [255] * 3], [[255] * 3, [50, 60, 70]]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_cameras_rotation_is_undone(tmp_path, orientation):
    upright = np.zeros((6, 6), np.uint8)
    upright[:2, :3], upright[4:, 0] = 255, 100
    undo = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).T,
        8: np.rot90,
    }[orientation]
    inverse = {6: np.rot90, 8: lambda a: np.rot90(a, -1)}.get(orientation, undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(inverse(upright))).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(only(tmp_path)[..., 0], upright)


def test_odd_metadata_costs_no_picture_and_no_warning(tmp_path):
    x = put(tmp_path / "x.png", colour(), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\0\0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(only(tmp_path), x)


# Order, hidden files, links


def test_order_is_of_bytes_and_recursive(tmp_path):
    names = ["a/10.png", "a/9.png", "B.png", "Z/z/z.png", "a.png", "b.png", "é.png"]
    for value, name in enumerate(names):
        put(tmp_path / name, np.full((4, 4), value, np.uint8))
    expected = sorted(range(len(names)), key=lambda i: names[i].encode())
    assert load(tmp_path).images[:, 0, 0, 0].tolist() == expected
    assert load(tmp_path, labels=False).labels is None


def test_hidden_and_other_files_are_left_alone(tmp_path):
    put(tmp_path / "x.png", grey())
    for name in (".x.png", "._x.png", ".cache/x.png", "__MACOSX/x.png"):
        put(tmp_path / name, grey())
    (tmp_path / "README.txt").write_text("words")
    (tmp_path / "Thumbs.db").write_bytes(b"\0")
    data = load(tmp_path)
    assert len(data) == 1 and data.skipped == []


def test_runs_in_the_folder_are_no_data(tmp_path):
    put(tmp_path / "a.png", grey())
    put(tmp_path / "run/samples.png", grey())
    put(tmp_path / "class/checkpoint/b.png", grey())
    (tmp_path / "run/checkpoint").mkdir()
    (tmp_path / "run/config.toml").touch()
    assert len(load(tmp_path)) == 2 and len(load(tmp_path / "run")) == 1


def test_links_are_followed_but_not_in_circles(tmp_path):
    put(tmp_path / "real" / "x.png", grey())
    os.symlink(tmp_path / "real", tmp_path / "real" / "again")
    (tmp_path / "data").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "data" / "one")
    os.symlink(tmp_path / "real", tmp_path / "data" / "two")
    data = load(tmp_path / "data", labels=True)
    assert data.class_names == ["one", "two"] and data.labels.tolist() == [0, 1]


# Classes


def test_folders_are_classes_if_asked(tmp_path):
    for value, name in enumerate(["dog/b.png", "dog/deep/a.png", "cat/c.png", "Cow/d.png"]):
        put(tmp_path / name, np.full((4, 4), value, np.uint8))
    (tmp_path / "empty").mkdir()
    data = load(tmp_path, labels=True)
    assert data.class_names == ["Cow", "cat", "dog"] and data.num_classes == 3
    assert dict(zip(data.images[:, 0, 0, 0].tolist(), data.labels.tolist(), strict=True)) == {0: 2, 1: 2, 2: 1, 3: 0}
    assert load(tmp_path).labels is None and load(tmp_path).class_names is None


def test_classes_need_folders(tmp_path):
    put(tmp_path / "x.png", grey())
    with pytest.raises(InputError, match="has no sub-folders with pictures, and labels are the names of sub-folders"):
        load(tmp_path, labels=True)
    put(tmp_path / "cat" / "y.png", grey())
    with pytest.raises(InputError, match=r"and x\.png is not in one"):
        load(tmp_path, labels=True)


# Sizes


def test_the_middle_square_is_scaled(tmp_path):
    x = smooth(40, 100)
    put(tmp_path / "x.png", x)
    got = only(tmp_path, image_size=20).astype(int)
    blocks = x[:, 30:70].reshape(20, 2, 20, 2, 3).mean((1, 3))
    assert got.shape == (20, 20, 3) and np.abs(got - blocks)[1:-1, 1:-1].max() <= 3
    np.testing.assert_array_equal(only(tmp_path, image_size=40), x[:, 30:70])
    assert only(tmp_path, image_size=64, channels=1).shape == (64, 64, 1)


def test_a_large_jpeg_comes_out_like_its_png(tmp_path):
    x = smooth(900, 1300)
    put(tmp_path / "a.jpg", x, quality=95)
    put(tmp_path / "b.png", x)
    a, b = load(tmp_path, image_size=32).images.astype(int)
    assert np.abs(a - b).max() <= 4
    x = np.kron(RNG.integers(0, 2, (100, 100), dtype=np.uint8) * 255, np.ones((9, 9), np.uint8))
    put(tmp_path / "a.jpg", x, quality=95)
    put(tmp_path / "b.png", x)
    a, b = load(tmp_path, image_size=200).images.astype(int)
    assert np.abs(a - b).mean() < 4


def test_rotated_pictures_are_cropped_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    x = smooth(40, 100)
    Image.fromarray(np.ascontiguousarray(np.rot90(x))).save(tmp_path / "x.jpg", exif=exif, quality=98)
    got = only(tmp_path, image_size=40).astype(int)
    assert np.abs(got - x[:, 30:70]).mean() < 3


def test_differing_sizes_need_an_image_size(tmp_path):
    put(tmp_path / "a.png", grey(8, 8))
    put(tmp_path / "b.png", grey(8, 8))
    put(tmp_path / "c.png", grey(6, 6))
    with pytest.raises(InputError, match=r"a\.png is 8x8 and c\.png is 6x6, so give image_size to"):
        load(tmp_path)
    put(tmp_path / "c.png", grey(6, 9))
    with pytest.raises(InputError, match=r"a\.png is 8x8 and c\.png is 9x6, so give image_size to"):
        load(tmp_path)
    assert load(tmp_path, image_size=6).images.shape == (3, 6, 6, 1)


def test_pictures_that_are_not_square_need_an_image_size(tmp_path):
    put(tmp_path / "a.png", grey(6, 9))
    with pytest.raises(InputError, match=r"a\.png is 9x6, not square, so give image_size to"):
        load(tmp_path)


# Pictures that cannot be read


def test_broken_pictures_are_named_skipped_and_counted(tmp_path):
    x = [put(tmp_path / f"{i}.png", grey()) for i in range(3)]
    (tmp_path / "0b.png").write_bytes(b"no picture")
    (tmp_path / "1b.jpg").write_bytes(b"")
    put(tmp_path / "2b.jpg", smooth())
    whole = (tmp_path / "2b.jpg").read_bytes()
    (tmp_path / "2b.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "3.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    os.symlink(tmp_path / "nowhere", tmp_path / "4.png")
    os.mkfifo(tmp_path / "5.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "6.tif")
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "7.tif")
    lines = []
    data = load(tmp_path, report=lines.append)
    np.testing.assert_array_equal(data.images[..., 0], x)
    assert [path for path, _ in data.skipped] == [
        "0b.png",
        "1b.jpg",
        "2b.jpg",
        "3.png",
        "4.png",
        "5.png",
        "6.tif",
        "7.tif",
    ]
    reasons = dict(data.skipped)
    assert [reasons[name] for name in ("0b.png", "1b.jpg")] == ["not a picture that Pillow can read", "an empty file"]
    assert "truncated" in reasons["2b.jpg"].lower() and reasons["4.png"] == "No such file or directory"
    assert reasons["5.png"] == "not a file" and "floating-point" in reasons["6.tif"] and "32 bits" in reasons["7.tif"]
    assert lines == [f"skipped {tmp_path / path}: {reason}" for path, reason in data.skipped]
    assert all("\n" not in line for line in lines)


def test_without_a_report_there_is_a_warning(tmp_path):
    put(tmp_path / "a.png", grey())
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"skipped .*b\.png: not a picture"):
        assert len(load(tmp_path)) == 1


def test_labels_stay_with_their_pictures_when_some_are_skipped(tmp_path):
    for i, name in enumerate(["a/1.png", "a/2.png", "b/1.png", "b/2.png"]):
        put(tmp_path / name, np.full((4, 4), i, np.uint8))
    (tmp_path / "a" / "1.png").write_bytes(b"no picture")
    (tmp_path / "b" / "1.png").write_bytes(b"no picture")
    data = load(tmp_path, labels=True, report=lambda line: None)
    assert data.images[:, 0, 0, 0].tolist() == [1, 3] and data.labels.tolist() == [0, 1]


def test_a_bomb_is_skipped(tmp_path, monkeypatch):
    put(tmp_path / "a.png", grey(2, 2))
    put(tmp_path / "b.png", grey(8, 8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    data = load(tmp_path, report=lambda line: None)
    assert [path for path, _ in data.skipped] == ["b.png"]


def test_nothing_left(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"its only picture cannot be read; a\.png: not a picture"):
        load(tmp_path, report=lambda line: None)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"none of its 2 pictures can be read; a\.png: not a picture") as caught:
        load(tmp_path, report=lambda line: None)
    assert str(tmp_path) in str(caught.value)


def test_no_pictures(tmp_path):
    (tmp_path / "README.txt").write_text("words")
    with pytest.raises(InputError, match="holds no pictures") as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_folders_that_cannot_be_read(tmp_path, monkeypatch):
    put(tmp_path / "a.png", grey())
    put(tmp_path / "closed" / "b.png", grey())
    scan = os.scandir

    def guarded(path):
        if os.path.basename(path) == closed:
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    closed = "closed"
    data = load(tmp_path, report=lambda line: None)
    assert len(data) == 1 and data.skipped == [("closed", "Permission denied")]
    closed = tmp_path.name
    with pytest.raises(InputError, match=f"{tmp_path.name} cannot be read: Permission denied"):
        load(tmp_path)
