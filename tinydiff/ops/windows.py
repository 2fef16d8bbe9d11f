"""Windows over images: which pixels a patch reads, patches as an array, and the adjoint that adds them back.

Convolution and pooling use it. With groups, each group of channels has its own matrices: `by_group` and `joined` convert
to and from a stack of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tinydiff.backend import array_module
from tinydiff.ops.arguments import pair


@dataclass(frozen=True)
class Window:
    """Size (R, S), stride, ((top, bottom), (left, right)) padding and dilation of a window that moves over images."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]

    @classmethod
    def read(cls, name: str, size: Any, stride: Any, padding: Any, dilation: Any) -> Window:
        """The window that a user's arguments describe; ValueError in the name of the operation."""
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
        """Whether patches and pixels are the same: size and stride 1, no padding."""
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
        """The window with which the input gradient is a convolution of the output gradient: stride 1, and padding up to
        a full overlap. None where stride or padding do not allow that."""
        padding = tuple((e - 1 - p[0], e - 1 - p[1]) for e, p in zip(self.extent, self.padding, strict=True))
        if self.stride != (1, 1) or min(map(min, padding)) < 0:
            return None
        return Window(self.size, self.stride, padding, self.dilation)  # type: ignore[arg-type]


def _read_padding(name: str, padding: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    if isinstance(padding, tuple | list) and len(padding) == 2 and all(isinstance(p, tuple | list) for p in padding):
        return pair(name, "padding", tuple(padding[0]), 0), pair(name, "padding", tuple(padding[1]), 0)
    vertical, horizontal = pair(name, "padding", padding, 0)
    return (vertical, vertical), (horizontal, horizontal)


def unfold(X: Any, window: Window, fill: float = 0) -> Any:
    """X (N, H, W, C) -> patches (N, Ho, Wo, R, S, C), contiguous; `fill` stands outside of the image."""
    return sliding_view(pad_images(X, window, fill), window, window.output_size(X.shape)).copy()


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


def by_group(A: Any, groups: int) -> Any:
    """A matrix for each group of channels: A (a, b, c, .., groups C) -> (groups, a b c, .. C).

    Of patches (N, Ho, Wo, R, S, C) and of images (N, H, W, C) the rows are pixels, of filters (R, S, C, K) they are taps."""
    *lengths, channels = A.shape
    A = array_module(A).moveaxis(A.reshape(*lengths, groups, channels // groups), -2, 0)
    return A.reshape(groups, math.prod(lengths[:3]), math.prod(A.shape[4:]))


def joined(A: Any, shape: tuple[int, ...]) -> Any:
    """The inverse of by_group: (groups, a b c, C) -> the given shape (a, b, c, groups C)."""
    *lengths, channels = shape
    A = A.reshape(len(A), *lengths, channels // len(A))
    return array_module(A).moveaxis(A, 0, -2).reshape(shape)


def pad_images(X: Any, window: Window, fill: float = 0) -> Any:
    """X with the window's padding around each image."""
    if not window.padded:
        return X
    xp, (N, H, W, C) = array_module(X), X.shape
    (top, bottom), (left, right) = window.padding
    padded = xp.full((N, H + top + bottom, W + left + right, C), fill, X.dtype)
    padded[:, top : top + H, left : left + W] = X
    return padded


def sliding_view(padded: Any, window: Window, output_size: tuple[int, int]) -> Any:
    """Every patch of padded images as a view (N, Ho, Wo, R, S, C): nothing is copied, pixels appear many times."""
    xp, (N, _, _, C) = array_module(padded), padded.shape
    n, h, w, c = padded.strides
    shape = (N, *output_size, *window.size, C)
    strides = (n, h * window.stride[0], w * window.stride[1], h * window.dilation[0], w * window.dilation[1], c)
    return xp.lib.stride_tricks.as_strided(padded, shape, strides)
