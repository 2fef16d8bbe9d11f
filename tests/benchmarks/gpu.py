"""Training steps and sampling on a GPU: tinydiff beside PyTorch with diffusers' UNet2DModel, with the same weights.

    python -m tests.benchmarks.gpu [--networks cifar glyphs] [--tasks train sample] [--settings TEXT ..] [--rounds 7]
    python -m tests.benchmarks.gpu --precision tf32 --settings tf32 bf16    # tinydiff's products in TF32

A training step is forward, backward, clipping, Adam and the moving average of the weights, with noise drawn on the GPU;
sampling is DDIM. PyTorch runs at its best settings: channels last, cudnn.benchmark, fused Adam, foreach operations, no
reading of the loss; eager or compiled in three modes; float32, TF32, or bfloat16 autocast. Each of its settings is measured
in turn with tinydiff, round by round, after a warm-up that compiles and chooses algorithms. That both compute the same
function is checked first. Then the kernels of one tinydiff step are timed one by one.

Results go to tests/benchmarks/results/gpu.json, a table to the screen. Needs an NVIDIA GPU, CuPy, PyTorch and diffusers.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tinydiff as td
from tests.benchmarks import gpu_report as report
from tinydiff import backend
from tinydiff.cuda import tensor
from tinydiff.random import Generator
from tinydiff.runs import checkpoint

NETWORKS: dict[str, dict[str, Any]] = {
    "cifar": {"image_size": 32, "in_channels": 3},
    "glyphs": {
        "image_size": 28, "in_channels": 1, "channels": 32, "channel_mults": (1, 2, 2), "attention_resolutions": (14,),
    },
}  # fmt: skip
LR, CLIP, EMA = 2e-4, 1.0, 0.9999
SIZES = (1, 64)  # images sampled at once
COPIED = 2**28  # floats copied to measure the memory


class Setting(NamedTuple):
    """How PyTorch runs: torch.compile's mode (None: eager), and in which precision."""

    mode: str | None
    precision: str  # "float32", "tf32" or "bf16"

    @property
    def name(self) -> str:
        return f"{'eager' if self.mode is None else 'compile ' + self.mode} {self.precision}"


SETTINGS = [
    Setting(None, "float32"),
    *(Setting(m, p) for p in ("tf32", "bf16") for m in (None, "default", "reduce-overhead", "max-autotune")),
]


def missing() -> str | None:
    """What is not here, in a sentence; None if all is."""
    lacking = [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]
    if backend.cupy() is None:
        lacking.insert(0, "an NVIDIA GPU with CuPy")
    elif not lacking and not importlib.import_module("torch").cuda.is_available():
        lacking.append("a PyTorch that sees the GPU")
    return f"this benchmark needs {', '.join(lacking)}" if lacking else None


class Ours:
    """tinydiff's network on a device, and what trains it."""

    def __init__(self, config: dict[str, Any], batch: int, device: str = "cuda") -> None:
        self.device = device
        self.unet = td.UNet(**config, generator=Generator(0))
        for i, p in enumerate(self.unet.parameters()):  # no weight is zero, so that all of the output depends on all
            p.data[...] += 0.02 * Generator(1, step=i).normal(p.shape)
        self.diffusion = td.diffusion.Diffusion(td.diffusion.Schedule.linear())
        self.folder = tempfile.TemporaryDirectory()
        self.saved = checkpoint.save(self.folder.name, self.unet, self.diffusion)
        self.unet.to(device)
        self.parameters = list(self.unet.parameters())
        self.shape = (config["image_size"], config["image_size"], config["in_channels"])
        self.x0 = backend.to_device(np.clip(Generator(2).normal((batch, *self.shape)), -1, 1), device)
        self.adam, self.ema = td.optim.Adam(self.parameters, LR), td.optim.EMA(self.parameters, EMA)
        self.steps = 0

    def train(self) -> None:
        self.steps += 1
        generator = Generator(3).at(0, self.steps)
        self.unet.train(generator)
        self.adam.zero_grad()
        loss = self.diffusion.loss(self.unet, self.x0, generator)
        loss.backward()
        self.adam.clipped_step([loss.data], CLIP, self.ema)

    def sample(self, n: int, steps: int, x_T: Any = None) -> Any:
        shape = (n, *self.shape)
        return td.diffusion.sample(
            self.unet, self.diffusion, shape, Generator(4), "ddim", steps, progress=False, x_T=x_T
        )

    def predict(self, x: np.ndarray, t: int) -> np.ndarray:
        with td.no_grad():
            return self.unet.eval()(backend.to_device(x, self.device), t).numpy()

    def memory(self) -> int:
        """What CuPy's pool has taken since the last `free`: the peak."""
        return _pool().total_bytes()

    def free(self) -> None:
        self.adam.zero_grad()
        gc.collect()
        _pool().free_all_blocks()


def _pool() -> Any:
    return importlib.import_module("cupy").get_default_memory_pool()


