"""The launches of a training step, one by one: measured, the least that each can take, and what the plan reckons with."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tests.benchmarks import gpu
from tinydiff import backend
from tinydiff.cuda import driver, products, source

LAUNCHES = gpu.NETWORKS["cifar"], 128  # network and batch whose launches are measured one by one


def seconds(work: Callable[[], Any], calls: int = 1) -> float:
    """Of a call, by the GPU's clock: the least of five."""
    cuda, found = cupy_module().cuda, []
    work()
    for _ in range(5):
        start, end = cuda.Event(), cuda.Event()
        start.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        found.append(cuda.get_elapsed_time(start, end) / 1e3 / calls)
    return min(found)


def cupy_module() -> Any:
    return backend.module_for("cuda")


Launched = tuple[str, str, Any, Any, tuple[Any, ...], int, Any]  # the arguments of `driver.run`


def recorded(work: Callable[[], Any]) -> tuple[list[Launched], float]:
    """The launches of kernels that work() makes, and the share of the GPU's time from the first to the last in which none of
    them ran, by events around each. What CuPy launches itself, and the events, count as idle: it is an upper bound."""
    cuda, run = cupy_module().cuda, driver.run
    calls: list[Launched] = []
    times: list[tuple[Any, Any]] = []

    def noted(*args: Any) -> None:
        start, end = cuda.Event(), cuda.Event()
        start.record()
        run(*args)
        end.record()
        calls.append(args)  # type: ignore[arg-type]
        times.append((start, end))

    driver.run = noted  # type: ignore[assignment]
    try:
        work()
    finally:
        driver.run = run
    times[-1][1].synchronize()
    busy = sum(cuda.get_elapsed_time(start, end) for start, end in times)
    return calls, 1 - busy / max(cuda.get_elapsed_time(times[0][0], times[-1][1]), 1e-9)


def launches() -> dict[str, Any]:
    """Every distinct launch of a training step, measured again by itself, beside the least that it can take and, for
    products, what the plan reckons with. The five kernels with most to gain come first in "worst"."""
    ours, peak = gpu.Ours(*LAUNCHES), gpu.measure_peak()
    ours.train()
    calls, idle = recorded(ours.train)
    kinds: dict[Any, list[Launched]] = {}
    for call in calls:
        name, kernel, grid, block, args, _, defines = call
        sizes = tuple(a.size if getattr(a, "ndim", 0) else a if isinstance(a, np.int32) else None for a in args)
        kinds.setdefault((name, kernel, tuple(grid), tuple(block), str(defines), sizes), []).append(call)
    rows = []
    for (name, kernel, grid, _, defines, _), same in kinds.items():
        measured = seconds(partial(driver.run, *same[0]), 10)
        flops, moved = work_of(same[0])
        rows.append({
            "source": name, "kernel": kernel, "grid": grid, "defines": defines, "times": len(same), "us": 1e6 * measured,
            "floor, us": 1e6 * peak.floor(flops, moved), "model, us": model_of(same[0]), "GFLOP": flops / 1e9,
            "MB": moved / 1e6,
        })  # fmt: skip
    rows.sort(key=lambda row: -row["times"] * (row["us"] - row["floor, us"]))
    worst = list(dict.fromkeys(row["kernel"] for row in rows))[:5]
    return {"idle between kernels, eager": idle, "launches": len(calls), "worst": worst, "rows": rows}


def _numbers(call: Launched) -> dict[str, int]:
    """The whole numbers among a launch's arguments, by the names of the kernel's parameters."""
    parameters = source.kernels(source.load(call[0], host=True))[call[1]]
    return {p.name: int(a) for p, a in zip(parameters, call[4], strict=True) if isinstance(a, np.int32)}


def _product(call: Launched) -> tuple[int, int, int, int] | None:
    """(M, N, K, stack) of a product of matrices, which a convolution is as well; None for other kernels."""
    kernel, grid = call[1:3]
    n = _numbers(call)
    if kernel == "matrix_product":
        return n["M"], n["N"], n["K"], grid[1]
    if kernel == "conv_weight_gradient":
        return n["R"] * n["S"] * n["C"], n["K"], n["N"] * n["Ho"] * n["Wo"], 1
    if kernel == "conv_forward":
        return n["N"] * n["Ho"] * n["Wo"], n["K"], n["R"] * n["S"] * n["C"], 1
    return None


def work_of(call: Launched) -> tuple[int, int]:
    """Operations of a launch, as far as it is a product, and the bytes of its arrays."""
    sizes = _product(call)
    flops = 0 if sizes is None else 2 * int(np.prod(sizes, dtype=np.int64))
    return flops, sum(a.nbytes for a in call[4] if getattr(a, "ndim", 0))


def model_of(call: Launched) -> float | None:
    """Microseconds that a product should take at 1.755 GHz (an H100's), by the numbers that `products.plan` goes by."""
    if (sizes := _product(call)) is None:
        return None
    M, N, K, stack = sizes
    m, n, parts = call[6]["TILE_M"], call[6]["TILE_N"], call[2][2]
    held, turns = products.warps_held(m, n), products._TURNS
    blocks = -(-stack * -(-M // m) * -(-N // n) * parts // products.MULTIPROCESSORS)
    whole, rest = divmod(blocks * (m * n // 2048), held)
    slices = math.ceil(math.ceil(K / products.SLICE) / parts) + 4
    efficiency = {128: 0.8, 64: 0.7, 32: 0.55}[n]
    return (whole * turns[-(-held // 4)] + turns[-(-rest // 4)]) * 1024 * slices / efficiency / 1755
