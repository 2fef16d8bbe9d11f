""".npy and .npz files, whole, wrong and damaged."""

import pickle

import numpy as np
import pytest

from tinydiff.data import load
from tinydiff.errors import InputError

RNG = np.random.default_rng(0)


def bytes_of(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 4, 1), (6, 5, 4, 2), (6, 5, 4, 3), (6, 5, 4, 4)])
def test_npy_of_every_shape(tmp_path, shape):
    x = bytes_of(*shape)
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    data = load(tmp_path / "x.npy")
    np.testing.assert_array_equal(data.images, x.reshape(6, 5, 4, -1))
    assert data.images.flags.c_contiguous and data.labels is None and data.name == "x.npy"
    assert data.image_size == (5, 4)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_labels(tmp_path, save):
    x, labels = bytes_of(6, 4, 4, 3), np.array([0, 3, 1, 1, 0, 2], ">i2")
    save(tmp_path / "x.npz", labels=labels, images=x, other=np.zeros(3))
    data = load(tmp_path / "x.npz", labels=True)
    np.testing.assert_array_equal(data.images, x)
    np.testing.assert_array_equal(data.labels, labels)
    assert data.labels.dtype == np.dtype("int64") and data.num_classes == 4
    assert load(tmp_path / "x.npz", labels=False).labels is None
    np.savez(tmp_path / "x.npz", images=x, labels=np.zeros(3))
    assert load(tmp_path / "x.npz", labels=False).labels is None  # wrong ones do not matter then


def test_which_array_of_an_npz(tmp_path):
    x, y = bytes_of(2, 4, 4), bytes_of(3, 4, 4, 3)
    np.savez(tmp_path / "a.npz", x, y)
    assert load(tmp_path / "a.npz").images.shape == (2, 4, 4, 1)
    np.savez(tmp_path / "b.npz", pictures=y, mean=np.zeros((4, 4, 3)), ids=np.arange(3, dtype=np.uint8))
    assert load(tmp_path / "b.npz").images.shape == (3, 4, 4, 3)
    np.savez(tmp_path / "c.npz", arr_0=x, images=y)
    assert load(tmp_path / "c.npz").images.shape == (3, 4, 4, 3)
    np.save(tmp_path / "d.npy", x)
    (tmp_path / "d.npy").rename(tmp_path / "d.npz")  # what it holds counts, not what it is called
    assert len(load(tmp_path / "d.npz")) == 2


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"train": bytes_of(2, 4, 4), "test": bytes_of(1, 4, 4)}, r"train: uint8 \(2, 4, 4\), test: uint8 \(1, 4, 4\)"),
        ({"data": np.zeros((2, 4, 4), np.float32)}, r"needs an array named images, .* data: float32 \(2, 4, 4\)"),
        ({}, "holds no arrays"),
        ({"images": np.zeros((2, 4, 4), np.float32)}, r"must hold images as uint8 .* not float32 \(2, 4, 4\)"),
        ({"images": bytes_of(4, 4)}, r"not uint8 \(4, 4\)"),
        ({"images": bytes_of(0, 4, 4)}, r"not uint8 \(0, 4, 4\)"),
        ({"images": bytes_of(2, 3, 8, 8)}, r"1 to 4 channels, not \(2, 3, 8, 8\), the channels must come last"),
        ({"images": bytes_of(2, 8, 8, 5)}, r"1 to 4 channels, not \(2, 8, 8, 5\)$"),
        ({"images": bytes_of(2, 4, 4), "labels": np.zeros(3, int)}, r"integers \(2,\).* not int64 \(3,\)"),
        ({"images": bytes_of(2, 4, 4), "labels": np.zeros((2, 1), int)}, r"not int64 \(2, 1\)"),
        ({"images": bytes_of(2, 4, 4), "labels": np.array([0.0, 1.0])}, r"not float64 \(2,\)"),
        ({"images": bytes_of(2, 4, 4), "labels": np.array([3, -1])}, r"in 0\.\.3, but that of image 1 is -1"),
    ],
)
def test_wrong_arrays(tmp_path, arrays, sentence):
    path = tmp_path / "x.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=sentence) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))


def test_labels_demanded_but_missing(tmp_path):
    np.save(tmp_path / "x.npy", bytes_of(2, 4, 4))
    with pytest.raises(InputError, match=r"x\.npy holds no array named labels, only images: uint8 \(2, 4, 4\)"):
        load(tmp_path / "x.npy", labels=True)


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    (tmp_path / "p.npy").write_bytes(pickle.dumps(Trap()))
    np.save(tmp_path / "o.npy", np.array([Trap()], object), allow_pickle=True)
    np.savez(tmp_path / "o.npz", images=np.array([Trap()], object))
    for name in ("p.npy", "o.npy", "o.npz"):
        with pytest.raises(InputError, match=f"{name} cannot be read as a NumPy file"):
            load(tmp_path / name)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_damaged_files(tmp_path, name):
    path = tmp_path / name
    x = bytes_of(9, 16, 16)
    if name == "x.npy":
        np.save(path, x)
    else:
        np.savez(path, images=x)
    whole = path.read_bytes()
    for length in (0, 3, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError) as caught:
            load(path)
        assert str(caught.value).startswith(f"{path} cannot be read") and "\n" not in str(caught.value)
    if name == "x.npz":
        path.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
        with pytest.raises(InputError, match="CRC"):
            load(path)
    path.write_bytes(b"not NumPy's at all")
    with pytest.raises(InputError, match="cannot be read as a NumPy file"):
        load(path)
