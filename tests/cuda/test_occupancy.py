"""tinydiff/cuda/occupancy.py and the file it reads: what plans know of how many warps a multiprocessor holds."""

import json

import pytest

from tests.cuda import occupancy as made
from tinydiff.cuda import nvrtc, occupancy, products, source, tensor
from tinydiff.cuda.nvrtc import Usage


@pytest.fixture
def table(monkeypatch):
    """A small table in place of the file's."""
    rows = {
        "conv_forward": {"TILE_M=64 VECTOR=4": [12, 9], "TILE_M=64 VECTOR=1": [4, 5]},
        "conv_weight_gradient": {"TILE_M=64 VECTOR=4": [9, 8]},
    }
    monkeypatch.setattr(occupancy, "table", lambda: rows)
    return rows


def test_the_file_has_every_variant_of_the_kernels_that_plans_are_made_for():
    declared = {}
    for name, defines, _ in nvrtc.variants():
        for kernel in set(source.kernels(source.load(name))) & set(made.KERNELS):
            declared.setdefault(kernel, set()).add(occupancy.words(defines))
    assert {kernel: set(rows) for kernel, rows in occupancy.table().items()} == declared
    assert made.written(json.loads(occupancy.FILE.read_text())) == occupancy.FILE.read_text()
    for rows in occupancy.table().values():
        assert all(1 <= warps <= made.MOST_WARPS for row in rows.values() for warps in row)


def test_plans_read_the_fewest_of_what_may_be_launched(table):
    least = occupancy.least_warps
    assert least(("conv_forward",), TILE_M=64, VECTOR=4) == 9
    assert least(("conv_forward", "conv_weight_gradient"), TILE_M=64, VECTOR=4) == 8
    assert least(("conv_forward",), VECTOR=(4, 1)) == 5
    with pytest.raises(ValueError, match="no conv_forward with TILE_M=128"):
        least(("conv_forward",), TILE_M=128)


def test_the_plan_goes_by_the_file(monkeypatch):
    """With half the warps there is room for half the blocks, so a product is cut into fewer parts."""
    assert products.plan(2304, 256, 2048).parts > 1 and tensor.plan(1152, 128, 131072, 1, 2).parts > 4
    before = products.plan.__wrapped__(2304, 256, 2048), tensor.plan.__wrapped__(1152, 128, 131072, 1, 2)
    monkeypatch.setattr(products, "warps_held", lambda m, n, *vectors: m * n // 2048)
    monkeypatch.setattr(tensor, "blocks_held", lambda *tile: 1)
    after = products.plan.__wrapped__(2304, 256, 2048), tensor.plan.__wrapped__(1152, 128, 131072, 1, 2)
    for one, other in zip(before, after, strict=True):
        assert one.parts * one.threads > other.parts * other.threads


def test_warps_by_registers_and_shared_memory():
    """128 threads with 82 registers: 5 blocks; 256 with 128: 2; shared memory holds fewer on sm_80; 255 registers: 8 warps."""
    warps = lambda registers, architecture, threads, shared: made.warps(  # noqa: E731
        Usage("k", architecture, registers, 1024, 0, 0), threads, shared
    )
    assert warps(82, 90, 128, 32 << 10) == 20 and warps(82, 80, 128, 32 << 10) == 16
    assert warps(128, 90, 256, 56 << 10) == 16 and warps(128, 90, 256, 120 << 10) == 8
    assert warps(255, 90, 32, 0) == 8 and warps(20, 90, 32, 0) == 32 and warps(20, 90, 256, 0) == 64


def test_threads_and_shared_memory_are_those_of_the_launch():
    assert made.dynamic_shared("tensor_product", {"TILE_M": 128, "TILE_N": 256}) == (256, 96 << 10)
    tile = {"TILE_M": 64, "TILE_N": 32}
    p = products.Plan(64, 32, 1, 4, 4)
    assert made.dynamic_shared("conv_forward", tile) == (32, p.shared(by_rows=True))
    assert made.dynamic_shared("matrix_product", tile | {"TRANSPOSED_A": 1}) == (32, p.shared(by_rows=False))
    assert made.dynamic_shared("conv_weight_gradient", tile) == (32, p.shared(by_rows=False))


def test_what_differs_from_the_file_is_named(table):
    gathered = made.Gathered()
    for vector, registers in ((4, 128), (1, 200)):
        for architecture in occupancy.ARCHITECTURES:
            usage = Usage("conv_weight_gradient", architecture, registers, 0, 0, 0)
            gathered.add({"TILE_M": 64, "TILE_N": 64, "VECTOR": vector}, usage)
    gathered.add({"TILE_M": 64}, Usage("conv_turn", 90, 20, 0, 0, 0))  # of a kernel without a plan
    found = gathered.table()["conv_weight_gradient"]
    assert found == {"TILE_M=64 TILE_N=64 VECTOR=1": [8, 8], "TILE_M=64 TILE_N=64 VECTOR=4": [12, 16]}
    assert gathered.differences() == [
        "occupancy.json: conv_weight_gradient TILE_M=64 TILE_N=64 VECTOR=1: None, compiled [8, 8] warps",
        "occupancy.json: conv_weight_gradient TILE_M=64 TILE_N=64 VECTOR=4: None, compiled [12, 16] warps",
        "occupancy.json: conv_weight_gradient TILE_M=64 VECTOR=4: [9, 8], compiled None warps",
    ]
    table["conv_weight_gradient"] = dict(found)
    assert gathered.differences() == []
