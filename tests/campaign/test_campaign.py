"""A small, seeded part of the campaigns; `crashes.py` and `mutations.py` say how to run the whole."""

import mmap
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaign import crashes, mutations, soak
from tinydiff.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the campaign follows descriptors in Linux's /proc")
def test_kills_and_power_cuts():
    """In a process of its own, which forks."""
    command = [sys.executable, "-m", "tests.campaign.crashes", "--seed", "4", "--share", "0.01", "--kills", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": 0 failures") == 3 and not done.stdout.startswith("0 kills"), done.stdout


def test_a_power_cut_takes_what_was_not_waited_for(tmp_path):
    """The disk of the campaign, without a run."""
    shadow = crashes.Shadow(tmp_path)
    out = tmp_path / "run"
    for call, path, other in (("mkdir", out, ""), ("create", out / "a", ""), ("fsync", out / "a", "")):
        if call == "fsync":
            out.mkdir()
            path.write_bytes(b"content")
        shadow.apply(call, str(path), other)
    assert shadow.images(out, random.Random(0))[0] == {}  # the name was not waited for
    shadow.apply("fsync", str(out), "")
    assert shadow.images(out, random.Random(0)) == [{"a": b"content"}]
    shadow.apply("rename", str(out / "a"), str(out / "b"))
    assert {tuple(image) for image in shadow.images(out, random.Random(0))} == {("a",), ("b",)}


def test_damaged_files(tmp_path):
    assert mutations.run(tmp_path, seed=2, count=12, say=lambda line: None) == []


@pytest.mark.parametrize(
    ("error", "told"),
    [(KeyError("x"), "KeyError: 'x'"), (InputError("long " * 100), "refused"), (ValueError("x"), "ValueError: x")],
)
def test_what_counts_as_a_failure(tmp_path, error, told):
    def read():
        raise error

    assert mutations.attempt(tmp_path / "file", b"", read) == told
    error.args = ("two\nlines",) if isinstance(error, InputError) else error.args
    if isinstance(error, InputError):
        assert mutations.attempt(tmp_path / "file", b"", read).startswith("an unfit message of 9 characters")


def test_a_wide_space_in_a_message_is_no_failure(tmp_path):
    def read():
        raise InputError("a\xa0b")

    assert mutations.attempt(tmp_path / "file", b"", read) == "refused"


@pytest.mark.skipif(mutations.forget_peak() is None, reason="the peak of memory is Linux's to tell")
def test_memory_above_the_budget_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(mutations, "BUDGET", 16 << 20)

    def read():
        with mmap.mmap(-1, 24 << 20) as fresh:  # memory that was freed before, and kept, would not count
            fresh.write(b"x" * (24 << 20))

    result = mutations.attempt(tmp_path / "file", b"", read)
    assert result.endswith("MiB of memory"), result
    assert mutations.attempt(tmp_path / "file", b"", lambda: None) == "taken"


def test_what_grew_is_named():
    before, after = soak.Held(10, 1 << 20, 8, 3, 1000), soak.Held(100, 6 << 20, 9, 3, 1100)
    assert [line.split(":")[0] for line in soak.grown(before, after)] == ["memory", "descriptors"]
    assert soak.grown(before, before) == []


def test_a_soak_that_was_stopped_is_a_failure(tmp_path):
    assert soak.run(tmp_path, 40, 1, lambda line: signal.raise_signal(signal.SIGTERM)) == ["ended after 2 of 40 steps"]
