"""Nearest training images: planted ones are found, and all are those of the definition."""

import numpy as np
import pytest

from tinydiff.evaluation.neighbours import memorised, nearest


def test_planted_neighbours_are_found(monkeypatch, pictures):
    monkeypatch.setattr("tinydiff.evaluation.neighbours._AT_ONCE", 7)  # so that the search crosses its pieces
    training = pictures(30, 1, channels=3)
    images = training[[22, 3, 14]].copy()
    images[1, 0, 0, 0] ^= 64  # one byte off by 64
    images[2] = images[2, :, ::-1]
    found = nearest(images, training, k=2)
    assert found.index[0, 0] == 22 and found.distance[0, 0] == 0
    assert found.index[1, 0] == 3 and found.distance[1, 0] == pytest.approx(64 / np.sqrt(8 * 8 * 3))
    assert found.distance[2, 0] > 50 and not found.mirrored.any()
    found = nearest(images, training, k=2, flip=True)
    assert found.index[:, 0].tolist() == [22, 3, 14] and found.distance[2, 0] == 0
    assert found.mirrored[:, 0].tolist() == [False, False, True]


@pytest.mark.parametrize("flip", [False, True])
def test_neighbours_are_those_of_the_definition(flip, pictures):
    images, training = pictures(5, 1), pictures(20, 2)
    training[10:] //= 2  # nearer to zero, so that lengths matter
    training[7] = training[7, :, ::-1] // 2 + training[7] // 2  # symmetric: it and its mirror image count once
    both = np.stack([training, training[:, :, ::-1]] if flip else [training]).astype(float)
    distance = np.sqrt(((images[None, :, None] - both[:, None]) ** 2).mean((3, 4, 5))).min(0)
    found = nearest(images, training, 20, flip)
    np.testing.assert_allclose(found.distance, np.sort(distance, 1), rtol=1e-12)
    np.testing.assert_array_equal(found.index, np.argsort(distance, 1))
    np.testing.assert_array_equal(nearest(images, training, 3, flip).index, found.index[:, :3])
    assert nearest(images, training, 50).index.shape == (5, 20)


def test_neighbours_of_different_sizes_are_refused(pictures):
    with pytest.raises(ValueError, match=r"\(2, 8, 8, 1\).*\(2, 9, 9, 1\)"):
        nearest(pictures(2), pictures(2, size=9))


def test_the_share_that_is_nearer_than_unseen_images_are():
    unseen = np.linspace(0, 10, 101)  # a twentieth of them is nearer than 0.5
    assert memorised(np.array([0.1, 0.4, 0.55, 0.6]), unseen) == 0.5
    assert memorised(unseen + 1, unseen) == 0
