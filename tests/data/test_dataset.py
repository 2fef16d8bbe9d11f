"""The chain of batches, flips and the held-out share, against their definitions."""

import numpy as np
import pytest

from tinydiff.data import Dataset
from tinydiff.data.pixels import to_bytes, to_float
from tinydiff.errors import InputError
from tinydiff.random import DATA_ORDER, Generator


def numbered(n, labels=True, **options):
    """Image i is i everywhere in its left column and 255 - i elsewhere, and has label i."""
    images = np.empty((n, 2, 3, 1), np.uint8)
    images[:] = 255 - np.arange(n).reshape(-1, 1, 1, 1)
    images[:, :, 0] = np.arange(n).reshape(-1, 1, 1)
    return Dataset(images, np.arange(n) if labels else None, **options)


def chain(data, batch_size, steps, seed=0):
    """The labels of batches 1..steps, one after the other."""
    return np.concatenate([data.batch(k, batch_size, Generator(seed))[1] for k in range(1, steps + 1)])


def test_what_a_dataset_knows_of_itself():
    data = Dataset(np.zeros((5, 8, 6, 3), np.uint8), [0, 2, 1, 1, 0], ["a", "b", "c", "d"], name="things")
    assert (len(data), data.image_size, data.channels, data.num_classes) == (5, (8, 6), 3, 4)
    assert data.labels.dtype == np.int64 and data.class_names == ["a", "b", "c", "d"]
    assert data.skipped == [] and data.held_out is None and data.flip is False
    assert repr(data) == "Dataset('things', 5 images 8x6x3, 4 classes)"
    assert Dataset(data.images, np.uint8([0, 0, 6, 1, 2])).num_classes == 7
    plain = Dataset(data.images.transpose(0, 2, 1, 3), None, ["a"])
    assert (plain.labels, plain.num_classes, plain.class_names) == (None, None, None)
    assert plain.images.flags.c_contiguous and plain.image_size == (6, 8)


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (np.zeros((2, 4, 4, 1), np.float32), None, r"must be uint8 .* not float32 \(2, 4, 4, 1\)"),
        (np.zeros((2, 4, 4), np.uint8), None, r"not uint8 \(2, 4, 4\)"),
        (np.zeros((0, 4, 4, 1), np.uint8), None, r"all at least 1"),
        (np.zeros((2, 4, 4, 5), np.uint8), None, r"C at most 4"),
        (np.zeros((2, 4, 4, 1), np.uint8), [0], r"integers \(2,\), one for each image, not int64 \(1,\)"),
        (np.zeros((2, 4, 4, 1), np.uint8), [0.0, 1.0], r"not float64 \(2,\)"),
        (np.zeros((2, 4, 4, 1), np.uint8), [0, -1], r"labels must be in 0\.\.0, but that of image 1 is -1"),
        (np.zeros((2, 4, 4, 1), np.uint8), [-5, -1], r"that of image 0 is -5"),
        (np.zeros((2, 4, 4, 1), np.uint8), [0, 10**9], r"in 0\.\.65535, but that of image 1 is 1000000000"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.array([1, 2**64 - 1], np.uint64), r"is 18446744073709551615"),
    ],
)
def test_wrong_arrays_are_refused_by_source(images, labels, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        Dataset(images, labels, source="some/file")
    assert str(caught.value).startswith("some/file: ")


def test_labels_must_have_names():
    with pytest.raises(InputError, match=r"0\.\.1, but that of image 2 is 2"):
        Dataset(np.zeros((3, 4, 4, 1), np.uint8), [0, 1, 2], ["a", "b"])
    with pytest.raises(InputError, match=r"0\.\.1, but that of image 2 is 2"):
        Dataset(np.zeros((3, 4, 4, 1), np.uint8), [0, 1, 2], num_classes=2)


def test_batches_hold_images_with_their_labels():
    data = numbered(50)
    x, labels = data.batch(3, 16, Generator(5))
    assert x.dtype == np.float32 and x.shape == (16, 2, 3, 1) and labels.dtype == np.int64
    np.testing.assert_array_equal(x, to_float(data.images[labels]))
    np.testing.assert_array_equal(to_bytes(x)[:, 0, 0, 0], labels)
    x, labels = numbered(50, labels=False).batch(3, 16, Generator(5))
    assert labels is None
    np.testing.assert_array_equal(data.images_at([4, 4, 9]), to_float(data.images[[4, 4, 9]]))


@pytest.mark.parametrize(("n", "batch_size"), [(10, 1), (10, 5), (10, 4), (7, 16), (3, 100), (1, 4), (64, 64), (5, 7)])
def test_the_chain_is_made_of_whole_epochs(n, batch_size):
    epochs = 6
    steps = -(-epochs * n // batch_size)
    got = chain(numbered(n), batch_size, steps, seed=11)
    assert len(got) == steps * batch_size  # every batch is full
    orders = [Generator(11).at(DATA_ORDER, e).permutation(n) for e in range(steps * batch_size // n + 1)]
    np.testing.assert_array_equal(got, np.concatenate(orders)[: len(got)])
    for epoch in range(epochs):
        assert sorted(got[epoch * n : (epoch + 1) * n]) == list(range(n))
    if n > 4:
        assert any(orders[0] != orders[1])


def test_a_batch_does_not_depend_on_what_came_before():
    data, used = numbered(30, flip=True), Generator(3)
    expected = [data.batch(k, 8, Generator(3)) for k in range(1, 13)]
    used.normal(99)
    for k in (12, 1, 7, 7, 2, 11):
        x, labels = numbered(30, flip=True).batch(k, 8, used)
        np.testing.assert_array_equal(x, expected[k - 1][0])
        np.testing.assert_array_equal(labels, expected[k - 1][1])
    for k in (12, 1, 7, 7, 2, 11):  # nor does one from a dataset that another seed has used meanwhile
        data.batch(k, 8, Generator(4))
        np.testing.assert_array_equal(data.batch(k, 8, used)[1], expected[k - 1][1])
    assert used.state == (3, 0, 0, 25)  # nothing is drawn from the generator itself


def test_seeds_differ():
    assert any(chain(numbered(50), 10, 5, seed=0) != chain(numbered(50), 10, 5, seed=1))


def test_flips_mirror_about_half_and_nothing_else():
    plain, flipped = numbered(40), numbered(40, flip=True)
    mirrored = []
    for k in range(1, 101):
        (x, labels), (y, same) = plain.batch(k, 20, Generator(0)), flipped.batch(k, 20, Generator(0))
        np.testing.assert_array_equal(labels, same)
        for a, b in zip(x, y, strict=True):
            mirrored.append(not np.array_equal(a, b))
            np.testing.assert_array_equal(b, a[:, ::-1] if mirrored[-1] else a)
    assert abs(np.mean(mirrored) - 0.5) < 4 * 0.5 / np.sqrt(len(mirrored))
    assert len({tuple(mirrored[i : i + 20]) for i in range(0, 2000, 20)}) == 100  # each step flips others
    np.testing.assert_array_equal(flipped.images, plain.images)  # the data itself stays


def test_a_batch_is_a_copy():
    data = numbered(4)
    data.batch(1, 4, Generator(0))[0][:] = 0
    data.images_at([0])[:] = 0
    np.testing.assert_array_equal(data.images, numbered(4).images)


@pytest.mark.parametrize("arguments", [(0, 4), (-1, 4), (1, 0)])
def test_steps_and_sizes_begin_at_one(arguments):
    with pytest.raises(ValueError, match="from 1 on"):
        numbered(4).batch(*arguments, Generator(0))


@pytest.mark.parametrize(
    ("n", "fraction", "count"), [(100, 0.1, 10), (10, 0.25, 2), (2, 0.5, 1), (200, 0.999, 199 + 1)]
)
def test_held_out_images_are_held_out(n, fraction, count):
    data = numbered(n, flip=True, class_names=[str(i) for i in range(n)], skipped=[("x.png", "broken")])
    if count == n:
        with pytest.raises(InputError, match=f"of {n} images leaves 0 to train on and {n} held out"):
            data.hold_out(fraction, Generator(0))
        return
    part = data.hold_out(fraction, Generator(0))
    assert (len(part), len(part.held_out)) == (n - count, count)
    assert sorted([*part.labels, *part.held_out.labels]) == list(range(n))
    for piece in (part, part.held_out):
        np.testing.assert_array_equal(piece.images, data.images[piece.labels])
        assert piece.num_classes == n and piece.class_names == data.class_names
        assert (np.diff(piece.labels) > 0).all()
    assert part.flip and not part.held_out.flip
    assert part.skipped == data.skipped and part.held_out.skipped == [] and part.held_out.held_out is None
    seen = set(chain(part, 8, 3 * n // 8 + 1))
    assert seen == set(part.labels)  # training never meets the others
    np.testing.assert_array_equal(data.hold_out(fraction, Generator(0)).labels, part.labels)
    if n == 100:
        assert set(data.hold_out(fraction, Generator(1)).held_out.labels) != set(part.held_out.labels)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_shares_outside_the_range_are_refused(fraction):
    with pytest.raises(InputError, match="at least 0 and less than 1, not"):
        numbered(10).hold_out(fraction, Generator(0))


def test_holding_out_nothing_and_too_little():
    assert numbered(10).hold_out(0.0, Generator(0)).held_out is None
    with pytest.raises(InputError, match=r"somewhere: holding out 0\.01 of 10 images leaves 10 to train on and 0 held"):
        numbered(10, source="somewhere").hold_out(0.01, Generator(0))
    with pytest.raises(InputError, match="of 1 image leaves"):
        numbered(1).hold_out(0.5, Generator(0))
