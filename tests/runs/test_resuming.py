"""Nothing that was computed goes on with other settings, or from nothing, without being told."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

import tinydiff as td
from tinydiff.cli import main
from tinydiff.runs import checkpoint
from tinydiff.runs.log import read_log
from tinydiff.runs.trainer import Trainer

SMALL = [
    "--channels", "8", "--groups", "4", "--mults", "1,1", "--image-size", "8", "--attention", "none", "--timesteps", "4",
    "--batch-size", "2", "--threads", "1", "--seed", "3", "--holdout", "0.1", "--preview-every", "2",
]  # fmt: skip


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 4 steps, with a checkpoint at 2 as well."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main(["train", "--out", str(out), "--steps", "4", "--save-every", "2", *SMALL]) == 0
    return out


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it that a test may spoil."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def refused(arguments, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in err and out == ""
    return err.splitlines()[-1]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda run: (run / "checkpoint/model_index.json").unlink(), "is incomplete: it has no model_index.json"),
        (lambda run: shutil.rmtree(run / "checkpoint"), "is missing"),
        (lambda run: (run / "checkpoint/model_index.json").write_text("{"), "model_index.json is not a JSON file"),
        (lambda run: (run / "checkpoint/training_state.safetensors").unlink(), "it has no training_state"),
        (lambda run: (run / "checkpoint").rename(run / "checkpoint.new.mine"), "is missing"),
    ],
    ids=["no index", "no checkpoint", "broken index", "no state", "renamed"],
)
def test_a_checkpoint_that_was_removed_or_damaged_is_not_replaced(run, damage, sentence, capsys):
    damage(run)
    before = contents(run)
    assert sentence in refused(["train", "--resume", "--out", str(run), "--steps", "6"], capsys)
    assert contents(run) == before


def test_a_lost_or_cut_configuration_comes_back_from_the_checkpoint(run, capsys):
    text = (run / "config.toml").read_text()
    for spoiled in (
        None,
        "",
        text[: text.index("seed")],
        text.replace("seed = 3\n", ""),
        text.replace("holdout = 0.1", ""),
    ):
        (run / "config.toml").unlink() if spoiled is None else (run / "config.toml").write_text(spoiled)
        (run / "loss.png").unlink(missing_ok=True)
        (run / "samples.png").unlink()  # so that there is something to do
        assert main(["train", "--resume", "--out", str(run)]) == 0
        said = capsys.readouterr().err
        assert "taken from the checkpoint" in said
        assert (run / "config.toml").read_text().replace(str(run), "") == text.replace(text.split('"')[1], "")


def test_a_configuration_that_contradicts_the_checkpoint_is_refused(run, capsys):
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("seed = 3", "seed = 4"))
    sentence = refused(["train", "--resume", "--out", str(run), "--steps", "6"], capsys)
    assert "has seed = 4, and the run was made with 3" in sentence
    (run / "config.toml").write_text(text.replace("\nsteps = 4", "\nsteps = 5"))  # which may be edited
    assert main(["train", "--resume", "--out", str(run)]) == 0 and checkpoint.read_step(run) == 5


def test_a_run_of_the_first_version_needs_its_whole_configuration(tmp_path, capsys):
    shutil.copytree(Path(__file__).parents[1] / "fixtures/0.1.0/run", tmp_path / "run")
    file = tmp_path / "run/config.toml"
    file.write_text(file.read_text().replace("holdout = 0.1\n", "").replace("seed = 0\n", ""))
    assert "lacks seed, holdout" in refused(["train", "--resume", "--out", str(file.parent), "--steps", "5"], capsys)
    file.write_text("")
    assert "config.toml" in refused(["train", "--resume", "--out", str(file.parent), "--steps", "5"], capsys)


def test_moved_runs_go_on(run, tmp_path):
    (run / "config.toml").unlink()
    shutil.move(run, tmp_path / "moved")
    assert main(["train", "--resume", "--out", str(tmp_path / "moved"), "--steps", "5"]) == 0
    assert checkpoint.read_step(tmp_path / "moved") == 5


# ---------------------------------------------------------------------------------------------------- what is missing


def test_pictures_that_a_killed_run_did_not_get_to_are_drawn(whole, run, capsys):
    names = ["samples.png", "samples.gif", "loss.png", "samples/step_000004.png"]
    if not (whole / "loss.png").exists():
        names.remove("loss.png")
    for name in names:
        (run / name).unlink()
    assert main(["train", "--resume", "--out", str(run)]) == 0
    for name in names:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    capsys.readouterr()
    (run / ".lock").write_text("process 1 on x")  # of one that was killed at the very end
    assert "has done its 4 steps" in refused(["train", "--resume", "--out", str(run)], capsys)
    assert not (run / ".lock").exists()


def test_pictures_of_an_earlier_end_are_no_pictures_of_this_one(run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_finish", lambda self: os.kill(os.getpid(), 0))  # a kill before the pictures
        assert main(["train", "--resume", "--out", str(run), "--steps", "6"]) == 0
    before = (run / "samples.png").read_bytes()
    assert main(["train", "--resume", "--out", str(run)]) == 0
    assert (run / "samples.png").read_bytes() != before


def test_a_checkpoint_between_two_renames_gets_its_name(run):
    (run / "checkpoint").rename(run / "checkpoint.old")
    (run / ".samples.png.12345-0.tmp").write_text("half")
    (run / "samples/.step_000004.png.77-1.tmp").write_text("half")
    (run / "samples/.mine.tmp").write_text("mine")
    assert main(["train", "--resume", "--out", str(run), "--steps", "5"]) == 0
    assert (run / "checkpoint/model_index.json").exists()
    assert [p.name for p in run.rglob("*") if p.name.endswith((".tmp", ".old", ".new"))] == [".mine.tmp"]


# ------------------------------------------------------------------------------------------- a failure on the way


def test_what_is_not_the_checkpoint_may_fail(tmp_path, monkeypatch, capsys):
    from tinydiff.runs import pictures

    def fail(*args, **kwargs):
        raise RuntimeError("no ink")

    monkeypatch.setattr(pictures, "save_png", fail)
    monkeypatch.setattr(pictures, "plot_loss", fail)
    out = tmp_path / "run"
    assert main(["train", "--out", str(out), "--steps", "2", *SMALL]) == 0
    said = capsys.readouterr().err
    assert said.count("no ink") == 3 and checkpoint.read_step(out) == 2
    monkeypatch.undo()
    assert main(["train", "--resume", "--out", str(out)]) == 0 and (out / "samples.png").exists()


def test_a_log_that_cannot_be_written_is_told_once(tmp_path, monkeypatch, capsys):
    real = os.write

    def full(descriptor, content):
        if b"," in bytes(content):
            raise OSError(28, "No space left on device")
        return real(descriptor, content)

    monkeypatch.setattr(os, "write", full)
    assert main(["train", "--out", str(tmp_path / "run"), "--steps", "4", "--save-every", "1", *SMALL]) == 0
    assert capsys.readouterr().err.count("log.csv cannot be written (No space left on device)") == 1


def test_before_a_failure_ends_the_run_its_state_is_saved(tmp_path, monkeypatch, capsys):
    out, real = tmp_path / "run", td.data.Dataset.batch

    def fail(self, step, *args):
        if step == 4:
            raise MemoryError
        return real(self, step, *args)

    monkeypatch.setattr(td.data.Dataset, "batch", fail)
    assert main(["train", "--out", str(out), "--steps", "6", *SMALL]) == 1
    assert "the state of step 3 is saved" in capsys.readouterr().err and checkpoint.read_step(out) == 3
    assert len(read_log(out / "log.csv")) == 3


# -------------------------------------------------------------------------------------------- links and old files


def test_links_are_replaced_and_what_they_point_to_stays(whole, run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(run / "checkpoint", elsewhere)
    before = contents(elsewhere)
    (run / "checkpoint").symlink_to(elsewhere)
    assert main(["train", "--resume", "--out", str(run), "--steps", "7", "--save-every", "1"]) == 0
    assert not (run / "checkpoint").is_symlink() and checkpoint.read_step(run) == 7
    assert contents(elsewhere) == before and sorted(run.glob("checkpoint*")) == [run / "checkpoint"]


def test_force_replaces_links_too_and_adopts_nothing(run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("checkpoint", "samples", "log.csv"):
        shutil.move(run / name, elsewhere / name)
        (run / name).symlink_to(elsewhere / name)
    (run / "checkpoint.old").symlink_to(tmp_path / "nowhere")
    before = contents(elsewhere)
    assert main(["train", "--force", "--out", str(run), "--steps", "1", *SMALL]) == 0
    assert contents(elsewhere) == before and checkpoint.read_step(run) == 1
    assert not [p for p in run.rglob("*") if p.is_symlink()]


def test_force_removes_what_a_run_writes_and_nothing_else(run):
    assert main(["sample", str(run), "--n", "1", "--steps", "2"]) == 0
    (run / "evaluation").mkdir()
    for name in ("samples/mine.png", "evaluation/mine.txt", "notes.txt"):
        (run / name).write_text("mine")
    for name in ("samples/ddim_steps-50_seed-0.png", "evaluation/report.txt", "profile.csv"):
        (run / name).write_text("of the old run")
    assert main(["train", "--force", "--out", str(run), "--steps", "1", *SMALL, "--preview-every", "0"]) == 0
    left = {
        str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and "checkpoint" not in str(p.relative_to(run))
    }
    own = {"config.toml", "log.csv", "samples.png", "samples.gif", "loss.png"}
    assert left - own == {"samples/mine.png", "evaluation/mine.txt", "notes.txt"}


def test_samples_are_not_overwritten(run, tmp_path, capsys):
    mine = tmp_path / "mine.png"
    mine.write_text("mine")
    for flags in (["--out", str(mine)], ["--gif", str(mine.with_suffix(".gif")), "--out", str(mine)]):
        assert "is there already" in refused(["sample", str(run), "--n", "1", *flags], capsys)
    assert mine.read_text() == "mine"
    assert main(["sample", str(run), "--n", "1", "--out", str(mine), "--force"]) == 0
    capsys.readouterr()
    assert main(["sample", str(run), "--n", "1"]) == 0
    first = Path(capsys.readouterr().out.strip())
    assert main(["train", "--resume", "--out", str(run), "--steps", "5"]) == 0
    capsys.readouterr()
    assert main(["sample", str(run), "--n", "1"]) == 0
    assert Path(capsys.readouterr().out.strip()) != first and first.exists() and "step-4" in first.name


# ------------------------------------------------------------------------------------ killed before it began


def test_a_run_that_was_killed_before_it_began_can_be_started_forced_or_resumed(tmp_path, whole):
    from tinydiff.runs.folder import RunFolder

    for remains in (
        lambda out: (out / ".lock").write_text("process 1 on x"),
        lambda out: (out / "config.toml.new").write_text("half"),  # as 0.1.0 left it
        lambda out: (out / "samples").mkdir(),
        lambda out: (out / ".starting.toml").write_text((whole / "config.toml").read_text()),
        lambda out: (out / "..starting.toml.8-1.tmp").write_text("half"),
        lambda out: (out / "checkpoint.new/unet").mkdir(parents=True),
    ):
        for flags in ([], ["--force"]):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            (tmp_path / "run").mkdir()
            remains(tmp_path / "run")
            RunFolder(tmp_path / "run").check_free(bool(flags))
    out = tmp_path / "run"
    shutil.rmtree(out)
    out.mkdir()
    (out / ".starting.toml").write_text((whole / "config.toml").read_text())
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert (out / "samples.png").read_bytes() == (whole / "samples.png").read_bytes()
    assert not (out / ".starting.toml").exists() and (out / "config.toml").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
def test_what_was_ignored_stays_ignored():
    from tinydiff.runs.interrupts import Interrupts

    for number in (signal.SIGHUP, signal.SIGINT):
        before = signal.signal(number, signal.SIG_IGN)
        try:
            with Interrupts() as interrupts:
                os.kill(os.getpid(), number)
                assert interrupts.received is None
            assert signal.getsignal(number) is signal.SIG_IGN
        finally:
            signal.signal(number, before)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
def test_a_terminal_that_closes_twice_still_lets_the_run_save():
    from tinydiff.runs.interrupts import Interrupts

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever started the tests may have had it ignored
    try:
        with Interrupts() as interrupts:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGHUP)
            assert interrupts.received == signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_full_disk_before_work_is_a_bad_place_and_afterwards_a_failed_run(tmp_path, monkeypatch, capsys):
    from tinydiff.errors import RunFailed

    real, calls = checkpoint.write_folder, []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) in (1, 3):
            raise RunFailed("the disk is full")
        real(*arguments)

    monkeypatch.setattr(checkpoint, "write_folder", full)
    words = ["train", "--out", str(tmp_path / "run"), "--steps", "3", "--save-every", "2", *SMALL]
    assert "the disk is full" in refused(words, capsys)
    assert main(words) == 1 and "the disk is full" in capsys.readouterr().err
    assert checkpoint.read_step(tmp_path / "run") == 0 and len(calls) == 3  # where saving failed, it is not tried again
    assert main(["train", "--resume", "--out", str(tmp_path / "run")]) == 0
