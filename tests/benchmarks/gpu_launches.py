"""The launches of a training step, one by one: measured, the least that each can take, and what the model predicts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tests.benchmarks import gpu, gpu_model
from tinydiff import backend
from tinydiff.cuda import driver

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
    """Every distinct launch of a training step, measured again by itself, beside the least that it can take and what
    `gpu_model` predicts, None for a GPU that it does not know. The five kernels with most to gain come first in "worst"."""
    ours, peak, cuda = gpu.Ours(*LAUNCHES), gpu.measure_peak(), cupy_module().cuda
    known = gpu_model.figures_of(cuda.runtime.getDeviceProperties(cuda.Device().id)["name"].decode())
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
        launch = gpu_model.described(same[0])
        predicted = None if known is None else 1e6 * gpu_model.seconds(launch, known)
        rows.append({
            "source": name, "kernel": kernel, "grid": grid, "defines": defines, "times": len(same), "us": 1e6 * measured,
            "floor, us": 1e6 * peak.floor(launch.flops, launch.bytes), "model, us": predicted,
            "GFLOP": launch.flops / 1e9, "MB": launch.bytes / 1e6,
        })  # fmt: skip
    rows.sort(key=lambda row: -row["times"] * (row["us"] - row["floor, us"]))
    worst = list(dict.fromkeys(row["kernel"] for row in rows))[:5]
    return {"idle between kernels, eager": idle, "launches": len(calls), "worst": worst, "rows": rows}
