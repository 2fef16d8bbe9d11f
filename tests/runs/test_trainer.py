"""The training loop: it learns, repeats itself to the bit, survives being killed, and says what went wrong."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import tinydiff as td
from tinydiff.data import Dataset
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.errors import InputError, RunFailed
from tinydiff.machine import limits
from tinydiff.random import Generator
from tinydiff.runs.folder import read_log
from tinydiff.runs.results import Results
from tinydiff.runs.trainer import Trainer

FINISH = Trainer._finish


def tiny_data(n=8, size=8, channels=1, classes=None):
    generator = Generator(5)
    images = generator.integers(0, 256, (n, size, size, channels)).astype(np.uint8)
    labels = None if classes is None else np.arange(n) % classes
    return Dataset(images, labels, num_classes=classes, flip=True)


def tiny_unet(classes=None, dropout=0.0, size=8, channels=1):
    return td.UNet(
        size, channels, channels=8, channel_mults=(1, 2), blocks_per_level=1, attention_resolutions=(4,), groups=4,
        dropout=dropout, num_classes=None if classes is None else classes + 1, null_label=classes,
        generator=Generator(3).at(0),
    )  # fmt: skip


def tiny_trainer(out, classes=3, dropout=0.1, data=None, **changes):
    settings = {
        "device": "cpu",
        "steps": 6,
        "batch_size": 5,
        "save_every": 100,
        "preview_every": 0,
        "warmup": 3,
    } | changes
    config = td.TrainConfig(out=str(out), **settings)
    diffusion = Diffusion(Schedule.linear(20, 1e-3, 0.4))
    return Trainer(tiny_unet(classes, dropout), diffusion, data or tiny_data(classes=classes), config)


def weights(out):
    """Everything that a run has computed: averaged weights, raw weights, moments."""
    folder = Path(out) / "checkpoint"
    return load_file(folder / "unet/diffusion_pytorch_model.safetensors") | load_file(
        folder / "training_state.safetensors"
    )


def assert_same_run(one, two):
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    columns = ("step", "loss", "grad_norm", "lr")
    rows = [[tuple(row[c] for c in columns) for row in read_log(Path(out) / "log.csv")] for out in (one, two)]
    assert rows[0] == rows[1]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """The samples at the end are tested with the command line; here they would only take time."""
    monkeypatch.setattr(Trainer, "_finish", lambda self: None)
    monkeypatch.setattr(Results, "missing", lambda self, step: False)


@pytest.mark.slow
def test_overfits_four_images(tmp_path):
    data = tiny_data(n=4, size=8)
    data.flip = False
    trainer = tiny_trainer(tmp_path / "run", None, 0.0, data, steps=120, batch_size=16, lr=5e-3, ema=0.9)
    trainer.run()
    losses = [float(row["loss"]) for row in read_log(tmp_path / "run/log.csv")]
    assert np.mean(losses[-50:]) < 0.35 * np.mean(losses[:5])
    # and what it draws are the images: each sample is far closer to one of them than they are to each other
    pictures = td.load(tmp_path / "run").sample(8, steps=20, progress=False).reshape(8, -1).astype(float)
    images = data.images.reshape(4, -1).astype(float)
    nearest = np.sqrt(((pictures[:, None] - images[None]) ** 2).mean(-1)).min(1)
    between = np.sqrt(((images[:, None] - images[None]) ** 2).mean(-1))[~np.eye(4, dtype=bool)].min()
    assert np.median(nearest) < 0.7 * between, (nearest, between)


def test_the_same_seed_gives_the_same_bits(tmp_path):
    for name in "ab":
        tiny_trainer(tmp_path / name).run()
    assert_same_run(tmp_path / "a", tmp_path / "b")
    tiny_trainer(tmp_path / "c", seed=1).run()
    assert not np.array_equal(weights(tmp_path / "a")["conv_in.weight"], weights(tmp_path / "c")["conv_in.weight"])


def test_resuming_equals_never_having_stopped(tmp_path):
    tiny_trainer(tmp_path / "whole", steps=9).run()
    tiny_trainer(tmp_path / "parts", steps=2).run()
    tiny_trainer(tmp_path / "parts", steps=5).run(resume=True)
    tiny_trainer(tmp_path / "parts", steps=9, save_every=2, preview_every=2).run(resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_clock_that_is_set_back_changes_nothing(tmp_path, monkeypatch):
    tiny_trainer(tmp_path / "whole", steps=3).run()
    seconds = itertools.count(time.time(), -1e6)
    monkeypatch.setattr(time, "time", lambda: next(seconds))
    tiny_trainer(tmp_path / "parts", steps=2, preview_every=2).run()
    tiny_trainer(tmp_path / "parts", steps=3).run(resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_previews_and_saving_do_not_change_a_run(tmp_path):
    tiny_trainer(tmp_path / "quiet").run()
    tiny_trainer(tmp_path / "busy", save_every=1, preview_every=1).run()
    assert_same_run(tmp_path / "quiet", tmp_path / "busy")
    assert len(list((tmp_path / "busy/samples").glob("*.png"))) == 6


def test_accumulated_batches_are_one_large_batch(tmp_path):
    for name, batch, parts in (("one", 6, 1), ("two", 3, 2)):
        tiny_trainer(tmp_path / name, dropout=0.0, batch_size=batch, accumulate=parts, steps=3).run()
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=2e-3, atol=2e-5, err_msg=name)


def test_a_run_that_died_before_its_first_checkpoint_starts_again(tmp_path):
    tiny_trainer(tmp_path / "whole").run()
    trainer = tiny_trainer(tmp_path / "died")
    trainer.folder.begin(trainer.config, {})  # and then the process was killed
    tiny_trainer(tmp_path / "died").run(resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "died")


def test_from_python_arguments_are_called_as_there(tmp_path):
    tiny_trainer(tmp_path / "run", steps=1).run()
    with pytest.raises(InputError, match="already holds a run; resume goes on with it, force overwrites it"):
        tiny_trainer(tmp_path / "run").run()
    with pytest.raises(InputError, match=r"to go on, give a larger steps$"):
        tiny_trainer(tmp_path / "run", steps=1).run(resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").touch()
    with pytest.raises(InputError, match=r"choose another out$"):
        tiny_trainer(tmp_path / "other").run()


def test_resuming_a_finished_run_asks_for_more_steps(tmp_path):
    tiny_trainer(tmp_path / "run", steps=2).run()
    with pytest.raises(InputError, match=r"has done its 2 steps.*larger steps"):
        tiny_trainer(tmp_path / "run", steps=2).run(resume=True)


def test_a_run_whose_samples_do_not_fit_into_memory_is_done_all_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Trainer, "_finish", FINISH)
    trainer = tiny_trainer(tmp_path / "run", steps=2, preview_every=1)
    monkeypatch.setattr(limits, "memory", lambda: (1000, 1000))
    assert trainer.run() == 2
    said = capsys.readouterr().err
    assert said.count("no samples are drawn: ") == 3 and "; draw fewer from " in said and "with n=16" in said
    assert not (tmp_path / "run" / "samples.png").exists()


def test_resuming_nothing(tmp_path):
    with pytest.raises(InputError, match="no run to resume"):
        tiny_trainer(tmp_path / "run").run(resume=True)


def test_labels_are_dropped_at_the_given_rate(tmp_path):
    trainer = tiny_trainer(tmp_path / "run", label_dropout=0.3)
    labels = np.zeros(2000, np.int64)
    dropped = np.concatenate([trainer.inputs.dropped(labels, range(step, step + 1)) for step in range(1, 6)])
    share = (dropped == 3).mean()
    assert set(dropped) == {0, 3} and abs(share - 0.3) < 4 * (0.3 * 0.7 / 10_000) ** 0.5


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_origin(tmp_path):
    trainer = tiny_trainer(tmp_path / "run", steps=200, lr=1e9, warmup=0, clip=0, save_every=1)
    with np.errstate(all="ignore"), pytest.raises(RunFailed) as caught:
        trainer.run()
    sentence = str(caught.value)
    step = int(sentence.split("at step ")[1].split(":")[0])
    assert "came from" in sentence and sentence.endswith("try a lower lr") and f"step {step - 1} is kept" in sentence
    assert trainer.step == step - 1
    assert all(np.isfinite(array).all() for array in weights(tmp_path / "run").values())


def test_a_poisoned_weight_is_traced_to_its_operation(tmp_path):
    trainer = tiny_trainer(tmp_path / "run")
    trainer.unet.conv_out.weight.data[...] = np.nan
    with pytest.raises(
        RunFailed, match=r"became nan at step 1: .* came from Conv2d, called in conv_out .*; there is no checkpoint yet"
    ):
        trainer.run()


def test_data_that_does_not_fit_the_network(tmp_path):
    with pytest.raises(InputError, match=r"\(8, 8, 3\).*the network takes \(8, 8, 1\)"):
        tiny_trainer(tmp_path / "run", data=tiny_data(channels=3, classes=3))
    with pytest.raises(InputError, match="the data has no labels"):
        tiny_trainer(tmp_path / "run", data=tiny_data())
    with pytest.raises(InputError, match="data has 4 classes, the network 3"):
        tiny_trainer(tmp_path / "run", data=tiny_data(classes=4))
    with pytest.raises(InputError, match="label dropout needs"):
        tiny_trainer(tmp_path / "run", None, data=tiny_data(), label_dropout=0.1)
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------- in processes that can be killed

SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests may have had it ignored
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
sys.path.insert(0, {root!r})
sys.path.insert(0, {tests!r})
from test_trainer import Results, Trainer, tiny_trainer
Trainer._finish = lambda self: None
Results.missing = lambda self, step: False
trainer = tiny_trainer({out!r}, steps={steps}, save_every=1, preview_every=0)
trainer.run(resume={resume})
sys.exit(128 + trainer.stopped_by if trainer.stopped_by else 0)
"""


