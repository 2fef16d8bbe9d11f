"""Data sets as they come: in folders of others, beside what is no data, in versions that are not read."""

import pickle

import numpy as np
import pytest
from PIL import Image

from tests.data.test_cifar import write
from tests.data.test_idx import IMAGES, put
from tinydiff.data import load
from tinydiff.errors import InputError


def save(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)


@pytest.mark.parametrize("place", ["raw", "MNIST/raw"])
def test_mnist_in_torchvisions_folders(tmp_path, place):
    folder = tmp_path / place
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        put(folder / f"{part}-images-idx3-ubyte", IMAGES)
        put(folder / f"{part}-labels-idx1-ubyte", np.arange(12, dtype=np.uint8))
    data = load(tmp_path)
    assert data.num_classes == 12 and data.notes == [f"found in {place}"] and data.source == str(tmp_path)
    save(tmp_path / "a.png")
    assert len(load(tmp_path)) == 1  # a folder of pictures is one


def test_mnist_with_a_folder_for_each_file(tmp_path):
    for part, count in (("t10k", 12), ("train", 12)):
        for kind, content in (("images-idx3", IMAGES), ("labels-idx1", np.arange(count, dtype=np.uint8))):
            folder = tmp_path / f"{part}-{kind}-ubyte"
            folder.mkdir()
            put(folder / f"{part}-{kind}-ubyte", content)
    data = load(tmp_path)
    assert data.num_classes == 12 and data.notes == ["found in train-images-idx3-ubyte"]
    (tmp_path / "train-labels-idx1-ubyte/train-labels-idx1-ubyte").unlink()
    assert load(tmp_path).notes[1] == "there are no labels: no train-labels-idx1-ubyte is in its folder"


def test_several_sets_below_are_named(tmp_path):
    for name in ("FashionMNIST/raw", "MNIST/raw"):
        (tmp_path / name).mkdir(parents=True)
        put(tmp_path / name / "train-images-idx3-ubyte.gz", IMAGES)
    with pytest.raises(InputError, match="several data sets, so give the path of one of FashionMNIST/raw, MNIST/raw"):
        load(tmp_path)


def test_cifar_in_its_folders(tmp_path):
    for version in ("py", "bin"):
        (tmp_path / f"cifar-10-batches-{version}").mkdir()
    for name in ("data_batch_1", "batches.meta"):
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps({}))
    for given in (tmp_path, tmp_path / "cifar-10-batches-py", tmp_path / "cifar-10-batches-py" / "data_batch_1"):
        with pytest.raises(InputError, match=r"CIFAR-10 as Python pickles, .* cifar-10-binary\.tar\.gz"):
            load(given)
    images, _ = write(tmp_path / "cifar-10-batches-bin" / "data_batch_1.bin", 2)
    np.testing.assert_array_equal(load(tmp_path).images, images)


def test_cifar_100(tmp_path):
    records = np.random.default_rng(0).integers(0, 20, (3, 3074), dtype=np.uint8)
    records[:, 1] = 99, 7, 20
    records.tofile(tmp_path / "train.bin")
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"class {i}" for i in range(100)))
    for given in (tmp_path, tmp_path / "train.bin"):
        data = load(given)
        assert data.labels.tolist() == [99, 7, 20] and data.class_names[7] == "class 7" and data.num_classes == 100
        np.testing.assert_array_equal(data.images[1, 0, 0], records[1, 2::1024])
        assert "20 coarse ones are not used" in data.notes[0]
    for name in ("train", "meta"):
        (tmp_path / "py").mkdir(exist_ok=True)
        (tmp_path / "py" / name).write_bytes(pickle.dumps({}))
    with pytest.raises(InputError, match=r"CIFAR-100 as Python pickles, .* cifar-100-binary\.tar\.gz"):
        load(tmp_path / "py")


def test_emnist(tmp_path):
    put(tmp_path / "emnist-letters-train-images-idx3-ubyte", IMAGES)
    put(tmp_path / "emnist-letters-train-labels-idx1-ubyte", np.arange(1, 13, dtype=np.uint8))
    data = load(tmp_path)
    assert data.labels.tolist() == list(range(12)) and data.class_names[0] == "1" and data.num_classes == 12
    assert "rows and columns exchanged" in data.notes[0] and "labels 1..12 are 12 classes" in data.notes[1]


def test_files_that_have_to_be_given_by_their_own_path(tmp_path):
    np.savez(tmp_path / "mnist.npz", images=IMAGES)
    with pytest.raises(InputError, match=r"can be given by their own path: mnist\.npz"):
        load(tmp_path)


def test_what_systems_put_beside_pictures_is_no_data(tmp_path):
    for place in ("@eaDir", ".thumbnails", "__MACOSX", "sub/@eaDir", "#recycle", ".hidden/deep"):
        save(tmp_path / place / "x.png")
    save(tmp_path / "a" / "x.png")
    data = load(tmp_path, labels=True)
    assert len(data) == 1 and data.class_names == ["a"]


def test_pictures_of_other_kinds_are_named_and_counted(tmp_path):
    for name in ("a.heic", "b.HEIC", "sub/c.svg", "d.txt", "e.psd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        InputError, match=r"holds no pictures: .*ignored: 2 \.heic files, 1 \.psd file, 1 \.svg file; save"
    ):
        load(tmp_path)
    save(tmp_path / "x.png")
    [note] = load(tmp_path).notes
    assert note.startswith("ignored: 2 .heic files, 1 .psd file, 1 .svg file;")


def test_numbers_as_class_names_are_in_their_order(tmp_path):
    for name in ("10", "9", "1", "02"):
        save(tmp_path / name / "x.png", int(name))
    data = load(tmp_path, labels=True)
    assert data.class_names == ["1", "02", "9", "10"]
    assert [data.class_names[label] for label in data.labels] == [
        f"{v:02}" if v == 2 else str(v) for v in data.images[:, 0, 0, 0]
    ]
    save(tmp_path / "cat" / "x.png")
    assert load(tmp_path, labels=True).class_names == ["02", "1", "10", "9", "cat"]


def test_archives_are_named_by_what_they_hold(tmp_path):
    for name in ("cifar-100-python.tar.gz", "pictures.7z"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"CIFAR-100 as Python pickles, .* cifar-100-binary\.tar\.gz"):
        load(tmp_path / "cifar-100-python.tar.gz")
    with pytest.raises(
        InputError, match=r"pictures\.7z is an archive of a kind that is not read; unpack it and give the folder$"
    ):
        load(tmp_path / "pictures.7z")
    with pytest.raises(InputError, match=r"own path: cifar-100-python\.tar\.gz, pictures\.7z"):
        load(tmp_path)
