"""What the GPU benchmark measures and how it tells it: alternating timings, the breakdown by kernel, tables, JSON.

Needs neither a GPU nor PyTorch: the clock and the runner of kernels are given, and tests/test_gpu_benchmark.py gives those of
the host.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FILES = ("activation", "attending", "convolution", "fully_connected", "noise", "normalization", "optim", "pooling", "products",
         "random", "shape", "softmaxes", "tables")  # fmt: skip


class Comparison(NamedTuple):
    """One row of the comparison: seconds are medians; the ratio is the median of theirs / ours, round by round."""

    network: str
    task: str
    contender: str
    images: int  # of one call
    ours: float
    theirs: float
    ratio: float
    our_memory: int  # bytes at the peak
    their_memory: int
    failure: str = ""  # why it could not be measured


def alternate(
    ours: Callable[[], Any], theirs: Callable[[], Any], wait: Callable[[], Any], rounds: int, calls: int, warm_up: int
) -> tuple[float, float, float]:
    """Median seconds of a call of ours and of theirs, and of their ratio, over rounds in which each is called `calls` times.

    wait: returns when the GPU has done all. The order changes from round to round."""

    def seconds(call: Callable[[], Any], count: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(count):
            call()
        wait()
        return (time.perf_counter() - start) / count

    for call in (ours, theirs):
        seconds(call, warm_up)
    pairs = []
    for i in range(rounds):
        first, second = (ours, theirs) if i % 2 == 0 else (theirs, ours)
        a, b = seconds(first, calls), seconds(second, calls)
        pairs.append((a, b) if i % 2 == 0 else (b, a))
    median = statistics.median
    return median(a for a, _ in pairs), median(b for _, b in pairs), median(b / a for a, b in pairs)


# ------------------------------------------------------------------------------------------------ the breakdown by kernel


class Call:
    """A call of a family's function: what it costs at least, and its launches as (kernel, start, end, bytes of arguments)."""

    def __init__(self, name: str, cost: Any) -> None:
        self.name, self.cost = name, cost
        self.launches: list[tuple[str, Any, Any, int]] = []

    def flops(self) -> int:
        return self.cost.flops if self.cost else 0

    def bytes(self) -> int:
        """Of the cost; without one, of all arguments of its launches."""
        return self.cost.bytes if self.cost else sum(size for *_, size in self.launches)


class Recorder:
    """Notes every launch of a kernel inside a `with` block, and the family function that made it.

    runner: the module whose `run` launches (tinydiff.cuda.driver). mark: a point of time on the GPU. elapsed(a, b): the
    seconds between two, asked for after the block.
    """

    def __init__(self, runner: Any, mark: Callable[[], Any], elapsed: Callable[[Any, Any], float]) -> None:
        self.runner, self.mark, self.elapsed = runner, mark, elapsed
        self.calls: list[Call] = []
        self._open: list[Call] = []
        self._replaced: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Recorder:
        self._replace(self.runner, "run", self._timed(self.runner.run))
        for file in FILES:
            module = importlib.import_module(f"tinydiff.cuda.{file}")
            for name, function in inspect.getmembers(module, inspect.isfunction):
                if function.__module__ == module.__name__ and not name.startswith("_") and not name.endswith("_cost"):
                    cost = getattr(module, f"{name}_cost", None)
                    self._replace(module, name, self._noted(f"{file}.{name}", function, cost))
        return self

    def __exit__(self, *error: Any) -> None:
        for place, name, function in reversed(self._replaced):
            setattr(place, name, function)

    def _replace(self, place: Any, name: str, function: Any) -> None:
        self._replaced.append((place, name, getattr(place, name)))
        setattr(place, name, function)

    def _noted(self, name: str, function: Any, cost: Any) -> Any:
        def noted(*args: Any, **kwargs: Any) -> Any:
            call = Call(name, None)
            self._open.append(call)
            try:
                result = function(*args, **kwargs)
            finally:
                self._open.pop()
            if call.launches:  # none where it made others do it, or left it to NumPy or CuPy
                call.cost = cost(*args, **kwargs) if cost else None
                self.calls.append(call)
            return result

        return noted

    def _timed(self, run: Any) -> Any:
        parameters = list(inspect.signature(run).parameters)
        kernel_at, args_at = parameters.index("kernel"), parameters.index("args")

        def timed(*args: Any) -> None:
            kernel = args[kernel_at]
            size = sum(getattr(a, "nbytes", 0) for a in args[args_at] if getattr(a, "ndim", 0))
            start = self.mark()
            run(*args)
            if not self._open:
                self.calls.append(Call(kernel, None))
            (self._open or self.calls)[-1].launches.append((kernel, start, self.mark(), size))

        return timed

    def rows(self, peak: Peak) -> list[dict[str, Any]]:
        """For each family function, slowest first: calls, launches, ms, TFLOP/s, GB/s, and the share of the time that the
        calls would take at the machine's peak."""
        groups: dict[str, list[Call]] = {}
        for call in self.calls:
            groups.setdefault(call.name, []).append(call)
        rows = []
        for name, calls in groups.items():
            seconds = sum(self.elapsed(start, end) for c in calls for _, start, end, _ in c.launches)
            floor = sum(peak.floor(c.flops(), c.bytes()) for c in calls)
            rows.append({
                "name": name,
                "kernels": sorted({kernel for c in calls for kernel, *_ in c.launches}),
                "calls": len(calls),
                "launches": sum(len(c.launches) for c in calls),
                "ms": 1e3 * seconds,
                "tflops": sum(c.flops() for c in calls) / seconds / 1e12,
                "gbytes": sum(c.bytes() for c in calls) / seconds / 1e9,
                "of_floor": floor / seconds,
            })  # fmt: skip
        return sorted(rows, key=lambda row: -row["ms"])


