"""Steps prepared on the GPU, on the stand-in for CuPy: they are the steps of the CPU, and nothing is copied for them."""

import sys

import numpy as np
import pytest

import tinydiff as td
from tests import cupy_stand_in
from tests.runs.test_trainer import tiny_data, tiny_unet
from tinydiff import backend, random
from tinydiff.cuda import clock
from tinydiff.cuda.updates import adam_scalars
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.errors import RunFailed
from tinydiff.random import Generator
from tinydiff.runs import ahead


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    monkeypatch.setattr(clock, "MOST_AHEAD", 2)
    with cupy_stand_in.put_in_place(monkeypatch) as module:
        yield module


def trainer(out, device, classes=3, data=None, diffusion=None, **settings):
    settings = {"steps": 9, "batch_size": 3, "warmup": 4, "seed": 5} | settings
    config = td.TrainConfig(device=device, out=str(out), **settings)
    diffusion = diffusion or Diffusion(Schedule.cosine(50), predict="v", min_snr=5.0)
    return td.Trainer(tiny_unet(classes), diffusion, data or tiny_data(classes=classes), config)


def small_unet():
    return td.UNet(5, 1, channels=4, channel_mults=(1,), blocks_per_level=1, attention_resolutions=(), groups=2)


def seen(trainer, steps):
    """What the network is given in these steps: images, times and labels; it returns the images."""
    calls = []

    def noted(x, t, labels=None):
        arrays = (a.data if isinstance(a, td.Tensor) else a for a in (x, t, labels) if a is not None)
        calls.append([np.array(backend.to_numpy(a)) for a in arrays])
        return td.Tensor(x)

    trainer.unet.forward = noted
    for step in steps:
        batch = trainer.inputs.batch(step)
        for part in range(trainer.config.accumulate):
            loss = batch.loss(part).item()
            calls[-1].append(loss)
    return calls


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("share", [1, 0])
def test_batches_and_losses_are_those_of_the_cpu(accumulate, share, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ahead, "DATA_SHARE", share)
    steps = (1, 2, 3, 4, 3, 8)
    ours, theirs = (
        seen(trainer(tmp_path, device, accumulate=accumulate, label_dropout=0.5), steps) for device in ("cuda", "cpu")
    )
    assert len(ours) == len(theirs) == accumulate * len(steps)
    for (x, *given, loss), (expected, *known, other) in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(x, expected, rtol=0, atol=2e-6)
        np.testing.assert_array_equal(given, known)
        assert loss == pytest.approx(other, rel=1e-5)
    said = "each batch is copied while the step before it is computed" in capsys.readouterr().err
    assert said == (share == 0)


@pytest.mark.parametrize("share, copies", [(1, 0), (0, 1)])
def test_nothing_is_copied_for_a_step_or_one_batch_where_the_data_are_large(share, copies, tmp_path, monkeypatch):
    monkeypatch.setattr(ahead, "DATA_SHARE", share)
    one = trainer(tmp_path, "cuda")
    for step in (1, 2):
        seen(one, (step,))
        one.inputs.launched(step)
        one.optimizer.steps, one.ema.updates = [step] * len(one.parameters), step
    cupy_stand_in.COUNTS.clear()
    one.inputs.batch(3)
    assert cupy_stand_in.COUNTS["copies to the device"] == 0  # that of step 3 is there since step 2 was launched
    one.inputs.launched(3)
    assert cupy_stand_in.COUNTS["copies to the device"] == copies
    assert cupy_stand_in.COUNTS["synchronisations"] == 0


def test_parts_that_end_inside_a_block_of_random_words(tmp_path):
    """25 elements of an image: part 2 begins with element 75 of the noise."""
    found = []
    for device in ("cuda", "cpu"):
        config = td.TrainConfig(device=device, out=str(tmp_path), batch_size=3, accumulate=2)
        found.append(seen(td.Trainer(small_unet(), Diffusion(Schedule.cosine(50)), tiny_data(size=5), config), (1, 2)))
    for (x, *_), (expected, *_) in zip(*found, strict=True):
        np.testing.assert_allclose(x, expected, rtol=0, atol=2e-6)


