"""Products of matrices against float64."""

import numpy as np
import pytest

from tinydiff.cuda import products
from tinydiff.cuda.products import PLANS, Cost, Plan, plan

ALIGNED = [p for p in PLANS if (p.vector_a, p.vector_b) == (4, 4)]


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def swapped(a, yes):
    return np.ascontiguousarray(a.swapaxes(-1, -2)) if yes else a


def error(y, truth):
    """The largest error relative to the largest entry."""
    assert y.shape == truth.shape and y.dtype == np.float32
    return np.abs(y - truth).max() / np.abs(truth).max()


@pytest.fixture
def forced(monkeypatch):
    """force(plan) has every product use it."""
    return lambda p: monkeypatch.setattr(products, "plan", lambda *sizes: p)


@pytest.mark.parametrize("transpose_a, transpose_b", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 9), (8, 36, 4), (65, 12, 40), (70, 68, 200), (3, 33, 130)])
def test_products(device, shape, transpose_a, transpose_b):
    M, N, K = shape
    A, B, bias = normal(M, K), normal(K, N), normal(N)
    Y = device.run(
        products.matmul,
        swapped(A, transpose_a),
        swapped(B, transpose_b),
        transpose_a,
        transpose_b,
        bias=bias,
        scale=-0.7,
    )
    assert error(Y, -0.7 * A.astype(float) @ B + bias) < 1e-6


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("tile", ALIGNED, ids=lambda p: f"{p.m}x{p.n}")
def test_every_tile_whole_and_ragged_with_many_slices(device, forced, tile, parts):
    forced(tile._replace(parts=parts))
    for M, N, K in [(128, 128, 112), (132, 140, 72)]:
        A, B, bias = normal(M, K), normal(K, N), normal(N)
        for transpose_a in (False, True) if tile.n == 128 or parts == 1 else (False,):
            Y = device.run(products.matmul, swapped(A, transpose_a), B, transpose_a, bias=bias, scale=2.0)
            assert error(Y, 2 * A.astype(float) @ B + bias) < 1e-6


def test_more_parts_than_slices_and_no_inner_axis(device, forced):
    forced(Plan(64, 64, 5, 4, 4))
    A, B = normal(8, 32), normal(32, 4)
    assert error(device.run(products.matmul, A, B), A.astype(float) @ B) < 1e-6
    bias = normal(4)
    Y = device.run(products.matmul, normal(8, 0), normal(0, 4), bias=bias)
    np.testing.assert_array_equal(Y, np.broadcast_to(bias, (8, 4)))


