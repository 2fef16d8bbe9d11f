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

L_x is the convolution of L_y with the filters turned by 180 degrees, which turns the columns of G around.

Sums of the transforms cancel in part, so results are not rounded as well as those of the definition. How much worse
depends on the points: with 0, +-1/sqrt(2), +-sqrt(2) and infinity the error against float64 is 2 to 4 times that of the
definition in float32, with the usual integers 0, +-1, +-2 it is 4 to 11 times. Integers would only save multiplications by
0 and 1, and there are none to save where the transforms are products of matrices.

The transforms of images are in `tiles.py`. Images go through all steps in blocks whose arrays stay in the cache, each
worker on its own images. With many channels and few images that would read and write more numbers of U than of V and M;
then workers take images for the transforms, and in between panels of filters for the products of all images.
The product for each frequency is cut to `_ROWS` rows by `_PANEL` columns: OpenBLAS does not pack the operands of a product
of up to 10^6 multiplications, and stacks of such products run at 105 to 115 GFLOP/s a core here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tinydiff import workers
from tinydiff.ops.tiles import Axis, Reader, Writer, aligned, frequencies, multiply_lines
from tinydiff.ops.windows import Window
from tinydiff.workers import share

Array = np.ndarray
Terms = Sequence[Array | None]  # b (K,), E (N, K) and R (N, Ho, Wo, K), what is added to a convolution

TILE = 4  # outputs of a tile along one axis; with 3 filter taps it reads TILE + 2 inputs
_LIMIT = 1_000_000  # multiplications up to which OpenBLAS does not pack the operands,
_LIMIT_TRANSPOSED = 1 << 18  # and where the second is transposed (measured)
_ROWS = 64  # rows in one product, at most
_PANEL = 64  # filters in one product, at most
_BLOCK = 1 << 19  # entries of V or M at once, where workers take images
_SHARED = 1 << 22  # entries of V or M at once, where workers take panels of filters,
_MANY = 128 * 128  # which they do from this C K: transformed filters are then so large that each is best used once
_LITTLE = 1 << 16  # T C K up to which the definition is as fast


class Transform(NamedTuple):
    """The matrices of one axis: B^T (F, taps) for inputs, G (F, 3) for filters, A^T (outputs, F)."""

    B_T: Array
    G: Array
    A_T: Array

    @property
    def A(self) -> Array:
        return np.ascontiguousarray(self.A_T.T)