def test_the_numbers_of_adam_are_those_of_the_step_and_follow_what_is_changed_on_the_way(tmp_path):
    one = trainer(tmp_path, "cuda", lr=1e-3)
    for step, decay in ((1, 0.5), (2, 0.5), (3, 0.1), (4, 0.1)):
        one.ema.decay = decay
        one.optimizer.steps, one.ema.updates = [step - 1] * len(one.parameters), step - 1
        one.inputs.batch(step)
        expected = adam_scalars(step, 1e-3 * step / 4, average_decay=one.ema.current_decay)
        np.testing.assert_array_equal(backend.to_numpy(one.inputs.prepared.scalars), expected)


def test_a_cosine_and_a_late_average_go_through_the_rows(tmp_path):
    """Also on replays, whose learning rates were uploaded before the step."""
    settings = {"lr_schedule": "cosine", "lr_steps": 6, "warmup": 2, "ema_start": 3, "steps": 8, "preview_every": 0}
    one = trainer(tmp_path / "rows", "cuda", **settings)
    for step in range(1, 8):
        one.optimizer.steps, one.ema.updates = [step - 1] * len(one.parameters), step - 1
        one.inputs.batch(step)
        expected = adam_scalars(step, one.config.learning_rate(step), average_decay=one.ema.current_decay)
        np.testing.assert_array_equal(backend.to_numpy(one.inputs.prepared.scalars), expected)
    assert [one.config.learning_rate(step) for step in (1, 2, 6, 7)] == pytest.approx([5e-4, 1e-3, 0, 0])


def test_a_failure_is_explained_and_the_gpu_changes_nothing_more(tmp_path):
    config = td.TrainConfig(device="cuda", out=str(tmp_path), batch_size=2)
    one = td.Trainer(small_unet(), Diffusion(Schedule.cosine(50)), tiny_data(size=5), config)
    one.train_step(1)
    weight, weights = one.parameters[3], [p.numpy().copy() for p in one.parameters]
    assert (one.inputs.clock.step, one.optimizer.steps, one.ema.updates) == (1, [1] * len(weights), 1)
    weight.data[...] = np.nan
    with pytest.raises(RunFailed, match="step 2: the first value that is not finite came from"):
        one.train_step(2)
    assert (
        one.inputs.clock.step == 2
        and int(one.inputs.failed[0]) == 2
        and set(one.optimizer.steps) == {1}
        and one.ema.updates == 1
    )
    weight.data[...] = backend.to_device(weights[3], "cuda")
    # as after a step that was already on its way
    one.inputs.clock.step, one.optimizer.steps, one.ema.updates = 2, [2] * len(weights), 2
    assert np.isfinite(one.train_step(3)[:2]).all()
    for p, before in zip(one.parameters, weights, strict=True):
        np.testing.assert_array_equal(p.numpy(), before)


def test_what_computes_otherwise_is_not_prepared(tmp_path):
    class Other(Diffusion):
        def loss(self, *args, **options):
            return super().loss(*args, **options)

    one = trainer(tmp_path, "cuda", diffusion=Other(Schedule.cosine(50)))
    assert not isinstance(one.inputs, ahead.Ahead) and len(seen(one, (1,))) == 1
    assert not ahead.possible(trainer(tmp_path, "cpu").inputs)
    with td.by_definition():
        assert not ahead.possible(trainer(tmp_path, "cuda").inputs)


def test_a_generator_with_a_clock_draws_times_on_the_gpu():
    """In a loop of the user's own: what follows the clock is drawn where the clock is, and is what the CPU would draw."""
    module = sys.modules["cupy"]
    diffusion, x0 = Diffusion(Schedule.cosine(50), variance="learned"), Generator(1).uniform((5, 4, 4, 2)) * 2 - 1

    def model(x, t, labels=None):
        times.append(backend.to_numpy(t))
        return td.ops.concatenate([td.Tensor(x) * 0.5, td.Tensor(x) * 0.1], axis=-1)

    times, losses = [], []
    for where, generator in (
        ("cpu", Generator(3, 0, 7)),
        ("cuda", Generator(3, 0, 2, 0, module.asarray([5, 0], "uint32"))),
    ):
        losses.append(diffusion.loss(model, backend.to_device(x0, where), generator).item())
    np.testing.assert_array_equal(*times)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    with pytest.raises(RuntimeError, match="draws where that is"):
        generator.uniform(3)
    assert random.Generator(*generator.state).clock is generator.clock
