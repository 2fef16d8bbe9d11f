"""Runs in fp16 on the stand-in for CuPy: the loss scale's life, in log and checkpoint, and what an overflow leaves alone."""

import csv
from itertools import pairwise

import numpy as np
import pytest

import tinydiff as td
from tests.runs.test_arithmetic import on_cpu
from tests.runs.test_replays import cupy, state, trainer  # noqa: F401
from tinydiff import backend
from tinydiff.cli import info
from tinydiff.cuda import updates as launches
from tinydiff.errors import InputError, RunFailed
from tinydiff.runs import checkpoint, config, loss_scale, replays
from tinydiff.runs.loss_scale import LossScale


def rows(one):
    with open(one.folder.path / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def column(one):
    return [row["loss_scale"] for row in rows(one)]


def sensitive(out, steps):
    """A run in fp16 whose last weights are large, so that gradients overflow with a scale that is a little too large."""
    one = trainer(out, precision="fp16", steps=steps, classes=None, dropout=0.0)
    one.unet.conv_out.weight.data[...] = 0.5
    return one


@pytest.fixture
def first_scale(monkeypatch):
    """A function that has runs begin with another scale."""
    return lambda scale: monkeypatch.setattr(loss_scale, "FIRST_SCALE", float(scale))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:(overflow|invalid):RuntimeWarning")
def test_an_overflow_skips_a_step_and_a_run_goes_on_with_its_own_bits(tmp_path, monkeypatch, first_scale):
    """Eager, replayed, and stopped in between: weights, log and scale are the same. It is halved until gradients fit, then doubled
    after so many good steps; a step that is left out changes nothing but the counters."""
    monkeypatch.setattr(replays, "EAGER", 1)
    monkeypatch.setattr(launches, "GOOD_STEPS", 3)
    first_scale(2.0**18)
    eager = sensitive(tmp_path / "eager", steps=9)
    before = [p.data.get() for p in eager.parameters]
    seen, original = [], td.Trainer._update

    def update(self, losses):
        result = original(self, losses)
        seen.append([backend.to_numpy(p.data) for p in self.parameters])
        return result

    with monkeypatch.context() as patch:
        patch.setattr(td.Trainer, "_update", update)
        assert eager.run(graph=False) == 9
    scales = [float(s) for s in column(eager)]
    skipped = [not row["grad_norm"] for row in rows(eager)]
    changes = [b / a for a, b in pairwise(scales)]
    assert scales[0] == 2.0**18 and {0.5, 1, 2} == {*changes}
    good = 0
    for i in range(8):
        good = 0 if skipped[i] else good + 1
        assert changes[i] == (0.5 if skipped[i] else 2 if good == 3 else 1)
        good %= 3
        same = all((a == b).all() for a, b in zip(seen[i], seen[i - 1] if i else before, strict=True))
        assert same == skipped[i]
    assert eager.optimizer.steps == [9] * len(eager.parameters) and eager.ema.updates == 9
    half = sensitive(tmp_path / "half", steps=5)
    half.run()
    first_scale(3)  # what is recorded counts
    again = trainer(tmp_path / "half", precision="auto", steps=9, classes=None, dropout=0.0)
    assert again.run(resume=True) == 9 and again._replays.replaying
    for a, b in zip(state(again)[0], state(eager)[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert state(again)[1][:4] == state(eager)[1][:4]
    timed = "images_per_second"
    assert [{**row, timed: ""} for row in rows(again)] == [{**row, timed: ""} for row in rows(eager)]
    assert not list((tmp_path / "half").glob("*.damaged"))
    assert "steps:" in info.describe(tmp_path / "half")
    np.testing.assert_array_equal(again.loss_scale.state.get(), eager.loss_scale.state.get())
    assert config.load(tmp_path / "half/config.toml")["precision"] == "fp16"


@pytest.mark.filterwarnings("ignore:(overflow|invalid):RuntimeWarning")
def test_a_replayed_step_that_overflows_is_no_failure(tmp_path, monkeypatch, first_scale):
    monkeypatch.setattr(replays, "EAGER", 1)
    first_scale(2.0**30)
    one = sensitive(tmp_path, steps=4)
    assert one.run() == 4 and one._replays.replaying
    assert [row["grad_norm"] for row in rows(one)] == [""] * 4
    assert column(one) == [str(2 ** (30 - i)) for i in range(4)]


@pytest.mark.filterwarnings("ignore:(overflow|invalid):RuntimeWarning")
def test_a_nan_that_stays_with_the_least_scale_is_a_failure(tmp_path, monkeypatch, first_scale):
    first_scale(4)
    one = trainer(tmp_path, precision="fp16", steps=9, save_every=2)
    states = {}
    original = td.Trainer._next_steps

    def next_steps(self):
        if self.step == 2 and not states:
            self.unet.conv_in.bias.data[...] = np.float32(np.inf)
            states["before"] = state(self)
        return original(self)

    monkeypatch.setattr(td.Trainer, "_next_steps", next_steps)
    with pytest.raises(
        RunFailed, match=r"the loss became .* at step 5: the first value that is not finite came from .*conv"
    ):
        one.run()
    weights = 2 * len(one.parameters)
    for a, b in zip(state(one)[0][:weights:2], states["before"][0][:weights:2], strict=True):
        np.testing.assert_array_equal(a, b)
    assert column(one) == ["4", "4", "4", "2"]
    assert one.ema.updates == 4 and set(one.optimizer.steps) == {4}  # the failure does not count
    assert checkpoint.load_training_state(tmp_path / "checkpoint", arrays=False)[1]["step"] in ("2", "4")


def test_a_run_in_fp16_goes_on_in_float32_on_a_cpu_and_keeps_its_scale(tmp_path, monkeypatch, capsys):
    one = trainer(tmp_path, precision="fp16", steps=1)
    one.run()
    assert {p.data.dtype for p in one.parameters} == {np.dtype(np.float32)}
    saved = checkpoint.load_training_state(tmp_path / "checkpoint")
    assert saved[1][loss_scale.NAME] == "32768.0 1.0"
    assert {a.dtype.name for name, a in saved[0].items() if name.startswith(("raw.", "adam.m", "adam.v"))} == {
        "float32"
    }
    with monkeypatch.context() as patch:
        on_cpu(patch)
        capsys.readouterr()
        trainer(tmp_path, precision="auto", steps=2).run(resume=True)
        assert (
            "the run was made in fp16, and the CPU has no tensor cores: it goes on in float32"
            in capsys.readouterr().err
        )
    last = trainer(tmp_path, precision="auto", steps=3)
    last.run(resume=True)
    assert column(last) == ["32768", "", "32768"]
    assert last.loss_scale.state.get().tolist() == [32768, 2]


def test_other_precisions_have_no_scale(tmp_path):
    one = trainer(tmp_path, precision="tf32", steps=1)
    one.run()
    assert "loss_scale" not in rows(one)[0]
    assert loss_scale.NAME not in checkpoint.load_training_state(tmp_path / "checkpoint", arrays=False)[1]


def test_what_was_saved_takes_the_place_of_what_is_there():
    one = LossScale("cpu", lambda: "fp16")
    for pair in ([8, 3], [4, 1]):
        one.state[...] = pair
        saved = one.metadata()
    assert saved == {loss_scale.NAME: "4.0 1.0"}
    one.state[...] = 2, 0
    one.restore(saved)
    assert one.state.tolist() == [4, 1]
    one.restore({})
    assert one.state.tolist() == [loss_scale.FIRST_SCALE, 0]


def test_the_loss_of_every_part_is_multiplied_by_the_present_scale(tmp_path):
    one, found = trainer(tmp_path, precision="fp16", steps=1, classes=None, accumulate=2), []
    for S in (1, 2**10):
        one.loss_scale.state[:1] = S
        one.gradients(1)
        found.append(np.concatenate([p.grad.get().ravel() for p in one.parameters]) / S)
    assert np.linalg.norm(found[1] - found[0]) < 0.05 * np.linalg.norm(found[0])


def test_scales_of_old_steps_are_forgotten(monkeypatch):
    monkeypatch.setattr(loss_scale, "_REMEMBERED", 2)
    one = LossScale("cpu", lambda: "fp16")
    assert [one.taken(step, [0.5, 8.0]) for step in (1, 2, 3)] == [[0.5]] * 3
    assert [one.used(step) for step in (1, 2, 3)] == [None, 8, 8] and one.skipped(3) and not one.skipped(1)


@pytest.mark.parametrize("text", ["", "1", "0.5 3", "nan 1", "2 -1", "a b", "inf 0"])
def test_a_damaged_scale_is_refused(text):
    with pytest.raises(InputError, match="loss scale"):
        LossScale("cpu", lambda: "fp16").restore({loss_scale.NAME: text})
