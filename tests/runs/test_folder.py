"""The folder of a run: overwriting, the log, previews that a resume makes again."""

import errno
import os
from pathlib import Path

import pytest

from tinydiff.errors import InputError, RunFailed
from tinydiff.runs.config import RunConfig
from tinydiff.runs.folder import COLUMNS, RunFolder, read_log


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def test_create_writes_the_configuration(folder):
    folder.create(RunConfig(steps=7), {"extra": {"note": "from Python"}})
    text = folder.config_file.read_text()
    assert "steps = 7" in text and 'note = "from Python"' in text and folder.samples.is_dir()


def test_an_existing_run_is_not_overwritten(folder):
    folder.create(RunConfig(steps=7), {})
    with pytest.raises(InputError, match=r"already holds a run; resume .* force"):
        folder.create(RunConfig(steps=8), {})
    assert "steps = 7" in folder.config_file.read_text()


def test_force_removes_the_run_and_nothing_else(folder):
    folder.create(RunConfig(steps=7), {})
    (folder.path / "checkpoint").mkdir()
    (folder.path / "notes.txt").write_text("mine")
    folder.log_file.write_text("old")
    folder.create(RunConfig(steps=8), {}, force=True)
    assert sorted(p.name for p in folder.path.iterdir()) == ["config.toml", "notes.txt", "samples"]
    assert "steps = 8" in folder.config_file.read_text()


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_no_run_is_never_touched(folder, force):
    folder.path.mkdir()
    (folder.path / "thesis.tex").write_text("dear")
    with pytest.raises(InputError, match="not a run of tinydiff"):
        folder.create(RunConfig(), {}, force=force)
    assert [p.name for p in folder.path.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_will_do(folder):
    folder.path.mkdir()
    folder.create(RunConfig(), {})


def test_a_file_in_the_place_of_the_folder(folder):
    folder.path.write_text("x")
    with pytest.raises(InputError, match="is not a folder"):
        folder.create(RunConfig(), {})


def test_an_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run").create(RunConfig(), {})


def test_a_full_disk_is_a_failed_run(folder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunFailed, match="disk is full"):
        folder.create(RunConfig(), {})


def test_log_rows_and_previews_after_the_checkpoint_go(folder):
    folder.create(RunConfig(), {})
    folder.open_log(0)
    for step in range(1, 6):
        folder.log(step, 1 / step, 2 / step, 1e-3, 100.0)
        folder.preview_file(step).write_text("picture")
    folder.close()
    (folder.samples / "step_mine.png").write_text("not ours")
    with open(folder.log_file, "a") as file:
        file.write("6,0.1")  # cut short by a crash
    folder.open_log(3)
    folder.log(4, 0.25, 0.5, 1e-3, 90.0)
    folder.close()
    assert [row["step"] for row in read_log(folder.log_file)] == ["1", "2", "3", "4"]
    assert sorted(p.name for p in folder.samples.iterdir()) == [
        "step_000001.png", "step_000002.png", "step_000003.png", "step_mine.png"
    ]  # fmt: skip


def test_equal_floats_are_equal_text(folder):
    folder.create(RunConfig(), {})
    folder.open_log(0)
    folder.log(1, 0.1 + 0.2, 1e-12, 3e-4, 1.0)
    folder.close()
    row = read_log(folder.log_file)[0]
    assert tuple(row) == COLUMNS and float(row["loss"]) == pytest.approx(0.3, abs=1e-9)


def test_a_log_without_rows(tmp_path):
    assert read_log(tmp_path / "log.csv") == []
