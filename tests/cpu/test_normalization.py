"""tinydiff/cpu/normalization.py against the definitions."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.cpu.agreement import check, leaves
from tests.ops.test_normalization import group_norm_loop, leaf, silu
from tinydiff import ops
from tinydiff.cpu import normalization
from tinydiff.machine.threads import threads
from tinydiff.ops.normalization import group_norm_silu, group_normalize, group_normalize_backward

SHAPES = [  # images that are one row, rows of several pixels, rows of one pixel; alone or not; one pixel; no pixels' axis
    ((2, 3, 4, 6), 3), ((3, 1, 1, 12), 4), ((1, 1, 1, 4), 2), ((3, 8), 2), ((1, 8), 4), ((2, 5, 4), 1), ((1, 4, 4, 64), 32),
    ((1, 8, 8, 96), 32), ((1, 16, 16, 96), 96), ((1, 24, 24, 32), 1), ((1, 11, 11, 96), 32), ((2, 8, 8, 512), 32),
    ((3, 7, 1, 3000), 6), ((2, 2, 1, 3, 4), 4), ((9, 32, 32, 32), 8), ((2, 33, 31, 5), 5),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("affine", ["both", "weight", "bias", "neither"])
def test_agrees_with_the_definition(shape, groups, fused, affine, rng):
    X, L_Y, C = rng.normal(1, 2, shape), rng.normal(size=shape), shape[-1]
    w = rng.uniform(0.5, 2, C) if affine in ("both", "weight") else None
    b = rng.normal(size=C) if affine in ("both", "bias") else None
    check(group_normalize, X, w, b, groups, 1e-2, fused, single=5e-6)
    _, mean, scale = group_normalize.definition(X, w, b, groups, 1e-2)
    check(group_normalize_backward, L_Y, X, mean, scale, w, b, groups, fused, single=1e-5)


@pytest.mark.parametrize("needs", [tuple(bool(k >> i & 1) for i in range(3)) for k in range(8)], ids=str)
@pytest.mark.parametrize("N", [1, 3])
def test_only_the_gradients_that_are_needed(needs, N, rng):
    X, L_Y, w, b = rng.normal(size=(N, 5, 4, 6)), rng.normal(size=(N, 5, 4, 6)), rng.normal(size=6), rng.normal(size=6)
    _, mean, scale = group_normalize.definition(X, w, b, 3, 1e-2)
    check(group_normalize_backward, L_Y, X, mean, scale, w, b, 3, True, needs, single=1e-5)


@pytest.mark.parametrize("shape", [(2, 0, 3, 4), (0, 4), (2, 3, 0), (0, 2, 2, 4), (1, 0, 4)], ids=str)
def test_no_numbers_are_left_to_the_definition(shape):
    X, w, state = np.zeros(shape), np.ones(shape[-1]), np.zeros((shape[0], 2))
    assert leaves(group_normalize, X, w, w, 2, 1e-5, True)
    assert leaves(group_normalize_backward, X, X, state, state, w, w, 2, True)


@pytest.mark.parametrize("alone", [True, False])
def test_rows_divide_the_pixels_and_are_as_long_as_is_fast(alone):
    for pixels in (1, 7, 49, 64, 65, 256, 784, 1021, 4096):
        for channels in (1, 3, 64, 96, 512, 3000):
            n = normalization._pixels_per_row(pixels, channels, alone)
            assert pixels % n == 0
            whole = pixels <= 64 and pixels * channels <= 8192
            if alone:
                assert n == pixels or n * channels >= 8192
            else:
                assert n == pixels if whole else n == 1 or n * channels <= 2048


@pytest.mark.parametrize("fused", [False, True])
def test_blocks_and_threads_change_nothing(fused, rng):
    """More than one block for each of three threads, against float64 in one."""
    N, H, C, G = 40, 32, 64, 32
    x, L_Y = (rng.normal(1, 2, (N, H, H, C)).astype(np.float32) for _ in range(2))
    w, b = rng.uniform(0.5, 2, C).astype(np.float32), rng.normal(size=C).astype(np.float32)

    def run(dtype):
        leaves = [leaf(a.astype(dtype)) for a in (x, w, b)]
        y = (group_norm_silu if fused else ops.group_norm)(leaves[0], G, *leaves[1:])
        y.backward(L_Y.astype(dtype))
        return y.data, *(a.grad for a in leaves)

    exact = run(np.float64)
    for n in (2, 3):
        with threads(n):
            ours, again = run(np.float32), run(np.float32)
        for a, e, a2 in zip(ours, exact, again, strict=True):
            np.testing.assert_allclose(a, e, atol=2e-6 * np.abs(e).max())
            np.testing.assert_array_equal(a, a2)


@pytest.mark.parametrize("shape", [(1, 8, 8, 64), (1, 32, 32, 64), (64, 8, 8, 64)], ids=str)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_runs_repeat_bit_for_bit(shape, n, rng):
    x, L_Y = (rng.normal(1, 2, shape).astype(np.float32) for _ in range(2))
    w, b = rng.uniform(0.5, 2, 64).astype(np.float32), rng.normal(size=64).astype(np.float32)

    def run():
        leaves = [leaf(a) for a in (x, w, b)]
        y = group_norm_silu(leaves[0], 32, *leaves[1:])
        y.backward(L_Y)
        return y.data, *(a.grad for a in leaves)

    exact = silu(group_norm_loop(x.astype(float), 32, w, b))
    with threads(n):
        first = run()
        np.testing.assert_allclose(first[0], exact, atol=1e-5)
        for a, again in zip(first, run(), strict=True):
            np.testing.assert_array_equal(a, again)


def test_images_of_many_sizes_take_no_memory_each():
    """Of each size that came by something is kept, but not rows or images."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for n in range(2003, 2303, 2):
            ops.group_norm(np.zeros((1, n, 64), np.float32), 8)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 4 * 2303 * 64 * 4


def test_threads_of_the_users_own_do_not_meet(rng):
    """The memory that is kept for one image belongs to a thread: four of them normalise images of one size at once."""
    images = rng.normal(size=(4, 1, 16, 16, 64)).astype(np.float32)
    alone = [ops.group_norm(x, 32).data for x in images]

    def often(i):
        return all((ops.group_norm(images[i], 32).data == alone[i]).all() for _ in range(200))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(often, range(4)))
