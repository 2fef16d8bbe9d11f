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
from safetensors.numpy import load_file, save_file

import tinydiff as td
from tinydiff import checkpoint, tensorfile
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.errors import InputError, RunFailed
from tinydiff.random import SAMPLING, Generator

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def make(seed=1, **changes):
    settings = {"num_classes": 4, "null_label": 3, "dropout": 0.5} | changes
    unet = td.UNet(8, 1, None, 8, (1, 2), 1, (4,), 4, **settings, generator=Generator(seed))
    for p in unet.parameters():  # as it is made, the last layer hides the others
        p.data += Generator(seed, 1).normal(p.shape) * np.float32(0.1)
    return unet


def diffusion(**options):
    return Diffusion(Schedule.linear(20, 1e-3, 0.4), **options)


def save(run, seed=1, step=7):
    unet = make(seed)
    arrays = {"adam.m": np.full(3, seed), "count": np.array(seed)} | {
        f"raw.{name}": p.data + 1 for name, p in unet.named_parameters()
    }
    checkpoint.save(run, unet, diffusion(), ["a", "b", "c"], (arrays, {"step": str(step), "note": "é"}))
    return unet


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


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
    checkpoint.write_atomically(target, parts)


def read(target):
    folder = checkpoint.find(target)
    versions = {(folder / name).read_bytes() for name in ("unet/a", "b", "model_index.json")}
    assert len(versions) == 1, versions  # all complete, and all of one version
    return json.loads(versions.pop())


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
        "from tests.test_checkpoint import *\n"
        "save(sys.argv[1], 1, step=1)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "try: save(sys.argv[1], 2, step=2)\n"
        "except td.errors.InputError as error: print(error)\n"
    )
    root = str(Path(__file__).resolve().parents[1])
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


# ------------------------------------------------------------------------------------------- what diffusers may have


def flat(run):
    """The checkpoint as old folders on the hub have it: everything at the root."""
    folder = run / "flat"
    folder.mkdir()
    for name in ("unet/config.json", WEIGHTS, "scheduler/scheduler_config.json"):
        shutil.copy(run / "checkpoint" / name, folder)
    return folder


def test_flat_folders(tmp_path):
    unet = make(num_classes=None, null_label=None)
    checkpoint.save(tmp_path, unet, diffusion())
    pipeline = td.load(flat(tmp_path))
    assert same(pipeline.unet, unet) and pipeline.class_names is None
    with pytest.raises(InputError, match="flat was saved without what training needs to go on"):
        checkpoint.load_training_state(tmp_path / "flat")


def test_old_names_of_attention(tmp_path):
    unet = save(tmp_path)
    file = tmp_path / "checkpoint" / WEIGHTS
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, array in load_file(file).items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        state[name] = array
    assert "mid_block.attentions.0.proj_attn.bias" in state and not any(".to_" in name for name in state)
    save_file(state, file)
    assert same(td.load(tmp_path).unet, unet)


def test_weights_in_several_files(tmp_path):
    unet = save(tmp_path)
    folder, name = tmp_path / "checkpoint/unet", Path(WEIGHTS).name
    state = load_file(folder / name)
    (folder / name).unlink()
    names, parts = sorted(state), {}
    for i in range(3):
        parts |= dict.fromkeys(names[i::3], f"part-{i}.safetensors")
        save_file({n: state[n] for n in names[i::3]}, folder / f"part-{i}.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": parts}
    (folder / f"{name}.index.json").write_text(json.dumps(index))
    assert same(td.load(tmp_path).unet, unet)
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(InputError, match=r"unet/part-1.safetensors cannot be read: No such file"):
        td.load(tmp_path)
    (folder / f"{name}.index.json").write_text("{}")
    with pytest.raises(InputError, match=r"index.json has no weight_map"):
        td.load(tmp_path)


def test_a_pickle_is_not_opened_and_the_way_out_is_told(tmp_path):
    save(tmp_path)
    file = tmp_path / "checkpoint" / WEIGHTS
    file.unlink()
    pickled = file.with_suffix(".bin")
    pickled.write_bytes(b"this would be run")
    with pytest.raises(InputError) as told:
        td.load(tmp_path)
    message = str(told.value)
    assert message.startswith(f"{pickled} is a pickle, which tinydiff does not open") and "\n" not in message
    command = message.partition("python -c ")[2].strip('"')
    compile(command, "command", "exec")
    assert f"torch.load('{pickled}', weights_only=True), '{file}'" in command


def edit(file, **changes):
    config = json.loads(file.read_text())
    for key, value in changes.items():
        if value is ...:
            del config[key]
        else:
            config[key] = value
    file.write_text(json.dumps(config))


