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

The transforms of images are in `tiles.py`. Images go through all steps in blocks whose V and M stay in the cache. Workers
take images, or rows of tiles of an image, and share the transformed filters. Where there are few tiles for many filters it
is cheaper that each worker transforms all images but only some of the filters. Either way they meet once: a fork and join
takes 50 to 80 microseconds, as long as a small convolution.
The product for each frequency is cut to `_ROWS` rows and panels of filters: OpenBLAS does not pack the operands of a product
of up to 10^6 multiplications, and stacks of such products run at 105 to 115 GFLOP/s a core here.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from tinydiff.autograd.tape import is_recording
from tinydiff.cpu.blas import LIMIT
from tinydiff.machine import threads
from tinydiff.machine.threads import share
from tinydiff.machine.workspaces import prepared
from tinydiff.ops.tiles import Axis, Reader, Writer, aligned, frequencies, items, multiply_lines
from tinydiff.ops.windows import Window

Array = np.ndarray
Size = tuple[int, int]
Shape = tuple[int, ...]
Terms = Sequence[Array | None]  # b (K,), E (N, K) and R (N, Ho, Wo, K), what is added to a convolution

TILE = 4  # outputs of a tile along one axis; with 3 filter taps it reads TILE + 2 inputs
_LIMIT_TRANSPOSED = 1 << 18  # multiplications of a small product whose second matrix is transposed (measured)
_ROWS = 64  # rows in one product, at most
_FEW = 32  # rows for which a transposed matrix of filters is as good as a copy
_PANEL = 1 << 14  # entries of U_f in one product, at most; twice as many up to _ROWS tiles (measured)
_BLOCK = 1 << 19  # entries of V or M at once
_TRANSFORM = 12  # multiplications in the time that one entry of V, M or U takes, for one frequency,
_WORTH = 400_000  # and how many are worth a second thread: 0.25 ms
# Tiles per filter up to which workers take filters: twice as many filters as tiles are transformed in a time, and workers
_FORWARD, _BACKWARD = 0.5, 2  # that take images add up their weight gradients (measured for batches of 1 to 8)
_SMALL = 1 << 13  # C K of filters that are kept in case they are used again,
_RECENT = 128  # of so many convolutions: 200 MB at most
_LARGE = 1 << 14  # C K of large filters
_LITTLE = 1 << 14  # T C K up to which the definition is as fast, or faster


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
TRANSFORMS = {"F4": F4, "UP": UP, "UP_GRADIENT": UP_GRADIENT}


class Part(NamedTuple):
    """What one worker computes: some filters for some rows of tiles of some images."""

    images: slice
    rows: slice
    filters: slice


class Panel(NamedTuple):
    """Some of a part's filters, as many as are best multiplied at once: M = V U for them."""

    filters: slice
    M: Array  # (F F, T, k)
    products: list[tuple[Array, Array]]  # V and M in pieces: (F F, n, rows, C) and (F F, n, rows, k)


class Step(NamedTuple):
    """Blocks of equally many images of a part, and where their frequencies go."""

    blocks: list[slice]
    V: Array  # (F F, T, C)
    panels: list[Panel]
    reader: Reader  # of X
    other: Any  # the Writer of Y, or in a weight gradient the Reader of L_Y


