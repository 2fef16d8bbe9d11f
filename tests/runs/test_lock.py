"""One process at a time."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tinydiff.cli import main
from tinydiff.errors import InputError
from tinydiff.runs import lock
from tinydiff.runs.folder import RunFolder
from tinydiff.runs.lock import Lock

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(lock.fcntl is None, reason="this system has no flock")


def test_one_at_a_time_even_in_one_process(tmp_path):
    one, other = Lock(tmp_path), Lock(tmp_path)
    one.acquire()
    for attempt in (other.acquire, lambda: lock.check_free(tmp_path)):
        with pytest.raises(InputError, match=rf"{tmp_path} is in use: process \d+ on .* is writing to it"):
            attempt()
    one.release()
    assert not (tmp_path / ".lock").exists()
    other.acquire()
    other.release()


def test_what_a_killed_process_left_is_taken_over(tmp_path):
    code = f"import os, pathlib; from tinydiff.runs.lock import Lock; Lock(pathlib.Path({str(tmp_path)!r})).acquire(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 9
    assert (tmp_path / ".lock").exists()
    lock.check_free(tmp_path)
    taken = Lock(tmp_path)
    taken.acquire()
    taken.release()


def test_a_holder_that_leaves_while_another_waits(tmp_path, monkeypatch):
    """The file is locked, but removed before it could be: another one is made."""
    one, other = Lock(tmp_path), Lock(tmp_path)
    one.acquire()
    real = lock._lock

    def late(descriptor):
        monkeypatch.setattr(lock, "_lock", real)
        one.release()
        return real(descriptor)

    monkeypatch.setattr(lock, "_lock", late)
    other.acquire()
    assert (tmp_path / ".lock").exists()
    with pytest.raises(InputError, match="in use"):
        lock.check_free(tmp_path)
    other.release()


@pytest.mark.parametrize("flags", [["--resume"], ["--force"], []])
def test_no_command_writes_beside_a_living_run(tmp_path, flags, capsys):
    out = tmp_path / "run"
    small = [
        "--channels",
        "8",
        "--groups",
        "4",
        "--mults",
        "1",
        "--attention",
        "none",
        "--timesteps",
        "4",
        "--batch-size",
        "1",
    ]
    assert main(["train", "--out", str(out), "--steps", "1", "--image-size", "8", "--preview-every", "0", *small]) == 0
    folder = RunFolder(out)
    folder.acquire()
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    capsys.readouterr()
    for command in ("train", "doctor"):
        assert main([command, "--out", str(out), *flags, "--image-size", "8", *small]) == 2
        assert "is in use: process" in capsys.readouterr().err.splitlines()[-1]
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    folder.close()


@pytest.mark.parametrize("error", [None, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL, errno.ENOSYS])
def test_where_there_are_no_locks_one_line_says_so(tmp_path, monkeypatch, capsys, error):
    def flock(*_):
        raise OSError(error, os.strerror(error))

    fcntl = None if error is None else SimpleNamespace(flock=flock, LOCK_EX=0, LOCK_NB=0)
    monkeypatch.setattr(lock, "fcntl", fcntl)
    lock.check_free(tmp_path)
    one = Lock(tmp_path)
    one.acquire()
    assert "cannot be locked on this system or disk" in capsys.readouterr().err
    one.release()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_gives_a_file_several_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_is_at", lambda descriptor, file: False)
    one = Lock(tmp_path)
    one.acquire()
    assert one.held
    one.release()


def test_a_folder_of_somebody_is_left_as_it_was(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(InputError, match="not a run"):
        RunFolder(tmp_path).check_free(force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_stands_at_the_name_of_the_lock_stays_as_it_is(tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    for name, make in (("fifo", os.mkfifo), ("link", lambda path: os.link(precious, path))):
        (tmp_path / name).mkdir()
        make(tmp_path / name / lock.NAME)
        with pytest.raises(InputError, match=r"\.lock is not the plain file that a run leaves there"):
            lock.Lock(tmp_path / name).acquire()
    assert precious.read_text() == "precious"
