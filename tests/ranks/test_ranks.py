"""Several processes, started by mpiexec: the same bits as one, and nobody is left waiting."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.ranks.job import Job
from tinydiff.runs.log import read_log

pytestmark = [pytest.mark.mpi, pytest.mark.slow]


def start(n, path, fault=None, resume=False, **config):
    """The process of mpiexec with n ranks of a tiny run; without n, that of one process."""
    settings = {"out": str(path), "steps": 4, "batch_size": 12, "save_every": 2} | config
    job = json.dumps(vars(Job(settings, resume, fault)))
    launcher = ["mpiexec", "-n", str(n)] if n else []
    command = [*launcher, sys.executable, "-m", "tests.ranks.job", job]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(n, path, **settings):
    """(status, stdout, stderr) of such a run."""
    process = start(n, path, **settings)
    try:
        out, err = process.communicate(timeout=90)
    finally:
        process.kill()
    return process.returncode, out, err


def done(n, path, **settings):
    status, out, err = run(n, path, **settings)
    assert status == 0, err
    return state(path), [tuple(row.values())[:4] for row in read_log(path / "log.csv")], out


def state(path):
    return load_file(path / "checkpoint/training_state.safetensors")


def assert_equal(ours, others):
    assert ours.keys() == others.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_ranks_are_one_process_that_accumulates_bit_for_bit(n, tmp_path):
    one, log_of_one, _ = done(None, tmp_path / "one", batch_size=12 // n, accumulate=n)
    several, log_of_several, out = done(n, tmp_path / "several")
    assert f"step 4 of {n} ranks" in out
    assert_equal(one, several)
    assert log_of_one == log_of_several and len(log_of_one) == 4
    rows = read_log(tmp_path / "several/log.csv")
    assert {row["ranks"] for row in rows} == {str(n)} and "ranks" not in read_log(tmp_path / "one/log.csv")[0]


def test_a_launcher_that_starts_one_process_changes_nothing(tmp_path):
    assert_equal(done(None, tmp_path / "a")[0], done(1, tmp_path / "b")[0])


def test_accumulation_on_ranks_agrees_to_rounding(tmp_path):
    one, *_ = done(None, tmp_path / "one", batch_size=3, accumulate=4)
    several, *_ = done(2, tmp_path / "several", batch_size=6, accumulate=2)
    for name, array in one.items():
        np.testing.assert_allclose(several[name], array, rtol=2e-3, atol=2e-5, err_msg=name)


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path):
    whole, *_ = done(2, tmp_path / "whole", steps=6)
    done(2, tmp_path / "parts", steps=2)
    done(4, tmp_path / "parts", steps=4, resume=True)
    parts, log, _ = done(None, tmp_path / "parts", steps=6, resume=True)
    assert len(log) == 6
    assert [row["ranks"] for row in read_log(tmp_path / "parts/log.csv")] == ["2", "2", "4", "4", "1", "1"]
    for name, array in whole.items():
        np.testing.assert_allclose(parts[name], array, rtol=2e-3, atol=2e-5, err_msg=name)
    done(2, tmp_path / "again", steps=2)
    assert_equal(whole, done(2, tmp_path / "again", steps=6, resume=True)[0])


@pytest.mark.parametrize(
    ("what", "rank", "status", "sentence"),
    [
        ("raise", 1, 1, "tinydiff: rank 1 of 3: RuntimeError: something of the caller's"),
        ("memory", 2, 1, "tinydiff: rank 2 of 3: out of memory"),
        (
            "nan",
            1,
            1,
            r"the loss became nan at step 4: .* came from Linear.* on rank 1; the checkpoint of step 2 is kept",
        ),
        ("full", 0, 1, r"tinydiff: rank 0 of 3: .*No space left on device"),
        ("exit", 2, 1, "tinydiff: rank 2 of 3: SystemExit: 3"),
        ("kill", 1, 9, ""),
        ("data", 2, 2, "rank 2 of 3: the data are not those of the run"),
        ("settings", 1, 2, "rank 1 has settings that differ from those of rank 0; all ranks need the same"),
        ("elsewhere", 1, 2, r"rank 1 of 3: the run that rank 0 has in .* is not to be seen"),
    ],
)
def test_what_goes_wrong_on_one_rank_ends_all_with_a_sentence(what, rank, status, sentence, tmp_path):
    start = time.monotonic()
    found, _, err = run(3, tmp_path / "run", fault=(what, rank, 4))
    # where one rank ends the others, the launcher may give their status, of SIGKILL, instead
    assert found in ((1, 9) if status == 1 else (status,)) and time.monotonic() - start < 40
    assert len(re.findall(sentence, err)) == 1 or what == "kill", err  # of a kill the launcher tells, or does not
    assert "Traceback" not in err
    if status != 2:
        whole, log, _ = done(3, tmp_path / "run", steps=5, resume=True)  # the last checkpoint is intact
        assert [row[0] for row in log] == ["1", "2", "3", "4", "5"]
        assert_equal(whole, done(3, tmp_path / "never", steps=5)[0])


def test_a_rank_that_is_heard_no_more_ends_all(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYDIFF_RANK_TIMEOUT", "3")
    status, _, err = run(3, tmp_path, fault=("stop", 1, 4))
    assert status in (1, 9) and "rank 2 of 3: nothing has been heard of rank 1 for" in err


def test_a_rank_that_takes_long_is_healthy(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYDIFF_RANK_TIMEOUT", "3")
    assert "step 4 of 3 ranks" in done(3, tmp_path, fault=("sleep", 0, 4))[2]


@pytest.mark.parametrize("rank", [0, 2])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(rank, tmp_path):
    _, log, out = done(3, tmp_path, steps=9, fault=("interrupt", rank, 3))
    assert len(log) == 3 and f"step 3 of 3 ranks, stopped by {signal.SIGINT.value}" in out
    whole, *_ = done(3, tmp_path / "whole", steps=5)
    assert_equal(whole, done(3, tmp_path, steps=5, resume=True)[0])


def test_a_signal_to_the_launcher_saves(tmp_path):
    process = start(2, tmp_path, steps=100_000, save_every=100_000)
    assert process.stderr.readline().startswith("step 1/")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert "stopped by 2" in out, err
    assert f"step {len(read_log(tmp_path / 'log.csv'))} of 2 ranks" in out


def test_two_jobs_on_one_folder(tmp_path):
    first = start(2, tmp_path, steps=100_000)
    try:
        assert first.stderr.readline().startswith("step 1/")
        status, _, err = run(2, tmp_path, resume=True)
        assert status == 2 and len(re.findall("is in use: process", err)) == 1, err
    finally:
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=60)


def test_a_batch_that_cannot_be_shared_out(tmp_path):
    status, _, err = run(4, tmp_path, batch_size=6)
    assert status == 2 and "batch_size=6 cannot be shared out evenly to 4 ranks; 4 or 8 can" in err


def test_a_launcher_of_another_library(tmp_path, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    status, _, err = run(None, tmp_path)
    assert status == 2 and "the launcher has started 4 processes, and mpi4py finds 1" in err
