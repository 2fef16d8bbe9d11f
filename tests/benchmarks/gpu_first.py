"""The first 20 minutes on a GPU: is everything right there, and how fast is it?

    python -m tests.benchmarks.gpu_first                 # all parts, to tests/benchmarks/results/gpu_first.json
    python -m tests.benchmarks.gpu_first replay speed    # some of them
    python -m tests.benchmarks.gpu_first --precision tf32 sanitizer replay launches speed against_pytorch    # on tensor cores

Each part is a process of its own with a limit of time. What it found is written before the next begins, so that nothing is
lost if the machine goes. Where a part that checks results fails, those that only measure are left out. Needs an NVIDIA GPU
and CuPy; parts that need more (PyTorch, compute-sanitizer, ncu) say so where it is missing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tinydiff as td
from tests.benchmarks import gpu, gpu_report
from tests.benchmarks.gpu_launches import LAUNCHES, cupy_module, launches, seconds
from tinydiff import backend, dispatch
from tinydiff.cuda import driver, nvrtc, source, tensor
from tinydiff.cuda.capture import Captured, rehearsal
from tinydiff.random import Generator

RESULTS = Path(__file__).parent / "results" / "gpu_first.json"
SMALL: dict[str, Any] = {
    "image_size": 8, "in_channels": 1, "channels": 8, "channel_mults": (1, 2), "blocks_per_level": 1,
    "attention_resolutions": (4,), "groups": 4,
}  # fmt: skip
REPLAYED = (("small", SMALL, 2), ("glyphs", gpu.NETWORKS["glyphs"], 32))  # network and batch
REPLAYS = 20
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")  # of compute-sanitizer


class Part(NamedTuple):
    """A part: what it does, the seconds it may take, and whether the later ones make no sense where it fails."""

    run: Callable[[], dict[str, Any]]
    limit: int
    must_hold: bool = False


# ----------------------------------------------------------------------------------------------------------------- parts


def machine() -> dict[str, Any]:
    """Versions, and how long it takes to compile every variant of every kernel where none is in the cache."""
    cupy = cupy_module()
    smi = subprocess.run(["nvidia-smi"], capture_output=True, text=True).stdout if shutil.which("nvidia-smi") else ""
    start = time.perf_counter()
    variants = sorted({(name, flags) for name, flags, _ in _variants()})
    for name, flags in variants:
        driver.prepare(name, flags, cupy.cuda.Device().id)
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return {
        **gpu_report.machine(),
        "gpu": properties["name"].decode(),
        "cupy": cupy.__version__,
        "nvidia-smi": smi.splitlines()[:12],
        "variants": len(variants),
        "seconds to compile them": time.perf_counter() - start,
    }


def _variants() -> list[tuple[str, tuple[str, ...], Any]]:
    return [(name, source.flags(dict(defines)), None) for name, defines, *_ in nvrtc.variants()]


FFMA = r"""extern "C" __global__ void ffma(float* x, int rounds) {
    float a[8] = {1, 2, 3, 4, 5, 6, 7, 8}, b = x[0], c = x[1];
    for (int i = 0; i < rounds; i++)
        for (int k = 0; k < 8; k++) a[k] = a[k] * b + c;
    x[blockIdx.x * blockDim.x + threadIdx.x] = a[0] + a[1] + a[2] + a[3] + a[4] + a[5] + a[6] + a[7];
}
extern "C" __global__ void nothing() {}"""
MMA = r"""
#define PRODUCT(kind, d, a, b) asm volatile("mma.sync.aligned." kind " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " \
    "{%0, %1, %2, %3};" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) \
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#define KERNEL(name, kind) extern "C" __global__ void name(float* x, int rounds) { \
    float d[8][4] = {}; \
    const unsigned one = __float_as_uint(x[0]), a[4] = {one, one, one, one}, b[2] = {one, one}; \
    for (int i = 0; i < rounds; i++) { \
        _Pragma("unroll") for (int k = 0; k < 8; k++) PRODUCT(kind, d[k], a, b); \
    } \
    float sum = 0; \
    _Pragma("unroll") for (int k = 0; k < 8; k++) sum += d[k][0] + d[k][1] + d[k][2] + d[k][3]; \
    x[blockIdx.x * blockDim.x + threadIdx.x] = sum; \
}
KERNEL(bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
KERNEL(tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
"""  # eight sums for each warp, so that none has to wait for the one before
BLOCKS, ROUNDS = 132 * 16, 4096  # of these kernels, whose blocks have 8 warps


def ceilings() -> dict[str, Any]:
    """What the card can do: copying 1 GiB, products from registers (float32, and bfloat16 and TF32 on tensor cores), cuBLAS,
    an empty launch, a graph of 1,000."""
    cupy = cupy_module()
    found: dict[str, Any] = {"copy, TB/s": gpu.measure_peak().bytes / 1e12}
    module = cupy.RawModule(code=FFMA, options=("--std=c++17",))
    ffma, nothing, x = module.get_function("ffma"), module.get_function("nothing"), cupy.ones(BLOCKS * 256, np.float32)
    taken = seconds(lambda: ffma((BLOCKS,), (256,), (x, np.int32(ROUNDS))))
    found["FFMA, TFLOP/s"] = 2 * 8 * ROUNDS * 256 * BLOCKS / taken / 1e12
    found |= tensor_cores()
    found["empty launch, us"] = 1e6 * seconds(lambda: nothing((1,), (1,), ()), 1000)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        for _ in range(1000):
            nothing((1,), (1,), ())
        graph = stream.end_capture()
    found["node of a graph, us"] = 1e3 * seconds(graph.launch)
    try:
        m = cupy.ones((8192, 8192), np.float32)
        found["cuBLAS float32, TFLOP/s"] = 2 * 8192**3 / seconds(lambda: m @ m) / 1e12
    except Exception as error:
        found["cuBLAS float32, TFLOP/s"] = str(error)
    return found


def tensor_cores() -> dict[str, Any]:
    """What they multiply at most by mma.sync, operands in registers. Nothing before compute capability 8.0."""
    cupy = cupy_module()
    if int(cupy.cuda.Device().compute_capability) < 80:
        return {}
    module, found = cupy.RawModule(code=MMA, options=("--std=c++17",)), {}
    for kind, products in (("bf16", 16 * 8 * 16), ("tf32", 16 * 8 * 8)):
        kernel, x = module.get_function(kind), cupy.zeros(BLOCKS * 256, np.float32)
        taken = seconds(partial(kernel, (BLOCKS,), (256,), (x, np.int32(ROUNDS))))
        found[f"mma.sync {kind}, TFLOP/s"] = 2 * products * 8 * ROUNDS * 8 * BLOCKS / taken / 1e12
    return found


def tests() -> dict[str, Any]:
    """The tests that need a GPU."""
    return _run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-x", "tests"])


def sanitizer() -> dict[str, Any]:
    """compute-sanitizer's four tools on one training step of a small network."""
    if shutil.which("compute-sanitizer") is None:
        return {"left out": "compute-sanitizer is not installed"}
    step = [sys.executable, "-m", "tests.benchmarks.gpu_first", "--precision", tensor.chosen(), "--step"]
    return {tool: _run(["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *step]) for tool in TOOLS}


def _run(command: list[str]) -> dict[str, Any]:
    """The end of what a command says; AssertionError where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    end = (done.stdout + done.stderr).splitlines()[-12:]
    assert done.returncode == 0, "\n".join(end)
    return {"said": end}


def replay() -> dict[str, Any]:
    """20 replays of a training step have the bits of 20 eager steps; what a step takes either way."""
    found = {}
    for name, config, batch in REPLAYED:
        eager, graphed = (_Loop(config, batch) for _ in range(2))
        for _ in range(2 + REPLAYS):
            eager.train()
        graphed.train()
        graphed.generator.step += 1
        with rehearsal([graphed.generator]):
            graphed.step()
        graph = Captured(graphed.step, [graphed.generator])
        for _ in range(REPLAYS):
            graphed.generator.step += 1
            graph.replay()
        different = [
            i for i, (p, q) in enumerate(zip(eager.parameters, graphed.parameters, strict=True))
            if not bool((p.data == q.data).all())
        ]  # fmt: skip
        assert not different, (
            f"{name}: after {REPLAYS} replays {len(different)} weights differ, the first is {different[0]}"
        )
        found[name] = {"eager, ms": 1e3 * seconds(eager.train, 5), "replay, ms": 1e3 * seconds(graph.replay, 5)}
    return found


class _Loop(gpu.Ours):
    """A training loop whose steps read nothing, with a generator that is counted outside."""

    def __init__(self, config: dict[str, Any], batch: int) -> None:
        super().__init__(config, batch)
        self.generator = Generator(3)
        self.unet.train(self.generator)

    def step(self) -> None:
        self.adam.zero_grad()
        loss = self.diffusion.loss(self.unet, self.x0, self.generator)
        loss.backward()
        self.adam.step(self.ema)

    def train(self) -> None:
        self.generator.step += 1
        self.step()


def speed() -> dict[str, Any]:
    """Training steps and sampling by tinydiff alone, and how much of a step is the host's: with launches left out."""
    found: dict[str, Any] = {}
    for name, config in gpu.NETWORKS.items():
        ours = gpu.Ours(config, 128)
        ours.train()
        found[name] = {"step, ms": 1e3 * seconds(ours.train, 3)}
        run, driver.run = driver.run, lambda *args: None
        try:
            start = time.perf_counter()
            ours.train()
            found[name]["step's host time, launches left out, ms"] = 1e3 * (time.perf_counter() - start)
        finally:
            driver.run = run
        ours = gpu.Ours(config, 1)
        for n in gpu.SIZES:
            taken = seconds(partial(ours.sample, n, 50))
            found[name][f"sampling {n}, ms a step"] = 1e3 * taken / 50
        peak = gpu.measure_peak()
        rows, text = gpu.breakdown(gpu.Ours(config, 128), peak, found[name]["step, ms"] / 1e3)
        found[name]["peak"], found[name]["rows"] = peak._asdict(), rows
        print(text)
    return found


def against_pytorch() -> dict[str, Any]:
    """tests/benchmarks/gpu.py, which writes results of its own."""
    if reason := gpu.missing():
        return {"left out": reason}
    settings = ["--settings", "eager tf32", "compile default bf16", "--rounds", "3"]
    return _run([sys.executable, "-m", "tests.benchmarks.gpu", "--precision", tensor.chosen(), *settings])


def profiler(worst: Sequence[str] = ()) -> dict[str, Any]:
    """ncu's view of the five worst kernels of `launches` in one training step of that network."""
    if shutil.which("ncu") is None:
        return {"left out": "ncu is not installed"}
    chosen = ["--kernel-name", f"regex:^({'|'.join(worst)})$"] if worst else []
    command = [sys.executable, "-m", "tests.benchmarks.gpu_first", "--precision", tensor.chosen(), "--step", "large"]
    return _run(["ncu", "--set", "basic", "--launch-count", "60", *chosen, *command])


PARTS = {  # 20 minutes at most
    "machine": Part(machine, 180),
    "ceilings": Part(ceilings, 40),
    "tests": Part(tests, 240, must_hold=True),
    "sanitizer": Part(sanitizer, 180, must_hold=True),
    "replay": Part(replay, 60, must_hold=True),
    "launches": Part(launches, 70),
    "speed": Part(speed, 110),
    "against_pytorch": Part(against_pytorch, 240),
    "profiler": Part(profiler, 60),
}


# ------------------------------------------------------------------------------------------------------------ the runner


def run_parts(names: list[str], out: Path, command: Callable[[str, str], list[str]]) -> bool:
    """Runs parts one after another, each as `command(name, file)`, which writes what it found to the file as JSON; `out`
    has the results so far after each. Whether all held."""
    results: dict[str, Any] = {"date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "parts": {}}
    for name in names:
        part, start = PARTS[name], time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "found.json"
            print(f"{name}: at most {part.limit} s", flush=True)
            try:
                done = subprocess.run(command(name, str(file)), capture_output=True, text=True, timeout=part.limit)
                failure = "" if done.returncode == 0 else "\n".join(done.stderr.splitlines()[-8:]) or "no reason given"
            except subprocess.TimeoutExpired:
                failure = f"it took longer than {part.limit} s"
            found = json.loads(file.read_text()) if file.is_file() and not failure else {}
        results["parts"][name] = {"seconds": time.monotonic() - start, "failure": failure, "found": found}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {'FAILED: ' + failure if failure else json.dumps(found)[:2000]}", flush=True)
        if failure and part.must_hold:
            print("what comes after it would measure wrong results: left out")
            break
    return not any(p["failure"] for p in results["parts"].values()) and len(results["parts"]) == len(names)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu_first", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument("--precision", choices=("float32", "tf32"), default="float32", help="of tinydiff's products")
    parser.add_argument("--out", type=Path, help="where to [results/gpu_first.json, or gpu_first_tf32.json]")
    parser.add_argument("--one", metavar="FILE", help=argparse.SUPPRESS)  # a part, in a process of its own
    parser.add_argument(
        "--step", nargs="?", const="small", choices=("small", "large"), help="only a training step of such a network"
    )
    args = parser.parse_args(arguments)
    args.out = args.out or (
        RESULTS if args.precision == "float32" else RESULTS.with_stem(f"gpu_first_{args.precision}")
    )
    if unknown := [name for name in args.parts if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]}; there are {', '.join(PARTS)}")
    if backend.cupy() is None or not dispatch.uses_kernels():
        print(
            backend.no_cuda() or "this needs our own kernels: unset TINYDIFF_KERNELS and TINYDIFF_PLAIN",
            file=sys.stderr,
        )
        return 2
    if args.step:
        with tensor.precision(args.precision):
            gpu.Ours(*((SMALL, 2) if args.step == "small" else LAUNCHES)).train()
        td.backend.synchronize()
        return 0
    if args.one:
        (name,) = args.parts
        before = json.loads(args.out.read_text())["parts"] if args.out.is_file() else {}
        worst = before.get("launches", {}).get("found", {}).get("worst", [])
        with tensor.precision(args.precision):
            found = profiler(worst) if name == "profiler" else PARTS[name].run()
        Path(args.one).write_text(json.dumps(found), encoding="utf-8")
        return 0
    me = [sys.executable, "-m", "tests.benchmarks.gpu_first"]
    out = ["--out", str(args.out), "--precision", args.precision]
    return (
        0 if run_parts(args.parts or list(PARTS), args.out, lambda name, file: [*me, name, "--one", file, *out]) else 1
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
