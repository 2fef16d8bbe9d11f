"""Convolutions by their definition, a few images at a time: the algorithm that takes everything that the others leave.

The patches of a large batch would be many times the size of its images. Blocks of them stay in a core's cache, in
memory that each thread keeps, because touching fresh pages costs more than the arithmetic. One image has few blocks, so
the threads share the rows, or the columns, of a single product.

Measured: with fewer than 2^19 entries of patches at once (2 MiB of float32) the matrix product is too small to be fast,
with more they leave the cache. NumPy copies an opaque item of many numbers in the time of a few numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinydiff.cpu.blas import multiply, multiply_transposed
from tinydiff.machine import threads
from tinydiff.machine.threads import share
from tinydiff.machine.workspaces import workspace
from tinydiff.ops.windows import Window, fold, sliding_view

Array = np.ndarray

ENTRIES_OF_A_BLOCK = 1 << 19  # of patches
MULTIPLICATIONS_WORTH_SHARING = 1 << 23  # of few images: from here on all threads share a product,
MULTIPLICATIONS_SHARED = 1 << 29  # up to here; the patches of a larger one leave the cache
ROWS_WORTH_A_THREAD = 64  # of a product; of fewer, threads share the columns


def convolve_together(X: Any, W: Any, b: Any, window: Window, groups: int = 1, E: Any = None, R: Any = None) -> Any:
    """Y = P W + 1 b + E + R with several threads for each image. A thread computes some of the rows or, if rows are
    few, some of the columns."""
    if groups > 1 or 2 * len(X) > threads.count():
        return NotImplemented
    inner, K, size = math.prod(W.shape[:3]), W.shape[3], window.output_size(X.shape)
    if not MULTIPLICATIONS_WORTH_SHARING <= len(X) * math.prod(size) * K * inner <= MULTIPLICATIONS_SHARED:
        return NotImplemented
    P, W = as_matrix(unfold(X, window)), W.reshape(inner, K)
    y = np.empty((len(P), K), result_type(X, W, b, E, R))

    def rows(some: range) -> None:
        multiply(P[some.start : some.stop], W, y[some.start : some.stop])

    def columns(some: range) -> None:
        np.matmul(P, W[:, some.start : some.stop], out=y[:, some.start : some.stop])

    if len(P) >= ROWS_WORTH_A_THREAD * threads.count():
        share(rows, range(len(P)))
    else:
        share(columns, range(K))
    Y = y.reshape(len(X), *size, K)
    add_terms(Y, slice(None), b, E, R)
    return Y


def convolve(X: Any, W: Any, b: Any, window: Window, groups: int = 1, E: Any = None, R: Any = None) -> Any:
    """Y = P W + 1 b + E + R."""
    (Ho, Wo), (r, s, C, K) = window.output_size(X.shape), W.shape
    Y = np.empty((len(X), Ho, Wo, K), result_type(X, W, b, E, R))
    Wg = W.reshape(r * s * C, groups, K // groups)

    def some(blocks: Sequence[slice]) -> None:
        for images in blocks:
            for g in range(groups):
                P = as_matrix(unfold(X[images, ..., g * C : (g + 1) * C], window))
                if groups == 1:
                    multiply(P, Wg[:, 0], as_matrix(Y[images]))
                else:
                    _of_group(Y[images], g, groups)[...] = P @ Wg[:, g]
            add_terms(Y, images, b, E, R)

    share(some, image_blocks(len(X), Ho * Wo * r * s * C))
    return Y


def convolve_input_gradient(L_Y: Any, W: Any, shape: tuple[int, ...], window: Window, groups: int = 1) -> Any:
    """L_X = patches^T(L_Y W^T)."""
    (R, S, C, K), (N, Ho, Wo, _) = W.shape, L_Y.shape
    L_X = np.empty(shape, np.result_type(L_Y, W))
    Wt = np.ascontiguousarray(W.reshape(R * S * C, groups, K // groups).transpose(1, 2, 0))

    def some(blocks: Sequence[slice]) -> None:
        for images in blocks:
            for g in range(groups):
                l_y = np.ascontiguousarray(_of_group(L_Y[images], g, groups))
                L_P = np.empty((len(l_y), R * S * C), L_X.dtype)
                multiply(l_y, Wt[g], L_P)
                block = L_X[images, ..., g * C : (g + 1) * C]
                block[...] = fold(L_P.reshape(len(block), Ho, Wo, R, S, C), block.shape, window)

    share(some, image_blocks(N, Ho * Wo * R * S * C))
    return L_X


def convolve_weight_gradient(X: Any, L_Y: Any, shape: tuple[int, ...], window: Window, groups: int = 1) -> Any:
    """L_W = P^T L_Y, summed over blocks of images in order."""
    (R, S, C, K), (N, Ho, Wo, _) = shape, L_Y.shape

    def some(blocks: Sequence[slice]) -> Any:
        L_W = np.zeros((R * S * C, groups, K // groups), np.result_type(X, L_Y))
        for images in blocks:
            for g in range(groups):
                P = as_matrix(unfold(X[images, ..., g * C : (g + 1) * C], window))
                l_y = np.ascontiguousarray(_of_group(L_Y[images], g, groups))
                L_W[:, g] += multiply_transposed(P, l_y)
        return L_W

    first, *others = share(some, image_blocks(N, Ho * Wo * R * S * C))
    for L_W in others:
        first += L_W
    return first.reshape(shape)


def as_matrix(A: Array) -> Array:
    """A row for each pixel: (N, H, W, ..) -> (N H W, ..), whose other axes are one."""
    return A.reshape(math.prod(A.shape[:3]), math.prod(A.shape[3:]))


def _of_group(A: Array, g: int, groups: int) -> Array:
    """The channels of one group: A (N, H, W, K) -> (N H W, K / groups)."""
    return A.reshape(math.prod(A.shape[:3]), groups, A.shape[3] // groups)[:, g]


def unfold(X: Array, window: Window) -> Array:
    """The patches of X (N, H, W, C), as those of `ops.windows`, in memory that the thread's next call overwrites."""
    if window.takes_pixels and X.flags.c_contiguous:
        return X[:, :, :, None, None]
    padded, size = _padded(X, window), window.output_size(X.shape)
    P = workspace("patches", (len(X), *size, *window.size, X.shape[3]), X.dtype)
    if P.size and padded.flags.c_contiguous and not P.dtype.hasobject:
        to, source = _rows_of_pixels(P, padded, window)
        to[...] = source
    else:
        P[...] = sliding_view(padded, window, size)
    return P


