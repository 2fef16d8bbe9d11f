"""What is measured of a run beside its loss, and the rates and ends that settings give it."""

import io
import re
import time

import numpy as np
import pytest
from PIL import Image

import tinydiff as td
from tests.runs.test_trainer import assert_same_run, no_pictures, tiny_data, tiny_trainer, tiny_unet  # noqa: F401
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.errors import InputError
from tinydiff.random import Generator
from tinydiff.runs import board, measures
from tinydiff.runs.config import RunConfig
from tinydiff.runs.folder import read_log
from tinydiff.runs.results import Results
from tinydiff.runs.trainer import Trainer


def held_out(n=12, **options):
    return tiny_data(n, **options).hold_out(0.5, Generator(1))


def test_the_held_out_loss_is_that_of_all_times_and_the_same_each_time(monkeypatch):
    data, unet, diffusion = held_out(classes=3), tiny_unet(3, dropout=0.5), Diffusion(Schedule.linear(20, 1e-3, 0.4))
    seen = []
    loss = Diffusion.loss

    def noted(self, model, x0, generator, labels, t, eps):
        assert not model.training and generator is None
        seen.append((x0, labels, t, eps))
        return loss(self, model, x0, generator, labels, t, eps)

    monkeypatch.setattr(Diffusion, "loss", noted)
    unet.train(Generator(1, 5))
    one, two = (measures.held_out_loss(unet, diffusion, data.held_out, Generator(7), 4, "cpu") for _ in "ab")
    assert one == two and unet.training
    x0, labels, t, eps = (np.concatenate(parts) for parts in zip(*seen[:2], strict=True))
    assert [len(call[0]) for call in seen] == [4, 2, 4, 2] and sorted(t) == [2, 6, 9, 12, 16, 19]  # of 1..20
    assert sorted(map(bytes, x0)) == sorted(map(bytes, data.held_out.images_at(range(6))))
    by_hand = np.mean([loss(diffusion, unet.eval() or unet, x0[i : i + 1], None, labels[i : i + 1], t[i : i + 1],
                            eps[i : i + 1]).item() for i in range(6)])  # fmt: skip
    assert one == pytest.approx(by_hand, rel=1e-5)


def test_rows_have_it_where_it_is_due_and_the_run_is_what_it_would_have_been(tmp_path):
    def trainer(out, **settings):
        return tiny_trainer(tmp_path / out, data=held_out(classes=3), **settings)

    trainer("without", holdout_every=0).run()
    trainer("with", holdout_every=2).run()
    trainer("parts", holdout_every=2, steps=3).run()
    trainer("parts", holdout_every=2).run(resume=True)
    assert_same_run(tmp_path / "without", tmp_path / "with")
    rows = read_log(tmp_path / "with/log.csv")
    assert ["holdout_loss" in row for row in rows] == [False, True] * 3
    assert [row.get("holdout_loss") for row in rows] == [
        row.get("holdout_loss") for row in read_log(tmp_path / "parts/log.csv")
    ]
    assert (tmp_path / "without/log.csv").read_text().startswith("step,loss,grad_norm,lr,images_per_second\n")


def test_a_measurement_that_fails_costs_no_row(tmp_path, monkeypatch):
    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(measures, "held_out_loss", fail)
    with pytest.raises(MemoryError):
        tiny_trainer(tmp_path, data=held_out(classes=3), holdout_every=2).run()
    assert len(read_log(tmp_path / "log.csv")) == 2 and td.checkpoint.read_step(tmp_path) == 2


