"""Runs on disk: what is written comes back, a crash at any moment loses nothing, and damage is told in one sentence."""

import errno
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import tinydiff as td
from tests.checkpoints import WEIGHTS, diffusion, make, same, save
from tinydiff.errors import InputError, RunFailed
from tinydiff.random import SAMPLING, Generator
from tinydiff.runs import atomic, checkpoint, tensorfile


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_run_comes_back(tmp_path):
    unet = save(tmp_path / "run")
    assert files(tmp_path / "run") == [
        f"checkpoint/{name}"
        for name in ("model_index.json", "scheduler/scheduler_config.json", "tinydiff.json",
                     "training_state.safetensors", "unet/config.json", WEIGHTS)
    ]  # fmt: skip
    for path in (tmp_path / "run", str(tmp_path / "run/checkpoint")):
        pipeline = td.load(path)
        assert same(pipeline.unet, unet) and not pipeline.unet.training
        assert pipeline.unet.config == unet.config
        assert pipeline.class_names == ["a", "b", "c"] and pipeline.image_size == 8
        assert pipeline.diffusion.variance == "beta" and pipeline.diffusion.predict == "eps"
        np.testing.assert_array_equal(pipeline.diffusion.schedule.beta, diffusion().schedule.beta)
        arrays, metadata = checkpoint.load_training_state(path)
        assert metadata == {"step": "7", "note": "é"}
        assert arrays["adam.m"].tolist() == [1, 1, 1] and arrays["count"] == 1
        assert checkpoint.read_step(path) == 7
    for p in unet.parameters():
        p.data += 1
    assert same(checkpoint.load(tmp_path / "run", raw=True).unet, unet)


def test_loading_does_not_move_the_default_generator(tmp_path):
    save(tmp_path)
    td.nn.manual_seed(0)
    a = td.nn.Linear(3, 3).weight.data
    td.nn.manual_seed(0)
    td.load(tmp_path)
    np.testing.assert_array_equal(td.nn.Linear(3, 3).weight.data, a)