class Plan:
    """How the work on the tiles of a convolution, or of its weight gradient, is shared, and the memory for it.

    The calling thread makes it, once for all convolutions of these shapes (`threads.prepared`): it would take half of the
    time of a small one, and workers that set up arrays side by side wait for the interpreter's lock again and again.
    """

    def __init__(
        self, transform: str, shape: Shape, size: Size, before: Size, filters: int, count: int, use: str = "forward"
    ) -> None:
        """shape: of X; size: of the outputs; before: rows above and columns left of the input that the first tile reads;
        count: of workers; use: "forward", "turned" (with turned filters) or "gradient" (of the weights)."""
        self.transform = TRANSFORMS[transform]
        self.inputs, self.outputs = shape, (shape[0], *size, filters)
        outputs, step = len(self.transform.A_T), self.transform.B_T.shape[1] - 2
        self.vertical, self.horizontal = (Axis(-(-n // outputs), step, m) for n, m in zip(size, before, strict=True))
        self.tiles = shape[0] * self.vertical.tiles * self.horizontal.tiles
        self.few = use == "turned" and self.tiles <= _FEW  # whether U is transposed, if it was not kept
        self.parts = self._parts(count, _BACKWARD if use == "gradient" else _FORWARD)
        most = max(_length(part.images) * _length(part.rows) for part in self.parts) * self.horizontal.tiles
        self.wide = 1 + (most <= _ROWS)  # of panels; those of all parts are alike, since workers share filters
        self.steps = [[*self._steps(i, part, use == "gradient")] for i, part in enumerate(self.parts)]
        self.by_filters = self.parts[-1].filters != self.parts[0].filters
        blocks = max(sum(len(step.blocks) for step in steps) for steps in self.steps)
        self.once = (self.by_filters or len(self.parts) == 1) and blocks == 1  # whether each filter meets one block

    def _parts(self, count: int, tiles_per_filter: float) -> list[Part]:
        """A part for each worker, or a single one where there is too little to do.

        With up to tiles_per_filter K tiles a worker takes some filters for all images, else some images with all filters.
        """
        N, C, K, T, rows = self.inputs[0], self.inputs[3], self.outputs[3], self.tiles, self.vertical.tiles
        whole = Part(slice(0, N), slice(0, rows), slice(0, K))
        if count == 1 or T * C * K + _TRANSFORM * (T * (C + K) + C * K) < _WORTH:
            return [whole]
        if tiles_per_filter * K >= T and 16 * count <= K:
            return [whole._replace(filters=k) for k in _cut(K, count)]
        if count <= N:
            return [whole._replace(images=images) for images in _cut(N, count)]
        each = _cut(rows, min(rows, -(-count // N)))
        return [whole._replace(images=slice(n, n + 1), rows=r) for n in range(N) for r in each]

    def _steps(self, worker: int, part: Part, gradient: bool) -> Iterator[Step]:
        """Images of the part in blocks whose V and M stay in the cache; the last may have fewer."""
        (images, rows, k), B_T, A_T = part, self.transform.B_T, self.transform.A_T
        F, tiles, C, K = len(B_T), _length(rows), self.inputs[3], _length(k)
        most = max(1, _BLOCK // (36 * tiles * self.horizontal.tiles * max(C, K)))
        n = -(-_length(images) // -(-_length(images) // most))
        blocks = [slice(i, min(i + n, images.stop)) for i in range(images.start, images.stop, n)]
        whole = len(blocks) - (_length(blocks[-1]) < n)
        vertical, columns = self.vertical.part(rows), self.horizontal.tiles
        for name, same in ((f"{worker}", blocks[:whole]), (f"{worker}, the last", blocks[whole:])):
            if not same:
                continue
            n = _length(same[0])
            V = frequencies(f"V {worker}", F, tiles, n, columns, C)
            M = frequencies(f"M {worker}", F, tiles, n, columns, K)
            reader = Reader(f"X {name}", B_T, self.inputs, vertical, self.horizontal, slice(0, C), V)
            other: Reader | Writer
            if gradient:
                step = len(A_T)
                down, right = Axis(self.vertical.tiles, step).part(rows), Axis(columns, step)
                other = Reader(f"L_Y {name}", self.transform.A, self.outputs, down, right, k, M)
            else:
                other = Writer(f"Y {name}", A_T, self.outputs, rows, k, M)
            yield Step(same, _flat(V), self._panels(part, _flat(V), _flat(M)), reader, other)

    def _panels(self, part: Part, V: Array, M: Array) -> list[Panel]:
        K, first = _length(part.filters), part.filters.start
        width = min(max(self.wide * _PANEL // self.inputs[3], 32), self.wide * 64)
        limit = _LIMIT_TRANSPOSED if self.few else LIMIT
        return [
            Panel(slice(k.start + first, k.stop + first), M[..., k], _pieces(V, M[..., k], limit))
            for k in _cut(K, -(-K // width))
        ]


def is_faster(X: Any, other: Any, output_size: Size, window: Window, groups: int, gradient: bool = True) -> bool:
    """Whether a convolution, or its weight gradient, is computed here rather than by its definition; `other` is the array of
    weights, or L_Y, with K channels last.

    float64 never is, so that gradient checks see the definition. The transforms cost about as much as products with 16
    channels, and their rounding must pay: below 16 channels on either side they lost (measured with 28x28 images). Tiles
    that stick out of the image are wasted work: with less than half of the multiplications saved (outputs of 1, 2 or 5
    pixels squared, say) the definition won too, and where there is little to do at all: with 64 channels it took 0.74 of the
    time for 4 tiles, as much for 8; in a network as much for 4 even where transformed filters are kept, whose memory it
    spares. Large filters that meet 4 tiles only (256 channels, one image of 8x8) cost more to transform than is won, but for
    gradients, where the definition has to turn them first.
    """
    if not (isinstance(X, np.ndarray) and X.dtype == other.dtype == np.float32 and groups == 1):
        return False
    if (window.size, window.stride, window.dilation) != ((3, 3), (1, 1), (1, 1)):
        return False
    (Ho, Wo), C, K = output_size, X.shape[-1], other.shape[-1]
    tiles = -(-Ho // TILE) * -(-Wo // TILE)
    few = min(C, K) < 16 or len(X) * tiles < 4 or len(X) * tiles * C * K <= _LITTLE
    few = few or (not gradient and len(X) == 1 and tiles == 4 and C * K > _LARGE)
    return not few and 9 * Ho * Wo >= 2 * 36 * tiles and enabled()


def enabled() -> bool:
    """False if the environment variable TINYDIFF_WINOGRAD is 0: then convolutions are computed by their definition, slower
    and with rounding errors that are 2 to 4 times smaller."""
    return os.environ.get("TINYDIFF_WINOGRAD", "1") != "0"


def convolve(
    X: Array, W: Array, terms: Terms, size: Size, before: Size, transform: str = "F4", turned: bool = False
) -> Array:
    """X (N, H, W, C) with filters W (3, 3, C, K), plus terms -> (N, *size, K), all float32.

    before: rows above and columns left of X that the first tile reads. turned: the filters are W (3, 3, K, C) turned by 180
    degrees, which lead from outputs to inputs.
    """
    X, W = np.ascontiguousarray(X), np.ascontiguousarray(W)
    Y = np.empty((len(X), *size, W.shape[2 if turned else 3]), np.float32)
    use = "turned" if turned else "forward"
    plan = prepared(Plan, transform, X.shape, size, before, Y.shape[3], threads.count(), use)

    # in training filters change at every step
    keep = plan.tiles <= _ROWS and W.size <= 9 * _SMALL and not is_recording()
    kept = _recent.transformed(W, transform, turned) if keep else None

    def filters(panels: list[Panel]) -> Iterator[Array]:
        """Transformed filters (F F, 1, C, k) of the panels, with names of their own if they are used again."""
        for i, (k, _, _) in enumerate(panels):
            name = "U" if plan.once else f"U {i}"
            U = transform_filters(W, k, plan.transform.G, turned, plan.few, name) if kept is None else kept[..., k]
            yield U[:, None]

    of_all = None if plan.by_filters or plan.once else [*filters(plan.steps[0][0].panels)]

    def work(parts: Sequence[list[Any]]) -> None:
        for steps in parts:
            panels = steps[0][0].panels
            Us = of_all or (filters(panels) if plan.once else [*filters(panels)])
            for step, read, write in steps:
                for images in step.blocks:
                    read(images)
                    for U, panel in zip(Us, step.panels, strict=True):
                        for V, M in panel.products:
                            np.matmul(V, U, out=M)
                    write(images)

    share(work, [[(step, step.reader.on(X), step.other.on(Y, *terms)) for step in steps] for steps in plan.steps])
    return Y


def weight_gradient(X: Array, L_Y: Array, before: Size, transform: str = "F4") -> Array:
    """L_W (3, 3, C, K) from X (N, H, W, C) and L_Y (N, Ho, Wo, K), all float32; sums over images in order."""
    (_, Ho, Wo, K), C = L_Y.shape, X.shape[3]
    X, L_Y = np.ascontiguousarray(X), np.ascontiguousarray(L_Y)
    plan = prepared(Plan, transform, X.shape, (Ho, Wo), before, K, threads.count(), "gradient")
    G_T, total = np.ascontiguousarray(plan.transform.G.T), np.zeros((3, 3, C, K), np.float32)

    def work(parts: Sequence[list[Any]]) -> Array:
        own = total if plan.by_filters or parts[0] is bound[0] else np.zeros_like(total)
        for steps in parts:
            for step, read, read_gradient in steps:
                for images in step.blocks:
                    read(images)
                    read_gradient(images)
                    for k, L_M, _ in step.panels:
                        own[..., k] += transform_filters_back(_multiply_transposed(step.V, L_M), G_T)
        return own

    bound = [[(step, step.reader.on(X), step.other.on(L_Y)) for step in steps] for steps in plan.steps]
    for own in share(work, bound):
        if own is not total:
            total += own
    return total


def transform_filters(W: Array, k: slice, G: Array, turned: bool = False, few: bool = False, name: str = "U") -> Array:
    """U = G w G^T for the filters k of W (3, 3, C, K) -> (F F, C, k); turned: of W (3, 3, K, C), turned by 180 degrees.

    few: they will meet few tiles. Then copying filters to turn them takes longer than products with a transposed matrix,
    which run at 100 rather than 114 GFLOP/s, and U is transposed.
    """
    w = W[:, :, k] if turned else W[..., k]
    if turned:
        G = np.ascontiguousarray(G[:, ::-1])
        w = w if few else w.swapaxes(2, 3)
    (_, _, a, b), F = w.shape, len(G)
    flat, half, U = aligned("w", (3, 3), a * b), aligned("G w", (3, F), a * b), aligned(name, (F, F), a * b)
    if w.strides[3] == w.itemsize:
        items(flat.reshape(w.shape))[...] = items(w)
    else:
        flat.reshape(w.shape)[...] = w
    multiply_lines(G, flat.swapaxes(0, 1), half)  # (3, F, C k)
    multiply_lines(G, half.swapaxes(0, 1), U)
    U = U.reshape(F * F, a, b)
    return U.swapaxes(1, 2) if few else U


class _Recent(threading.local):
    """The transformed filters of a thread's last small convolutions.

    With few tiles to transform them takes a third of the time, and where nothing is recorded, as when samples are drawn,
    they are mostly those of the last time: to compare takes a tenth of that.
    """

    def __init__(self) -> None:
        self.filters: OrderedDict[Any, tuple[Array, Array]] = OrderedDict()

    def transformed(self, W: Array, transform: str, turned: bool) -> Array:
        """U of all filters W, a C-contiguous array: (F F, C, K)."""
        key = W.__array_interface__["data"][0], W.shape, transform, turned
        before, U = self.filters.pop(key, (None, None))
        if before is None or U is None or not (before == W).all():
            U = transform_filters(W, slice(0, W.shape[2 if turned else 3]), TRANSFORMS[transform].G, turned)
            before, U = W.copy(), U.copy()
        self.filters[key] = before, U  # the last one used comes last
        if len(self.filters) > _RECENT:
            self.filters.popitem(last=False)
        return U


_recent = _Recent()


def transform_filters_back(L_U: Array, G_T: Array) -> Array:
    """L_W = G^T L_U G: (F F, C, K) -> (3, 3, C, K)."""
    F, (_, C, K) = G_T.shape[1], L_U.shape
    half, L_W = aligned("G w", (F, 3), C * K), aligned("w", (3, 3), C * K)
    multiply_lines(G_T, L_U.reshape(F, F, C * K).swapaxes(0, 1), half)
    multiply_lines(G_T, half.swapaxes(0, 1), L_W)
    return L_W.reshape(3, 3, C, K)


def _pieces(V: Array, M: Array, limit: int) -> list[tuple[Array, Array]]:
    """V (F F, T, C) and M (F F, T, k) in small products of equal numbers of rows, and one of what is left."""
    (F, T, C), k = V.shape, M.shape[2]
    rows = max(1, min(_ROWS, limit // (C * k)))
    rows = -(-T // -(-T // rows))
    whole = T // rows * rows
    cut = (F, whole // rows, rows)
    pieces = [(V[:, :whole].reshape(*cut, C), M[:, :whole].reshape(*cut, k))]
    return pieces + ([(V[:, None, whole:], M[:, None, whole:])] if whole < T else [])


def _multiply_transposed(V: Array, Z: Array) -> Array:
    """V^T (F F, C, T) times Z (F F, T, k), in products of equal numbers of channels."""
    (F, T, C), k = V.shape, Z.shape[2]
    D = aligned("L_U", (F,), C * k).reshape(F, C, k)
    c = C
    while c > 16 and c % 2 == 0 and c * T * k > LIMIT:
        c //= 2
    if c * T * k > LIMIT:
        c = C
    np.matmul(V.reshape(F, T, C // c, c).transpose(0, 2, 3, 1), Z[:, None], out=D.reshape(F, C // c, c, k))
    return D


def _flat(V: Array) -> Array:
    """(F, F, rows, n, columns, C) as (F F, T, C), without a copy."""
    F, _, rows, n, columns, C = V.shape
    return V.reshape(F * F, rows * n * columns, C)


def _length(s: slice) -> int:
    return s.stop - s.start


def _cut(length: int, pieces: int, start: int = 0) -> list[slice]:
    """start, start + 1, .. start + length - 1 in pieces of lengths as equal as can be."""
    ends = [start + length * i // pieces for i in range(pieces + 1)]
    return [slice(a, b) for a, b in pairwise(ends)]
