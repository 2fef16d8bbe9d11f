"""How much memory a step needs: a straight line through measured peaks, against real arrays and real runs."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tinydiff import backend
from tinydiff.errors import InputError
from tinydiff.machine import limits
from tinydiff.runs import memory
from tinydiff.runs.memory import Estimate, estimate, require, require_gpu, show

MIB = 1 << 20


def holding(fixed, per_image, calls):
    """Gradients that hold a fixed number of bytes and some for each image, and let go of them."""

    def gradients(n):
        calls.append(n)
        held = [np.empty(fixed, np.uint8), np.empty(per_image * n, np.uint8)]
        del held

    return gradients


@pytest.mark.parametrize(
    "batch, fixed, per_image", [(64, 3 * MIB, MIB), (1000, 0, 2 * MIB), (5, MIB, 1000), (2, 9, MIB)]
)
def test_the_line_is_found_from_small_batches(batch, fixed, per_image):
    calls = []
    found = estimate(holding(fixed, per_image, calls), 1000, batch)
    assert found.activations(batch) == pytest.approx(fixed + batch * per_image, rel=0.02, abs=20_000)
    assert max(calls) <= batch and max(calls) * per_image <= memory.ENOUGH
    assert (found.weights, found.average, found.optimizer) == (1000, 1000, 2000)


def test_one_image():
    found = estimate(holding(0, MIB, []), 1, 1)
    assert found.activations(1) == pytest.approx(MIB, rel=0.02)


def test_workspaces_that_stay_count_once():
    kept = {}

    def gradients(n):
        kept["workspace"] = kept.get("workspace", np.empty(5 * MIB, np.uint8))
        np.empty(n * MIB, np.uint8)

    assert estimate(gradients, 1, 100).activations(100) == pytest.approx(105 * MIB, rel=0.02)


def test_the_largest_batch_that_fits():
    need = Estimate(weights=10, average=10, optimizer=20, fixed=60, per_image=7, rest=100)
    assert need.total(3) == 10 + 10 + 20 + 100 + 60 + 21
    assert need.largest_batch(200) == 0 and need.largest_batch(207) == 1 and need.largest_batch(213) == 1
    assert need.largest_batch(150) == 0
    large = Estimate(weights=10, average=10, optimizer=20, fixed=60, per_image=7, rest=100, saving=80)
    assert large.total(1) == 220 and large.total(3) == 221
    assert large.largest_batch(219) == 0 and large.largest_batch(220) == 2 and large.largest_batch(221) == 3


def test_a_gpu_too_small_is_refused_before_training(monkeypatch):
    need = Estimate(weights=MIB, average=MIB, optimizer=2 * MIB, fixed=10 * MIB, per_image=MIB)
    monkeypatch.setattr(backend, "gpu_memory", lambda: (64 * MIB, 30 * MIB))
    require_gpu(need, 18)  # 32 MiB, of which two are there already
    with pytest.raises(
        InputError, match=r"19 images needs about 33.0 MiB.*32.0 MiB of 64.0 MiB are free.*batch_size=18 fits"
    ):
        require_gpu(need, 19)
    monkeypatch.setattr(backend, "gpu_memory", lambda: (64 * MIB, 12 * MIB))
    with pytest.raises(InputError, match="not even one image fits"):
        require_gpu(need, 4)


def test_more_than_the_machine_has_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "memory", lambda: (8 * MIB, MIB))
    require(8 * MIB, "samples")
    with pytest.raises(InputError, match=r"^samples need about 9.0 MiB of memory, and this machine has 8.0 MiB$"):
        require(9 * MIB, "samples")
    monkeypatch.setattr(limits, "memory", lambda: (None, None))
    require(9 * MIB, "samples")


def test_the_pool_of_a_gpu(monkeypatch):
    reserved = SimpleNamespace(bytes=7 * MIB)

    def gradients(n):
        reserved.bytes = max(reserved.bytes, (9 + 3 * n) * MIB)

    def held(trim=False):
        if trim:
            reserved.bytes = 7 * MIB
        return reserved.bytes

    monkeypatch.setattr(backend, "gpu_reserved", held)
    found = estimate(gradients, 1000, 50, "cuda")
    assert (found.fixed, found.per_image, found.rest) == (2 * MIB, 3 * MIB, 0)


def test_bytes_for_people():
    shown = [show(x) for x in (0, 1023, 1536, 200 * 1024, 5 * MIB, 3 << 30, 5000 << 30)]
    assert shown == ["0 bytes", "1023 bytes", "1.5 KiB", "200 KiB", "5.0 MiB", "3.0 GiB", "5000 GiB"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, which only Linux has")
@pytest.mark.slow
def test_a_real_run_needs_what_was_estimated(tmp_path):
    """In processes of their own: what one needs, and what the other says that it needs."""
    import subprocess

    code = """
import sys
import numpy as np
from tinydiff.machine import limits, threads
from tinydiff import Trainer, TrainConfig, UNet, data, diffusion
unet = UNet(16, 1, channels=32, channel_mults=(1, 2), blocks_per_level=1, attention_resolutions=(8,))
images = data.Dataset(np.zeros((64, 16, 16, 1), np.uint8))
process = diffusion.Diffusion(diffusion.Schedule.linear(), predict="v")
trainer = Trainer(unet, process, images, TrainConfig(batch_size=64, device="cpu", threads=2, out=sys.argv[2]))
with threads.threads(2):
    if sys.argv[1] == "estimate":
        print(trainer.memory_of_step().total(64))
    else:
        for step in (1, 2):
            trainer.train_step(step)
        print(limits.peak_resident())
"""
    from pathlib import Path

    figures = []
    for what in ("estimate", "run"):
        done = subprocess.run(
            [sys.executable, "-c", code, what, str(tmp_path / "run")],
            capture_output=True, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        figures.append(int(done.stdout))
    assert figures[0] == pytest.approx(figures[1], rel=0.15)