class Peak(NamedTuple):
    """What the machine can do at most: float32 operations and bytes per second."""

    flops: float
    bytes: float

    def floor(self, flops: int, bytes: int) -> float:
        """The seconds that so much takes at least."""
        return max(flops / self.flops, bytes / self.bytes)


# ------------------------------------------------------------------------------------------------ tables and JSON


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; the first column to the left, the others to the right."""
    whole = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    lines = [
        "| "
        + " | ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
        + " |"
        for r in whole
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|")
    return "\n".join(lines)


def comparison_table(comparisons: Iterable[Comparison]) -> str:
    """Each competitor beside tinydiff, measured in turn with it."""
    head = ["network, task, PyTorch's setting", "img/s", "tinydiff", "ratio", "memory", "tinydiff's"]
    rows = []
    for c in comparisons:
        name = f"{c.network}, {c.task}, {c.contender}"
        if c.failure:
            rows.append([name, "failed", c.failure[:60], "", "", ""])
            continue
        speeds = [f"{c.images / c.theirs:.4g}", f"{c.images / c.ours:.4g}"]
        rows.append([name, *speeds, f"{c.ratio:.2f}", gib(c.their_memory), gib(c.our_memory)])
    return table(head, rows)


def breakdown_table(rows: Iterable[dict[str, Any]], step_ms: float) -> str:
    """Where a step's time goes; what is not in a kernel of tinydiff's is in CuPy's kernels, in gaps, or waited for."""
    rows = list(rows)
    shown = [
        [r["name"], str(r["calls"]), str(r["launches"]), f"{r['ms']:.3f}", f"{100 * r['ms'] / step_ms:.1f} %",
         f"{r['tflops']:.2f}", f"{r['gbytes']:.0f}", f"{100 * r['of_floor']:.0f} %"]
        for r in rows
    ]  # fmt: skip
    rest = step_ms - sum(r["ms"] for r in rows)
    shown.append(["elsewhere", "", "", f"{rest:.3f}", f"{100 * rest / step_ms:.1f} %", "", "", ""])
    return table(["function", "calls", "launches", "ms", "share", "TFLOP/s", "GB/s", "floor / time"], shown)


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def machine() -> dict[str, Any]:
    """The machine and the command, as far as the standard library knows them."""
    return {
        "command": " ".join(["python", "-m", "tests.benchmarks.gpu", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """The result as JSON, comparisons as objects with their names."""
    result = {**result, "comparisons": [c._asdict() for c in result["comparisons"]]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
