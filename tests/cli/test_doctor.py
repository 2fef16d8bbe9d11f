"""What doctor says of runs that can start and of those that cannot; it writes nothing."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

import tinydiff as td
from tests.runs.test_trainer import tiny_unet
from tinydiff import backend
from tinydiff.cli import card, doctor, main, processes
from tinydiff.machine import limits
from tinydiff.runs.memory import Estimate
from tinydiff.study import trace

SMALL = [
    "--channels", "8", "--groups", "4", "--mults", "1,2", "--image-size", "8", "--attention", "4", "--timesteps", "1000",
    "--batch-size", "4", "--threads", "1", "--steps", "40", "--warmup", "10", "--save-every", "20",
]  # fmt: skip


@pytest.fixture(autouse=True)
def roomy(monkeypatch):
    """A machine with room and time for everything, however busy this one is."""
    monkeypatch.setattr(limits, "processors", lambda: 4)
    monkeypatch.setattr(limits, "memory", lambda: (1 << 40, 1 << 40))
    monkeypatch.setattr(doctor, "LONGEST", math.inf)
    monkeypatch.setattr(doctor, "BUDGET", math.inf)


@pytest.fixture
def examined(tmp_path, capsys):
    """A function that runs doctor and returns its exit status, what it said, and its error."""

    def run(*flags, out=tmp_path / "run", steps=True):
        before = sorted(tmp_path.rglob("*"))
        small = SMALL if steps else SMALL[: SMALL.index("--steps")]
        status = main(["doctor", "--out", str(out), *small, *map(str, flags)])
        assert sorted(tmp_path.rglob("*")) == before, "doctor wrote something"
        said, error = capsys.readouterr()
        return status, said, error

    return run


@pytest.fixture
def arrays(tmp_path):
    """A function that saves images, and labels if given, for doctor to look at."""

    def save(images, labels=None):
        np.savez(tmp_path / "data.npz", images=images, **({} if labels is None else {"labels": labels}))
        return tmp_path / "data.npz"

    return save


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_a_run_that_can_start(examined):
    status, said, error = examined()
    assert (status, error) == (0, "")
    lines = {line[:11].strip(): line[11:] for line in said.splitlines() if not line.startswith(" ")}
    assert lines["data"] == "8000 images 8x8x1 from glyphs"
    assert lines["classes"].startswith("10: 0 800")
    assert lines["steps"] == "40 of 4 images: each image 0.02 times on average"
    assert "8x8 with 8 channels; 4x4 with 16 channels, attention" in said
    assert lines["folder"].endswith("will be made") and lines["device"].startswith("CPU")
    assert re.match(r"[\d.]+ [MG]iB \(measured\); .* are free", lines["memory"])
    assert re.match(r"[\d.e-]+ s a step \(median of 5\), \d+ images/s", lines["speed"])
    assert "0 previews" in lines["time"] and "are free" in lines["disk"]
    assert "warning: 40 steps see 2% of the images; --steps 2000 see all once" in said
    assert said.splitlines()[-1] == "ready: the run can start; 1 warning"


WARNINGS = {
    "nearly black": ((noise(9, 8, 8) % 2, None), [], "span 0..1 of 0..255.*multiplied by 255"),
    "one colour": ((np.concatenate([noise(7, 8, 8), np.full((2, 8, 8), 9, "B")]), None), [], "2 of 9 .*one colour"),
    "copies": ((np.concatenate([noise(7, 8, 8)] * 2), None), [], "7 of 14 images are exact copies"),
    "grey in colour": ((np.repeat(noise(9, 8, 8, 1), 3, 3), None), [], "grey but have three channels"),
    "fewer than a batch": ((noise(3, 8, 8), None), [], "takes 4 images and there are 3"),
    "a class without images": ((noise(4, 8, 8), [0, 0, 2, 2]), [], "no image shows class 1"),
    "unequal classes": ((noise(40, 8, 8), [0] + [1] * 39), [], "from 1 to 39 images"),
    "attention at one pixel": ((noise(9, 8, 8), None), ["--mults", "1,1,1,2", "--attention", "1"], "at 1x1 has one pixel"),
    "one pixel in each group": ((noise(9, 8, 8), None), ["--mults", "1,1,1,1", "--groups", "8"], "turns to 0"),
    "noise does not end in noise": ((noise(9, 8, 8), None), ["--timesteps", "1"], "alpha_bar_T is .* raise --timesteps"),
    "long warm-up": ((noise(9, 8, 8), None), ["--warmup", "40"], "--warmup 40 is not over"),
    "a rate that ends early": (
        (noise(9, 8, 8), None), ["--lr-schedule", "cosine", "--lr-steps", "9"], "the learning rate is 0 from step --lr-steps 9 on"
    ),
    "more threads": ((noise(9, 8, 8), None), ["--threads", "99"], "--threads 99, and the process may use"),
    "a learning rate above the weights": ((noise(9, 8, 8), None), ["--lr", "0.5"], "--lr 0.5 is more than the weights"),
    "many previews": ((noise(9, 8, 8), None), ["--preview-every", "1"], "previews take longer than the training"),
}  # fmt: skip


@pytest.mark.parametrize("case", WARNINGS)
def test_what_is_odd_gets_a_warning(case, examined, arrays, monkeypatch):
    data, flags, pattern = WARNINGS[case]
    monkeypatch.setattr(doctor, "_time", lambda *_: (0.1, 2))  # seconds: of a step
    monkeypatch.setattr(doctor, "_time_of_samples", lambda _: (1.0, 1.0))  # and of pictures
    status, said, _ = examined("--data", arrays(*data), *flags)
    assert status == 0
    warnings = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert any(re.search(pattern, warning) for warning in warnings), said


def test_a_run_that_ends_by_time(examined, monkeypatch):
    monkeypatch.setattr(doctor, "_time", lambda *_: (0.1, 2))
    status, said, _ = examined("--data", "glyphs", "--minutes", "2", steps=False)
    assert status == 0 and "as many of 4 images as fit into 2 minutes" in said and ": 1200 steps 2m00s" in said
    assert "1200 steps" in said.split("8 GB card")[1] and "predicted until run" in said


def test_a_budget_for_a_card_of_8_gb(monkeypatch):
    monkeypatch.setattr(card, "FLOPS", 1e12)
    unet = tiny_unet()
    seconds = card.seconds_of_step(unet, 10)
    with trace(values=0) as recorded, td.no_grad():
        unet(np.zeros((10, 8, 8, 1), np.float32), 1)
    assert seconds == pytest.approx(3 * recorded.cost().total.flops[0] / 0.5e12, rel=0.01)
    trainer = SimpleNamespace(unet=unet, config=td.TrainConfig(batch_size=128))
    gib = 1 << 30
    lines = card.predicted(trainer, Estimate(gib, gib, 2 * gib, gib, gib / 64, 5 * gib, 4 * gib), 7)
    assert lines[0] == "predicted until run: 7.0 GiB of 7.0 GiB, fits"
    lines = card.predicted(trainer, Estimate(gib, gib, 2 * gib, gib, gib / 32), 7)
    assert "9.0 GiB of 7.0 GiB, does not fit; --batch-size 64 does" in lines[0]


def test_nothing_is_odd_about_good_data(examined, arrays):
    _, said, _ = examined("--data", arrays(noise(20, 8, 8)), "--preview-every", "0")
    assert "warning" not in said and said.splitlines()[-1] == "ready: the run can start"


def test_a_high_learning_rate_that_works_gets_no_warning(examined, arrays):
    _, said, _ = examined("--data", arrays(noise(20, 8, 8)), "--preview-every", "0", "--lr", "0.03")
    assert "warning" not in said


def test_a_profile_of_the_steps_that_were_tried(examined, monkeypatch):
    status, said, _ = examined("--profile")
    assert status == 0 and "one step takes" in said and "(mean of 5)" in said and "Conv2d" in said
    assert said.splitlines()[-1].startswith("ready: the run can start")
    assert "one step takes" not in examined()[1]
    monkeypatch.setattr(doctor, "LONGEST", 0.0)
    assert "no step was tried, so there is no profile" in examined("--profile")[1]


PREVENTED = {
    "no such data": (["--data", "/nowhere"], "there is no /nowhere"),
    "size and levels": (["--mults", "1,2,2,2,2"], "must be divisible by 16, so give --image-size 16\n"),
    "groups": (["--groups", "3"], "does not divide into --groups 3; --groups 2 would do"),
    "nothing to resume": (["--resume"], "no run to resume"),
    "no value": (["--lr", "fast"], "--lr must be a number"),
    "no GPU": (["--device", "cuda"], "device cuda needs"),
}


@pytest.mark.parametrize("case", PREVENTED)
def test_what_prevents_a_run(case, examined):
    flags, pattern = PREVENTED[case]
    status, _, error = examined(*flags)
    assert status == 2 and error.count("\n") == 1 and pattern in error, error


def test_a_folder_in_the_way(examined, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/precious.txt").write_text("mine")
    status, _, error = examined(out=tmp_path / "other")
    assert status == 2 and "not a run of tinydiff" in error
    status, _, error = examined(out=tmp_path / "other/precious.txt/run")
    assert status == 2 and "precious.txt is a file" in error


@pytest.mark.slow
def test_a_run_is_resumed_or_overwritten(examined, tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["train", "--out", out, *SMALL, "--steps", "3", "--preview-every", "0"]) == 0
    capsys.readouterr()
    assert "--resume goes on with it, --force overwrites it" in examined()[2]
    assert "will be overwritten (--force)" in examined("--force")[1]
    status, said, _ = examined("--resume", "--steps", "40")
    assert status == 0 and "goes on after step 3, 37 to go" in said
    assert "--lr 0.5 differs" in examined("--resume", "--lr", "0.5")[2]
    assert main(["doctor", "--out", out, "--resume"]) == 2
    assert "has done its 3 steps" in capsys.readouterr().err


def test_too_little_memory(examined, monkeypatch):
    monkeypatch.setattr(limits, "memory", lambda: (1 << 20, 1 << 19))
    status, said, error = examined()
    assert status == 2 and "this machine has 1.0 MiB; not even one image fits" in error
    monkeypatch.setattr(limits, "memory", lambda: (1 << 40, 0))
    monkeypatch.setattr(limits, "resident", lambda: 1 << 20)
    status, said, error = examined("--batch-size", "64")
    assert status == 0 and "the run may be stopped for lack of it" in said and "estimated" in said


def test_too_little_disk(examined, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 10))
    status, _, error = examined()
    assert status == 2 and "10 bytes are free" in error


def test_a_step_that_takes_too_long_is_not_tried(examined, monkeypatch):
    monkeypatch.setattr(doctor, "LONGEST", 0.0)
    status, said, _ = examined()
    assert status == 0 and "scaled up from a small batch" in said and "give or take" in said


def test_processes_that_train_will_start_are_told(monkeypatch):
    for n, told in ((1, False), (2, True)):
        monkeypatch.setattr(processes, "best", lambda config, parameters, n=n: n if parameters == 7 else 1)
        lines = []
        config = SimpleNamespace(threads=2, device="cpu", batch_size=4)
        trainer = SimpleNamespace(device="cpu", config=config, parameters=[np.zeros(3), np.zeros((2, 2))])
        doctor._device(trainer, lambda *line, to=lines: to.append(line), [])
        assert any("shares each batch among 2 processes" in text for _, text in lines) == told


def test_a_gpu_is_shown(monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr(backend, "gpu_memory", lambda: (8 << 30, 6 << 30))
    lines = []
    config = SimpleNamespace(threads=None, device="auto", precision="float32")
    trainer = SimpleNamespace(device="cuda", config=config)
    doctor._device(trainer, lambda *line: lines.append(line), [])
    assert lines == [("device", "GPU with 8.0 GiB of memory, 6.0 GiB free")]