class Theirs:
    """The same network in PyTorch, loaded by diffusers from tinydiff's checkpoint."""

    def __init__(self, ours: Ours, setting: Setting, device: str = "cuda") -> None:
        import diffusers
        import torch

        self.torch, self.setting, self.bf16, self.device = torch, setting, setting.precision == "bf16", device
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = setting.precision != "float32"
        torch.manual_seed(0)
        unet = diffusers.DDPMPipeline.from_pretrained(str(ours.saved)).unet
        self.unet = unet.to(self.device, memory_format=torch.channels_last)
        self.forward = self.unet
        if setting.mode is not None:
            mode = None if setting.mode == "default" else setting.mode
            self.forward = torch.compile(self.unet, mode=mode, dynamic=False)
        self.parameters = list(self.unet.parameters())
        self.adam = torch.optim.Adam(self.parameters, LR, fused=True)
        self.average = [p.detach().clone() for p in self.parameters]
        self.x0 = self._images(backend.to_numpy(ours.x0))
        alpha_bar = ours.diffusion.schedule.alpha_bar
        self.alpha_bar = alpha_bar
        self.signal = torch.tensor(np.sqrt(alpha_bar), dtype=torch.float32, device=self.device)
        self.noise = torch.tensor(np.sqrt(1 - alpha_bar), dtype=torch.float32, device=self.device)

    def _images(self, x: np.ndarray) -> Any:
        x = self.torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).to(self.device)
        return x.contiguous(memory_format=self.torch.channels_last)

    def _network(self, x: Any, t: Any) -> Any:
        """t counts from 0, as diffusers does."""
        if self.setting.mode is not None:
            self.torch.compiler.cudagraph_mark_step_begin()
        with self.torch.autocast(self.device, self.torch.bfloat16, enabled=self.bf16):
            return self.forward(x, t, return_dict=False)[0]

    def train(self) -> None:
        torch = self.torch
        t = torch.randint(0, len(self.alpha_bar) - 1, (len(self.x0),), device=self.device)
        eps = torch.randn_like(self.x0)
        signal, noise = (a[t + 1][:, None, None, None] for a in (self.signal, self.noise))
        output = self._network(signal * self.x0 + noise * eps, t)
        torch.nn.functional.mse_loss(output.float(), eps).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP, foreach=True)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - EMA)

    def sample(self, n: int, steps: int, x_T: np.ndarray | None = None) -> Any:
        """DDIM with clipped x0, its coefficients computed on the host: less work than diffusers' scheduler does."""
        torch, T = self.torch, len(self.alpha_bar) - 1
        times = [round(T * i / steps) for i in range(steps + 1)]
        with torch.inference_mode():
            _, channels, *size = self.x0.shape
            x = torch.randn(n, channels, *size, device=self.device) if x_T is None else self._images(x_T)
            x = x.contiguous(memory_format=torch.channels_last)
            for now, after in zip(times[:0:-1], times[-2::-1], strict=True):
                a, b = (float(self.alpha_bar[i]) for i in (now, after))
                eps = self._network(x, torch.full((n,), now - 1, device=self.device)).float()
                x0 = ((x - (1 - a) ** 0.5 * eps) / a**0.5).clamp_(-1, 1)
                x = b**0.5 * x0 + (1 - b) ** 0.5 * (x - a**0.5 * x0) / (1 - a) ** 0.5
        return x

    def predict(self, x: np.ndarray, t: int) -> np.ndarray:
        self.unet.eval()
        with self.torch.inference_mode():
            y = self._network(self._images(x), self.torch.full((len(x),), t - 1, device=self.device))
        return y.float().cpu().numpy().transpose(0, 2, 3, 1)

    def memory(self) -> int:
        return self.torch.cuda.max_memory_allocated()

    def reset_memory(self) -> None:
        self.torch.cuda.reset_peak_memory_stats()


def agreement(ours: Ours, theirs: Theirs) -> float:
    """The largest difference between the two networks' outputs relative to the largest output."""
    x = Generator(5).normal((2, *ours.shape))
    a, b = ours.predict(x, 500), theirs.predict(x, 500)
    return float(np.abs(a - b).max() / np.abs(b).max())


def compare(ours: Ours, theirs: Theirs, network: str, task: str, args: argparse.Namespace) -> report.Comparison:
    """One task, "train" or "sample N", by both in turn."""
    wait = backend.cupy().cuda.Device().synchronize  # type: ignore[union-attr]
    ours.free()
    theirs.reset_memory()
    if task == "train":
        images, calls, call_ours, call_theirs = len(ours.x0), args.steps, ours.train, theirs.train
        theirs.unet.train()
    else:
        images, calls = int(task.split()[1]), 1
        call_ours = lambda: ours.sample(images, args.sampling_steps)  # noqa: E731
        call_theirs = lambda: theirs.sample(images, args.sampling_steps)  # noqa: E731
        ours.unet.eval()
        theirs.unet.eval()
    medians = report.alternate(call_ours, call_theirs, wait, args.rounds, calls, 3)
    return report.Comparison(network, task, theirs.setting.name, images, *medians, ours.memory(), theirs.memory())


