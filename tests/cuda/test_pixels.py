"""tinydiff/cuda/pixels.py: a batch has the bits of its definition."""

import numpy as np
import pytest

from tinydiff.cuda import pixels
from tinydiff.data.pixels import gather_batch


@pytest.mark.parametrize("shape", [(300, 2, 2, 1), (4, 5, 7, 3), (3, 1, 1, 2), (2, 8, 8, 4)], ids=str)
@pytest.mark.parametrize("flags", [np.bool_, np.uint8, None])
def test_a_batch_is_its_definition(shape, flags, device, rng):
    images = rng.integers(0, 256, shape).astype(np.uint8)
    indices = rng.integers(0, len(images), 200)
    mirrored = None if flags is None else rng.integers(0, 2, 200).astype(flags)
    expected = gather_batch.definition(images, indices, None if mirrored is None else mirrored == 1)
    np.testing.assert_array_equal(device.run(pixels.gather_batch, images, indices, mirrored), expected)


def test_every_byte_and_no_image(device):
    images = np.arange(256, dtype=np.uint8).reshape(16, 4, 4, 1)
    whole = device.run(pixels.gather_batch, images, np.arange(16))
    np.testing.assert_array_equal(whole, gather_batch.definition(images, np.arange(16)))
    assert device.run(pixels.gather_batch, images, np.arange(0)).shape == (0, 4, 4, 1)


def test_what_is_left_to_the_definition(device):
    images, indices = np.zeros((3, 2, 2, 1), np.uint8), np.zeros(2, np.int64)
    assert device.run(pixels.gather_batch, images.astype(np.float32), indices) is NotImplemented
    assert device.run(pixels.gather_batch, images, indices.astype(np.int32)) is NotImplemented
