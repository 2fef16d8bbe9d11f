"""Windows over images: which pixels a patch reads, patches as an array, and the adjoint that adds them back.

Convolution and pooling are written on top of this. The patches of large batches would be many times the size of the
images; `image_blocks` says how many images to take at once, and `unfold(reuse=True)` writes into memory that each
thread keeps, because touching fresh pages costs more than the arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.machine.workspaces import workspace
from tinydiff.ops.arguments import pair

_BLOCK = (
    1 << 19
)  # entries of patches at once: 2 MiB of float32; measured: smaller blocks starve the matrix product, larger ones the cache


@dataclass(frozen=True)
class Window:
    """Size (R, S), stride, ((top, bottom), (left, right)) padding and dilation of a window that moves over images."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]

    @classmethod
    def read(cls, name: str, size: Any, stride: Any, padding: Any, dilation: Any) -> Window:
        """From what a user gives; ValueError in the name of the operation."""
        return cls(
            pair(name, "the window", size, 1),
            pair(name, "stride", stride, 1),
            _read_padding(name, padding),
            pair(name, "dilation", dilation, 1),
        )

    @cached_property
    def extent(self) -> tuple[int, int]:
        """Pixels from the first to the last that a patch reads, vertically and horizontally."""
        (R, S), (d, e) = self.size, self.dilation
        return d * (R - 1) + 1, e * (S - 1) + 1

    @property
    def before(self) -> tuple[int, int]:
        """Padding above and left of an image."""
        return self.padding[0][0], self.padding[1][0]

    @property
    def padded(self) -> bool:
        return self.padding != ((0, 0), (0, 0))

    @cached_property
    def takes_pixels(self) -> bool:
        """Whether every patch is one pixel, and every pixel a patch."""
        return self.size == self.stride == (1, 1) and not self.padded

    def output_size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(Ho, Wo) for images of shape (N, H, W, C)."""
        ((top, bottom), (left, right)), (e, f), (a, b) = self.padding, self.extent, self.stride
        return (shape[1] + top + bottom - e) // a + 1, (shape[2] + left + right - f) // b + 1

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """ValueError if the window does not fit into the padded images even once."""
        if min(self.output_size(shape)) < 1:
            raise ValueError(
                f"{name}: a window of {self.extent[0]}x{self.extent[1]} pixels is larger than images {shape} "
                f"with padding {self.padding}"
            )

    @cached_property
    def turned(self) -> Window | None:
        """The window by which the input gradient is a convolution of the output gradient: stride 1, and as padding what
        is missing to a full overlap. None where stride or padding rule that out."""
        padding = tuple((e - 1 - p[0], e - 1 - p[1]) for e, p in zip(self.extent, self.padding, strict=True))
        if self.stride != (1, 1) or min(map(min, padding)) < 0:
            return None
        return Window(self.size, self.stride, padding, self.dilation)  # type: ignore[arg-type]


def _read_padding(name: str, padding: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    if isinstance(padding, tuple | list) and len(padding) == 2 and all(isinstance(p, tuple | list) for p in padding):
        return pair(name, "padding", tuple(padding[0]), 0), pair(name, "padding", tuple(padding[1]), 0)
    vertical, horizontal = pair(name, "padding", padding, 0)
    return (vertical, vertical), (horizontal, horizontal)


def image_blocks(images: int, entries_per_image: int) -> list[slice]:
    """Slices of the batch whose patches together fit into a core's cache (at least one image)."""
    step = max(1, _BLOCK // max(1, entries_per_image))
    return [slice(start, min(start + step, images)) for start in range(0, images, step)]


def add_terms(Y: Any, images: slice, b: Any, E: Any, R: Any) -> None:
    """Adds to some images of Y (N, H, W, K) what is not None: b (K,), E (N, K) to all pixels of an image, R like Y."""
    if b is not None:
        Y[images] += b
    if E is not None:
        Y[images] += E[images, None, None]
    if R is not None:
        Y[images] += R[images]


def unfold(X: Any, window: Window, reuse: bool = False, fill: float = 0) -> Any:
    """X (N, H, W, C) -> patches (N, Ho, Wo, R, S, C), contiguous; `fill` stands outside of the image.

    reuse: the result lies in memory that the thread's next call overwrites.
    """
    if reuse and window.takes_pixels and X.flags.c_contiguous:
        return X[:, :, :, None, None]
    xp, output_size = array_module(X), window.output_size(X.shape)
    padded = pad_images(X, window, fill, reuse)
    shape = (len(X), *output_size, *window.size, X.shape[3])
    P = workspace("patches", shape, X.dtype, xp) if reuse else xp.empty(shape, X.dtype)
    if xp is np and P.size and padded.flags.c_contiguous and not P.dtype.hasobject:
        to, source = _rows_of_pixels(P, padded, window)
        to[...] = source
    else:
        P[...] = sliding_view(padded, window, output_size)
    return P


def _rows_of_pixels(P: Any, padded: Any, window: Window) -> tuple[Any, Any]:
    """Patches P (N, Ho, Wo, R, S, C) and where they come from as opaque items, of S pixels where these are neighbours, else
    of one: NumPy moves an item in the time of a few numbers."""
    (n, h, w, _), (a, b), (d, e) = padded.strides, window.stride, window.dilation
    axes = 4 if e == 1 else 5
    item = np.dtype(f"V{math.prod(P.shape[axes:]) * P.itemsize}")
    shape, strides = P.shape[:axes], (n, h * a, w * b, h * d, w * e)[:axes]
    return np.ndarray(shape, item, P), np.ndarray(shape, item, padded, 0, strides)


def fold(P: Any, shape: tuple[int, ...], window: Window) -> Any:
    """The adjoint of unfold: adds every entry of P (N, Ho, Wo, R, S, C) to its pixel; images of the given shape."""
    xp, (_, Ho, Wo, R, S, _) = array_module(P), P.shape
    N, H, W, C = shape
    (top, bottom), (left, right) = window.padding
    X = xp.zeros((N, H + top + bottom, W + left + right, C), P.dtype)
    for r in range(R):
        for s in range(S):
            i, j = r * window.dilation[0], s * window.dilation[1]
            rows = slice(i, i + window.stride[0] * (Ho - 1) + 1, window.stride[0])
            columns = slice(j, j + window.stride[1] * (Wo - 1) + 1, window.stride[1])
            X[:, rows, columns] += P[:, :, :, r, s]
    return X[:, top : top + H, left : left + W]


def pad_images(X: Any, window: Window, fill: float = 0, reuse: bool = False) -> Any:
    """X with the window's padding around each image."""
    if not window.padded:
        return X
    xp, (N, H, W, C) = array_module(X), X.shape
    (top, bottom), (left, right) = window.padding
    shape = (N, H + top + bottom, W + left + right, C)
    padded = workspace("padded", shape, X.dtype, xp) if reuse else xp.empty(shape, X.dtype)
    padded[:, :top] = fill
    padded[:, top + H :] = fill
    padded[:, top : top + H, :left] = fill
    padded[:, top : top + H, left + W :] = fill
    padded[:, top : top + H, left : left + W] = X
    return padded


def sliding_view(padded: Any, window: Window, output_size: tuple[int, int]) -> Any:
    """Every patch of padded images as a view (N, Ho, Wo, R, S, C): nothing is copied, pixels appear many times."""
    xp, (N, _, _, C) = array_module(padded), padded.shape
    n, h, w, c = padded.strides
    shape = (N, *output_size, *window.size, C)
    strides = (n, h * window.stride[0], w * window.stride[1], h * window.dilation[0], w * window.dilation[1], c)
    return xp.lib.stride_tricks.as_strided(padded, shape, strides)