def _toom_cook(points: Sequence[float]) -> Transform:
    """For 4 outputs of a filter with 3 taps, from 5 points; the sixth is infinity.

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
    return Transform(*(np.ascontiguousarray(m, np.float32) for m in (B_T, G, A_T)))


F4 = _toom_cook([0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)])


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
UP, UP_GRADIENT = _upsampled(_toom_cook([0, 1, -1, 0.6, -0.6]), 2)


class Part(NamedTuple):
    """Some rows of the tiles of some images."""

    images: slice
    rows: slice

    def of(self, V: Array, batch: slice) -> Array:
        """This part of frequencies V (F, F, rows, n, columns, C) of a batch."""
        return V[:, :, self.rows, self.images.start - batch.start : self.images.stop - batch.start]

    @property
    def shape(self) -> tuple[int, slice]:
        return self.images.stop - self.images.start, self.rows


class Plan(NamedTuple):
    """The tiles of a convolution and how the work on them is shared."""

    transform: Transform
    vertical: Axis  # of the inputs
    horizontal: Axis
    images: int
    width: int  # the larger number of channels
    panels: bool  # whether workers take panels of filters for all images, rather than images with all filters

    @classmethod
    def of(
        cls, transform: Transform, images: int, size: tuple[int, int], before: tuple[int, int], C: int, K: int
    ) -> Plan:
        """size: of the outputs; before: rows above and columns left of the input that the first tile reads."""
        outputs, step = len(transform.A_T), transform.B_T.shape[1] - 2
        vertical, horizontal = (Axis(-(-n // outputs), step, m) for n, m in zip(size, before, strict=True))
        return cls(transform, vertical, horizontal, images, max(C, K), C * K >= _MANY)

    @property
    def frequencies(self) -> int:
        return len(self.transform.G)

    def batches(self) -> list[slice]:
        """The images in as few parts as keep V within _SHARED entries."""
        most = max(1, _SHARED // (36 * self.vertical.tiles * self.horizontal.tiles * self.width))
        return [slice(i, min(i + most, self.images)) for i in range(0, self.images, most)]

    def parts(self, batch: slice) -> list[Part]:
        """Blocks of images, or of rows of tiles where there are fewer images than workers."""
        rows, count, images = self.vertical.tiles, workers.count(), range(batch.start, batch.stop)
        if len(images) < count:
            step = -(-rows // -(-count // max(1, len(images))))
            ranges = [slice(i, min(i + step, rows)) for i in range(0, rows, step)]
            return [Part(slice(n, n + 1), r) for n in images for r in ranges]
        most = max(1, _BLOCK // (36 * rows * self.horizontal.tiles * self.width))
        blocks = count * -(-len(images) // (count * most))
        step = -(-len(images) // blocks)
        return [Part(slice(i, min(i + step, images.stop)), slice(0, rows)) for i in images[::step]]

    def memory(self, name: str, part: Part, channels: int) -> Array:
        """Frequencies of the part."""
        n, rows = part.shape
        return frequencies(name, self.frequencies, rows.stop - rows.start, n, self.horizontal.tiles, channels)

    def reader(self, name: str, X: Array, part: Part) -> Reader:
        """B^T d B for parts of this shape."""
        n, rows = part.shape
        return Reader(name, self.transform.B_T, X, self.vertical.part(rows), self.horizontal, n)

    def gradient_reader(self, name: str, L_Y: Array, part: Part) -> Reader:
        """A L_y A^T for parts of this shape."""
        (n, rows), A = part.shape, self.transform.A
        vertical, horizontal = (Axis(axis.tiles, A.shape[1]) for axis in (self.vertical, self.horizontal))
        return Reader(name, A, L_Y, vertical.part(rows), horizontal, n)

    def writer(self, Y: Array, terms: Terms, part: Part) -> Writer:
        """A^T M A for parts of this shape."""
        (n, rows), A_T, (b, E, R) = part.shape, self.transform.A_T, terms
        here = slice(rows.start * len(A_T), rows.stop * len(A_T))
        tiles = rows.stop - rows.start, self.horizontal.tiles
        return Writer(A_T, Y[:, here], *tiles, n, b, E, R if R is None else R[:, here])

    def filter_panels(self, K: int) -> list[slice]:
        """The filters in panels of equal width, at least one for each worker."""
        width = min(_PANEL, max(16, -(-K // workers.count()))) if self.panels else _PANEL
        return [slice(k, min(k + width, K)) for k in range(0, K, width)]


def is_faster(X: Any, other: Any, output_size: tuple[int, int], window: Window, groups: int) -> bool:
    """Whether a convolution, or its weight gradient, is computed here rather than by its definition; `other` is the array of
    weights, or L_Y, with K channels last.

    float64 never is, so that gradient checks see the definition. The transforms cost about as much as products with 16
    channels, and their rounding must pay: below 16 channels on either side they lost (measured with 28x28 images). Tiles
    that stick out of the image are wasted work: with less than half of the multiplications saved (outputs of 1, 2 or 5
    pixels squared, say) the definition won too, and where there is little to do at all: in one thread it was as fast with
    32 channels and 64 tiles, 64 and 16, and with 256 and 4, where the transformed filters are what takes the time.
    """
    if not (enabled() and isinstance(X, np.ndarray) and X.dtype == other.dtype == np.float32 and groups == 1):
        return False
    if (window.size, window.stride, window.dilation) != ((3, 3), (1, 1), (1, 1)):
        return False
    (Ho, Wo), C, K = output_size, X.shape[-1], other.shape[-1]
    tiles = -(-Ho // TILE) * -(-Wo // TILE)
    few = min(C, K) < 16 or len(X) * tiles < 4 or len(X) * tiles * C * K < _LITTLE
    return not few and 9 * Ho * Wo >= 2 * 36 * tiles


def enabled() -> bool:
    """False if the environment variable TINYDIFF_WINOGRAD is 0: then convolutions are computed by their definition, slower
    and with rounding errors that are 2 to 4 times smaller."""
    return os.environ.get("TINYDIFF_WINOGRAD", "1") != "0"


def convolve(
    X: Array,
    W: Array,
    terms: Terms,
    size: tuple[int, int],
    before: tuple[int, int],
    transform: Transform = F4,
    turned: bool = False,
) -> Array:
    """X (N, H, W, C) with filters W (3, 3, C, K), plus terms -> (N, *size, K), all float32.

    before: rows above and columns left of X that the first tile reads. turned: the filters are W (3, 3, K, C) turned by 180
    degrees, which lead from outputs to inputs.
    """
    N, C, K = X.shape[0], X.shape[3], W.shape[2 if turned else 3]
    X, Y = np.ascontiguousarray(X), np.empty((N, *size, K), np.float32)
    plan = Plan.of(transform, N, size, before, C, K)
    panels = plan.filter_panels(K)

    def by_images(parts: Sequence[Part]) -> None:
        for part, same in _by_shape(parts):
            V, M = plan.memory("V", part, C), plan.memory("M", part, K)
            reader, writer = plan.reader("X", X, part), plan.writer(Y, terms, part)
            for images, _ in same:
                reader.read(images, V)
                for k, U in zip(panels, Us, strict=True):
                    _multiply(_flat(V), U, _flat(M)[..., k])
                writer.write(M, images)

    def by_panels(batch: slice) -> None:
        every = Part(batch, slice(0, plan.vertical.tiles))
        V, M = plan.memory("V of all", every, C), plan.memory("M of all", every, K)
        T = _flat(V).shape[1]

        def read(parts: Sequence[Part]) -> None:
            for part, same in _by_shape(parts):
                reader = plan.reader("X", X, part)
                for other in same:
                    reader.read(other.images, other.of(V, batch))

        def multiply(some: Sequence[slice]) -> None:
            for k in some:
                _multiply(_flat(V), transform_filters(W, k, transform.G, turned, T), _flat(M)[..., k])

        def write(parts: Sequence[Part]) -> None:
            for part, same in _by_shape(parts):
                writer = plan.writer(Y, terms, part)
                for other in same:
                    writer.write(other.of(M, batch), other.images)

        parts = plan.parts(batch)
        share(read, parts)
        share(multiply, panels)
        share(write, parts)

    if plan.panels:
        for batch in plan.batches():
            by_panels(batch)
    else:
        Us = [transform_filters(W, k, transform.G, turned, name=f"U{k.start}") for k in panels]
        share(by_images, plan.parts(slice(0, N)))
    return Y


def weight_gradient(X: Array, L_Y: Array, before: tuple[int, int], transform: Transform = F4) -> Array:
    """L_W (3, 3, C, K) from X (N, H, W, C) and L_Y (N, Ho, Wo, K), all float32; sums over images in order."""
    (N, Ho, Wo, K), C = L_Y.shape, X.shape[3]
    X, L_Y = np.ascontiguousarray(X), np.ascontiguousarray(L_Y)
    plan = Plan.of(transform, N, (Ho, Wo), before, C, K)
    F, G_T = plan.frequencies, np.ascontiguousarray(transform.G.T)

    def read(parts: Sequence[Part], place: Callable[[Part], tuple[Array, Array]]) -> Iterator[tuple[Array, Array]]:
        for part, same in _by_shape(parts):
            inputs, gradients = plan.reader("X", X, part), plan.gradient_reader("L_Y", L_Y, part)
            for other in same:
                V, L_M = place(other)
                inputs.read(other.images, V)
                gradients.read(other.images, L_M)
                yield _flat(V), _flat(L_M)

    def by_images(parts: Sequence[Part]) -> Array:
        L_U = np.zeros((F * F, C, K), np.float32)
        for V, L_M in read(parts, lambda part: (plan.memory("V", part, C), plan.memory("M", part, K))):
            L_U += _multiply_transposed(V, L_M)
        return L_U

    def by_panels(batch: slice) -> None:
        every = Part(batch, slice(0, plan.vertical.tiles))
        V, L_M = plan.memory("V of all", every, C), plan.memory("M of all", every, K)

        def multiply(some: Sequence[slice]) -> None:
            for k in some:
                L_W[..., k] += transform_filters_back(_multiply_transposed(_flat(V), _flat(L_M)[..., k]), G_T)

        share(lambda parts: [*read(parts, lambda part: (part.of(V, batch), part.of(L_M, batch)))], plan.parts(batch))
        share(multiply, plan.filter_panels(K))

    if plan.panels:
        L_W = np.zeros((3, 3, C, K), np.float32)
        for batch in plan.batches():
            by_panels(batch)
        return L_W
    L_U, *others = share(by_images, plan.parts(slice(0, N)))
    for other in others:
        L_U += other
    return transform_filters_back(L_U, G_T).copy()


def transform_filters(
    W: Array, k: slice, G: Array, turned: bool = False, rows: int = _ROWS + 1, name: str = "U"
) -> Array:
    """U = G w G^T for the filters k of W (3, 3, C, K) -> (F F, C, k); turned: of W (3, 3, K, C), turned by 180 degrees.

    rows: of the matrices that U will be multiplied with. Where they are few, copying filters to turn them takes longer than
    products with a transposed matrix, which run at 100 rather than 114 GFLOP/s.
    """
    w, few = (W[:, :, k], rows <= _ROWS) if turned else (W[..., k], False)
    if turned:
        G = np.ascontiguousarray(G[:, ::-1])
        w = w if few else w.swapaxes(2, 3)
    (_, _, C, n), F = w.shape, len(G)
    flat, half, U = aligned("w", (3, 3), C * n), aligned("G w", (3, F), C * n), aligned(name, (F, F), C * n)
    flat.reshape(w.shape)[...] = w
    multiply_lines(G, flat.swapaxes(0, 1), half)  # (3, F, C k)
    multiply_lines(G, half.swapaxes(0, 1), U)
    U = U.reshape(F * F, C, n)
    return U.swapaxes(1, 2) if few else U


def transform_filters_back(L_U: Array, G_T: Array) -> Array:
    """L_W = G^T L_U G: (F F, C, K) -> (3, 3, C, K)."""
    F, (_, C, K) = G_T.shape[1], L_U.shape
    half, L_W = aligned("G w", (F, 3), C * K), aligned("w", (3, 3), C * K)
    multiply_lines(G_T, L_U.reshape(F, F, C * K).swapaxes(0, 1), half)
    multiply_lines(G_T, half.swapaxes(0, 1), L_W)
    return L_W.reshape(3, 3, C, K)


def _multiply(V: Array, U: Array, out: Array) -> None:
    """V (F F, T, C) times U (F F, C, k), in products of equal numbers of rows and one of what is left."""
    (F, T, C), k = V.shape, U.shape[2]
    limit = _LIMIT if U.strides[2] == U.itemsize else _LIMIT_TRANSPOSED
    rows = max(1, min(_ROWS, limit // (C * k)))
    rows = -(-T // -(-T // rows))
    whole = T // rows * rows
    cut = (F, whole // rows, rows)
    np.matmul(V[:, :whole].reshape(*cut, C), U[:, None], out=out[:, :whole].reshape(*cut, k))
    if whole < T:
        np.matmul(V[:, whole:], U, out=out[:, whole:])


def _multiply_transposed(V: Array, Z: Array) -> Array:
    """V^T (F F, C, T) times Z (F F, T, k), in products of equal numbers of channels."""
    (F, T, C), k = V.shape, Z.shape[2]
    D = aligned("L_U", (F,), C * k).reshape(F, C, k)
    c = C
    while c > 16 and c % 2 == 0 and c * T * k > _LIMIT:
        c //= 2
    if c * T * k > _LIMIT:
        c = C
    np.matmul(V.reshape(F, T, C // c, c).transpose(0, 2, 3, 1), Z[:, None], out=D.reshape(F, C // c, c, k))
    return D


def _flat(V: Array) -> Array:
    """(F, F, rows, n, columns, C) as (F F, T, C), without a copy."""
    F, _, rows, n, columns, C = V.shape
    return V.reshape(F * F, rows * n * columns, C)


def _by_shape(parts: Sequence[Part]) -> Iterator[tuple[Part, Sequence[Part]]]:
    """Neighbours of the same shape together, after the first of them."""
    start = 0
    for i in range(1, len(parts) + 1):
        if i == len(parts) or parts[i].shape != parts[start].shape:
            yield parts[start], parts[start:i]
            start = i