def start(out, steps, resume):
    root = Path(__file__).parents[2]
    code = SCRIPT.format(root=str(root), tests=str(root / "tests/runs"), out=str(out), steps=steps, resume=resume)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(path, process):
    while not path.exists() and process.poll() is None:
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_again_and_again(tmp_path):
    """SIGKILL at arbitrary moments, many of them within a save, since every step saves."""
    steps, out = 30, tmp_path / "killed"
    process = start(tmp_path / "whole", steps, False)
    assert process.wait() == 0, process.stderr.read()
    delays = np.random.default_rng(0).uniform(0, 0.2, 4)
    resume = False
    for delay in delays:
        process = start(out, steps, resume)
        wait_for(out / "log.csv", process)
        time.sleep(delay)
        process.kill()
        process.wait()
        resume = (out / "config.toml").exists()
    process = start(out, steps, resume)
    status = process.wait()
    errors = process.stderr.read()
    assert status == 0 or f"has done its {steps} steps" in errors, errors
    assert_same_run(tmp_path / "whole", out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_finishes_the_step_and_saves(tmp_path, number):
    process = start(tmp_path / "run", 100_000, False)
    wait_for(tmp_path / "run/checkpoint", process)
    process.send_signal(number)
    assert process.wait(600) == 128 + number
    assert "finishing the step and saving" in process.stderr.read()
    done = len(read_log(tmp_path / "run/log.csv"))
    assert td.checkpoint.load_training_state(tmp_path / "run/checkpoint")[1]["step"] == str(done)


def test_a_name_that_is_too_long_is_told():
    config = td.TrainConfig(out="x" * 300, steps=1, batch_size=2)
    for start in ({}, {"resume": True}):
        with pytest.raises(InputError, match="File name too long"):
            Trainer(tiny_unet(), Diffusion(Schedule.linear(10)), tiny_data(), config).run(**start)