@pytest.mark.parametrize("transpose_a, transpose_b", [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("N", [12, 5])
def test_stacks(device, transpose_a, transpose_b, N):
    A, B = normal(2, 3, 20, 8), normal(2, 3, 8, N)
    a, b = swapped(A, transpose_a), swapped(B, transpose_b)
    run = lambda a, b: device.run(products.matmul, a, b, transpose_a, transpose_b)  # noqa: E731
    assert error(run(a, b), A.astype(float) @ B) < 1e-6
    assert error(run(a, b[0, 0]), A.astype(float) @ B[0, 0]) < 1e-6
    assert error(run(a[0, 0], b), A[0, 0].astype(float) @ B) < 1e-6


@pytest.mark.parametrize("leading", [((2,), (1,)), ((1, 3), (2, 1)), ((3,), (2, 3)), ((0,), (1,)), ((2, 1), (0,))])
@pytest.mark.parametrize("transpose_a, transpose_b", [(False, False), (False, True), (True, False), (True, True)])
def test_leading_axes_broadcast(device, leading, transpose_a, transpose_b):
    A, B = normal(*leading[0], 5, 7), normal(*leading[1], 7, 6)
    Y = device.run(products.matmul, swapped(A, transpose_a), swapped(B, transpose_b), transpose_a, transpose_b)
    truth = A.astype(float) @ B
    assert Y.shape == truth.shape and Y.dtype == np.float32
    np.testing.assert_allclose(Y, truth, atol=1e-5)


@pytest.mark.parametrize("N", [36, 35])
def test_a_stack_in_parts_onto_another(device, forced, N):
    forced(Plan(64, 32, 2, 4, 4 if N == 36 else 1))
    A, B, R = normal(3, 66, 64), normal(3, 64, N), normal(3, 66, N)
    assert error(device.run(products.matmul, A, B, scale=0.5, R=R), 0.5 * A.astype(float) @ B + R) < 1e-6


def test_in_16_bits_all_is_added_before_the_sum_is_rounded(device):
    """Rows that tensor cores do not take, with a bias and another array."""
    A, B, R, bias = (normal(*s).astype(np.float16) for s in ((5, 7), (7, 6), (5, 6), (6,)))
    bias = bias.astype(np.float32)
    Y = device.run(products.matmul, A, B, bias=bias, scale=0.5, R=R)
    assert Y.dtype == np.float16
    truth = 0.5 * A.astype(float) @ B.astype(float) + bias + R
    np.testing.assert_allclose(Y, truth, rtol=2.0**-11, atol=2.0**-20)


def test_parts_give_the_same_bits_whoever_is_last(device, forced):
    """In one group of parts; in three, of which the last has two; in nine, which make two groups of groups."""
    for parts in (3, 18, 66):
        forced(Plan(64, 32, parts, 4, 4))
        A, B, bias = normal(2, 66, 16 * parts), normal(2, 16 * parts, 36), normal(36)
        first, second = (device.run(products.matmul, A, B, bias=bias, scale=0.5, seed=seed) for seed in (1, 2))
        assert error(first, 0.5 * A.astype(float) @ B + bias) < 1e-6
        np.testing.assert_array_equal(first, second)


def test_no_rows_no_columns_no_matrices(device):
    for a, b, shape in [((0, 4), (4, 8), (0, 8)), ((4, 4), (4, 0), (4, 0)), ((0, 3, 4), (0, 4, 5), (0, 3, 5))]:
        assert device.run(products.matmul, normal(*a), normal(*b)).shape == shape


def test_rows_that_do_not_begin_at_16_bytes(device):
    memory, B = normal(1 + 20 * 16), normal(16, 8)
    A = memory[1:].reshape(20, 16)
    on_device = device.array(memory)[1:].reshape(20, 16)
    assert error(device.run(products.matmul, on_device, B), A.astype(float) @ B) < 1e-6
    assert error(device.run(products.matmul, A[::2], B[:, ::-2]), A[::2].astype(float) @ B[:, ::-2]) < 1e-6


@pytest.mark.parametrize("shape", [(70, 68, 800), (6, 5, 300)])
def test_the_same_bits_whatever_the_order_of_threads(device, shape):
    M, N, K = shape
    A, B = normal(M, K), normal(K, N)
    first = device.run(products.matmul, A, B, seed=1)
    np.testing.assert_array_equal(first, device.run(products.matmul, A, B, seed=2))


def test_what_is_left_to_others(device):
    A, B = normal(4, 4), normal(4, 4)
    assert device.run(products.matmul, A.astype(float), B) is NotImplemented
    assert device.run(products.matmul, A, B, bias=np.zeros(4)) is NotImplemented
    assert device.run(products.matmul, A[0], B) is NotImplemented
    with pytest.raises(ValueError, match=r"matmul: \(4, 4\) and \(5, 4\) do not fit"):
        device.run(products.matmul, A, normal(5, 4))
    with pytest.raises(ValueError, match="broadcast"):
        device.run(products.matmul, normal(2, 4, 4), normal(3, 4, 4))
    with pytest.raises(ValueError, match=r"with bias \(3,\)"):
        device.run(products.matmul, A, B, bias=normal(3))


@pytest.mark.parametrize(
    "M, N, K",
    [(2304, 256, 2048), (1152, 128, 131072), (27, 128, 131072), (2048, 256, 2304)],
    ids=["dW at 4x4", "dW at 32x32", "dW of conv_in", "Y at 4x4"],
)
def test_plans_fill_an_h100(M, N, K):
    p = plan(M, N, K)
    warps = p.tiles(M, N) * p.parts * p.threads / 32
    assert warps >= 132 * 4, "every scheduler has a warp"
    assert K / p.parts >= 4 * products.SLICE or p.parts == 1


def test_plans_of_large_products_are_large_tiles_in_one_part():
    assert plan(131072, 128, 1152) == Plan(128, 128, 1, 4, 4)
    assert plan(256, 256, 256, 128)[:3] == (128, 128, 1)
    assert plan(131072, 3, 1152, 1, 4, 1)[:2] == (64, 32)


def test_every_plan_is_compiled_by_the_gate():
    sizes = [1, 3, 64, 300, 5000, 131072]
    for M in sizes:
        for N in sizes:
            for K in sizes:
                for vectors in [(4, 4), (4, 1), (1, 4), (1, 1)]:
                    assert plan(M, N, K, 1, *vectors)._replace(parts=1) in PLANS
    for p in PLANS:
        for a, b in [(0, 0), (0, 1), (1, 0)]:
            assert ("matrix.cu", {**p.defines, "TRANSPOSED_A": a, "TRANSPOSED_B": b}) in products.VARIANTS


def test_costs():
    A, B = normal(2, 3, 4), normal(2, 4, 5)
    assert products.matmul_cost(A, B) == Cost(2 * 2 * 3 * 4 * 5, 4 * (24 + 40 + 30))
    assert products.matmul_cost(swapped(A, True), swapped(B, True), True, True) == products.matmul_cost(A, B)
    assert products.matmul_cost(A, B[0], bias=normal(5)) == Cost(240, 4 * (24 + 20 + 30 + 5))
