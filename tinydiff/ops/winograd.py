"""Convolutions with 3x3 filters and stride 1 by Winograd's minimal filtering F(4x4, 3x3), on the CPU.

A 4x4 tile of outputs of one channel depends on a 6x6 tile d of the input through a 3x3 filter g. Read along one axis, the
4 outputs are coefficients of a product of polynomials, and such a product can be had from its values at 6 points: evaluate
both factors, multiply value by value, interpolate (Toom and Cook; as an algorithm for convolutions: Lavin and Gray, 2016,
"Fast algorithms for convolutional neural networks", section 4). With matrices B^T (6, 6), G (6, 3) and A^T (4, 6) for
these three steps, applied along both axes,

    y = A^T [ (G g G^T) * (B^T d B) ] A        (4, 4) from (3, 3) and (6, 6); * is element by element

That takes 36 multiplications where the definition takes 144. With C input channels, K filters and T tiles, each of the 36
pairs of points ("frequencies" below) is a product of matrices of its own. In the names used here, an index f for each:

    V_f = B^T x B    (T, C)        M_f = V_f U_f    (T, K)
    U_f = G w G^T    (C, K)        y = A^T M A

All of this is linear in x, in w and in y, so the gradients pass through the transposed steps:

    L_M = A L_y A^T    (36, T, K)
    L_U = V^T L_M      (36, C, K)        L_w = G^T L_U G

L_x is the convolution of L_y with the filters turned by 180 degrees and needs no step of its own (`convolution.py`).

Sums of the transforms cancel in part, so results are not rounded as well as those of the definition. How much worse
depends on the points: with 0, +-1/sqrt(2), +-sqrt(2) and infinity the error against float64 is 2 to 4 times that of the
definition in float32, with the usual integers 0, +-1, +-2 it is 4 to 11 times. Integers would only save multiplications by
0 and 1, and there are none to save where the transforms are products of matrices.

How it is made fast (measured on 2 cores with AVX-512 and OpenBLAS 0.3.31):
- A transform is a stack of products of a tiny matrix with `_RUN` columns. OpenBLAS does not pack operands when a product
  has up to 10^6 multiplications, and then runs at 155 GFLOP/s here; sums of scaled arrays are 4 times slower.
- The product for each frequency is cut to stay below the same limit, `_rows` rows by `_PANEL` columns.
- Images go through all steps in blocks whose arrays stay in the cache, each thread on its own images, in memory
  that it uses again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tinydiff.ops.windows import Window
from tinydiff.workers import share, workspace

Array = np.ndarray

TILE = 4  # outputs of a tile along one axis; with 3 filter taps it reads TILE + 2 inputs
_RUN = 24_000  # columns of one product in a transform: 6 * 6 * _RUN stays below 10^6 multiplications
_LIMIT = 1_000_000  # multiplications up to which OpenBLAS does not pack the operands
_PANEL = 64  # filters in one product
_BLOCK = 1 << 19  # entries of V or M at once, 2 MiB; measured: half of it is 10 to 20% slower, twice as much no faster


def _toom_cook(points: Sequence[float]) -> tuple[Array, Array, Array]:
    """(A^T, G, B^T) for 4 outputs of a filter with 3 taps, from 5 points; the sixth is infinity.

    Filter and outputs are evaluated by powers of a point, G and A^T. Interpolation, transposed to B^T, has for point p the
    polynomial that vanishes at all others; its value at p, by which it has to be divided, goes to G.
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
    return A_T.astype(np.float32), G.astype(np.float32), B_T.astype(np.float32)


A_T, G, B_T = _toom_cook([0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)])
A, G_T = np.ascontiguousarray(A_T.T), np.ascontiguousarray(G.T)


