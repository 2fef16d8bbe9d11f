"""The matrices of Winograd's filtering along one axis, and the transforms of filters by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tinydiff.cpu.winograd.tiles import aligned, items, runs
from tinydiff.machine.workspaces import prepared

Array = np.ndarray


class Transform(NamedTuple):
    """The matrices of one axis: B^T (F, taps) for inputs, G (F, 3) for filters, A^T (outputs, F)."""

    B_T: Array
    G: Array
    A_T: Array

    @property
    def A(self) -> Array:
        return np.ascontiguousarray(self.A_T.T)


def toom_cook(points: Sequence[float]) -> Transform:
    """The transform for 4 outputs of a filter with 3 taps, from 5 points; the sixth is infinity.

    G and A^T evaluate filter and outputs at powers of a point. B^T is the transpose of interpolation: a point p has the
    polynomial that vanishes at all others. It must be divided by its value at p, and G does that.
    """
    p = np.array(points)
    A_T, G, B_T = np.zeros((4, 6)), np.zeros((6, 3)), np.zeros((6, 6))
    for i in range(5):
        others = np.delete(p, i)
        A_T[:, i] = p[i] ** np.arange(4)
        G[i] = p[i] ** np.arange(3) / np.prod(p[i] - others)
        B_T[i, :5] = np.poly(others)[::-1]
    A_T[3, 5] = G[5, 2] = 1
    B_T[5] = np.poly(p)[::-1]
    return Transform(*(np.ascontiguousarray(m, np.float32) for m in (B_T, G, A_T)))


F4 = toom_cook([0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)])


def _upsampled(transform: Transform, zero: int) -> tuple[Transform, Transform]:
    """The transforms of a convolution on an image whose pixels were doubled, from the image itself, and of its input gradient.

    Let a tile of doubled pixels be a b b c c d, as it begins within a pair. The frequency of point -1 has as its weights
    the coefficients of z (z - 1) (z^2 - c^2), which are 0, q, -q, r, -r, 0: it vanishes, and with it 11 of the 36
    products. In the input gradient the outputs of a pair are added, which the same frequency contributes 1 and -1 to.
    """
    keep = np.arange(6) != zero
    B_T, G, A_T = transform.B_T[keep], transform.G[keep], np.ascontiguousarray(transform.A_T[:, keep])
    twice = np.repeat(np.eye(4, dtype=np.float32), 2, 0)[1:7]  # (6, 4), from pixels to those of the tile
    return Transform(B_T @ twice, G, A_T), Transform(B_T, G, A_T[0::2] + A_T[1::2])


# With 0.6 the errors are the least of a few values tried.
UP, UP_GRADIENT = _upsampled(toom_cook([0, 1, -1, 0.6, -0.6]), 2)
TRANSFORMS = {"F4": F4, "UP": UP, "UP_GRADIENT": UP_GRADIENT}


class _Filters:
    """Memory for filters w (3, 3, a, b) and their transforms U (F F, a, b), and the views that transforming takes.

    A small convolution would take longer to make these than to use them.
    """

    def __init__(self, F: int, a: int, b: int, name: str) -> None:
        w, half, U = aligned("w", (3, 3), a * b), aligned("G w", (3, F), a * b), aligned(name, (F, F), a * b)
        self.w, self.U = w.reshape(3, 3, a, b), U.reshape(F * F, a, b)
        self.items = items(self.w)
        self.passes = (runs(w.swapaxes(0, 1)), runs(half)), (runs(half.swapaxes(0, 1)), runs(U))

    def transform(self, G: Array) -> Array:
        """U = G w G^T."""
        for source, to in self.passes:
            np.matmul(G, source, out=to)
        return self.U


class _Gradients:
    """The same for L_w = G^T L_U G. L_U lies elsewhere."""

    def __init__(self, F: int, a: int, b: int) -> None:
        half, w = aligned("G w", (F, 3), a * b), aligned("w", (3, 3), a * b)
        self.half, self.half_turned, self.to = runs(half), runs(half.swapaxes(0, 1)), runs(w)
        self.L_w = w.reshape(3, 3, a, b)

    def transform(self, L_U: Array, G_T: Array) -> Array:
        F, (_, a, b) = G_T.shape[1], L_U.shape
        np.matmul(G_T, runs(L_U.reshape(F, F, a * b).swapaxes(0, 1)), out=self.half)
        np.matmul(G_T, self.half_turned, out=self.to)
        return self.L_w


def transform_filters(
    W: Array, k: slice, G: Array, turned: bool = False, transposed: bool = False, name: str = "U"
) -> Array:
    """U = G w G^T for the filters k of W (3, 3, C, K) -> (F F, C, k); turned: of W (3, 3, K, C), turned by 180 degrees.

    transposed: turned filters are not copied to swap their channels. Each matrix of U is then a transposed one, which
    is slower to multiply by. That pays where there are few tiles.
    """
    w = W[:, :, k] if turned else W[..., k]
    if turned:
        G = np.ascontiguousarray(G[:, ::-1])
        w = w if transposed else w.swapaxes(2, 3)
    kept = prepared(_Filters, len(G), *w.shape[2:], name)
    if w.strides[3] == w.itemsize:
        kept.items[...] = items(w)
    else:
        kept.w[...] = w
    U = kept.transform(G)
    return U.swapaxes(1, 2) if transposed else U


def transform_filters_back(L_U: Array, G_T: Array) -> Array:
    """L_W = G^T L_U G: (F F, C, K) -> (3, 3, C, K)."""
    return prepared(_Gradients, G_T.shape[1], *L_U.shape[1:]).transform(L_U, G_T)
