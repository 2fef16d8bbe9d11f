"""tinydiff/cpu/winograd/tiles.py against loops over tiles."""

import numpy as np
import pytest

from tinydiff.cpu.winograd.tiles import Axis, Reader, Writer, aligned, frequencies, runs


@pytest.mark.parametrize("taps", [1, 2, 4, 6])
@pytest.mark.parametrize("axis", [Axis(3, 4, 1), Axis(2, 2, 0), Axis(1, 4, 2), Axis(4, 3, 5), Axis(2, 4, -3)], ids=str)
@pytest.mark.parametrize("size", [1, 2, 7, 12, 30])
def test_spans_name_each_pixel_of_the_image_once(axis, taps, size):
    found = [
        (tap, tile, first + (tap - a.start) + axis.step * (tile - t.start))
        for a, t, first in axis.spans(taps, size)
        for tap in range(a.start, a.stop)
        for tile in range(t.start, t.stop)
    ]
    reads = [(s, i, axis.step * i - axis.before + s) for s in range(taps) for i in range(axis.tiles)]
    assert sorted(found) == [read for read in sorted(reads) if 0 <= read[2] < size]


def tiles_of(X, vertical, horizontal, taps):
    """(rows, images, columns, taps, taps, C), by loops."""
    N, H, W, C = X.shape
    d = np.zeros((vertical.tiles, N, horizontal.tiles, taps, taps, C))
    for i, j, r, s in np.ndindex(vertical.tiles, horizontal.tiles, taps, taps):
        y, x = vertical.step * i - vertical.before + r, horizontal.step * j - horizontal.before + s
        if 0 <= y < H and 0 <= x < W:
            d[i, :, j, r, s] = X[:, y, x]
    return d


READ = [  # images, taps, axes
    ((3, 8, 12, 5), 6, Axis(2, 4, 1), Axis(3, 4, 1)),
    ((2, 7, 5, 16), 6, Axis(2, 4, 1), Axis(2, 4, 0)),
    ((2, 6, 6, 3), 4, Axis(3, 2, 1), Axis(3, 2, 1)),
    ((4, 9, 9, 2), 4, Axis(3, 4, 0), Axis(3, 4, 0)),
    ((2, 16, 6, 4), 6, Axis(2, 4, 1 - 8), Axis(1, 4, 2)),  # the lower half of the tiles
]


@pytest.mark.parametrize(("shape", "taps", "vertical", "horizontal"), READ, ids=str)
def test_reader(shape, taps, vertical, horizontal, rng):
    X, m = rng.normal(size=shape).astype(np.float32), rng.normal(size=(5, taps)).astype(np.float32)
    expected = np.einsum("fr,inxrsc,gs->fginxc", m, tiles_of(X, vertical, horizontal, taps), m)
    for n in (1, shape[0]):
        V = frequencies("V", 5, vertical.tiles, n, horizontal.tiles, shape[3])
        read = Reader("test", m, shape, vertical, horizontal, slice(0, shape[3]), V).on(X)
        for start in (*range(0, shape[0], n), 0):  # the first block once more
            read(slice(start, start + n))
            np.testing.assert_allclose(V, expected[:, :, :, start : start + n], rtol=0, atol=1e-4)


@pytest.mark.parametrize("terms", ["", "b", "E", "R", "bER"])
@pytest.mark.parametrize(("size", "step"), [((8, 12), 4), ((7, 5), 4), ((6, 3), 2), ((1, 2), 4)], ids=str)
def test_writer(size, step, terms, rng):
    (H, W), N, K = size, 4, 3
    rows, columns = -(-H // step), -(-W // step)
    m = rng.normal(size=(step, 5)).astype(np.float32)
    M = rng.normal(size=(5, 5, rows, N, columns, K)).astype(np.float32)
    b, E, R = (rng.normal(size=s).astype(np.float32) for s in (K, (N, K), (N, H, W, K)))
    expected = np.einsum("rf,fginxc,sg->nirxsc", m, M, m).reshape(N, rows * step, columns * step, K)[:, :H, :W]
    expected = expected + b * ("b" in terms) + E[:, None, None] * ("E" in terms) + R * ("R" in terms)
    for n in (1, 2, 4):
        Y = np.full((N, H, W, K), np.nan, np.float32)
        given = [a if name in terms else None for name, a in (("b", b), ("E", E), ("R", R))]
        block = np.empty((5, 5, rows, n, columns, K), np.float32)
        write = Writer("test", m, Y.shape, slice(0, rows), slice(0, K), block).on(Y, *given)
        for start in range(0, N, n):
            block[...] = M[:, :, :, start : start + n]
            write(slice(start, start + n))
        np.testing.assert_allclose(Y, expected, rtol=0, atol=1e-4)


def test_lines_are_aligned_and_apart():
    for shape, line in (((6,), 1024), ((5, 5), 7), ((1,), 1)):
        A = aligned("test", shape, line)
        assert A.shape == (*shape, line) and A.ctypes.data % 64 == 0 and A.strides[-2] % 64 == 0
        A[...] = np.arange(A.size).reshape(A.shape)
        assert A[(*(n - 1 for n in shape), line - 1)] == A.size - 1


@pytest.mark.parametrize("length", [1, 31, 24_000, 24_001, 50_000, 60_000])
def test_products_with_runs_of_lines(length, rng):
    m, X = rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=(2, 6, length)).astype(np.float32)
    out = np.empty((2, 4, length), np.float32)
    np.matmul(m, runs(X), out=runs(out))
    np.testing.assert_allclose(out, np.einsum("pq,nql->npl", m, X), rtol=0, atol=1e-5)
