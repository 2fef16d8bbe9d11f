"""How the work of a convolution by Winograd's filtering is shared, and the memory for it.

Images go through all steps in blocks whose V and M stay in the cache. Workers take images, or rows of tiles of an
image, and share the transformed filters. Where there are few tiles for many filters, each worker instead transforms all
images but only some of the filters. In both cases they meet once. Where OpenBLAS does not copy the operands of small
products, the product for each frequency is cut into some rows and panels of filters. Where it does, a product takes all
rows of a block and many filters.

Measured on 2 cores with AVX-512 and OpenBLAS 0.3.31:
- A fork and join takes 50 to 80 microseconds, as long as a small convolution. A second thread pays from 0.25 ms of
  work.
- Stacks of products of up to 10^6 multiplications run at 105 to 115 GFLOP/s a core. With a transposed second matrix
  they run at 100, and only up to 2^18 multiplications. Copying filters in order to turn them costs more where they meet
  up to 32 tiles.
- In batches of 1 to 8 images, workers that take filters win up to 0.5 tiles for each filter: twice as many filters as
  tiles are transformed in a time. In weight gradients the limit is 2, because workers that take images have to add up
  sums.

Measured on one busy core with AVX2 and OpenBLAS's code for Haswell, forward and both gradients together: uncut products,
wide panels and blocks twice as large take 52 instead of 66 ms with 256 channels (8 images of 16x16), 108 instead of 162 ms
from 512 to 256, 58 instead of 67 ms with 128 (8 of 32x32), and as long as before with 32 or 64. Blocks four times as large
are 7 % faster again, but took 72 MB more in a step of the CIFAR-10 network, these 14. Forward with few tiles, narrow panels
that stay in the cache are faster: 10.7 instead of 12.0 ms from 512 to 256 channels (8 images of 8x8); weight gradients are
not. A single thread, which need not wait for the interpreter's lock, takes a quarter of a block with up to 64 channels:
forward, input and weight gradient take 3.7, 3.7 and 4.1 instead of 4.2, 4.0 and 4.7 ms with 32 (16 images of 32x32), 5.4, 5.3
and 5.7 instead of 5.8, 6.1 and 6.7 ms with 64 (32 of 14x14). Weight gradients are fastest with half a block. With 256
channels smaller blocks are slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from tinydiff.cpu.blas import MULTIPLICATIONS_OF_A_SMALL_PRODUCT, has_small_products
from tinydiff.cpu.winograd.tiles import Axis, Reader, Writer, frequencies
from tinydiff.cpu.winograd.transforms import TRANSFORMS

Array = np.ndarray
Size = tuple[int, int]
Shape = tuple[int, ...]


class Limits(NamedTuple):
    """How much is multiplied at once, at most. A panel is (entries of U_f, filters)."""

    rows: int  # of a product, which are tiles
    multiplications: int  # of a product
    transposed_multiplications: int  # of one whose second matrix is a transposed one
    panel: Size
    panel_for_few_tiles: Size
    gradient_panel_for_few_tiles: Size
    block_of_many_filters: int  # how many times as large as others a block is, where there are many pairs of channels
    cuts_alone: Size  # of other blocks, where one thread does all: in a convolution, in a weight gradient


# where small products are not copied
SMALL = Limits(
    rows=64,
    multiplications=MULTIPLICATIONS_OF_A_SMALL_PRODUCT,
    transposed_multiplications=1 << 18,
    panel=(1 << 14, 64),
    panel_for_few_tiles=(1 << 15, 128),
    gradient_panel_for_few_tiles=(1 << 15, 128),
    block_of_many_filters=1,
    cuts_alone=(1, 1),
)
# where all products are: to copy filters, and to transform sums over tiles back, shall serve many tiles
LARGE = Limits(
    rows=1 << 20,
    multiplications=1 << 40,
    transposed_multiplications=1 << 40,
    panel=(1 << 16, 1 << 11),
    panel_for_few_tiles=(1 << 14, 64),
    gradient_panel_for_few_tiles=(1 << 16, 1 << 11),
    block_of_many_filters=2,
    cuts_alone=(4, 2),
)
FEW_TILES = 64  # of a worker, at most
FILTERS_OF_A_PANEL = 32  # at least
PAIRS_OF_MANY_FILTERS = 1 << 14  # of channels C K
TILES_FOR_TRANSPOSED_FILTERS = 32  # at most
ENTRIES_OF_A_BLOCK = 1 << 19  # of V or M
MULTIPLICATIONS_PER_TRANSFORMED_ENTRY = 12  # for one frequency, in the time of transforming an entry of V, M or U
MULTIPLICATIONS_WORTH_A_THREAD = 400_000  # for one frequency, that pay for a second thread
TILES_PER_FILTER, TILES_PER_FILTER_IN_A_GRADIENT = 0.5, 2  # up to which workers take filters


class Part(NamedTuple):
    """What one worker computes: some filters for some rows of tiles of some images."""

    images: slice
    rows: slice
    filters: slice


class Panel(NamedTuple):
    """Some of a part's filters, as many as are multiplied fastest at once: M = V U for them."""

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

    The calling thread makes it, once for all convolutions of these shapes (`workspaces.prepared`). Making it would take
    half of the time of a small convolution, and workers that set up arrays at the same time wait for the interpreter's
    lock.
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
        self.transposed = use == "turned" and self.tiles <= TILES_FOR_TRANSPOSED_FILTERS  # U, if it was not kept
        self.parts = self._parts(count, TILES_PER_FILTER_IN_A_GRADIENT if use == "gradient" else TILES_PER_FILTER)
        self.limits = SMALL if has_small_products() else LARGE
        most = max(_length(part.images) * _length(part.rows) for part in self.parts) * self.horizontal.tiles
        self.panel = self.limits.panel  # at most; those of all parts are alike, since workers share filters
        if most <= FEW_TILES:
            gradient = use == "gradient"
            self.panel = self.limits.gradient_panel_for_few_tiles if gradient else self.limits.panel_for_few_tiles
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
        work = T * C * K + MULTIPLICATIONS_PER_TRANSFORMED_ENTRY * (T * (C + K) + C * K)
        if count == 1 or work < MULTIPLICATIONS_WORTH_A_THREAD:
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
        entries = ENTRIES_OF_A_BLOCK
        if C * K >= PAIRS_OF_MANY_FILTERS:
            entries *= self.limits.block_of_many_filters
        elif len(self.parts) == 1:
            entries //= self.limits.cuts_alone[gradient]
        most = max(1, entries // (36 * tiles * self.horizontal.tiles * max(C, K)))
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
        K, first, limits = _length(part.filters), part.filters.start, self.limits
        entries, most = self.panel
        width = min(max(entries // self.inputs[3], FILTERS_OF_A_PANEL), most)
        multiplications = limits.transposed_multiplications if self.transposed else limits.multiplications
        return [
            Panel(
                slice(k.start + first, k.stop + first), M[..., k], _pieces(V, M[..., k], limits.rows, multiplications)
            )
            for k in _cut(K, -(-K // width))
        ]


def _pieces(V: Array, M: Array, most: int, multiplications: int) -> list[tuple[Array, Array]]:
    """V (F F, T, C) and M (F F, T, k) in products of equal numbers of rows within these limits, and one of what is left."""
    (F, T, C), k = V.shape, M.shape[2]
    rows = max(1, min(most, multiplications // (C * k)))
    rows = -(-T // -(-T // rows))
    whole = T // rows * rows
    cut = (F, whole // rows, rows)
    pieces = [(V[:, :whole].reshape(*cut, C), M[:, :whole].reshape(*cut, k))]
    return pieces + ([(V[:, None, whole:], M[:, None, whole:])] if whole < T else [])


def _flat(V: Array) -> Array:
    """(F, F, rows, n, columns, C) as (F F, T, C), without a copy."""
    F, _, rows, n, columns, C = V.shape
    return V.reshape(F * F, rows * n * columns, C)


def _length(s: slice) -> int:
    return s.stop - s.start


def _cut(length: int, pieces: int) -> list[slice]:
    """0, 1, .. length - 1 in pieces of nearly equal length."""
    ends = [length * i // pieces for i in range(pieces + 1)]
    return [slice(a, b) for a, b in pairwise(ends)]
