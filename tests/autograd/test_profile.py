"""Where the time goes: exclusive times that add up, by a clock that the test turns; operations counted; nothing changed."""

import csv

import numpy as np
import pytest

import tinydiff as td
from tinydiff import ops
from tinydiff.autograd import profile, tape
from tinydiff.autograd.profile import Key, Profile


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def double(clock):
    """An operation that takes 2 s forward and 5 s backward."""

    class Double(td.Function):
        def forward(self, X, factor=2):
            clock.now += 2
            return X * factor

        def backward(self, L_Y):
            clock.now += 5
            return 2 * L_Y

    return Double


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_exclusive_and_add_up(clock, double):
    times = Profile(clock)
    x = td.Tensor(np.ones((2, 3)), requires_grad=True)
    for _ in range(2):
        with times.step():
            clock.now += 1
            with profile.section("forward"):
                clock.now += 10
                y = double.apply(double.apply(x), factor=2)
            with profile.section("backward"):
                y.backward(np.ones((2, 3)))
                clock.now += 20
    step, op = times.rows[Key("section", "everything else")], times.rows[Key("operation", "Double", "2x3")]
    assert (step.calls, step.forward) == (2, 2)
    assert (op.calls, op.forward, op.backward_calls, op.backward) == (4, 8, 4, 20)
    assert times.rows[Key("section", "forward")].forward == 20
    assert times.rows[Key("section", "backward")].forward == 40
    assert times.seconds == clock.now == 90 and times.steps == 2
    np.testing.assert_array_equal(x.grad, np.full((2, 3), 8))


def test_what_is_saved_and_shown_is_per_step(clock, double, tmp_path):
    times = Profile(clock)
    for _ in range(4):
        with times.step():
            double.apply(td.Tensor(np.ones(3), requires_grad=True)).backward(np.ones(3))
            clock.now += 1
        with times.between("saving"):
            clock.now += 3
    times.save(tmp_path / "profile.csv")
    rows = rows_of(tmp_path / "profile.csv")
    assert [(r["name"], r["shapes"], r["calls"], r["forward_ms"], r["backward_ms"], r["share"]) for r in rows] == [
        ("Double", "3", "1", "2000", "5000", "0.875"),
        ("everything else", "", "1", "1000", "0", "0.125"),
    ]
    table = times.table()
    assert "one step takes 8000.0 ms (mean of 4)" in table and "87.5%  1 x Double  3" in table
    assert "between the steps: saving, 4 times, 12.00 s in all" in table


def test_only_inside_a_step_and_also_after_an_error(clock, double):
    times = Profile(clock)
    double.apply(td.Tensor(np.ones(3)))
    with profile.section("outside"):
        pass
    with pytest.raises(ZeroDivisionError), times.step(), profile.section("inside"):
        clock.now += 1
        raise ZeroDivisionError
    assert tape.current_observer() is None and times.steps == 0
    double.apply(td.Tensor(np.ones(3)))
    assert set(times.rows) == {Key("section", "inside"), Key("section", "everything else")}


def test_a_recomputed_block_counts_twice_forward(clock, double):
    times, x = Profile(clock), td.Tensor(np.ones(3), requires_grad=True)
    with times.step():
        td.recompute(lambda x: double.apply(x), x).backward(np.ones(3))
    row = times.rows[Key("operation", "Double", "3")]
    assert (row.calls, row.backward_calls) == (2, 1)


def test_measuring_changes_no_number():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 5, 5, 2)), rng.normal(size=(3, 3, 2, 4))

    def run():
        a, b = td.Tensor(x, requires_grad=True), td.Tensor(w, requires_grad=True)
        y = ops.silu(ops.conv2d(a, b, padding=1))
        y.sum().backward()
        return y.data, a.grad, b.grad

    plain, times = run(), Profile()
    with times.step():
        measured = run()
    for a, b in zip(plain, measured, strict=True):
        np.testing.assert_array_equal(a, b)
    assert {key.name for key in times.rows if key.kind == "operation"} >= {"Conv2d", "Silu", "Sum"}


def test_a_training_run_tells_where_its_time_went(tmp_path, capsys):
    from tinydiff.cli import main

    flags = ["--channels", "8", "--groups", "4", "--mults", "1,2", "--image-size", "8", "--batch-size", "4"]
    flags += ["--timesteps", "20", "--threads", "1", "--preview-every", "2", "--attention", "4"]
    out = tmp_path / "run"
    assert main(["train", "--out", str(out), "--steps", "3", "--profile", *flags]) == 0
    said = capsys.readouterr().err
    assert "(mean of 2)" in said and "previews, 1 times" in said
    rows = {row["name"]: row for row in rows_of(out / "profile.csv")}
    parts = {"data", "noise and times", "clipping, Adam and EMA", "everything else"}
    assert parts <= set(rows) and {"Conv2d", "GroupNorm", "Attention"} <= set(rows)
    rows = rows_of(out / "profile.csv")
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1, abs=1e-4)
    assert "profile" not in (out / "config.toml").read_text()
    assert main(["train", "--out", str(out), "--steps", "3", "--force", *flags]) == 0
    assert not (out / "profile.csv").exists()
