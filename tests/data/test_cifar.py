"""CIFAR-10's binary version, written record by record here."""

import numpy as np
import pytest

from tinydiff.data import load, read_cifar
from tinydiff.errors import InputError

RNG = np.random.default_rng(0)
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write(path, n, label=None):
    """n records as the format has them: the label, then 1024 red, 1024 green and 1024 blue bytes by rows."""
    images, labels = RNG.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), RNG.integers(0, 10, n)
    if label is not None:
        labels[-1] = label
    with open(path, "wb") as file:
        for image, value in zip(images, labels, strict=True):
            file.write(bytes([value]))
            for channel in range(3):
                for row in range(32):
                    file.write(bytes(image[row, :, channel].tolist()))
    return images, labels


def test_a_folder(tmp_path):
    parts = [write(tmp_path / f"data_batch_{i}.bin", 3) for i in (1, 2, 3)]
    write(tmp_path / "test_batch.bin", 5)
    (tmp_path / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    (tmp_path / "readme.html").write_text("")
    data = load(tmp_path)
    np.testing.assert_array_equal(data.images, np.concatenate([images for images, _ in parts]))
    np.testing.assert_array_equal(data.labels, np.concatenate([labels for _, labels in parts]))
    assert data.class_names == NAMES and data.num_classes == 10 and data.images.flags.c_contiguous
    assert data.name == tmp_path.name
    assert load(tmp_path, labels=False).class_names is None
    assert load(tmp_path, image_size=16, channels=1).images.shape == (9, 16, 16, 1)


def test_a_single_file(tmp_path):
    images, labels = write(tmp_path / "test_batch.bin", 4)
    data = load(tmp_path / "test_batch.bin", labels=True)
    np.testing.assert_array_equal(data.images, images)
    np.testing.assert_array_equal(data.labels, labels)
    assert data.class_names is None and data.num_classes == 10
    (tmp_path / "batches.meta.txt").write_text("only\nthree\nnames")
    assert load(tmp_path / "test_batch.bin").class_names is None


@pytest.mark.parametrize("size", [0, 3072, 3074, 2 * 3073 - 1])
def test_sizes_that_are_no_records(tmp_path, size):
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(size))
    for given in (tmp_path, tmp_path / "data_batch_1.bin"):
        with pytest.raises(InputError, match=rf"data_batch_1\.bin has {size} bytes, not a multiple of 3073"):
            load(given)


def test_labels_above_nine(tmp_path):
    write(tmp_path / "data_batch_1.bin", 2)
    write(tmp_path / "data_batch_2.bin", 4, label=10)
    with pytest.raises(InputError, match=r"data_batch_2\.bin is not CIFAR-10: record 3 has label 10"):
        load(tmp_path)


def test_a_folder_without_batches(tmp_path):
    with pytest.raises(InputError, match=r"holds no data_batch_\*\.bin"):
        read_cifar(tmp_path)
