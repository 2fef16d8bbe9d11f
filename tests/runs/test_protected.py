"""Files that may not be changed are found out before work, and before anything of an old run is gone."""

import os
import shutil
from pathlib import Path

import pytest

import tinydiff as td
from tinydiff.cli import main
from tinydiff.errors import InputError
from tinydiff.evaluation.evaluate import _make_folder
from tinydiff.runs import atomic
from tinydiff.runs.folder import RunFolder

pytestmark = pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")


def contents(folder):
    return {str(p.relative_to(folder)): p.is_file() and p.read_bytes() for p in folder.rglob("*")}


def an_old_run(path):
    folder = RunFolder(path)
    folder.create(td.TrainConfig(out=str(path)), {})
    atomic.write_folder(folder.checkpoint, {"model_index.json": b"{}", "unet/config.json": b"{}"})
    for name in ("log.csv", "samples.png", "samples/step_000002.png", "samples/mine.png"):
        (path / name).write_text(name)
    return folder


@pytest.fixture
def somebody(monkeypatch):
    """Somebody whose files these are not."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 12345)


@pytest.mark.parametrize("which", ["samples.png", "step_000002.png", "checkpoint"])
def test_an_old_run_is_removed_or_stays_whole(tmp_path, monkeypatch, which):
    folder = an_old_run(tmp_path / "run")
    before, real = contents(folder.path), os.rename

    def rename(a, b):
        if Path(a).name == which:
            raise PermissionError(1, "Operation not permitted")
        real(a, b)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(InputError, match="run cannot be written: Operation not permitted"):
        folder.begin(td.TrainConfig(), {}, force=True)
    assert contents(folder.path) == before
    monkeypatch.undo()
    folder.begin(td.TrainConfig(), {}, force=True)
    assert set(contents(folder.path)) == {".starting.toml", "config.toml", "samples", "samples/mine.png"}


def test_a_file_in_the_place_of_the_samples(tmp_path):
    folder = an_old_run(tmp_path / "run")
    shutil.rmtree(folder.samples)
    folder.samples.write_text("mine")
    before = contents(folder.path)
    with pytest.raises(InputError, match="samples is a file"):
        folder.begin(td.TrainConfig(), {}, force=True)
    assert contents(folder.path) == before


@pytest.mark.parametrize("place", ["checkpoint", "checkpoint/unet"])
def test_a_checkpoint_that_the_next_save_could_not_remove(tmp_path, monkeypatch, place):
    folder = an_old_run(tmp_path / "run")
    before, real = contents(folder.path), os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder.path / place and real(path, mode))
    for begin in (folder.put_in_order, lambda: folder.begin(td.TrainConfig(), {}, force=True)):
        with pytest.raises(InputError, match=f"the permissions of .*{place} forbid it"):
            begin()
    assert contents(folder.path) == before


@pytest.mark.usefixtures("somebody")
@pytest.mark.parametrize("place", [".", "checkpoint"])
def test_a_run_of_somebody_else_in_a_folder_that_protects_it(tmp_path, place):
    folder = an_old_run(tmp_path / "run")
    (folder.path / place).chmod(0o1777)
    before = contents(folder.path)
    for begin in (folder.put_in_order, lambda: folder.begin(td.TrainConfig(), {}, force=True)):
        with pytest.raises(InputError, match="Operation not permitted"):
            begin()
    assert contents(folder.path) == before


@pytest.mark.usefixtures("somebody")
def test_a_file_of_somebody_else(tmp_path, capsys):
    (file := tmp_path / "x.json").write_text("theirs")
    tmp_path.chmod(0o1777)
    assert main(["bench", "--quick", "--no-torch", "--json", str(file), "--force"]) == 2
    assert "x.json cannot be written: Operation not permitted" in capsys.readouterr().err
    assert contents(tmp_path) == {"x.json": b"theirs"}


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "link.json").symlink_to("/dev/null")
    for name in ("pipe.json", "link.json"):
        with pytest.raises(InputError, match="it is a pipe or a device"):
            atomic.check_place(tmp_path / name)
    (tmp_path / "loop").symlink_to("loop")
    atomic.check_place(tmp_path / "loop")  # will be replaced


def test_results_of_an_evaluation_need_a_folder_that_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.setattr(
        "builtins.open", lambda *a, **k: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    with pytest.raises(InputError, match="Permission denied"):
        _make_folder(tmp_path / "there")
    shutil.rmtree(tmp_path / "there")
