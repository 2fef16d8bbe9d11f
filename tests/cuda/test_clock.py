"""tinydiff/cuda/clock.py: what is computed ahead arrives in the step that it is for."""

import numpy as np
import pytest

from tinydiff import backend
from tinydiff.cuda import clock
from tinydiff.cuda.clock import Clock

COLUMNS = {"flag": (np.uint8, 3), "index": (np.int64, 5), "rate": (np.float32, 1)}


def row(step):
    return {"flag": np.arange(3) + step % 7, "index": step * 2**33 + np.arange(5), "rate": np.array([step / 3])}


@pytest.fixture
def made(device, monkeypatch):
    """A clock that is filled three steps at a time, and the ranges that it was filled for."""
    monkeypatch.setattr(clock, "MOST_AHEAD", 3)
    filled = []

    def fill(steps):
        filled.append(steps)
        return {name: np.stack([row(step)[name] for step in steps]) for name in COLUMNS}

    return Clock(device.xp, COLUMNS, fill), filled


def check(c, step):
    for name, (dtype, _) in COLUMNS.items():
        assert c.now[name].dtype == dtype
        np.testing.assert_array_equal(backend.to_numpy(c.now[name]), row(step)[name].astype(dtype), err_msg=name)
    np.testing.assert_array_equal(backend.to_numpy(c.count), [step, 0])


def test_each_step_finds_its_row(made):
    c, filled = made
    addresses = [backend.address(a) for a in c.now.values()]
    for step in range(1, 15):
        c.go_to(step)
        check(c, step)
        c.go_to(step)  # changes nothing
        check(c, step)
    assert filled == [range(1, 3), range(3, 6), range(6, 9), range(9, 12), range(12, 15)]
    assert [backend.address(a) for a in c.now.values()] == addresses


def test_a_step_out_of_order(made):
    c, filled = made
    for step in (8, 9, 4, 5, 8):
        c.go_to(step)
        check(c, step)
    c.forget()
    c.go_to(9)
    check(c, 9)
    assert filled == [range(6, 9), range(9, 12), range(3, 6), range(9, 12)]


def test_rows_prepared_for_replays_of_tick(made):
    """As a captured graph runs: the host prepares, and nothing but the kernel is run for the step."""
    c, _ = made
    c.go_to(1)
    for step in range(2, 12):
        c.prepare(step)
        c.tick()
        check(c, step)


def test_large_rows_are_not_computed_far_ahead(monkeypatch):
    assert Clock(np, {"x": (np.float32, 1000)}, None).ahead == clock.MOST_AHEAD
    monkeypatch.setattr(clock, "MOST_BYTES", 16_000)
    c = Clock(np, {"x": (np.float32, 1000)}, None)
    assert c.ahead == 4 and c.rows == 8
    assert Clock(np, {"x": (np.float32, 5000)}, None).ahead == 1