def _rows_of_pixels(P: Array, padded: Array, window: Window) -> tuple[Array, Array]:
    """Patches P (N, Ho, Wo, R, S, C) and their sources, both as opaque items: of S pixels where these are
    neighbours, else of one."""
    (n, h, w, _), (a, b), (d, e) = padded.strides, window.stride, window.dilation
    axes = 4 if e == 1 else 5
    item = np.dtype(f"V{math.prod(P.shape[axes:]) * P.itemsize}")
    shape, strides = P.shape[:axes], (n, h * a, w * b, h * d, w * e)[:axes]
    return np.ndarray(shape, item, P), np.ndarray(shape, item, padded, 0, strides)


def _padded(X: Array, window: Window) -> Array:
    """X with zeros around each image, valid until the thread's next call."""
    if not window.padded:
        return X
    (N, H, W, C), ((top, bottom), (left, right)) = X.shape, window.padding
    padded = workspace("padded", (N, H + top + bottom, W + left + right, C), X.dtype)
    padded[:, :top] = 0
    padded[:, top + H :] = 0
    padded[:, top : top + H, :left] = 0
    padded[:, top : top + H, left + W :] = 0
    padded[:, top : top + H, left : left + W] = X
    return padded


def image_blocks(images: int, entries_per_image: int, entries: int = ENTRIES_OF_A_BLOCK) -> list[slice]:
    """Slices of the batch: each has as many images as hold so many entries together, and at least one."""
    step = max(1, entries // max(1, entries_per_image))
    return [slice(start, min(start + step, images)) for start in range(0, images, step)]


def add_terms(Y: Array, images: slice, b: Any, E: Any, R: Any) -> None:
    """Adds to some images of Y (N, H, W, K) what is not None: b (K,), E (N, K) to all pixels of an image, R like Y."""
    if b is not None:
        Y[images] += b
    if E is not None:
        Y[images] += E[images, None, None]
    if R is not None:
        Y[images] += R[images]


def result_type(*arrays: Any) -> np.dtype:
    """The dtype of a convolution of these arrays and of its terms; None is left out."""
    return np.result_type(*(a for a in arrays if a is not None))
