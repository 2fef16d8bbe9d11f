"""IDX files written byte by byte here, whole and damaged."""

import gzip
import struct

import numpy as np
import pytest

from tinydiff.data import load, read_idx
from tinydiff.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 5, 4), dtype=np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 7


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def put(path, array, unpacked=None):
    content = idx(array) if unpacked is None else unpacked
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("images_name", ["train-images-idx3-ubyte", "train-images.idx3-ubyte"])
@pytest.mark.parametrize("labels_name", ["train-labels-idx1-ubyte", "train-labels.idx1-ubyte"])
@pytest.mark.parametrize("packed", [("", ""), (".gz", ".gz"), ("", ".gz"), (".gz", "")])
def test_every_spelling(tmp_path, images_name, labels_name, packed):
    path = put(tmp_path / (images_name + packed[0]), IMAGES)
    put(tmp_path / (labels_name + packed[1]), LABELS)
    for given in (path, tmp_path):
        data = load(given)
        np.testing.assert_array_equal(data.images, IMAGES[..., None])
        np.testing.assert_array_equal(data.labels, LABELS)
        assert data.num_classes == 7 and data.image_size == (5, 4) and data.source == str(given)
        assert load(given, labels=False).labels is None


def test_a_folder_with_both_sets_gives_the_training_set(tmp_path):
    put(tmp_path / "t10k-images-idx3-ubyte.gz", IMAGES[:3])
    put(tmp_path / "t10k-labels-idx1-ubyte.gz", LABELS[:3])
    put(tmp_path / "train-images-idx3-ubyte.gz", IMAGES[::-1])
    put(tmp_path / "train-labels-idx1-ubyte.gz", LABELS)
    put(tmp_path / "train-images-idx3-ubyte", IMAGES)  # unpacked beside its archive, as people leave it
    put(tmp_path / "._train-images-idx3-ubyte", None, b"resource fork")
    np.testing.assert_array_equal(load(tmp_path).images, IMAGES[..., None])
    assert len(load(tmp_path / "t10k-images-idx3-ubyte.gz")) == 3


def test_a_folder_with_several_sets_asks_which(tmp_path):
    for name in ("emnist-letters-train-images-idx3-ubyte", "emnist-digits-train-images-idx3-ubyte.gz"):
        put(tmp_path / name, IMAGES)
    with pytest.raises(InputError, match=r"give the path of one of emnist-digits-train.*, emnist-letters-train"):
        load(tmp_path)


def test_content_counts_where_the_name_says_nothing(tmp_path):
    for name in ("digits", "digits.dat", "digits.gz", "packed"):
        path = put(tmp_path / name, IMAGES)
        if name == "packed":
            path.write_bytes(gzip.compress(idx(IMAGES)))
        data = load(path)
        assert len(data) == 12 and data.labels is None
    unpacked = tmp_path / "train-images-idx3-ubyte.gz"
    unpacked.write_bytes(idx(IMAGES))  # named .gz, but unpacked by a browser
    assert len(load(unpacked)) == 12


def test_labels_demanded_but_missing(tmp_path):
    path = put(tmp_path / "train-images-idx3-ubyte", IMAGES)
    assert load(path).labels is None
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte has no labels in its folder"):
        load(path, labels=True)


def test_labels_that_do_not_match(tmp_path):
    path = put(tmp_path / "train-images-idx3-ubyte", IMAGES)
    put(tmp_path / "train-labels-idx1-ubyte", LABELS[:11])
    with pytest.raises(
        InputError, match=r"train-labels-idx1-ubyte holds 11 labels, but train-images.* holds 12 images"
    ):
        load(path)
    assert len(load(path, labels=False)) == 12


HEADER = struct.pack(">BBBB3I", 0, 0, 8, 3, 12, 5, 4)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is cut off: it has 0 bytes, fewer than the 4"),
        (b"\0\0\x08", "is cut off: it has 3 bytes"),
        (HEADER[:10], "is cut off: it has 10 bytes, less than its header of 16"),
        (HEADER + bytes(239), "is cut off: its header gives 12 x 5 x 4, which makes 256 bytes in all, but it has 255"),
        (HEADER, "makes 256 bytes in all, but it has 16"),
        (
            HEADER + bytes(241),
            "has bytes after its end: its header gives 12 x 5 x 4, .* 256 bytes in all, but it has 257",
        ),
        (b"\x89PNG" + bytes(252), "is not an IDX file: it begins with 0x89504e47, and images need 0x00000803"),
        (b"\0\0\x0d\x03" + bytes(252), "holds IDX data of type 0x0d, and only unsigned bytes, type 0x08"),
        (idx(LABELS), "has 1 dimension, it holds labels, and images need 0x00000803"),
        (b"\0\0\x08\x04" + bytes(252), "has 4 dimensions, and images need 0x00000803"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 0, 28, 28), "holds no images: its header gives 0 x 28 x 28"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3), "is cut off: .* 79228162458924105385300197391 bytes"),
    ],
)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_damaged_images(tmp_path, content, sentence, ending):
    path = put(tmp_path / f"train-images-idx3-ubyte{ending}", None, content)
    for given in (path, tmp_path):
        with pytest.raises(InputError, match=sentence) as caught:
            load(given)
        assert str(caught.value).startswith(f"{path} ")


def test_damaged_labels_name_the_labels(tmp_path):
    path = put(tmp_path / "train-images-idx3-ubyte", IMAGES)
    labels = put(tmp_path / "train-labels-idx1-ubyte", None, idx(LABELS)[:-1])
    with pytest.raises(InputError, match=r"which makes 20 bytes in all, but it has 19") as caught:
        load(path)
    assert str(caught.value).startswith(f"{labels} is cut off")
    put(labels, IMAGES)
    with pytest.raises(InputError, match="has 3 dimensions, it holds images, and labels need 0x00000801"):
        load(path)


def test_damaged_gzip(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = gzip.compress(idx(IMAGES))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    no_block = whole[:10] + b"\xff" + whole[11:]
    wrong_sum = bytearray(whole)
    wrong_sum[-6] ^= 1
    for content in (
        whole[:-1],
        whole[: len(whole) // 2],
        whole[:5],
        bytes(flipped),
        bytes(wrong_sum),
        no_block,
        whole + b"rest",
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match="gzip data is damaged") as caught:
            load(path)
        assert str(caught.value).startswith(f"{path} cannot be unpacked")
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(InputError, match=r"is named \.gz, but it is neither gzipped nor an IDX file \(16 bytes\)"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"neither gzipped nor an IDX file \(0 bytes\)"):
        load(path)


def test_a_folder_without_idx_files(tmp_path):
    with pytest.raises(InputError, match="holds no IDX images"):
        read_idx(tmp_path)