def breakdown(ours: Ours, peak: report.Peak, step_seconds: float) -> tuple[list[dict[str, Any]], str]:
    """The kernels of one training step, timed by events around each launch."""
    cupy = backend.cupy()
    assert cupy is not None
    from tinydiff.cuda import driver

    def mark() -> Any:
        event = cupy.cuda.Event()
        event.record()
        return event

    ours.train()
    recorder = report.Recorder(driver, mark, lambda a, b: max(cupy.cuda.get_elapsed_time(a, b) / 1e3, 1e-9))
    with recorder:
        ours.train()
    cupy.cuda.Device().synchronize()
    rows = recorder.rows(peak)
    return rows, report.breakdown_table(rows, 1e3 * step_seconds)


def measure_peak() -> report.Peak:
    """Float32 operations by the clock and the number of units; bytes per second of copying 1 GiB."""
    cupy = backend.cupy()
    assert cupy is not None
    attributes = cupy.cuda.Device().attributes
    kilohertz = attributes.get("ClockRate") or 1_755_000  # an H100's boost clock where CUDA does not tell
    flops = 2 * 128 * attributes["MultiProcessorCount"] * kilohertz * 1e3
    a = cupy.zeros(COPIED, np.float32)
    b = cupy.empty_like(a)
    rates = []
    for _ in range(10):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        cupy.copyto(b, a)
        end.record()
        end.synchronize()
        rates.append(2 * a.nbytes / (cupy.cuda.get_elapsed_time(start, end) / 1e3))
    return report.Peak(float(flops), float(max(rates)))


def versions() -> dict[str, str]:
    import cupy
    import diffusers
    import torch

    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    return {
        "gpu": name,
        "driver": str(cupy.cuda.runtime.driverGetVersion()),
        "cuda": str(cupy.cuda.runtime.runtimeGetVersion()),
        "cupy": cupy.__version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "numpy": np.__version__,
    }


def run_network(name: str, args: argparse.Namespace, peak: report.Peak, result: dict[str, Any]) -> None:
    import torch

    ours, fresh = Ours(NETWORKS[name], args.batch), Ours(NETWORKS[name], 1)  # fresh: with the weights that are loaded
    tasks = [t for task in args.tasks for t in (["train"] if task == "train" else [f"sample {n}" for n in SIZES])]
    for setting in args.settings:
        theirs, done = None, []
        try:
            theirs = Theirs(ours, setting)
            result["agreement"][f"{name}, {setting.name}"] = agreement(fresh, theirs)
            for task in tasks:
                done.append(compare(ours, theirs, name, task, args))
        except Exception as error:  # out of memory, or a mode that does not compile: the others go on
            failure = f"{type(error).__name__}: {error}".splitlines()[0]
            finished = {c.task for c in done}
            lost = [task for task in tasks if task not in finished]
            done += [report.Comparison(name, task, setting.name, 0, 0, 0, 0, 0, 0, failure) for task in lost]
        result["comparisons"] += done
        print(report.comparison_table(done), flush=True)
        del theirs
        gc.collect()
        torch._dynamo.reset()
        torch.cuda.empty_cache()
    if "train" in args.tasks:
        seconds = [c.ours for c in result["comparisons"] if (c.network, c.task, c.failure) == (name, "train", "")]
        step = float(np.median(seconds)) if seconds else float("inf")
        if seconds:
            rows, text = breakdown(ours, peak, step)
            result["breakdown"][name] = {"step_ms": 1e3 * step, "rows": rows}
            print(f"\n{name}: one training step of {args.batch} images, {1e3 * step:.1f} ms\n{text}", flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--tasks", nargs="+", choices=("train", "sample"), default=["train", "sample"])
    parser.add_argument("--settings", nargs="+", default=[""], metavar="TEXT", help="those whose names contain a text")
    parser.add_argument("--precision", choices=("float32", "tf32"), default="float32", help="tinydiff's")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="training steps in a round")
    parser.add_argument("--sampling-steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    args = parser.parse_args(arguments)
    args.settings = [s for s in SETTINGS if any(text in s.name for text in args.settings)]
    if not args.settings:
        parser.error(f"no setting is named like that; there are {', '.join(s.name for s in SETTINGS)}")
    if min(args.batch, args.rounds, args.steps, args.sampling_steps) < 1:
        parser.error("--batch, --rounds, --steps and --sampling-steps must be at least 1")
    return args


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    if reason := missing():
        print(reason, file=sys.stderr)
        return 2
    peak = measure_peak()
    result: dict[str, Any] = {
        "machine": {**report.machine(), **versions()},
        "precision": args.precision,
        "peak": peak._asdict(),
        "agreement": {},
        "comparisons": [],
        "breakdown": {},
    }
    with tensor.precision(args.precision):
        for name in args.networks:
            run_network(name, args, peak, result)
            report.write(args.out, result)
    print("\n" + report.comparison_table(result["comparisons"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
