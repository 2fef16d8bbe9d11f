""".npy and .npz files, whole, wrong and damaged."""

import pickle

import numpy as np
import pytest

from tinydiff.data import load
from tinydiff.errors import InputError

RNG = np.random.default_rng(0)


def bytes_of(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(6, 4, 5), (6, 4, 5, 1), (6, 4, 5, 2), (6, 4, 5, 3), (6, 4, 5, 4)])
def test_npy_of_every_shape(tmp_path, shape):
    x = bytes_of(*shape)
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    data = load(tmp_path / "x.npy")
    np.testing.assert_array_equal(data.images, x.reshape(6, 4, 5, -1))
    assert data.images.flags.c_contiguous and data.labels is None and data.name == "x.npy"
    assert data.image_size == (4, 5)


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
        ({"data": np.zeros(4, np.float32)}, r"not float32 \(4,\).*np\.save\('new\.npy', x\.reshape"),
        ({"other": np.zeros(4)}, r"needs an array named images, .* other: float64 \(4,\)"),
        ({}, "holds no arrays"),
        ({"images": np.full((2, 4, 4), 300.0)}, r"floats lie in 300\.\.300, .*np\.save\('new\.npy', \(x - x\.min"),
        ({"images": bytes_of(4, 4)}, r"not uint8 \(4, 4\)"),
        ({"images": bytes_of(0, 4, 4)}, r"not uint8 \(0, 4, 4\)"),
        ({"images": bytes_of(2, 8, 8, 5)}, r"1 to 4 channels, not uint8 \(2, 8, 8, 5\).*x\[\.\.\., :3\]"),
        ({"images": bytes_of(2, 4, 4), "labels": np.zeros(3, int)}, r"integers \(2,\).* not int64 \(3,\)"),
        ({"images": bytes_of(2, 4, 4), "labels": np.zeros((2, 2), int)}, r"not int64 \(2, 2\)"),
        ({"images": bytes_of(2, 4, 4), "labels": np.array([0.0, 1.5])}, r"not float64 \(2,\)"),
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


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test"), ("train_images", "train_labels", "val_images"), ("X", "y", "Z"),
        ("images", "y_train", "y_test"), ("data", "target", "feature_names"), ("image", "label", "id"),
    ],
)  # fmt: skip
def test_labels_of_every_name_are_kept_and_what_is_left_out_is_told(tmp_path, names):
    x, y = bytes_of(6, 6, 4), np.array([[0], [1], [2], [0], [1], [3]], np.uint8)
    np.savez(tmp_path / "x.npz", **{names[2]: np.zeros((2, 6, 4), np.uint8), names[0]: x, names[1]: y})
    data = load(tmp_path / "x.npz")
    np.testing.assert_array_equal(data.images, x[..., None])  # six labels: six grey pictures 6x4, not one RGBA
    assert data.labels.tolist() == y[:, 0].tolist() and data.num_classes == 4
    assert f"labels are those in {names[1]}" in data.notes and f"not used: {names[2]}: uint8 (2, 6, 4)" in data.notes
    assert load(tmp_path / "x.npz", labels=False).labels is None


@pytest.mark.parametrize("names", [("class_ids", "class_names"), ("labels", "classes"), ("img_lbl", "names")])
def test_names_of_classes_and_labels_that_are_only_nearly_called_so(tmp_path, names):
    texts = np.array(["cat", "dog", "owl"])
    arrays = {
        "images": bytes_of(4, 5, 5),
        names[0]: np.array([2, 0, 1, 0]),
        names[1]: texts,
        "test_label": np.arange(4),
    }
    np.savez(tmp_path / "x.npz", **arrays)
    data = load(tmp_path / "x.npz")
    assert data.labels.tolist() == [2, 0, 1, 0] and data.class_names == texts.tolist()
    assert f"the classes' names are those in {names[1]}" in data.notes
    np.savez(tmp_path / "x.npz", **arrays | {names[1]: texts[:2]})
    assert load(tmp_path / "x.npz").class_names is None


def test_fields_are_named(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3, [("image", "u1", (8, 8)), ("label", "i4")]))
    with pytest.raises(InputError, match=r"has fields; .*image=x\['image'\], label=x\['label'\]"):
        load(tmp_path / "x.npy")


def test_labels_by_position(tmp_path):
    x = bytes_of(3, 5, 5)
    np.savez(tmp_path / "x.npz", x, np.array([2, 0, 1]))
    assert load(tmp_path / "x.npz").labels.tolist() == [2, 0, 1]


def test_several_arrays_of_one_picture_each(tmp_path):
    some = [bytes_of(6, 6, 3) for _ in range(3)]
    np.savez(tmp_path / "a.npz", *some)
    np.testing.assert_array_equal(load(tmp_path / "a.npz").images, np.stack(some))
    np.savez(tmp_path / "b.npz", **{"cat": some[0], "dog": some[1], "y": np.array([5, 6])})
    data = load(tmp_path / "b.npz")
    np.testing.assert_array_equal(data.images, np.stack(some[:2]))
    assert data.labels.tolist() == [0, 1] and data.class_names == ["5", "6"]
    assert "2 arrays are read as a picture each" in data.notes
    np.savez(tmp_path / "c.npz", a=some[0], b=bytes_of(9, 7, 4), c=bytes_of(6, 6, 1))
    with pytest.raises(InputError, match=r"c\.npz holds pictures of several sizes, as 6x6, 9x7, so give image_size"):
        load(tmp_path / "c.npz")
    assert load(tmp_path / "c.npz", image_size=6).images.shape == (3, 6, 6, 3)


def test_what_was_decided_stays_with_the_training_images(tmp_path):
    np.save(tmp_path / "x.npy", np.linspace(0, 1, 10 * 25).reshape(10, 5, 5))
    data = load(tmp_path / "x.npy", holdout=0.2)
    assert data.notes == ["float64 values are read as [0, 1], since none is negative or above 1"]
    assert data.images.min() == 0 or data.held_out.images.min() == 0
