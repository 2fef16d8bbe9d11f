"""`tinydiff bench`: its flags, its table, its file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff import backend
from tinydiff.bench.cases import Case, all_cases
from tinydiff.bench.timing import Ceiling, Times, measure_ceiling, race
from tinydiff.cli.outputs import check_new
from tinydiff.errors import InputError, at_work, before_work
from tinydiff.machine import limits, threads
from tinydiff.machine.terminal import say
from tinydiff.runs.atomic import check_place, write_file
from tinydiff.runs.limits import THREADS

OURS = "tinydiff"


def add_command(commands: Any) -> None:
    """Adds `bench` to the subcommands of an argument parser; the parsed arguments' `run` runs it."""
    parser = commands.add_parser(
        "bench",
        help="measure how fast the operations are",
        description="Measures the operations of a U-Net, forward and backward, against what this machine does at best "
        "and, where it is installed, against PyTorch (the better of its two memory layouts). Medians, in turns.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes and few rounds: some 10 seconds, not a minute"
    )
    parser.add_argument("--only", metavar="TEXT", help="the operations with this in their names, such as conv")
    parser.add_argument("--json", metavar="FILE", help="write everything measured to a file as well")
    parser.add_argument("--force", action="store_true", help="overwrite the file that --json names")
    parser.add_argument("--threads", metavar="N", help="CPU threads [all that the process may use]")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda [auto]")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.set_defaults(run=_run)


def _run(a: argparse.Namespace) -> int:
    device = backend.resolve_device(a.device)
    wish = threads.available() if a.threads is None else _count(a.threads)
    count = backend.host_threads(device, wish) or 1
    check_new(a.json, a.force)
    if a.json is not None:
        if not Path(a.json).absolute().parent.is_dir():
            raise InputError(f"--json {a.json}: there is no folder {Path(a.json).parent}")
        with before_work():
            check_place(a.json)
    cases = [case for case in all_cases(a.quick) if a.only is None or a.only.lower() in case.name.lower()]
    if not cases:
        raise InputError(
            f"--only {a.only}: no operation is named so; there are {', '.join(c.name for c in all_cases())}"
        )
    with threads.threads(count):
        torch = None if a.no_torch else _torch(device, count)
        ceiling = measure_ceiling(device, a.quick)
        about = describe(device, count, torch)
        print(f"{about['processor']}, {count} thread{'s' * (count > 1)}, {device}; NumPy {about['numpy']} with "
              f"{about['blas']}" + (f"; PyTorch {about['torch']}" if torch else ""))  # fmt: skip
        print(
            f"at best: {ceiling.flops / 1e9:.0f} GFLOP/s in a matrix product, {ceiling.bytes / 1e9:.1f} GB/s in a copy\n"
        )
        if (others := _others_at_work()) is not None:
            marked = ", and so may the comparisons, marked with ?" if torch is not None else ""
            say(f"warning: other programs keep about {others:.1f} processors busy; the times will be off{marked}")
        print(_header(torch is not None), flush=True)
        rows = []
        for case in cases:
            row = _measure(case, device, torch, ceiling, a.quick)
            rows.append(row)
            print(_line(row, doubtful=others is not None), flush=True)
    if torch is None and not a.no_torch:
        say(f"PyTorch is not installed, or not for {device}, so there is nothing to compare with")
    if a.json is not None:
        ceilings = {"flops_per_second": ceiling.flops, "bytes_per_second": ceiling.bytes}
        about["others_busy"] = others
        result = {"command": " ".join(sys.argv), "machine": about, "ceiling": ceilings, "rows": rows}
        with at_work():
            write_file(a.json, (json.dumps(result, indent=1) + "\n").encode())
    return 0


def _others_at_work() -> float | None:
    """Processors that other programs have kept busy over the last minute, if that is much; this one has just begun."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return load if load > 0.3 * limits.processors() else None


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and text.strip("0")):
        raise InputError(f"--threads must be a whole number of at least 1, not {text!r}")
    if len(text) > 4 or int(text) > THREADS:
        raise InputError(f"--threads must be at most {THREADS}, not {text}")
    return int(text)


def _torch(device: str, threads: int) -> Any:
    from tinydiff.bench import torch

    return torch.load(device, threads)


def describe(device: str, threads: int, torch: Any = None) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "processor": limits.processor_name(),
        "processors": limits.processors(),
        "threads": threads,
        "device": device,
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": limits.blas(),
        "torch": None if torch is None else str(torch.__version__),
    }


def _measure(case: Case, device: str, torch: Any, ceiling: Ceiling, quick: bool) -> dict[str, Any]:
    competitors = {OURS: case.work(device)}
    if torch is not None:
        from tinydiff.bench.torch import competitors as in_torch

        competitors |= in_torch(torch, case, device)

    def wait() -> None:
        backend.synchronize()
        if torch is not None and device == "cuda":
            torch.cuda.synchronize()

    times = race(competitors, 5 if quick else 15, 0.5 if quick else 2.5, wait)
    ours, others = times.pop(OURS), times
    flops, moved = case.flops * (1 + case.back), case.bytes * (3 if competitors[OURS].backward else 1)
    row: dict[str, Any] = {
        "name": case.name,
        **{key: getattr(ours, key) for key in Times._fields},
        "flops_per_second": flops / ours.total,
        "bytes_per_second": moved / ours.total,
        "share_of_ceiling": ceiling.seconds(flops, moved) / ours.total,
    }
    if others:
        best = min(others, key=lambda name: others[name].total)
        row |= {"torch": {name: t._asdict() for name, t in others.items()}, "torch_best": best}
        row["times_torch"] = others[best].total / ours.total
    return row


def _header(torch: bool) -> str:
    text = f"{'milliseconds':<32}{'forward':>9}{'backward':>9}{'GFLOP/s':>9}{'GB/s':>7}{'of best':>9}"
    return text + (f"{'PyTorch forward':>17}{'backward':>9}{'as fast':>9}" if torch else "")


def _line(row: dict[str, Any], doubtful: bool = False) -> str:
    text = f"{row['name']:<32}{1e3 * row['forward']:9.2f}{_milliseconds(row['backward'])}"
    moved = f"{row['bytes_per_second'] / 1e9:7.1f}" if row["bytes_per_second"] else " " * 7
    text += f"{row['flops_per_second'] / 1e9:9.1f}{moved}{row['share_of_ceiling']:9.0%}"
    if "torch" in row:
        best = row["torch"][row["torch_best"]]
        text += (
            f"{1e3 * best['forward']:17.2f}{_milliseconds(best['backward'])}{row['times_torch']:8.2f}x" + "?" * doubtful
        )
    return text


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:9.2f}" if seconds else " " * 9