def rewrite(name, change):
    def damage(folder):
        state = load_file(folder / name)
        change(state)
        save_file(state, folder / name)

    return damage


def cut(name, kept):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:kept])


UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut(WEIGHTS, 100), "{folder}/unet/.*safetensors is damaged or was cut off: "),
        (cut(WEIGHTS, -1), "{folder}/unet/.*safetensors is damaged or was cut off: "),
        (cut(WEIGHTS, 0), "{folder}/unet/.*safetensors is damaged or was cut off: "),
        (lambda f: (f / WEIGHTS).unlink(), "{folder}/unet/.*safetensors cannot be read: No such file or directory"),
        (rewrite(WEIGHTS, lambda s: s.pop("conv_in.bias")), "{folder}/unet: .* 1 are missing, conv_in.bias$"),
        (rewrite(WEIGHTS, lambda s: s.update(x=np.zeros(1))), "{folder}/unet: the weights .* 1 are not part of it, x$"),
        (
            rewrite(WEIGHTS, lambda s: s.update({"conv_in.weight": np.zeros((8, 3, 3, 3))})),
            r"{folder}/unet: weight conv_in.weight has shape \(8, 3, 3, 3\), but this UNet needs \(8, 1, 3, 3\)",
        ),
        (cut(UNET, 50), "{folder}/unet/config.json is not a JSON file, or was cut off: "),
        (lambda f: (f / UNET).write_bytes(b"\xff\xfe"), "{folder}/unet/config.json is not a JSON file"),
        (lambda f: (f / UNET).write_text("[]"), "{folder}/unet/config.json must hold a JSON object"),
        (lambda f: (f / UNET).unlink(), "{folder}/unet/config.json cannot be read: No such file"),
        (lambda f: edit(f / UNET, norm_eps=-1), "{folder}/unet/config.json: norm_eps must be"),
        (lambda f: (f / SCHEDULER).unlink(), "{folder}/scheduler/scheduler_config.json cannot be read: No such file"),
        (cut(SCHEDULER, 50), "{folder}/scheduler/scheduler_config.json is not a JSON file"),
        (lambda f: edit(f / SCHEDULER, beta_start=3), "{folder}/scheduler/scheduler_config.json: beta_start must be"),
        (lambda f: edit(f / "tinydiff.json", null_label=9), "null_label=9 must be one of the network's labels, 0..3"),
        (lambda f: edit(f / "tinydiff.json", class_names="abc"), "tinydiff.json: class_names must be a list of names"),
        (lambda f: (f / "tinydiff.json").write_text("x"), "{folder}/tinydiff.json is not a JSON file"),
        (
            lambda f: edit(f / "model_index.json", vqvae=["diffusers", "VQModel"]),
            r"{folder}/model_index.json: the part vqvae = .* is not supported; supported: unet and scheduler",
        ),
    ],
)
def test_damage_is_told_in_one_sentence_with_the_file(tmp_path, damage, message):
    save(tmp_path)
    folder = tmp_path / "checkpoint"
    damage(folder)
    with pytest.raises(InputError, match=message.format(folder=folder)) as told:
        td.load(tmp_path)
    assert "\n" not in str(told.value)


def test_a_damaged_training_state(tmp_path):
    save(tmp_path)
    cut("training_state.safetensors", -1)(tmp_path / "checkpoint")
    for reader in (checkpoint.load_training_state, checkpoint.read_step, lambda path: checkpoint.load(path, raw=True)):
        with pytest.raises(InputError, match=r"checkpoint/training_state.safetensors is damaged or was cut off"):
            reader(tmp_path)
    td.load(tmp_path)  # which does not need it


def test_the_present_folder(tmp_path, monkeypatch):
    unet = save(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert same(td.load(".").unet, unet)
    monkeypatch.chdir(tmp_path / "checkpoint")
    assert same(td.load(".").unet, unet)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(InputError, match=r"^. cannot be read: it has no checkpoint"):
        td.load(".")


def test_where_there_is_nothing(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}/none cannot be read: no such file or folder"):
        td.load(tmp_path / "none")
    with pytest.raises(InputError, match=f"{tmp_path} cannot be read: it has no checkpoint"):
        td.load(tmp_path)
    assert checkpoint.find(tmp_path) is None
    (tmp_path / "checkpoint.new/unet").mkdir(parents=True)  # begun, but not complete
    (tmp_path / "checkpoint.new/unet/config.json").write_text("{}")
    assert checkpoint.find(tmp_path) is None


def test_a_respaced_diffusion_is_not_saved(tmp_path):
    respaced = Diffusion(diffusion().schedule.respaced(5))
    with pytest.raises(ValueError, match="a respaced schedule is for sampling only"):
        checkpoint.save(tmp_path, make(), respaced)
    assert os.listdir(tmp_path) == []
