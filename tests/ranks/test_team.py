"""Processes that `tinydiff train` starts by itself: the same bits as one, and nobody is left behind."""

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Pipe

import numpy as np
import pytest
from safetensors.numpy import load_file

from tinydiff.cli import processes
from tinydiff.errors import InputError, RunFailed
from tinydiff.machine import threads
from tinydiff.ranks import World, launcher, team
from tinydiff.runs import shares
from tinydiff.runs.config import RunConfig
from tinydiff.runs.log import read_log

pytestmark = pytest.mark.skipif(not team.possible(), reason="needs memory that a file descriptor names")


def of_threads(size):
    """The ranks of a team, each for a thread of this process."""
    memory, ends = os.memfd_create("test"), [Pipe() for _ in range(size - 1)]
    ranks = [team.Team(0, size, [a for a, _ in ends], os.dup(memory), ())]
    ranks += [team.Team(r, size, [b], os.dup(memory), ()) for r, (_, b) in enumerate(ends, 1)]
    os.close(memory)
    return ranks


def together(ranks, work):
    """What work(rank) gives or raises in a thread for each rank."""
    found = [None] * len(ranks)

    def one(i):
        try:
            found[i] = work(ranks[i])
        except Exception as error:
            found[i] = error

    all_threads = [threading.Thread(target=one, args=(i,)) for i in range(len(ranks))]
    for thread in all_threads:
        thread.start()
    for thread in all_threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in all_threads)
    return found


@pytest.mark.parametrize("size", [2, 5])
def test_what_ranks_give_is_gathered_in_their_order(size):
    ranks = of_threads(size)
    assert (
        together(ranks, lambda r: [r.gather((r.rank, k)) for k in range(3)])
        == [[[(i, k) for i in range(size)] for k in range(3)]] * size
    )


@pytest.mark.parametrize(("size", "bucket"), [(2, 64), (5, 128), (3, 4096)])
def test_sums_are_added_in_the_order_of_the_ranks_bit_for_bit(size, bucket, monkeypatch):
    monkeypatch.setattr(team, "BUCKET", bucket)
    ranks, rng = of_threads(size), np.random.default_rng(size)
    shapes = [(7,), (), (3, 5), (0, 4), (11, 2)]
    given = [
        [np.array(rng.normal(size=s) * 10.0 ** rng.integers(-6, 6, s), t) for s in shapes for t in ("f4", "f8")]
        for _ in ranks
    ]
    wanted = [a.copy() for a in given[0]]
    for others in given[1:]:
        for a, b in zip(wanted, others, strict=True):
            a += b
    arrays = [[*map(np.array, own)] for own in given]
    for own in arrays:
        own[0] = np.repeat(own[0], 2)[::2]  # not contiguous
    for _ in range(2):  # the second sum uses the memory again
        mine = [[a.copy() for a in own] for own in arrays]
        assert together(ranks, lambda r, mine=mine: r.sum(mine[r.rank])) == [None] * size
        for own in mine:
            for a, b in zip(own, wanted, strict=True):
                np.testing.assert_array_equal(np.asarray(a), b)


def test_what_one_rank_finds_all_raise():
    def look(rank):
        with rank.together():
            if rank.rank == 1:
                raise InputError("no images")

    found = together(of_threads(3), look)
    assert {type(error) for error in found} == {InputError}
    assert [str(error) for error in found] == ["rank 1 of 3: no images", "no images", "rank 1 of 3: no images"]


def test_what_another_rank_died_of_reaches_the_first():
    (first, _), (ours, theirs) = of_threads(2), Pipe()
    first._pipes = [ours]
    theirs.send(team._Failure("out of memory", False))
    with pytest.raises(RunFailed, match=r"^out of memory$"):
        first.wait()