class Tiles(NamedTuple):
    """Tiles over images of Ho x Wo outputs; tile (i, j) starts to read at input pixel (4 i - top, 4 j - left)."""

    Ho: int
    Wo: int
    top: int
    left: int

    @property
    def rows(self) -> int:
        return -(-self.Ho // TILE)

    @property
    def columns(self) -> int:
        return -(-self.Wo // TILE)

    @property
    def per_image(self) -> int:
        """Tiles of one image."""
        return self.rows * self.columns


def is_faster(X: Any, other: Any, output_size: tuple[int, int], window: Window, groups: int) -> bool:
    """Whether a convolution, or its weight gradient, is computed here rather than by its definition; `other` is the array of
    weights, or L_Y, with K channels last.

    float64 never is, so that gradient checks see the definition. The transforms cost about as much as products with 16
    channels, and their rounding must pay: below 16 channels on either side they lost (measured with 28x28 images). Tiles
    that stick out of the image are wasted work: with less than half of the multiplications saved (outputs of 1, 2 or 5
    pixels squared, say), or less than 32 tiles to share the transformed filters, the definition won too.
    """
    if not (enabled() and isinstance(X, np.ndarray) and X.dtype == other.dtype == np.float32 and groups == 1):
        return False
    if (window.size, window.stride, window.dilation) != ((3, 3), (1, 1), (1, 1)):
        return False
    (Ho, Wo), tiles = output_size, Tiles(*output_size, 0, 0)
    few = min(X.shape[-1], other.shape[-1]) < 16 or len(X) * tiles.per_image < 32
    return not few and 9 * Ho * Wo >= 2 * 36 * tiles.per_image


def enabled() -> bool:
    """False if the environment variable TINYDIFF_WINOGRAD is 0: then convolutions are computed by their definition, slower
    and with rounding errors that are 2 to 4 times smaller."""
    return os.environ.get("TINYDIFF_WINOGRAD", "1") != "0"


def convolve(X: Array, W: Array, b: Array | None, tiles: Tiles) -> Array:
    """X (N, H, W, C) with filters W (3, 3, C, K) and bias b (K,) or None -> (N, Ho, Wo, K), all float32."""
    N, C, K = X.shape[0], X.shape[3], W.shape[3]
    Y = np.empty((N, tiles.Ho, tiles.Wo, K), np.float32)
    panels = [slice(k, k + _PANEL) for k in range(0, K, _PANEL)]
    U = [transform_filters(W[..., k]) for k in panels]

    def some(images: range) -> None:
        for block in _blocks(images, tiles.per_image * max(C, K)):
            V = transform_tiles(B_T, X[block], tiles, "V")
            M = workspace("M", (36, V.shape[1], K))
            for k, U_k in zip(panels, U, strict=True):
                _multiply(V, U_k, M[..., k])
            transform_outputs(M, Y[block], b, tiles)

    share(some, range(N))
    return Y


def weight_gradient(X: Array, L_Y: Array, tiles: Tiles) -> Array:
    """L_W (3, 3, C, K) from X (N, H, W, C) and L_Y (N, Ho, Wo, K), all float32; sums over images in order."""
    C, K = X.shape[3], L_Y.shape[3]
    outputs = tiles._replace(top=0, left=0)

    def some(images: range) -> Array:
        L_U = np.zeros((36, C, K), np.float32)
        for block in _blocks(images, tiles.per_image * max(C, K)):
            V = transform_tiles(B_T, X[block], tiles, "V")
            L_M = transform_tiles(A, L_Y[block], outputs, "M")
            L_U += np.matmul(V.transpose(0, 2, 1), L_M, out=workspace("L_U", L_U.shape))
        return L_U

    L_U, *others = share(some, range(len(X)))
    for other in others:
        L_U += other
    half = _transform(G_T, L_U.reshape(6, 6 * C * K), np.empty((3, 6 * C * K), np.float32))
    return _transform(G_T, half.reshape(3, 6, C * K), np.empty((3, 3, C * K), np.float32)).reshape(3, 3, C, K)


def transform_filters(W: Array) -> Array:
    """U = G w G^T: W (3, 3, C, K) -> (36, C, K)."""
    _, _, C, K = W.shape
    half = _transform(G, W.reshape(3, 3 * C * K), np.empty((6, 3 * C * K), np.float32))
    return _transform(G, half.reshape(6, 3, C * K), np.empty((6, 6, C * K), np.float32)).reshape(36, C, K)


def transform_tiles(matrix: Array, X: Array, tiles: Tiles, name: str) -> Array:
    """B^T d B for the tiles of inputs X (n, H, W, C) with matrix B^T; A d A^T for those of outputs with A.

    -> (36, T, C), T = n * tiles.per_image, in the workspace of the given name.
    """
    n, H, W, C = X.shape
    taps, rows, columns = matrix.shape[1], tiles.rows, tiles.columns
    height = TILE * (rows - 1) + taps
    # pixels[s, :, i, j] is pixel s of the j-th tile in row i of the padded images
    pixels = workspace("pixels", (taps, n, height, columns, C))
    top, bottom = tiles.top, min(tiles.top + H, height)
    pixels[:, :, :top] = 0
    pixels[:, :, bottom:] = 0
    for s in range(taps):
        first = max(0, -(-(tiles.left - s) // TILE))  # the first and the end of the tiles whose pixel s is in the image
        end = max(first, min(columns, -(-(tiles.left + W - s) // TILE)))
        pixels[s, :, top:bottom, :first] = 0
        pixels[s, :, top:bottom, end:] = 0
        start = TILE * first + s - tiles.left
        pixels[s, :, top:bottom, first:end] = X[:, : bottom - top, start::TILE][:, :, : end - first]
    half = workspace("half", (6, n, height, columns * C))
    _transform(matrix, pixels.reshape(taps, -1), half.reshape(6, -1))
    # the same along the other axis, on windows of `taps` rows: (6, n, rows, taps, columns * C)
    f, image, row, item = half.strides
    windows = np.lib.stride_tricks.as_strided(
        half, (6, n, rows, taps, columns * C), (f, image, TILE * row, row, item), writeable=False
    )
    V = workspace(name, (36, n * tiles.per_image, C))
    np.matmul(matrix, windows, out=V.reshape(6, 6, n, rows, columns * C).transpose(1, 2, 3, 0, 4))
    return V


def transform_outputs(M: Array, Y: Array, b: Array | None, tiles: Tiles) -> None:
    """Y (n, Ho, Wo, K) = A^T M A + b."""
    n, _, _, K = Y.shape
    half = _transform(A_T, M.reshape(6, -1), workspace("half", (4, M.size // 6)))
    pixels = _transform(A_T, half.reshape(4, 6, -1), workspace("pixels", (4, 4, M.size // 36)))
    pixels = pixels.reshape(4, 4, n, tiles.rows, tiles.columns, K)
    for p in range(TILE):
        for q in range(TILE):
            to = Y[:, p::TILE, q::TILE]
            part = pixels[p, q, :, : to.shape[1], : to.shape[2]]
            if b is None:
                to[...] = part
            else:
                np.add(part, b, out=to)


def _transform(matrix: Array, X: Array, out: Array) -> Array:
    """matrix (p, q) times X (..., q, L), in runs of _RUN columns and one of what is left."""
    whole = X.shape[-1] // _RUN * _RUN
    if whole:
        np.matmul(matrix, _runs(X[..., :whole]), out=_runs(out[..., :whole]))
    if whole < X.shape[-1]:
        np.matmul(matrix, X[..., whole:], out=out[..., whole:])
    return out


def _runs(X: Array) -> Array:
    """(..., q, n * _RUN) as (..., n, q, _RUN)."""
    return X.reshape(*X.shape[:-1], -1, _RUN).swapaxes(-2, -3)


def _multiply(V: Array, U: Array, out: Array) -> None:
    """V (36, T, C) times U (36, C, k), in products of equal numbers of rows and one of what is left."""
    (_, T, C), k = V.shape, U.shape[2]
    rows = max(1, min(64, _LIMIT // (C * k)))
    rows = -(-T // -(-T // rows))
    whole = T // rows * rows
    cut = (36, whole // rows, rows)
    np.matmul(V[:, :whole].reshape(*cut, C), U[:, None], out=out[:, :whole].reshape(*cut, k))
    if whole < T:
        np.matmul(V[:, whole:], U, out=out[:, whole:])


def _blocks(images: range, entries_per_image: int) -> list[slice]:
    """The images in blocks of equal size, as few as keep V and M within _BLOCK entries (at least one image)."""
    most = max(1, _BLOCK // (36 * entries_per_image))
    step = -(-len(images) // -(-len(images) // most)) if len(images) else 1
    return [slice(i, min(i + step, images.stop)) for i in range(images.start, images.stop, step)]