@pytest.mark.parametrize("clip", [0, 1e-3])
def test_norms_of_the_gradient_by_module(tmp_path, clip):
    trainer = tiny_trainer(tmp_path / "run", grad_norm_every=3, clip=clip, accumulate=2)
    trainer.run()
    other = tiny_trainer(tmp_path / "other", clip=clip, accumulate=2, steps=2)
    other.run()
    other.gradients(3)
    expected = {}
    for name, p in other.unet.named_parameters():
        expected.setdefault(name.rpartition(".")[0], []).append(p.grad.ravel())
    header, *rows = [line.split(",") for line in (tmp_path / "run/grad_norms.csv").read_text().splitlines()]
    assert (
        header == ["step", *expected]
        and "down_blocks.0.resnets.0.conv1" in header
        and [r[0] for r in rows] == ["3", "6"]
    )
    np.testing.assert_allclose(
        np.array(rows[0][1:], float),
        [np.linalg.norm(np.concatenate(g)) for g in expected.values()],
        rtol=1e-4,
        atol=1e-8,
    )
    norm = float(read_log(tmp_path / "run/log.csv")[2]["grad_norm"])
    assert np.linalg.norm(np.array(rows[0][1:], float)) == pytest.approx(norm, rel=1e-6)


# ------------------------------------------------------------------------------------------------------- rates


def test_a_cosine_rate_ends_where_the_first_start_did_and_a_resumed_run_is_the_whole_one(tmp_path):
    settings = {"lr_schedule": "cosine", "warmup": 2, "ema_start": 3}
    tiny_trainer(tmp_path / "whole", steps=6, **settings).run()
    assert tiny_trainer(tmp_path / "parts", steps=6, minutes=1e-9, **settings).run() == 1
    for steps in (3, 6):
        one = tiny_trainer(tmp_path / "parts", steps=steps, **settings)
        one.run(resume=True)
        assert one.config.lr_steps == 6
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    rates = [float(row["lr"]) for row in read_log(tmp_path / "whole/log.csv")]
    expected = [0.5, 1, *((1 + np.cos(np.pi * np.arange(1, 5) / 4)) / 2)]
    np.testing.assert_allclose(rates, 1e-3 * np.array(expected), rtol=1e-6, atol=1e-18)
    assert "lr_steps = 6" in (tmp_path / "parts/config.toml").read_text()


def test_averages_that_begin_later_are_the_weights_until_then(tmp_path):
    one = tiny_trainer(tmp_path, ema_start=3, ema=0.9)
    for step in range(1, 7):
        one.train_step(step)
        distance = max(float(abs(a - p.data).max()) for a, p in zip(one.ema.averages, one.parameters, strict=True))
        assert (distance < 1e-6) == (step <= 3)


