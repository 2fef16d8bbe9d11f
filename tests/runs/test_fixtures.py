"""What earlier versions saved is read: same pictures, same losses after --resume. tests/fixtures/make.py made the fixtures."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import tinydiff as td
from tinydiff.cli import main
from tinydiff.runs import checkpoint
from tinydiff.runs.folder import read_log
from tinydiff.runs.formats import FORMAT
from tinydiff.runs.inputs import BY_PART, MASKS
from tinydiff.runs.trainer import Trainer

VERSIONS = sorted(
    path for path in (Path(__file__).parents[1] / "fixtures").iterdir() if (path / "expected.json").exists()
)


@pytest.fixture(params=VERSIONS, ids=[path.name for path in VERSIONS])
def fixture(request, tmp_path):
    """A copy of a fixture, and what is expected of it."""
    folder = tmp_path / "fixture"
    shutil.copytree(request.param, folder)
    return folder, json.loads((folder / "expected.json").read_text(encoding="utf-8"))


def test_the_first_version_wrote_no_format():
    (first,) = [path for path in VERSIONS if path.name == "0.1.0"]
    for folder in ("run/checkpoint", "pipeline"):
        assert "format" not in json.loads((first / folder / "tinydiff.json").read_text(encoding="utf-8"))
    assert "format" not in (first / "run/config.toml").read_text(encoding="utf-8")


def test_the_pictures_are_those_of_that_version(fixture):
    folder, expected = fixture
    assert {case["folder"] for case in expected["samples"]} == {"run", "pipeline"}
    for case in expected["samples"]:
        pictures = td.load(folder / case["folder"]).sample(**case["arguments"], progress=False)
        then = np.array(case["pictures"])
        assert pictures.shape == then.shape and pictures.dtype == np.uint8 and then.std() > 20
        assert np.abs(pictures - then).max() <= 1, "beyond rounding"


def test_a_run_goes_on_as_in_that_version(fixture, monkeypatch):
    folder, expected = fixture
    monkeypatch.setattr(Trainer, "_finish", lambda self: None)  # samples again
    before = read_log(folder / "run/log.csv")
    assert main(["train", "--resume", "--out", str(folder / "run"), "--steps", "6"]) == 0
    rows = read_log(folder / "run/log.csv")
    assert rows[:3] == before and len(rows) == 6 and checkpoint.read_step(folder / "run") == 6
    for row, then in zip(rows[3:], expected["resumed"], strict=True):
        assert {name: float(row[name]) for name in then} == pytest.approx(then, rel=1e-4)
    assert json.loads((folder / "run/checkpoint/tinydiff.json").read_text(encoding="utf-8"))["format"] == FORMAT
    _, metadata = checkpoint.load_training_state(folder / "run", arrays=False)
    assert metadata[MASKS] == BY_PART


@pytest.mark.parametrize("name", ["run", "pipeline"])
def test_info_reads_it(fixture, name, capsys):
    folder, _ = fixture
    assert main(["info", str(folder / name)]) == 0
    said = capsys.readouterr().out
    words = ["8x8x1", "T = 50", *(["10 classes", "3 saved of 3", "variance beta"] if name == "run" else ["learned"])]
    assert all(word in said for word in words), said
