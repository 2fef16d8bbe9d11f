"""Products on tensor cores against float64 on rounded operands."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from tests.cuda import occupancy as made
from tinydiff.cuda import nvrtc, occupancy, products, source, tensor
from tinydiff.cuda.launch import launch
from tinydiff.cuda.tensor import Plan
from tinydiff.precision import from_memory, in_memory, rounded

TRANSPOSES = [(False, False), (False, True), (True, False)]


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def swapped(a, yes):
    return np.ascontiguousarray(a.swapaxes(-1, -2)) if yes else a


@pytest.fixture
def forced(monkeypatch):
    """force(plan) has every product on tensor cores use it."""
    return lambda p: monkeypatch.setattr(tensor, "plan", lambda *sizes: p)


def check(device, shape, precision, transpose_a, transpose_b, result="float32", stack=1, seed=0):
    """One product of random matrices, into memory that holds NaN."""
    (M, N, K), each = shape, (stack,) if stack > 1 else ()
    A, B, bias = normal(*each, M, K), normal(*each, K, N, seed=1), normal(N)
    a, b = (in_memory(swapped(x, yes), precision) for x, yes in ((A, transpose_a), (B, transpose_b)))
    Y = in_memory(np.full((*each, M, N), np.nan, np.float32), result)
    apart = (M * K, K * N) if each else (0, 0)

    R = in_memory(normal(*each, M, N, seed=2), result)

    def run(a, b, bias, R, Y):
        assert tensor.product(a, b, bias, Y, transpose_a, transpose_b, -0.5, (M, N, K, stack), apart, precision, R)
        return Y

    Y = from_memory(device.run(run, a, b, bias, R, Y, seed=seed))
    truth = -0.5 * rounded(A, precision).astype(float) @ rounded(B, precision) + bias + from_memory(R)
    np.testing.assert_allclose(
        Y, truth, rtol={"float32": 0, "fp16": 2**-11, "bf16": 2**-8}[result], atol=2e-6 * np.abs(truth).max()
    )
    return Y


@pytest.mark.parametrize("transpose_a, transpose_b", TRANSPOSES)
@pytest.mark.parametrize("shape", [(4, 4, 4), (68, 72, 100), (128, 128, 32)])
def test_tf32(device, shape, transpose_a, transpose_b):
    check(device, shape, "tf32", transpose_a, transpose_b)


def test_parts_give_the_same_bits_whoever_is_last(device, forced):
    """In one group of parts and in three, of which the last has two."""
    for parts in (3, 18):
        forced(Plan(64, 64, parts))
        first = check(device, (68, 64, 20 * 16), "tf32", False, False, stack=2)
        np.testing.assert_array_equal(
            first, check(device, (68, 64, 20 * 16), "tf32", False, False, stack=2, seed=parts)
        )


def test_as_many_parts_as_there_may_be_for_neighbouring_tiles(device, forced):
    """Then every counter of a tile is used."""
    forced(Plan(64, 64, tensor.MOST_PARTS))
    check(device, (4, 128, 16 * tensor.MOST_PARTS), "tf32", False, False)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    "name, defines, oldest",
    tensor.VARIANTS,
    ids=lambda x: " ".join(source.flags(x)) if isinstance(x, dict) else "",
)
def test_every_variant(device, forced, name, defines, oldest, parts):
    forced(Plan(defines["TILE_M"], defines["TILE_N"], parts))
    precision, result = defines["PRECISION"].lower(), defines["RESULT"].lower()
    transposes = bool(defines["TRANSPOSED_A"]), bool(defines["TRANSPOSED_B"])
    for shape in [(136, 264, 72), (256, 256, 8), (8, 16, 200)]:
        check(device, shape, precision, *transposes, result)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_random_shapes(device, monkeypatch, seed):
    rng, plan = np.random.default_rng(seed), tensor.plan
    parts = int(rng.integers(1, 12))
    monkeypatch.setattr(tensor, "plan", lambda *sizes: plan(*sizes)._replace(parts=parts))
    precision = ("tf32", "bf16", "fp16")[seed % 3]
    shape = [int(n) * (4 if precision == "tf32" else 8) for n in rng.integers(1, 30, 3)]
    check(device, shape, precision, *TRANSPOSES[seed % 7 % 3], stack=int(rng.integers(1, 4)))


def test_a_block_of_tf32_reaches_the_layers_products(device):
    """And what tensor cores do not take is computed in float32."""

    def run(A, B):
        with tensor.precision("tf32"):
            return products.matmul(A, B, transpose_b=True, scale=2.0)

    for K, precision in ((40, "tf32"), (39, "float32")):
        A, B = normal(2, 6, K), normal(2, 8, K)
        truth = 2 * rounded(A, precision).astype(float) @ rounded(B, precision).swapaxes(1, 2)
        np.testing.assert_allclose(device.run(run, A, B), truth, rtol=0, atol=1e-6 * np.abs(truth).max())
        other = 2 * A.astype(float) @ B.swapaxes(1, 2)
        assert (np.abs(truth - other).max() > 1e-4) == (precision == "tf32")
    with pytest.raises(ValueError, match="not 'bf16'"), tensor.precision("bf16"):
        pass


def test_rows_that_are_not_whole_chunks_are_left_to_others():
    take = lambda M, N, K, a=False, b=False, precision="tf32": tensor.product(  # noqa: E731
        *(in_memory(normal(*s), precision) for s in (((K, M) if a else (M, K)), ((N, K) if b else (K, N)))),
        None, np.empty((M, N), np.float32), a, b, 1.0, (M, N, K, 1), (0, 0), precision,
    )  # fmt: skip
    assert not take(4, 4, 6) and not take(4, 6, 4) and not take(6, 4, 4, a=True) and not take(4, 4, 6, b=True)
    assert not take(8, 8, 12, precision="bf16") and not take(8, 12, 8, precision="fp16")
    odd = normal(17)[1:].reshape(4, 4)
    assert not tensor.product(odd, normal(4, 4), None, normal(4, 4), False, False, 1.0, (4, 4, 4, 1), (0, 0), "tf32")


def test_plans():
    """Large tiles for large products, parts where tiles leave multiprocessors idle, and all within what every GPU has."""
    assert plan_of(131072, 256, 2304, 2)[:2] in ((256, 128), (128, 256)) and plan_of(131072, 256, 2304, 2).parts == 1
    assert plan_of(1152, 128, 131072, 2).parts > 8
    assert plan_of(64, 64, 64, 4) == Plan(64, 64, 1)
    for M, N, K, size in itertools.product((64, 256, 2304, 131072), (64, 256), (64, 2304, 131072), (2, 4)):
        p = plan_of(M, N, K, size)
        assert p.shared <= 96 << 10 and p.threads in (128, 256)
        assert p.parts == 1 or (p.tiles(M, N) * p.parts <= 132 * tensor.blocks_held(p.m, p.n, size) and p.parts <= 64)


def plan_of(M, N, K, size):
    return tensor.plan(M, N, K, 1, size)


def wavefronts(addresses):
    """The cycles in which shared memory serves 8 chunks of 16 bytes, or 32 words, at these addresses."""
    banks = {}
    for address in addresses:
        for word in range(address // 4, address // 4 + (4 if len(addresses) == 8 else 1)):
            banks.setdefault(word % 32, set()).add(word)
    return max(map(len, banks.values()))


@pytest.mark.parametrize("tile, precision", [((128, 256), "TF32"), ((64, 64), "BF16")])
def test_no_two_threads_wait_for_one_bank(device, tile, precision):
    """Neither 8 threads that copy, nor 8 addresses of ldmatrix, nor 32 that read words of TF32 across k."""
    threads = Plan(*tile, 1).threads
    copied, read = np.zeros((4, threads), np.uint32), np.zeros((4, 4, threads), np.uint32)
    defines = {"PRECISION": precision, "TILE_M": tile[0], "TILE_N": tile[1]}
    source = str(Path(__file__).with_name("test_tensor.cu"))

    def run(copied, read):
        launch(source, "addresses", (1, 1, 1), (threads, 1, 1), (copied, read), 0, defines)
        return copied, read

    copied, read = device.run(run, copied, read)
    for operand in range(4):
        words = precision == "TF32" and operand >= 2
        assert {wavefronts(each) for each in copied[operand].reshape(-1, 8).tolist()} == {1}
        assert {wavefronts(each) for each in read[operand].reshape(-1, 32 if words else 8).tolist()} == {1}


@pytest.mark.slow
@pytest.mark.skipif(nvrtc.missing() is not None, reason=str(nvrtc.missing()))
@pytest.mark.parametrize("architecture", [a for a in nvrtc.ARCHITECTURES if a >= tensor.OLDEST])
def test_every_variant_compiles_without_spills(architecture):
    for _, defines, usages in nvrtc.compile_variants([architecture], tensor.VARIANTS):
        assert isinstance(usages, list), usages
        (usage,) = usages
        assert not usage.spills and usage.registers <= 240, defines
        if architecture == occupancy.PLANNED:
            held = occupancy.least_warps((usage.kernel,), **defines)
            assert made.warps(usage, *made.dynamic_shared(usage.kernel, defines)) >= held, "plans count on as many"
        assert usage.shared + Plan(defines["TILE_M"], defines["TILE_N"], 1).shared <= 99 << 10