def test_a_pipe_that_ends_tells_how_the_process_did():
    first, _ = of_threads(2)
    ours, theirs = Pipe()
    process = subprocess.Popen([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
    first._pipes, first._processes = [ours], [process]
    theirs.close()
    with pytest.raises(
        RunFailed, match="process 2 of 2 that train this network together was ended by SIGKILL, as when"
    ):
        first.gather(1)


@pytest.mark.parametrize(
    ("batch", "available", "parameters", "wanted"),
    [(32, 2, 10**6, 2), (32, 6, 10**6, 4), (7, 4, 10**6, 1), (9, 8, 10**6, 3), (2, 8, 10**6, 2), (32, 2, 10**8, 1), (32, 1, 1, 1)],
)  # fmt: skip
def test_as_many_processes_as_share_the_batch_evenly(batch, available, parameters, wanted, monkeypatch):
    monkeypatch.delenv("TINYDIFF_RANKS", raising=False)
    monkeypatch.setattr(threads, "available", lambda: available)
    config = RunConfig(batch_size=batch, device="cpu")
    assert processes.best(config, parameters) == wanted
    monkeypatch.setenv("TINYDIFF_RANKS", "0")
    assert processes.best(config, parameters) == 1


def test_a_program_that_calls_the_command_stays_one_process(monkeypatch):
    monkeypatch.setattr(threads, "available", lambda: 2)
    started = []
    monkeypatch.setattr(processes, "start_team", lambda n, words: started.append((n, words)))
    for of_program in (False, True):
        arguments = argparse.Namespace(of_program=of_program, words=["train"])
        processes.invite(arguments, RunConfig(device="cpu"), 1)
    assert started == [(2, ["train"])]


def test_threads_are_those_of_the_whole_team(monkeypatch):
    monkeypatch.setattr(threads, "available", lambda: 6)
    first = of_threads(2)[0]
    assert [shares.threads_of_rank(n, first) for n in (None, 5, 1)] == [3, 2, 1]
    with threads.threads(3):
        for wish, wanted in ((None, 6), (5, 5)):
            with shares.all_threads(wish, first):
                assert threads.count() == wanted
        with shares.all_threads(5, World()):
            assert threads.count() == 3


def test_a_rank_of_a_team_is_no_rank_of_mpi(monkeypatch):
    monkeypatch.setenv(launcher.TEAM, "[1, 4, 7, 8]")
    monkeypatch.setenv("TINYDIFF_RANKS", "0")
    assert launcher.announced() == (1, 4) and launcher.of_team()


# ------------------------------------------------------------------------------------------------------- whole commands

NETWORK = [
    "--data",
    "glyphs",
    "--image-size",
    "8",
    "--channels",
    "8",
    "--mults",
    "1,1",
    "--blocks",
    "1",
    "--attention",
    "4",
]
SETTINGS = ["--groups", "4", "--timesteps", "4", "--preview-every", "0", "--dropout", "0.1", "--device", "cpu"]


def command(path, *words):
    return [sys.executable, "-m", "tinydiff", "train", *NETWORK, *SETTINGS, "--out", str(path), *words]


def run(path, *words, **environment):
    done = subprocess.run(
        command(path, *words), capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )
    return done.returncode, done.stdout, done.stderr


def others_of(process):
    """The numbers of the processes that a process has started."""
    found = []
    for number in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{number}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
        found += [int(number)] if parent == process.pid else []
    return found


def begun(path, *words):
    """A long run on two processes that has begun, and the number of the other process."""
    log = path / "log.csv"
    process = subprocess.Popen(
        command(path, "--processes", "2", "--batch-size", "4", "--steps", "100000", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: log.exists() and len(read_log(log)) > 2)
    (other,) = others_of(process)
    return process, other


def until(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_gone(number):
    return not os.path.exists(f"/proc/{number}")


@pytest.mark.slow
def test_a_team_is_one_process_that_accumulates_bit_for_bit(tmp_path):
    one, team_, started = tmp_path / "one", tmp_path / "team", {"OMP_NUM_THREADS": "2"}
    status, _, err = run(one, "--batch-size", "3", "--accumulate", "2", "--threads", "1", "--steps", "4")
    assert status == 0, err
    status, out, err = run(team_, "--batch-size", "6", "--steps", "4", **started)  # by itself
    assert status == 0 and out.startswith("done: "), err
    a, b = (load_file(path / "checkpoint/training_state.safetensors") for path in (one, team_))
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], err_msg=name)
    assert [row["ranks"] for row in read_log(team_ / "log.csv")] == ["2"] * 4
    assert (team_ / "samples.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_command_saves_and_ends_all(number, tmp_path):
    process, other = begun(tmp_path / "run")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "stopped after step" in err
    assert is_gone(other)
    after = str(len(read_log(tmp_path / "run/log.csv")) + 1)
    assert run(tmp_path / "run", "--resume", "--steps", after)[0] == 0


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_which_is_saved(tmp_path):
    process, other = begun(tmp_path / "run")
    os.kill(other, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "process 2 of 2 that train this network together was ended by SIGKILL" in err and "Traceback" not in err
    saved = re.search(r"the state of step (\d+) is saved", err)
    assert saved and int(saved[1]) >= 3
    steps = str(int(saved[1]) + 1)
    assert run(tmp_path / "run", "--resume", "--processes", "1", "--steps", steps)[0] == 0


@pytest.mark.slow
def test_when_the_command_is_killed_nothing_is_left_behind(tmp_path):
    process, other = begun(tmp_path / "run")
    process.kill()
    process.wait()
    until(lambda: is_gone(other), 30)
    assert process.stderr.read().count("Traceback") == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["--lr", "1e30", "--warmup", "0", "--clip", "0", "--batch-size", "4"], 1, "tinydiff: the loss became "),
        (["--processes", "3", "--batch-size", "4"], 2, "--batch-size 4 cannot be shared out evenly to 3 processes"),
        (["--processes", "0"], 2, "--processes must be at least 1, not 0"),
        (["--processes", "2", "--holdout", "0.5", "--out", "/proc/none"], 2, "cannot be written"),
    ],
)
def test_what_goes_wrong_is_told_once(words, status, sentence, tmp_path):
    found, _, err = run(tmp_path / "run", "--steps", "6", *words, OMP_NUM_THREADS="2")
    assert found == status and err.count("tinydiff: ") == 1 and sentence in err.splitlines()[-1]
    assert "Traceback" not in err
