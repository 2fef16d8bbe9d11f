"""The script of the first minutes on a GPU, where there is none: its runner, and parts of it on the stand-in for CuPy."""

import json
import sys

import pytest

from tests import cupy_stand_in
from tests.benchmarks import gpu_first, gpu_launches, gpu_report
from tinydiff.cuda import nvrtc, tensor


def test_each_part_has_a_limit_and_results_are_written_as_they_come(tmp_path, monkeypatch, capfd):
    """A part that takes too long or fails is told; what must hold ends it."""
    scripts = {
        "quick": "open(FILE, 'w').write('{\"a\": 1}')",
        "slow": "import time; time.sleep(60)",
        "wrong": "raise AssertionError('bits differ')",
        "after": "raise AssertionError('not reached')",
    }
    parts = {name: gpu_first.Part(dict, 20, must_hold=name == "wrong") for name in scripts}
    parts["slow"] = parts["slow"]._replace(limit=0.2)
    monkeypatch.setattr(gpu_first, "PARTS", parts)
    out = tmp_path / "results" / "found.json"
    held = gpu_first.run_parts(
        list(scripts), out, lambda name, file: [sys.executable, "-S", "-c", scripts[name].replace("FILE", repr(file))]
    )
    found = json.loads(out.read_text())["parts"]
    assert not held and list(found) == ["quick", "slow", "wrong"]
    assert found["quick"]["found"] == {"a": 1} and not found["quick"]["failure"]
    assert "longer than 0.2 s" in found["slow"]["failure"] and "bits differ" in found["wrong"]["failure"]


def test_without_a_gpu_one_sentence_says_so(capfd):
    assert gpu_first.main([]) == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_the_replays_of_the_script_have_the_bits_of_eager_steps(monkeypatch):
    tiny = {
        "image_size": 4, "in_channels": 1, "channels": 4, "channel_mults": (1,), "blocks_per_level": 1,
        "attention_resolutions": (), "groups": 2,
    }  # fmt: skip
    monkeypatch.setattr(gpu_first, "REPLAYED", (("tiny", tiny, 1),))
    monkeypatch.setattr(gpu_first, "REPLAYS", 2)
    monkeypatch.setattr(gpu_first, "seconds", lambda work, calls=1: (work(), 1.0)[1])
    with cupy_stand_in.put_in_place(monkeypatch):
        assert set(gpu_first.replay()) == {"tiny"}


TINY = {
    "image_size": 4, "in_channels": 1, "channels": 4, "channel_mults": (1,), "blocks_per_level": 1,
    "attention_resolutions": (), "groups": 2,
}  # fmt: skip


def test_all_parts_together_take_no_more_than_20_minutes():
    assert sum(part.limit for part in gpu_first.PARTS.values()) <= 20 * 60


def test_every_distinct_launch_of_a_step_has_a_row(monkeypatch):
    monkeypatch.setattr(gpu_launches, "LAUNCHES", (TINY, 1))
    monkeypatch.setattr(gpu_launches, "seconds", lambda work, calls=1: (work(), 1e-3)[1])
    monkeypatch.setattr(gpu_launches.gpu, "measure_peak", lambda: gpu_report.Peak(1e12, 1e12))
    with cupy_stand_in.put_in_place(monkeypatch):
        found = gpu_launches.launches()
    rows = found["rows"]
    assert sum(row["times"] for row in rows) == found["launches"] > 50 and len(found["worst"]) == 5
    convolutions = [row for row in rows if row["kernel"] == "conv_forward"]
    assert all(row["model, us"] > 0 and row["GFLOP"] > 0 for row in convolutions)
    first = next(row for row in convolutions if row["GFLOP"] == 2 * 16 * 4 * 9 / 1e9)  # conv_in: 1 -> 4 channels
    assert first["MB"] == 4 * (16 + 9 * 4 + 4 + 16 * 4) / 1e6
    assert all(row["model, us"] > 0 for row in rows)


@pytest.mark.skipif(nvrtc.missing() is not None, reason=str(nvrtc.missing()))
def test_the_products_from_registers_compile():
    usages, _ = nvrtc.compile_text("mma.cu", gpu_first.MMA, {}, 80)
    assert {u.kernel: u.spills for u in usages} == {"bf16": 0, "tf32": 0}


def test_a_part_runs_in_the_precision_that_is_asked_for(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(gpu_first, "PARTS", {"a": gpu_first.Part(lambda: found.append(tensor.chosen()) or {}, 1)})
    monkeypatch.setattr(gpu_first, "run_parts", lambda names, out, command: found.append((out.name, command("a", "f"))))
    words = ["a", "--precision", "tf32"]
    with cupy_stand_in.put_in_place(monkeypatch):
        assert gpu_first.main([*words, "--one", str(tmp_path / "f"), "--out", str(tmp_path / "out")]) == 0
        gpu_first.main(words)
    assert found[0] == "tf32" and found[1][0] == "gpu_first_tf32.json" and "tf32" in found[1][1]
