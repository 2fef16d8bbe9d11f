"""What a training step should take on a GPU: predicted, kernel by kernel, from its launches and from machine code. Not measured.

    python -m tests.benchmarks.gpu_model                                        # both networks, float32 and TF32, both GPUs
    python -m tests.benchmarks.gpu_model --networks glyphs --gpus H100 --rows 9  # with the kernels that take longest

The launches are those of a step of the trainer, recorded on the stand-in for CuPy with nothing computed: their variants, grids
and arguments are what a GPU would be given. cost_model.json has the figures that the model goes by: what the makers state (clock,
peaks), what is known of such cards (copying, `mma.sync`), and counts of the machine code (cycles in which a multiprocessor issues
the instructions of a slice of K, and reads it from shared memory). A product takes as many rounds of blocks as its grid makes,
and a round as long as the slowest of tensor cores or multipliers, issue slots and shared memory. Everything else takes the time
of its bytes. No kernel takes less than `least kernel`, and a graph adds a gap after each. The floor of a kernel is the larger of
its operations at the maker's peak and its bytes at the speed of copying.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tinydiff as td
from tests.benchmarks import gpu
from tests.benchmarks.gpu_report import table
from tinydiff.cuda import driver, products, source, tensor, tensor_attention
from tinydiff.cuda.split_k import cycles_of_adding

FIGURES: dict[str, Any] = json.loads(Path(__file__).with_name("cost_model.json").read_text(encoding="utf-8"))
STEPS = {"cifar": (gpu.NETWORKS["cifar"], 128), "glyphs": (gpu.NETWORKS["glyphs"], 32)}  # network and batch
PRECISIONS = ("float32", "tf32")
HOLLOW_BYTES = 1 << 30  # of one piece of memory that stands for all arrays whose values do not matter
PARTLY_READ = {
    "gather_batch": ("images",),
    "tick": ("ring",),
    "pick_rows": ("W",),
}  # arrays of which a launch reads a few rows
COUNTERS = "arrived"  # for blocks that add parts: hardly any are read
FIXED = 1 << 10  # bytes of shared memory that CUDA keeps for each block


def figures_of(name: str) -> dict[str, Any] | None:
    """What the model goes by for a GPU of that name, as CUDA tells it; None for one that it does not know."""
    return next((figures for known, figures in FIGURES["gpus"].items() if known in name), None)


class Launch(NamedTuple):
    """A launch of a kernel; of one of CuPy's, only what it is called and its bytes. numbers: whole numbers among its arguments."""

    kernel: str
    bytes: int
    source: str = ""
    grid: tuple[int, ...] = (1, 1, 1)
    defines: Mapping[str, Any] = {}
    numbers: Mapping[str, int] = {}

    @property
    def precision(self) -> str:
        """That of its operands."""
        return str(self.defines.get("PRECISION", "float32")).lower()

    @property
    def variant(self) -> str:
        """The kernel with its tile and, on tensor cores, its precision."""
        rows = self.defines.get("TILE_M", tensor_attention.ROWS)
        tile = f" {rows}x{self.defines['TILE_N']}" if self.flops and "TILE_N" in self.defines else ""
        return self.kernel + tile + (f" {self.precision}" if "PRECISION" in self.defines else "")

    @property
    def product(self) -> tuple[int, int, int, int] | None:
        """(M, N, K, stack) of a product of matrices, which a convolution is as well; None for other kernels."""
        n = self.numbers
        if {"M", "N", "K"} <= set(n):
            return n["M"], n["N"], n["K"], self.grid[1]
        if "M" in n and "columns0" in n:  # of layers that share an input: side by side, or one sum through all
            columns = sum(n[f"columns{i}"] for i in range(source.LAYERS))
            return n["M"], n.get("N", columns), n.get("K", columns), 1
        if not {"R", "S", "C", "Ho", "Wo"} <= set(n):
            return None
        images, outputs = n.get("images", n.get("N", 0)), n.get("K", n.get("N", 0))
        pixels, taps = images * n["Ho"] * n["Wo"], n["R"] * n["S"]
        if "weight" in self.kernel:
            return taps * n["C"], outputs, pixels, 1
        return pixels, outputs, taps * n["C"], 1

    @property
    def attention(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """The inner axes of a kernel of attention (kernels/tensor_attention.cu): of products that have P's entries, and the columns
        of those that P is an operand of. None for other kernels."""
        if not {"queries", "keys", "D", "E"} <= set(self.numbers):
            return None
        D, E = self.numbers["D"], self.numbers["E"]
        return {"forward": ((D,), (E,)), "queries": ((D, E), (D,)), "keys": ((D, E), (E, D))}[self.kernel.split("_")[1]]

    @property
    def flops(self) -> int:
        """Of products; 0 for other kernels, whose bytes count."""
        if self.attention is not None:
            queries, keys = self.numbers["queries"], self.numbers["keys"]
            tiles = -(-(keys if "keys" in self.kernel else queries) // tensor_attention.ROWS)
            return 2 * self.grid[0] // tiles * queries * keys * sum(map(sum, self.attention))
        return 0 if self.product is None else 2 * math.prod(self.product)


def described(call: tuple[Any, ...]) -> Launch:
    """What the arguments of `driver.run` launch."""
    name, kernel, grid, _, args, _, defines = call
    parameters = source.kernels(source.load(name, host=True), source.types_of(defines))[kernel]
    named = {p.name: a for p, a in zip(parameters, args, strict=True)}
    numbers = {p: int(a) for p, a in named.items() if isinstance(a, np.int32)}
    arrays = {p: a.nbytes for p, a in named.items() if getattr(a, "ndim", 0) and p != COUNTERS}
    size = sum(n for p, n in arrays.items() if p not in PARTLY_READ.get(kernel, ()))
    return Launch(kernel, size, name, tuple(map(int, grid)), dict(defines), numbers)


# --------------------------------------------------------------------------------------------------- the launches of a step


@contextmanager
def hollow() -> Iterator[list[Launch]]:
    """A block on the stand-in for CuPy in which kernels are not run but noted, as are CuPy's own launches. New arrays share one
    piece of memory, so that a step of any size has room."""
    import pytest

    from tests import cupy_stand_in
    from tests.cupy_stand_in import arrays, streams

    found: list[Launch] = []
    memory, empty, launch = np.zeros(HOLLOW_BYTES, np.uint8), np.empty, arrays.launch

    def shared(shape: Any, dtype: Any = float, *args: Any, **kwargs: Any) -> np.ndarray:
        size = math.prod(shape if isinstance(shape, tuple | list) else (shape,)) * np.dtype(dtype).itemsize
        return np.ndarray(shape, dtype, memory) if 0 < size <= HOLLOW_BYTES else empty(shape, dtype)

    def noted(compute: Any, *sources: Any, out: Any = None) -> Any:
        before = cupy_stand_in.COUNTS["launches of CuPy"]
        result = launch(compute, *sources, out=out)
        if cupy_stand_in.COUNTS["launches of CuPy"] > before:
            read = sum(getattr(a, "nbytes", 0) for a in sources)
            found.append(Launch("CuPy", read + sum(getattr(a, "nbytes", 0) for a in (result, out))))
        return result

    with pytest.MonkeyPatch.context() as patch, cupy_stand_in.put_in_place(patch):
        patch.setattr(np, "empty", shared)
        patch.setattr(streams, "poison", lambda array: None)
        patch.setattr(arrays, "launch", noted)
        patch.setattr(driver, "run", lambda *call: found.append(described(call)))
        with np.errstate(all="ignore"):
            yield found


def recorded(network: Mapping[str, Any], batch: int, precision: str) -> list[Launch]:
    """The launches of a training step, as a graph of the trainer replays them."""
    with hollow() as found, tempfile.TemporaryDirectory() as folder:
        size, channels = network["image_size"], network["in_channels"]
        data = td.data.Dataset(np.zeros((8, size, size, channels), np.uint8), source="nothing")
        config = td.TrainConfig(device="cuda", steps=9, batch_size=batch, precision=precision, out=folder)
        unet, diffusion = td.UNet(**network), td.diffusion.Diffusion(td.diffusion.Schedule.linear())
        trainer = td.Trainer(unet, diffusion, data, config)
        trainer.train_steps(range(1, 2))
        found.clear()
        trainer.train_steps(range(2, 3))
        return list(found)


# ------------------------------------------------------------------------------------------------------------ the model


def seconds(launch: Launch, gpu: Mapping[str, Any]) -> float:
    """Of a launch, without the gap after it."""
    copying = launch.bytes / (1e12 * gpu["copy, TB/s"] * _share_of_copy(launch, gpu))
    computing = 0.0
    if launch.product is not None and "TILE_M" in launch.defines:
        cycles = _on_tensor_cores(launch, gpu) if "PRECISION" in launch.defines else _by_multipliers(launch, gpu)
        computing = cycles / (1e9 * gpu["GHz"])
    elif launch.attention is not None:
        computing = _attention(launch, gpu) / (1e9 * gpu["GHz"])
    return max(copying, computing, 1e-6 * FIGURES["least kernel, us"])


def floor(launch: Launch, gpu: Mapping[str, Any]) -> float:
    """The seconds that a launch takes at least."""
    return max(
        launch.flops / (1e12 * gpu["peak, TFLOP/s"][launch.precision]), launch.bytes / (1e12 * gpu["copy, TB/s"])
    )


def _share_of_copy(launch: Launch, gpu: Mapping[str, Any]) -> float:
    """Of the speed of copying: by kernel, and less where there are too few blocks to ask for so much."""
    shares, enough = FIGURES["share of copy"], FIGURES["multiprocessors that copy as fast as all"]
    blocks = gpu["multiprocessors"] if launch.kernel == "CuPy" else math.prod(launch.grid)
    return shares.get(launch.kernel, shares["others"]) * min(1.0, max(blocks, 1) / enough)


def _by_multipliers(launch: Launch, gpu: Mapping[str, Any]) -> float:
    """Cycles of a product in float32, by what `products.plan` reckons with: warps of one scheduler wait for each other's loads
    and fill in for each other."""
    assert launch.product is not None
    m, n, K = launch.defines["TILE_M"], launch.defines["TILE_N"], launch.product[2]
    vectors, turns = [launch.defines.get(v, 4) for v in ("VECTOR_A", "VECTOR_B")], products._TURNS
    tile = products.Plan(m, n, 1, *vectors)
    bytes_of_block = max(tile.shared(by_rows=True), tile.shared(by_rows=False)) + FIXED + 16 * m
    warps = tile.threads // 32
    fit = max(1, 1024 * gpu["shared memory, KiB"] // bytes_of_block)
    held = min(products.warps_held(m, n, *vectors), warps * fit)
    whole, rest = divmod(-(-math.prod(launch.grid) // gpu["multiprocessors"]) * warps, held)
    slices = math.ceil(math.ceil(K / products.SLICE) / launch.grid[2]) + 4
    rounds = whole * turns[min(4, -(-held // 4))] + turns[min(4, -(-rest // 4))]
    return rounds * 1024 * slices / FIGURES["float32 tiles"][str(n)] + cycles_of_adding(launch.grid[2], m * n)


def _on_tensor_cores(launch: Launch, gpu: Mapping[str, Any]) -> float:
    """Cycles of a product on tensor cores, its parts added by the last block to arrive."""
    assert launch.product is not None
    m, n, K, parts = launch.defines["TILE_M"], launch.defines["TILE_N"], launch.product[2], launch.grid[2]
    known, bytes_each = FIGURES["tensor tiles"][f"{m}x{n}"], 4 if launch.precision == "tf32" else 2
    fit = 1024 * gpu["shared memory, KiB"] // (tensor.STAGES * tensor.SLICE * (m + n) + FIXED)
    held = max(1, min(tensor.blocks_held(m, n, bytes_each, "weight" in launch.kernel), fit))
    deep = tensor.SLICE // bytes_each
    multiplying = held * m * n * deep / (gpu["multiply-adds a cycle"][launch.precision] * gpu["mma share"])
    others = max(known["issue"][launch.precision], known["shared"]) * held / known["blocks"]
    full, rest = divmod(math.prod(launch.grid), gpu["multiprocessors"] * held)
    alone = -(-rest // gpu["multiprocessors"]) / held  # of a multiprocessor's blocks, in the last round
    slices = math.ceil(math.ceil(K / deep) / parts) + tensor.STAGES
    cycles = max(multiplying, others) / FIGURES["stall"] * slices * (full + (min(1.0, 1.3 * alone) if rest else 0))
    return cycles + cycles_of_adding(parts, m * n)


def _attention(launch: Launch, gpu: Mapping[str, Any]) -> float:
    """Cycles of a kernel of attention: slice after slice, and what threads do with P in between. Blocks of one multiprocessor are
    taken to be in the same phase."""
    assert launch.attention is not None
    precision, columns, n = launch.precision, launch.defines["TILE_N"], launch.numbers
    bytes_each, warps = (4 if precision == "tf32" else 2), tensor_attention.threads(columns) // 32
    known, deep = FIGURES["attention tiles"][str(columns)], tensor.SLICE // bytes_each
    inner = n["queries"] if "keys" in launch.kernel else n["keys"]  # of the products that P is an operand of
    streamed, held = launch.attention
    slices = sum(-(-k // deep) for k in streamed) + sum(-(-k // columns) * -(-inner // deep) for k in held)
    multiplying = tensor_attention.ROWS * columns * deep / (gpu["multiply-adds a cycle"][precision] * gpu["mma share"])
    each = slices * max(multiplying, known["issue"][precision], known["shared"])
    each += (len(streamed) + len(held)) * FIGURES["attention, fill"] + known["rest"][launch.kernel] * warps / 4
    fit = 1024 * gpu["shared memory, KiB"] // (tensor_attention.shared(columns, bytes_each) + 3 * FIXED)
    places = gpu["multiprocessors"] * max(1, min(known["blocks"][launch.kernel], fit))
    full, rest = divmod(math.prod(launch.grid), places)
    alone = -(-rest // gpu["multiprocessors"])
    return each / FIGURES["stall"] * (full * places // gpu["multiprocessors"] + alone)


class Total(NamedTuple):
    """Of several launches: their number, milliseconds with and without gaps, the floor's milliseconds, operations, bytes."""

    launches: int
    ms: float
    kernels_ms: float
    floor_ms: float
    gflop: float
    gbytes: float

    @property
    def share(self) -> float:
        """The floor's share of the time."""
        return self.floor_ms / self.ms


def total(launches: Sequence[Launch], gpu: Mapping[str, Any]) -> Total:
    """The sums over launches that a graph replays one after another."""
    busy = 1e3 * sum(seconds(x, gpu) for x in launches)
    return Total(
        len(launches),
        busy + 1e-3 * FIGURES["gap, us"] * len(launches),
        busy,
        1e3 * sum(floor(x, gpu) for x in launches),
        sum(x.flops for x in launches) / 1e9,
        sum(x.bytes for x in launches) / 1e9,
    )


def by_variant(launches: Sequence[Launch], gpu: Mapping[str, Any]) -> dict[str, Total]:
    """The sums for each kernel, its tile and precision; what takes longest first."""
    groups: dict[str, list[Launch]] = {}
    for launch in launches:
        groups.setdefault(launch.variant, []).append(launch)
    found = {name: total(group, gpu) for name, group in groups.items()}
    return dict(sorted(found.items(), key=lambda pair: -pair[1].ms))


def _row(name: str, t: Total) -> list[str]:
    return [
        name, str(t.launches), f"{t.ms:.2f}", f"{t.floor_ms:.2f}", f"{100 * t.share:.0f} %", f"{t.gflop:.1f}",
        f"{t.gbytes:.2f}",
    ]  # fmt: skip


HEAD = ("predicted, not measured", "launches", "ms", "floor, ms", "floor / time", "GFLOP", "GB")


def main(arguments: list[str]) -> int:
    known = FIGURES["gpus"]
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu_model", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--networks", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--gpus", nargs="+", choices=known, default=list(known))
    parser.add_argument("--rows", type=int, default=0, help="the kernels that take longest, so many")
    a = parser.parse_args(arguments)
    rows, detail = [], []
    for network in a.networks:
        for precision in a.precisions:
            launches = recorded(*STEPS[network], precision)
            for name in a.gpus:
                title = f"{network}, {STEPS[network][1]} images, {precision}, {name}"
                rows.append(_row(title, total(launches, known[name])))
                groups = list(by_variant(launches, known[name]).items())[: a.rows]
                detail += [f"\n{title}\n\n{table(HEAD, [_row(*group) for group in groups])}"] if groups else []
    print("\n".join([table(HEAD, rows), *detail]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
