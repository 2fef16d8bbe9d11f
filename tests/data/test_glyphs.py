"""The built-in digits: repeatable, balanced, legible, whole."""

import numpy as np
import pytest
from PIL import Image

from tinydiff.data import load
from tinydiff.data.glyphs import COUNT, draw_glyphs
from tinydiff.errors import InputError


@pytest.fixture(scope="module")
def digits():
    return draw_glyphs(2000)


def test_they_are_grey_labelled_and_balanced(digits):
    assert digits.images.shape == (2000, 28, 28, 1) and digits.images.dtype == np.uint8
    assert digits.class_names == list("0123456789") and digits.num_classes == 10
    assert (np.bincount(digits.labels) == 200).all()
    assert digits.name == digits.source == "glyphs"


def test_the_seed_decides(digits):
    again, other = draw_glyphs(300), draw_glyphs(300, seed=1)
    np.testing.assert_array_equal(again.images, digits.images[:300])
    np.testing.assert_array_equal(again.labels, digits.labels[:300])
    assert all((a != b).any() for a, b in zip(other.images, again.images, strict=True))


def test_no_two_are_alike(digits):
    assert len({image.tobytes() for image in digits.images}) == len(digits)


def test_they_are_whole_white_on_black_and_antialiased(digits):
    x = digits.images[..., 0]
    assert x[:, 0].max() == x[:, -1].max() == x[:, :, 0].max() == x[:, :, -1].max() == 0  # nothing touches the edge
    assert (x.reshape(len(x), -1).max(1) > 200).all()
    ink = (x > 127).mean((1, 2))
    assert ink.min() > 0.02 and ink.max() < 0.4 and ink.std() > 0.03  # strokes from light to black
    between = ((x > 16) & (x < 240)).sum((1, 2))
    assert (between > 15).all()


def cut_out(image):
    """The digit without its surroundings, at one size."""
    rows, columns = np.nonzero(image > 100)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return np.asarray(Image.fromarray(image).resize((12, 16), Image.Resampling.BICUBIC, box)).ravel() / 255


def test_they_are_unmistakable(digits):
    """The nearest neighbour in the first half must name nearly every digit of the second; 1 and 7 are the hardest."""
    x = np.array([cut_out(image[..., 0]) for image in digits.images])
    known, asked = x[:1000], x[1000:]
    distance = (asked**2).sum(1)[:, None] - 2 * asked @ known.T + (known**2).sum(1)
    named = digits.labels[distance.argmin(1)]
    right = named == digits.labels[1000:]
    assert right.mean() > 0.985
    assert all(right[digits.labels[1000:] == digit].mean() >= 0.95 for digit in range(10))


def test_they_vary(digits):
    """Within a digit: place, size and stroke weight, each over a range of pixels."""
    rows, columns = np.mgrid[:28, :28]
    for digit in range(10):
        x = digits.images[digits.labels == digit, :, :, 0].astype(float)
        mass = x.sum((1, 2))
        assert ((x * columns).sum((1, 2)) / mass).std() > 0.7
        assert ((x * rows).sum((1, 2)) / mass).std() > 0.7
        height = (x.max(2) > 127).sum(1)
        assert np.ptp(height) >= 5
        assert mass.max() > 2.5 * mass.min()


@pytest.mark.parametrize("size", [8, 27, 32, 64, 256])
def test_any_size(size):
    data = draw_glyphs(10, image_size=size)
    assert data.images.shape == (10, size, size, 1)
    small, large = draw_glyphs(10).images, data.images
    assert abs(small.mean() / large.mean() - 1) < 0.15  # the same digits, larger


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"image_size": 7}, "from 8 to 256 pixels, not 7"), ({"image_size": 257}, "not 257"), ({"count": 0}, "not 0")],
)
def test_wrong_sizes_are_refused(options, sentence):
    with pytest.raises(InputError, match=f"glyphs .*{sentence}"):
        draw_glyphs(**options)


def test_the_whole_set_loads():
    data = load("glyphs", seed=3, channels=3, labels=False, flip=True, holdout=0.1)
    assert data.images.shape == (COUNT - COUNT // 10, 28, 28, 3) and len(data.held_out) == COUNT // 10
    assert data.labels is None and data.num_classes is None and data.flip and data.source == "glyphs"
    np.testing.assert_array_equal(data.images[..., 0], data.images[..., 2])
