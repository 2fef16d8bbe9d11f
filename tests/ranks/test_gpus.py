"""Training on several GPUs, on the stand-in for CuPy: two ranks are two processes, and NCCL's sums are in graphs."""

import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from tinydiff.cuda import host
from tinydiff.ranks import launcher
from tinydiff.runs.log import read_log


def run(n, path, batch_size=4, accumulate=1, fault="none"):
    """(status, stdout, stderr) of n ranks; without n, of one process."""
    if host.missing():
        pytest.skip(host.missing())
    command = [*(["mpiexec", "-n", str(n)] if n else []), sys.executable, "-m", "tests.ranks.gpus"]
    done = subprocess.run(
        [*command, str(path), str(batch_size), str(accumulate), fault], capture_output=True, text=True, timeout=200
    )
    return done.returncode, done.stdout, done.stderr


def result(path):
    log = [tuple(row.values())[:4] for row in read_log(path / "log.csv")]
    return load_file(path / "checkpoint/training_state.safetensors"), log


def assert_equal(ours, others):
    assert ours[1] == others[1] and len(ours[1]) == 7
    for name, array in ours[0].items():
        np.testing.assert_array_equal(array, others[0][name], err_msg=name)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpus") / "one"
    status, _, err = run(None, path, 2, 2)
    assert status == 0, err
    return result(path)


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.parametrize("fault", ["none", "cut"])
def test_two_gpus_compute_what_one_does_that_accumulates(fault, one, tmp_path):
    status, out, err = run(2, tmp_path, 4, 1, fault)
    assert status == 0, err
    # Two steps are eager; five are replays, of one graph or of two with the sums between them, after one that was refused.
    assert ("5 replays, 6 launches of NCCL" if fault == "none" else "10 replays, 15 launches of NCCL") in out
    assert "without a CUDA graph" not in err
    assert_equal(one, result(tmp_path))


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "status", "sentence"),
    [
        ("no nccl", 2, "training on several GPUs needs NCCL: pip install nvidia-nccl-cu13; or use device=\"cpu\""),
        ("one gpu", 2, "ranks 0 and 1 have one GPU: each needs its own"),
        ("no gpu", 2, "rank 1 has no GPU and rank 0 has one"),
        ("nan", 1, "at step 4"),
    ],
)  # fmt: skip
def test_what_stops_several_gpus_is_told_once(fault, status, sentence, tmp_path):
    found, _, err = run(2, tmp_path, fault=fault)
    assert found == status and err.count(sentence) == 1 and "Traceback" not in err, err
    if fault == "nan":
        assert len(read_log(tmp_path / "log.csv")) == 3


@pytest.mark.parametrize(
    ("visible", "ranks", "chosen"),
    [(None, 1, None), (None, 2, "1"), ("4,7,2", 2, "7"), ("3", 2, "3"), ("0,1", 3, "0,1"), ("", 2, "")],
)
def test_each_rank_of_a_machine_has_the_gpu_of_its_number(visible, ranks, chosen, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    launcher.choose_gpu(min(1, ranks - 1), ranks)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == chosen
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