def test_minutes_end_a_run_and_a_resume_goes_on(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    step = Trainer.train_step

    def ten_seconds(self, number):
        now[0] += 10
        return step(self, number)

    monkeypatch.setattr(Trainer, "train_step", ten_seconds)
    monkeypatch.setattr(Results, "seconds_of_finish", lambda self, steps, speed: 4.0)
    monkeypatch.setattr(Results, "seconds_of_finish", lambda self, steps, speed: 4.0)
    assert tiny_trainer(tmp_path, steps=None, minutes=0.5).run() == 3
    assert td.checkpoint.read_step(tmp_path) == 3 and re.search(
        r"step 1 .* 24s left, samples included", capsys.readouterr().err
    )
    assert tiny_trainer(tmp_path, steps=None, minutes=0.5).run(resume=True) == 6
    assert tiny_trainer(tmp_path, steps=8, minutes=0.5).run(resume=True) == 8
    assert tiny_trainer(tmp_path, steps=None, minutes=1e-9).run(resume=True) == 9  # one step at least
    monkeypatch.undo()
    assert "steps" not in RunConfig(minutes=3).text().split() and RunConfig().steps == 1000
    assert RunConfig(minutes=3, steps=7).last_step == 7 and RunConfig(minutes=3).last_step is None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"minutes": -1.0}, "^minutes must be greater than 0, not -1"),
        ({"lr_schedule": "step"}, "^lr_schedule must be one of constant, cosine, not step"),
        ({"lr_schedule": "cosine", "minutes": 5}, "does not say after how many steps: give lr_steps"),
        ({"lr_steps": 5}, 'lr_steps is the end of a cosine: give lr_schedule="cosine" as well'),
        ({"lr_steps": 0, "lr_schedule": "cosine"}, "^lr_steps must be at least 1"),
        ({"ema_start": -1}, "^ema_start must be"),
        ({"holdout_every": -1}, "^holdout_every must be"),
        ({"log": "wandb"}, "^log must be one of csv, tensorboard"),
    ],
)
def test_settings_that_make_no_sense(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        td.TrainConfig(**settings)


# ------------------------------------------------------------------------------------------------------- TensorBoard


def events(folder):
    """{tag: [(step, value)]} of all event files in a folder, in the order in which TensorBoard reads them."""
    found = {}
    for path in board.files_in(folder):
        for _, event in board._records(path.read_bytes()):
            for value in event.summary.value:
                what = value.simple_value if value.HasField("simple_value") else value.image.encoded_image_string
                found.setdefault(value.tag, []).append((event.step, what))
    return found


def test_tensorboard_has_what_the_log_has_and_a_resume_doubles_nothing(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX", reason="needs tensorboardX, the extra `tensorboard`")
    settings = {
        "log": "tensorboard",
        "holdout_every": 2,
        "grad_norm_every": 3,
        "preview_every": 2,
        "data": held_out(classes=3),
    }
    tiny_trainer(tmp_path, steps=2, **settings).run()
    with open(board.files_in(tmp_path)[0], "ab") as file:  # half an event, as a killed process leaves it
        file.write((1000).to_bytes(8, "little") + b"half an event")
    monkeypatch.setattr(time, "time", lambda: 1e9)  # a clock set back, and the same second again and again
    tiny_trainer(tmp_path, steps=4, **settings).run(resume=True)
    board_of = board.Board(tmp_path)
    board_of.open(4)
    board_of.add(5, {"loss/train": 9.0})  # a killed process did this step, and no checkpoint has it
    board_of.close()
    tiny_trainer(tmp_path, steps=6, **settings).run(resume=True)
    found, rows = events(tmp_path), read_log(tmp_path / "log.csv")
    for tag, column in (
        ("loss/train", "loss"), ("gradient/norm", "grad_norm"), ("training/lr", "lr"), ("loss/holdout", "holdout_loss"),
    ):  # fmt: skip
        expected = [(int(row["step"]), float(row[column])) for row in rows if column in row]
        assert [step for step, _ in found[tag]] == [step for step, _ in expected]
        np.testing.assert_allclose([x for _, x in found[tag]], [x for _, x in expected], rtol=1e-6)
    assert len(found["training/images_per_second"]) == 6 and [s for s, _ in found["gradient_of/conv_in"]] == [3, 6]
    assert [step for step, _ in found["samples"]] == [2, 4, 6]
    with (
        Image.open(io.BytesIO(found["samples"][0][1])) as ours,
        Image.open(tmp_path / "samples/step_000002.png") as png,
    ):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(png))


def test_without_tensorboardx_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(board, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'log="tensorboard" needs tensorboardX, .* pip install'):
        tiny_trainer(tmp_path / "run", log="tensorboard")


def test_a_cosine_of_another_run_does_not_end_this_one(tmp_path):
    from tinydiff.cli import flags

    file = tmp_path / "config.toml"
    RunConfig(lr_schedule="cosine", steps=10, lr_steps=10).save(file)
    assert flags.read({"config": str(file)}).config.lr_steps == 10
    assert flags.read({"config": str(file), "steps": "50"}).config.lr_steps is None
    constant = flags.read({"config": str(file), "lr_schedule": "constant"}).config
    assert constant.lr_steps is None and constant.lr_schedule == "constant"
    with pytest.raises(ValueError, match="must not be negative"):
        td.optim.cosine(1.0, 3, 10, -5)


def test_a_cosine_with_a_record_of_the_callers_is_resumed(tmp_path):
    for steps in (2, 3):
        one = tiny_trainer(tmp_path, steps=steps, lr_schedule="cosine")
        one.record = {"notes": {"a": 1}}
        assert one.run(resume=steps == 3) == steps
