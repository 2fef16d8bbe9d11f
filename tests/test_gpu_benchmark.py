"""The GPU benchmark, as far as it can be checked without one: what it measures, what it tells, and that both sides of the
comparison compute the same."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import cupy_stand_in
from tests.benchmarks import gpu, gpu_report
from tests.benchmarks.gpu_report import Comparison, Peak, Recorder
from tinydiff import backend
from tinydiff.cuda import convolution, fully_connected, host
from tinydiff.dispatch import on_host
from tinydiff.ops.windows import Window

needs_pytorch = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "diffusers")), reason="needs torch and diffusers"
)
TINY = {
    "image_size": 8,
    "in_channels": 3,
    "channels": 8,
    "channel_mults": (1, 2),
    "groups": 4,
    "attention_resolutions": (4,),
}


def test_alternating_measures_each_and_changes_the_order(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(gpu_report.time, "perf_counter", lambda: now[0])

    def side(name, seconds):
        def call():
            now[0] += seconds * (10 if len(calls) > 10 else 1)  # the last round is slow for both
            calls.append(name)

        return call

    def wait():
        calls.append("wait")

    medians = gpu_report.alternate(side("a", 2.0), side("b", 6.0), wait, rounds=3, calls=2, warm_up=1)
    assert medians == pytest.approx((20.0, 60.0, 3.0))
    assert "".join(c[0] for c in calls) == "waw" + "wbw" + "waaw" + "wbbw" + "wbbw" + "waaw" + "waaw" + "wbbw"


@pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))
def test_the_recorder_sees_every_launch_and_who_made_it():
    X, W = np.ones((2, 4, 4, 4), np.float32), np.ones((3, 3, 4, 8), np.float32)
    window = Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    before = convolution.convolve, host.run
    with on_host(), Recorder(host, time.perf_counter, lambda a, b: b - a) as recorder:
        Y = convolution.convolve(X, W, None, window)
        convolution.convolve(X, W, None, window, 2)  # groups: left to others
        fully_connected.linear_forward(Y.reshape(-1, 8), np.ones((8, 4), np.float32), None)
    assert (convolution.convolve, host.run) == before
    assert [c.name for c in recorder.calls] == ["convolution.convolve", "products.matmul"]
    first, second = recorder.calls
    assert first.launches[0][0] == "conv_forward" and first.flops() == 2 * Y.size * 36
    assert second.bytes() == 4 * (Y.size + 32 + Y.size // 2)
    rows = recorder.rows(Peak(1e12, 1e12))
    assert {r["name"] for r in rows} == {"convolution.convolve", "products.matmul"}
    assert rows[0]["ms"] >= rows[1]["ms"] > 0
    for row in rows:
        assert row["of_floor"] == pytest.approx(max(row["tflops"], row["gbytes"] / 1e3), rel=1e-6)


def test_calls_without_a_cost_count_the_bytes_of_their_arguments():
    call = gpu_report.Call("noise.normal", None)
    call.launches = [("a", 0.0, 1.0, 100), ("b", 1.0, 3.0, 20)]
    assert (call.flops(), call.bytes()) == (0, 120)
    recorder = Recorder(host, time.perf_counter, lambda a, b: b - a)
    recorder.calls = [call]
    (row,) = recorder.rows(Peak(1.0, 40.0))
    assert row == {
        "name": "noise.normal", "kernels": ["a", "b"], "calls": 1, "launches": 2, "ms": 3000.0, "tflops": 0.0,
        "gbytes": 4e-8, "of_floor": 1.0,
    }  # fmt: skip


ROWS = [
    Comparison("cifar", "train", "eager tf32", 128, 0.5, 0.25, 0.51, 2**30, 3 * 2**30),
    Comparison("cifar", "train", "compile default bf16", 128, 0, 0, 0, 0, 0, "OutOfMemoryError: much"),
]


def test_tables():
    assert gpu_report.comparison_table(ROWS).splitlines() == [
        "| network, task, PyTorch's setting   |  img/s |               tinydiff | ratio |   memory | tinydiff's |",
        "|------------------------------------|-------:|-----------------------:|------:|---------:|-----------:|",
        "| cifar, train, eager tf32           |    512 |                    256 |  0.51 | 3.00 GiB |   1.00 GiB |",
        "| cifar, train, compile default bf16 | failed | OutOfMemoryError: much |       |          |            |",
    ]
    row = {"name": "f", "calls": 2, "launches": 3, "ms": 4.0, "tflops": 5.0, "gbytes": 6.0, "of_floor": 0.7}
    text = gpu_report.breakdown_table([row], 10.0).splitlines()
    assert [c.strip() for c in text[2].split("|")[1:-1]] == ["f", "2", "3", "4.000", "40.0 %", "5.00", "6", "70 %"]
    assert [c.strip() for c in text[3].split("|")[1:-1]] == ["elsewhere", "", "", "6.000", "60.0 %", "", "", ""]


def test_json(tmp_path):
    path = tmp_path / "new" / "gpu.json"
    gpu_report.write(path, {"machine": gpu_report.machine(), "comparisons": ROWS})
    read = json.loads(path.read_text())
    assert read["comparisons"][0]["contender"] == "eager tf32" and read["comparisons"][1]["failure"]
    assert read["machine"]["command"].startswith("python -m tests.benchmarks.gpu")


def test_arguments(capsys):
    args = gpu.parse([])
    assert (args.networks, args.settings) == (["cifar", "glyphs"], gpu.SETTINGS) and len(gpu.SETTINGS) == 9
    names = [s.name for s in gpu.parse(["--settings", "eager tf32", "overhead"]).settings]
    assert names == ["eager tf32", "compile reduce-overhead tf32", "compile reduce-overhead bf16"]
    for wrong in (["--settings", "none"], ["--rounds", "0"], ["--networks", "other"]):
        with pytest.raises(SystemExit) as error:
            gpu.parse(wrong)
        assert error.value.code == 2
    assert "there are eager float32" in capsys.readouterr().err


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(gpu.backend, "cupy", lambda: None)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err.startswith("this benchmark needs an NVIDIA GPU with CuPy")


@pytest.mark.parity
@needs_pytorch
def test_both_sides_compute_the_same_and_train():
    ours = gpu.Ours(TINY, 2, "cpu")
    theirs = gpu.Theirs(ours, gpu.Setting(None, "float32"), "cpu")
    assert gpu.agreement(ours, theirs) < 1e-4
    x_T = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    a, b = ours.sample(2, 4, x_T), theirs.sample(2, 4, x_T).numpy().transpose(0, 2, 3, 1)
    assert np.abs(a - b).max() < 1e-3
    for side in (ours, theirs):
        weights = [np.array(p.detach().numpy()) for p in side.parameters]
        side.train()
        side.train()
        averages = side.ema.averages if side is ours else [a.numpy() for a in side.average]
        moved = [np.abs(p.detach().numpy() - q).max() for p, q in zip(side.parameters, weights, strict=True)]
        assert min(moved) > 0 and max(moved) <= 2.1 * gpu.LR
        assert 0 < max(np.abs(a - q).max() for a, q in zip(averages, weights, strict=True)) <= max(moved)
    assert gpu.agreement(ours, theirs) > 1e-3


@pytest.fixture
def stand_in(monkeypatch):
    """A module that answers as CuPy does, with a clock and a device."""
    cupy = cupy_stand_in.make()

    class Event:
        def record(self):
            self.at = time.perf_counter()

        def synchronize(self):
            pass

    class Device(cupy.cuda.Device):
        @property
        def attributes(self):
            return {"MaxSharedMemoryPerBlockOptin": 232448, "MultiProcessorCount": 132, "ClockRate": 1_980_000}

        def synchronize(self):
            pass

    cupy.cuda.Event, cupy.cuda.Device = Event, Device
    cupy.cuda.get_elapsed_time = lambda a, b: 1e3 * (b.at - a.at)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    backend.cupy.cache_clear()
    yield
    backend.cupy.cache_clear()


@pytest.mark.parity
@needs_pytorch
@pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))
def test_all_of_it_on_stand_ins(monkeypatch, stand_in, tmp_path, capsys):
    """The whole benchmark with a network of a few channels; one of PyTorch's settings fails."""

    class OnHost(gpu.Theirs):
        def __init__(self, ours, setting):
            if setting.precision == "bf16":
                raise MemoryError("out of memory")
            super().__init__(ours, setting, "cpu")

        def memory(self):
            return 0

        def reset_memory(self):
            pass

    monkeypatch.setattr(gpu, "Theirs", OnHost)
    monkeypatch.setattr(gpu, "NETWORKS", {"cifar": TINY})
    monkeypatch.setattr(gpu, "missing", lambda: None)
    monkeypatch.setattr(gpu, "versions", lambda: {"gpu": "none"})
    monkeypatch.setattr(gpu, "SIZES", (1, 2))
    monkeypatch.setattr(gpu, "COPIED", 2**10)
    out = tmp_path / "gpu.json"
    options = ["--rounds", "1", "--steps", "1", "--batch", "2", "--sampling-steps", "2", "--settings"]
    assert gpu.main([*options, "eager tf32", "eager bf16", "--networks", "cifar", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["agreement"]["cifar, eager tf32"] < 1e-4
    assert [(c["task"], bool(c["failure"])) for c in result["comparisons"]] == [
        (task, failed) for failed in (False, True) for task in ("train", "sample 1", "sample 2")
    ]
    assert result["comparisons"][3]["failure"] == "MemoryError: out of memory"
    rows = {r["name"]: r for r in result["breakdown"]["cifar"]["rows"]}
    assert rows["convolution.convolve"]["tflops"] > 0 and "normalization.group_normalize" in rows
    shown = capsys.readouterr().out
    assert "cifar, sample 2, eager tf32" in shown and "convolution.convolve_weight_gradient" in shown
