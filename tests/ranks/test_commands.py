"""Commands started by mpiexec: evaluation is shared out, what cannot be shared out is done once."""

import re
import signal
import subprocess
import sys
import time

import pytest

from tests.evaluation.conftest import _make_run

pytestmark = [pytest.mark.mpi, pytest.mark.slow]

SMALL = ["--images", "7", "--terms", "5", "--samples", "8", "--steps", "3", "--each", "3", "--step-counts", "2,4"]


def start(n, *words, fault="none", rank=0):
    """The process of mpiexec with n ranks of a command; without n, that of one process."""
    launcher = ["mpiexec", "-n", str(n)] if n else []
    command = [*launcher, sys.executable, "-m", "tests.ranks.command", fault, str(rank), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(n, *words, **fault):
    """(status, stdout, stderr) of such a command."""
    process = start(n, *words, **fault)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return _make_run(tmp_path_factory.mktemp("ranks") / "run")


def evaluate(n, trained, out, *words, **fault):
    return run(n, "evaluate", trained, *SMALL, "--threads", "1", "--device", "cpu", "--out", out, *words, **fault)


def without_times(text):
    return re.sub(r"\(?\d[\d.]* s\)|,[\d.e-]+$", "", text, flags=re.MULTILINE)


def found(folder):
    """The bytes of all files but for measured times."""
    timed = ("report.txt", "samplers.csv")
    return {
        f.name: without_times(f.read_text()) if f.name in timed else f.read_bytes() for f in sorted(folder.iterdir())
    }


def test_an_evaluation_is_the_same_on_any_number_of_ranks(trained, tmp_path):
    results = {}
    for n in (None, 1, 2, 3):
        out, folder = tmp_path / str(n), tmp_path / f"png{n}"
        status, said, err = evaluate(n, trained, out, "--png-folder", folder)
        assert status == 0, err
        assert said.count("Bits per dimension") == 1 and err.count("comparing samplers") == 1
        report, pictures = found(out), found(folder)
        report["report.txt"] = report["report.txt"].replace(str(folder), "")
        results[n] = report, pictures
    assert all(results[n] == results[None] for n in (1, 2, 3))
    assert len(results[None][1]) == 8


def test_a_folder_of_samples_is_the_same_on_any_number_of_ranks(trained, tmp_path):
    folders = [tmp_path / str(n) for n in (1, 2, 3)]
    for n, folder in enumerate(folders, 1):
        words = "--folder", folder, "--n", 130, "--steps", 2, "--device", "cpu", "--threads", 1
        status, out, err = run(n, "sample", trained, *words)
        assert status == 0 and out == f"{folder}\n", err
    first, *others = ({f.name: f.read_bytes() for f in folder.glob("*.*")} for folder in folders)
    assert all(other == first for other in others) and len(first) == 131


def test_ranks_with_other_settings_are_refused(trained, tmp_path):
    status, _, err = run(2, "evaluate", trained, *SMALL, "--out", tmp_path / "out", "--seed", 3, fault="seed", rank=1)
    assert status == 2 and err.count("rank 1 has settings that differ from those of rank 0") == 1


@pytest.mark.parametrize(
    ("fault", "rank", "sentence"),
    [("kill", 1, None), ("memory", 1, "tinydiff: rank 1 of 3: out of memory"), ("interrupt", 2, "rank 2 of 3: interrupted")],
)  # fmt: skip
def test_what_goes_wrong_on_one_rank_ends_an_evaluation(fault, rank, sentence, trained, tmp_path):
    begin = time.monotonic()
    status, _, err = evaluate(3, trained, tmp_path / "out", "--only", "samplers", fault=fault, rank=rank)
    assert status != 0 and time.monotonic() - begin < 60
    assert "Traceback" not in err and (sentence is None or err.count(sentence) == 1)
    assert not (tmp_path / "out/report.txt").exists()


def test_ctrl_c_ends_an_evaluation_with_one_sentence(trained, tmp_path):
    process = start(2, "evaluate", trained, *SMALL, "--out", tmp_path / "out", "--only", "neighbours", fault="slow")
    assert process.stderr.readline().startswith("drawing 8 samples")
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - begin < 15
    assert err.count("interrupted") == 1 and "Traceback" not in err, err


def test_wrong_input_is_told_once(trained, tmp_path):
    for words, sentence in (
        (["evaluate", trained, "--samples", "1"], "--samples must be at least 2, not 1"),
        (["evaluate", tmp_path / "none"], "none"),
        (["evaluate", trained, "--samples", "x"], "argument --samples"),
        (["sample", trained], "2 ranks would draw the same pictures; with --folder they share them out"),
        (["train", "--bogus"], "unrecognized arguments: --bogus"),
    ):
        status, out, err = run(2, *words)
        assert status == 2 and not out, err
        assert len(err.splitlines()) == 1 and sentence in err, err


def test_what_is_not_shared_out_is_done_once(trained, tmp_path):
    status, out, _ = run(3, "--version")
    assert status == 0 and len(out.splitlines()) == 1
    status, out, err = run(3, "info", trained)
    assert status == 0 and out.count("network") == 1
    assert err == "tinydiff info works in one process: rank 0 of 3 does it; TINYDIFF_RANKS=0 makes each do it\n"
    status, _, err = run(2, "trace", trained, "--html", tmp_path / "page.html", "--graph", tmp_path / "graph.svg")
    assert status == 0, err
    status, _, err = run(2, "info", tmp_path / "none")
    assert status == 2 and len(err.splitlines()) == 2


def test_nan_ends_all(trained, tmp_path):
    out = tmp_path / "out"
    status, _, err = evaluate(2, trained, out, "--only", "samplers", fault="nan", rank=1)
    assert status != 0 and err.count("rank 1 of 2: the model draws no pictures but NaN or infinity") == 1
    assert "Traceback" not in err and not (out / "samplers.csv").exists()
