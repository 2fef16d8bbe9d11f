"""tinydiff bench, as a user types it."""

import errno
import json
import os
from types import SimpleNamespace

import pytest

from tinydiff.bench import torch
from tinydiff.bench.timing import Ceiling, Work
from tinydiff.cli import bench, main
from tinydiff.machine import limits


@pytest.fixture(autouse=True)
def quick_ceiling(monkeypatch):
    monkeypatch.setattr(bench, "measure_ceiling", lambda device, quick: Ceiling(1e11, 1e10))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)


def test_a_table_and_a_file_that_agree(tmp_path, capsys):
    file = tmp_path / "bench.json"
    words = ["bench", "--quick", "--only", "linear", "--no-torch", "--threads", "1", "--json", str(file)]
    assert main(words) == 0
    said, error = capsys.readouterr()
    assert error == ""
    result = json.loads(file.read_text())
    (row,) = result["rows"]
    assert row["name"] == "linear 64 -> 64" and row["total"] >= max(row["forward"], row["backward"]) > 0
    assert row["flops_per_second"] == pytest.approx(3 * 2 * 6272 * 64 * 64 / row["total"])
    moved = 3 * 4 * (6272 * 128 + 64 * 64)
    assert row["share_of_ceiling"] == pytest.approx(max(3 * 2 * 6272 * 64 * 64 / 1e11, moved / 1e10) / row["total"])
    assert result["machine"]["processor"] == limits.processor_name() and result["machine"]["threads"] == 1
    line = next(line for line in said.splitlines() if line.startswith("linear"))
    assert line.split()[4] == f"{1e3 * row['forward']:.2f}" and "1 thread, cpu" in said and "100 GFLOP/s" in said


def test_a_busy_machine_is_noticed(monkeypatch, capsys):
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    assert main(["bench", "--quick", "--only", "linear", "--no-torch", "--threads", "1"]) == 0
    said, error = capsys.readouterr()
    assert "other programs keep about 3.0 processors busy; the times will be off\n" in error and "x?" not in said


@pytest.mark.parametrize("load", [0.0, 3.0])
def test_comparisons_on_a_busy_machine_are_marked(load, monkeypatch, capsys, tmp_path):
    rival = SimpleNamespace(__version__="2.0")
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    monkeypatch.setattr(bench, "_torch", lambda device, threads: rival)
    monkeypatch.setattr(torch, "competitors", lambda *_: {"channels first": Work(lambda: None)})
    file = tmp_path / "bench.json"
    assert main(["bench", "--quick", "--only", "linear", "--threads", "1", "--json", str(file)]) == 0
    said, error = capsys.readouterr()
    line = next(line for line in said.splitlines() if line.startswith("linear"))
    assert line.endswith("x?" if load else "x") and ("marked with ?" in error) == bool(load)
    assert json.loads(file.read_text())["machine"]["others_busy"] == (load or None)


MISTAKES = {
    "no such operation": (["--only", "fft"], "no operation is named so; there are conv 3x3"),
    "threads": (["--threads", "0"], "--threads must be a whole number of at least 1, not '0'"),
    "threads as words": (["--threads", "two"], "not 'two'"),
    "no folder": (["--json", "/nowhere/at/all.json"], "there is no folder /nowhere/at"),
    "device": (["--device", "tpu"], "auto, cpu or cuda"),
    "no GPU": (["--device", "cuda"], "device cuda needs"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, capsys):
    flags, sentence = MISTAKES[mistake]
    assert main(["bench", *flags]) == 2
    said, error = capsys.readouterr()
    assert said == "" and error.count("\n") == 1 and sentence in error


@pytest.mark.parametrize("command", [["bench", "--json"], ["gradcheck", "nowhere.py:f", "--png"]])
@pytest.mark.parametrize("name", ["", ".", "/nowhere/at/all.png"])
def test_a_name_that_no_file_can_have_is_refused_before_work(tmp_path, monkeypatch, capsys, command, name):
    monkeypatch.chdir(tmp_path)
    assert main([*command, name]) == 2
    said, error = capsys.readouterr()
    assert said == "" and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_picture_of_the_error_is_written_whole_or_not_at_all(tmp_path, monkeypatch, capsys):
    (tmp_path / "hw.py").write_text("def f(x): return x @ x\ndef b(g, x): return 2 * g @ x.T\n")
    command = ["gradcheck", f"{tmp_path / 'hw.py'}:f,b", "--shape", "2,2", "--png", str(tmp_path / "x.png")]
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        assert main(command) == 1
    assert "the disk is full" in capsys.readouterr().err and {p.name for p in tmp_path.glob("*.*")} == {"hw.py"}
    assert main(command) == 1 and (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", [["bench", "--json"], ["gradcheck", "nowhere.py:f", "--png"]])
def test_a_named_file_that_is_there_is_kept(tmp_path, capsys, command):
    file = tmp_path / "mine"
    file.write_bytes(b"mine")
    assert main([*command, str(file)]) == 2
    assert "--force" in capsys.readouterr().err and file.read_bytes() == b"mine"
