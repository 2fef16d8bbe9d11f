"""The script of the first minutes on a GPU, where there is none: its runner, and parts of it on the stand-in for CuPy."""

import json
import sys

from tests import cupy_stand_in
from tests.benchmarks import gpu_first


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
