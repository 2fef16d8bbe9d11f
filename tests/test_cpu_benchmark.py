"""The parts of tests/benchmarks/cpu.py, with networks so small that they take no time."""

import argparse
import json
import sys

import pytest

from tests.benchmarks import contests, cpu

TINY = {"image_size": 8, "in_channels": 1, "channels": 32, "channel_mults": (1,), "blocks_per_level": 1,
        "attention_resolutions": ()}  # fmt: skip


def test_rows_say_how_many_times_as_fast():
    seconds = {"tinydiff": 0.1, "channels first": 0.3, "channels last": 0.2, "bf16, channels first": 0.05}
    row = {"name": "W1 step", "seconds": seconds, "times_torch": 2.0}
    assert cpu.table("small", [row]).endswith("2.00 times PyTorch")
    assert cpu.table("steps", [row | {"times_bf16": 0.5}]).endswith("2.00 times PyTorch, 0.50 times its bf16")


@pytest.mark.parity
def test_a_run_from_beginning_to_end(monkeypatch, tmp_path, capsys):
    pytest.importorskip("diffusers", reason="needs the extra `parity`")
    monkeypatch.setattr(cpu, "NETWORKS", {"W1": (TINY, 2)})
    monkeypatch.setattr(cpu, "SMALL_BATCHES", (1,))
    monkeypatch.setattr(contests, "TIMES_TOO_SLOW", 0)  # as where bfloat16 is emulated
    told = []
    monkeypatch.setattr(contests.td, "set_threads", told.append)
    result = tmp_path / "cpu.json"
    words = ["cpu.py", "--only", "steps,small,forward", "--rounds", "3", "--json", str(result)]
    monkeypatch.setattr(sys, "argv", words)
    cpu.main()
    read = json.loads(result.read_text())
    assert list(read["sections"]) == ["steps", "small", "forward"] and read["machine"]["threads"] >= 1
    (step,), (small,) = read["sections"]["steps"], read["sections"]["small"]
    assert step["batch"] == 2 and small["batch"] == 1 and "times_bf16" not in small
    assert step["one turn only"] == ["bf16, channels first", "bf16, channels last"]
    best = min(step["seconds"][f"bf16, {layout}"] for layout in contests.LAYOUTS)
    assert step["times_bf16"] == pytest.approx(best / step["seconds"]["tinydiff"])
    assert [row["batch"] for row in read["sections"]["forward"]] == [2, 1]
    assert not told  # it is a user's own loop
    assert "times its bf16" in capsys.readouterr().out


@pytest.mark.parity
def test_a_number_of_threads_is_for_both(monkeypatch):
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    pytest.importorskip("diffusers", reason="needs the extra `parity`")
    told = []
    monkeypatch.setattr(contests.td, "set_threads", lambda n: told.append(("tinydiff", n)))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: told.append(("torch", n)))
    monkeypatch.setattr(cpu, "NETWORKS", {"W1": (TINY, 1)})
    (row,) = cpu.steps(argparse.Namespace(threads=1, rounds=3, compile=False))
    assert sorted(told) == [("tinydiff", 1), ("torch", 1)] and row["threads"] == 1
    assert row["apart"] < 1e-4