def test_weights_are_in_pytorchs_layout(tmp_path):
    unet = save(tmp_path)
    state = load_file(tmp_path / "checkpoint" / WEIGHTS)
    np.testing.assert_array_equal(state["conv_in.weight"], unet.conv_in.weight.data.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(state["time_embedding.linear_1.weight"], unet.time_embedding.linear_1.weight.data.T)
    np.testing.assert_array_equal(state["class_embedding.weight"], unet.class_embedding.weight.data)


def test_a_pipeline_samples_and_saves(tmp_path):
    unet = make()
    pipeline = checkpoint.Pipeline(unet, diffusion(), ("a", "b", "c"))
    assert pipeline.class_names == ["a", "b", "c"]
    options = {"labels": [0, 1, 2], "sampler": "ddim", "steps": 4, "eta": 0.5, "guidance": 2, "progress": False}
    pictures = pipeline.sample(3, seed=9, **options)
    assert pictures.shape == (3, 8, 8, 1) and pictures.dtype == np.uint8
    x = td.diffusion.sample(unet, pipeline.diffusion, (3, 8, 8, 1), Generator(9).at(SAMPLING), **options)
    np.testing.assert_array_equal(pictures, np.round((np.asarray(x) + 1) * 127.5).clip(0, 255))
    assert not np.array_equal(pipeline.sample(3, **options), pictures)
    pipeline.save(tmp_path / "new" / "folder")
    again = td.load(tmp_path / "new" / "folder")
    options = {"steps": 4, "progress": False, "labels": 1}
    np.testing.assert_array_equal(again.sample(2, **options), pipeline.sample(2, **options))
    assert checkpoint.read_step(tmp_path / "new/folder") is None
    pipeline.save(tmp_path / "new" / "folder")  # its own folder may be replaced
    (tmp_path / "empty").mkdir()
    pipeline.save(tmp_path / "empty")
    assert os.listdir(tmp_path / "new") == ["folder"]


def test_a_pipeline_does_not_replace_what_it_did_not_write(tmp_path):
    pipeline = checkpoint.Pipeline(make(), diffusion())
    save(tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    before = files(tmp_path)
    for place in ("file", "notes", "run", "run/checkpoint", ""):
        with pytest.raises(InputError, match="holds something else than a pipeline: choose a new folder"):
            pipeline.save(tmp_path / place)
    assert files(tmp_path) == before


# ---------------------------------------------------------------------------------------- crashes and full disks


class Killed(BaseException):
    """No error that a program could handle: the end of the process."""


@pytest.fixture
def dying(monkeypatch):
    """`with dying(k, error) as calls:` a block in which the k-th call (from 0) that changes the file system, or waits
    for it, raises an error instead; what such a call can leave half done is half done then."""
    modules = {"rename": os, "fsync": os, "mkdir": os, "rmtree": shutil, "write_bytes": Path, "write": tensorfile}

    @contextmanager
    def arm(at, error=Killed):
        calls, real = [], {name: getattr(module, name) for name, module in modules.items()}
        real["fsync"] = lambda descriptor: None  # it takes its time, and only a loss of power would show what for

        def step(name):
            def call(*args, **kwargs):
                calls.append(name)
                if len(calls) - 1 == at:
                    if name == "rmtree":
                        for file in [file for file in Path(args[0]).rglob("*") if file.is_file()][:1]:
                            file.unlink()
                    if name.startswith("write"):
                        real["write_bytes"](args[0], b"half")
                    raise error
                return real[name](*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name, module in modules.items():
                patch.setattr(module, name, step(name))
            yield calls

    return arm


def write(target, version):
    """Three files that all hold the version, in a folder."""
    content = str(version).encode()
    parts = {"unet/a": lambda path: path.write_bytes(content), "b": content, "model_index.json": content}
    atomic.write_folder(target, parts)


def read(target):
    folder = checkpoint.find(target)
    versions = {(folder / name).read_bytes() for name in ("unet/a", "b", "model_index.json")}
    assert len(versions) == 1, versions  # all complete, and all of one version
    return json.loads(versions.pop())


@pytest.mark.slow
def test_being_killed_between_any_two_steps_loses_nothing(tmp_path, dying):
    """Killed at step k of a save, then at step j of the next, for all k and j: at all times there is one complete
    version, that of the last save or of the one before, and a save that nobody kills puts everything in order."""
    target = tmp_path / "count" / "checkpoint"
    write(target, 0)
    with dying(None) as calls:
        write(target, 0)
    steps = len(calls)
    assert calls.count("rename") == 3 and calls.count("rmtree") == 1 and calls.count("fsync") >= 6
    seen = set()
    for k in range(steps):
        for j in range(steps + 6):  # the second save has to put things in order first
            target = tmp_path / f"{k}.{j}" / "checkpoint"
            write(target, 1)
            with pytest.raises(Killed), dying(k, Killed):
                write(target, 2)
            first = read(target)
            assert first in (1, 2)
            with dying(j, Killed), suppress(Killed):
                write(target, 3)
            second = read(target.parent)
            assert second in (first, 3)
            seen.add((first, second))
            write(target, 4)
            assert read(target) == 4 and os.listdir(target.parent) == ["checkpoint"]
    assert seen == {(1, 1), (1, 3), (2, 2), (2, 3)}


def test_being_killed_before_the_first_checkpoint_is_complete(tmp_path, dying):
    for k in range(100):
        target = tmp_path / str(k) / "checkpoint"
        try:
            with dying(k, Killed):
                write(target, 1)
        except Killed:
            assert checkpoint.find(target.parent) is None or read(target.parent) == 1
            write(target, 2)
            assert read(target.parent) == 2 and os.listdir(target.parent) == ["checkpoint"]
        else:
            break
    assert 8 < k < 100


def test_a_run_is_read_after_a_kill_at_any_step(tmp_path, dying):
    networks = {seed: save(tmp_path / str(seed), seed, step=seed) for seed in (1, 2)}
    with dying(None) as calls:
        save(tmp_path / "1", 1, step=1)
    for k in range(len(calls)):
        run = tmp_path / f"run{k}"
        shutil.copytree(tmp_path / "1", run)
        with pytest.raises(Killed), dying(k, Killed):
            save(run, 2, step=2)
        step = checkpoint.read_step(run)
        arrays, metadata = checkpoint.load_training_state(run / "checkpoint")
        assert same(td.load(run).unet, networks[step]) and arrays["count"] == step and metadata["step"] == str(step)


def test_a_full_disk_fails_the_run_and_keeps_the_checkpoint(tmp_path, dying):
    unet = save(tmp_path / "count")
    with dying(None) as calls:
        save(tmp_path / "count")
    writing = calls[: calls.index("rename")]
    assert writing.count("write") == 2 and writing.count("write_bytes") == 4
    for k, name in enumerate(writing):
        if name == "mkdir":
            continue
        run = tmp_path / f"run{k}"
        shutil.copytree(tmp_path / "count", run)
        full = OSError(errno.ENOSPC, "No space left on device")
        with (
            pytest.raises(RunFailed, match=f"the disk is full: {run}/checkpoint could not be written; what was saved"),
            dying(k, full),
        ):
            save(run, 2, step=2)
        assert same(td.load(run).unet, unet) and os.listdir(run) == ["checkpoint"]  # with nothing in the way


def test_a_really_full_disk(tmp_path):
    """A limit on the size of files stands in for a full disk: the write itself fails, in the middle."""
    script = (
        "import resource, signal, sys; sys.path[:0] = sys.argv[2:]\n"
        "from tests.runs.test_checkpoint import *\n"
        "save(sys.argv[1], 1, step=1)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "try: save(sys.argv[1], 2, step=2)\n"
        "except td.errors.RunFailed as error: print(error)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), root], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout == f"{tmp_path}/checkpoint cannot be written: File too large\n"
    assert same(td.load(tmp_path).unet, make(1)) and os.listdir(tmp_path) == ["checkpoint"]


def test_a_place_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/run/checkpoint cannot be written: Not a directory"):
        save(tmp_path / "file" / "run")


def test_a_reader_that_a_writer_overtakes_reads_again(tmp_path, monkeypatch):
    save(tmp_path, 1, step=1)
    real = tensorfile.read

    def overtaken(path):
        monkeypatch.setattr(tensorfile, "read", real)
        save(tmp_path, 2, step=2)
        raise InputError("the folder is gone")

    monkeypatch.setattr(tensorfile, "read", overtaken)
    assert same(td.load(tmp_path).unet, make(2))

    def overtaken_without_notice(path):
        monkeypatch.setattr(tensorfile, "read", real)
        arrays = real(path)
        save(tmp_path, 1, step=1)
        return arrays

    monkeypatch.setattr(tensorfile, "read", overtaken_without_notice)
    arrays, metadata = checkpoint.load_training_state(tmp_path)
    assert (arrays["count"], metadata["step"]) == (1, "1")  # not the arrays of one and the text of the other
