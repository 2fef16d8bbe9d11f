"""Nearest training images: does a model draw something new, or copies of what it was trained on?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MEMORISED = 0.05  # the share of unseen images that counts as near to a training image
_AT_ONCE = 2048  # training images compared at a time


@dataclass(frozen=True)
class Neighbours:
    """The k nearest training images of N images, nearest first.

    index     (N, k)  which training image, int64
    distance  (N, k)  root mean square difference of the bytes, 0..255, float64
    mirrored  (N, k)  whether the training image is nearer when mirrored
    """

    index: np.ndarray
    distance: np.ndarray
    mirrored: np.ndarray


def memorised(distances: np.ndarray, unseen: np.ndarray) -> float:
    """The share of samples that are nearer to a training image than MEMORISED of the images that the model has not seen.

    distances (N,): of the samples to their nearest training images; unseen (M,): of those images.
    """
    return float((distances < np.quantile(unseen, MEMORISED)).mean())


def nearest(images: np.ndarray, training: np.ndarray, k: int = 1, flip: bool = False) -> Neighbours:
    """The nearest of training images (M, H, W, C) for each of images (N, H, W, C), all uint8; k is at most M.

    flip: mirrored training images count as well. The search is in float32, by |a|^2 - 2 a.b + |b|^2; the distances of
    those found, and their order, are exact.
    """
    if images.dtype != np.uint8 or training.dtype != np.uint8 or images.shape[1:] != training.shape[1:]:
        raise ValueError(
            f"nearest takes uint8 images of one size, not {images.dtype} {images.shape} and {training.dtype} "
            f"{training.shape}"
        )
    k = min(k, len(training))
    found = [_search(images, training, k)]
    if flip:
        found.append(
            _search(images[:, :, ::-1], training, k)
        )  # the distance of image and mirrored training image is the same
    index = np.concatenate([f[0] for f in found], 1)
    distance = np.concatenate([f[1] for f in found], 1)
    mirrored = np.repeat(np.arange(len(found)) == 1, k)[None].repeat(len(images), 0)
    order = np.argsort(distance, axis=1, kind="stable")
    if flip:
        order = _first_of_each(np.take_along_axis(index, order, 1), order, k)
    order = order[:, :k]
    return Neighbours(*(np.take_along_axis(a, order, 1) for a in (index, distance, mirrored)))


def _first_of_each(index: np.ndarray, order: np.ndarray, k: int) -> np.ndarray:
    """The places in `order`, nearest first, of the first k different training images."""
    rows = []
    for row, places in zip(index, order, strict=True):
        first = np.sort(np.unique(row, return_index=True)[1])
        rows.append(places[first[:k]])
    return np.stack(rows)


def _search(images: np.ndarray, training: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and distances (N, k) of the nearest training images, in no particular order."""
    n, pixels = len(images), images[0].size
    queries = _flat(images)
    best = np.full((n, k), np.inf, np.float32)
    index = np.zeros((n, k), np.int64)
    for start in range(0, len(training), _AT_ONCE):
        part = _flat(training[start : start + _AT_ONCE])
        squares = (part * part).sum(1) - 2 * (queries @ part.T)  # minus |query|^2, the same for all
        values = np.concatenate([best, squares], 1)
        indices = np.concatenate([index, np.broadcast_to(np.arange(start, start + len(part)), squares.shape)], 1)
        chosen = np.argpartition(values, k - 1, axis=1)[:, :k]
        best, index = np.take_along_axis(values, chosen, 1), np.take_along_axis(indices, chosen, 1)
    distance = np.empty((n, k))
    for row, image in enumerate(images):
        difference = training[index[row]].astype(np.int32) - image
        distance[row] = np.sqrt((difference * difference).reshape(k, -1).sum(1) / pixels)
    return index, distance


def _flat(images: np.ndarray) -> np.ndarray:
    """Bytes (N, H, W, C) as float32 (N, H W C), centred: smaller numbers lose less in the products."""
    return images.reshape(len(images), -1).astype(np.float32) - 127.5
