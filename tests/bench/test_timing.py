"""Turns, medians and ceilings, with a clock that the test turns."""

import time

import pytest

from tinydiff.bench import timing
from tinydiff.bench.timing import Ceiling, Work, measure_ceiling, race
from tinydiff.machine import threads


@pytest.fixture
def clock(monkeypatch):
    """A function that lets time pass; measuring itself takes none."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: None)

    def wait(seconds):
        now[0] += seconds

    return wait


def test_competitors_have_turns_and_the_first_is_not_counted(clock):
    order, durations = [], {"a": iter([100, 1, 9, 2]), "b": iter([50, 5, 5, 4])}

    def forward(name):
        order.append(name)
        clock(next(durations[name]))
        return name

    def backward(result):
        order.append(result + "'")
        clock(7)

    times = race({"a": Work(lambda: forward("a"), backward), "b": Work(lambda: forward("b"))}, 3, 1e9)
    assert order == ["a", "a'", "b"] * 4
    assert times["a"] == (2, 7, 9) and times["b"] == (5, 0, 5)


def test_slow_competitors_have_at_least_three_turns(clock):
    turns = []
    race({"a": Work(lambda: (turns.append(1), clock(10)))}, 100, 45)
    assert len(turns) == 1 + 5  # after five, 50 s have passed
    turns.clear()
    race({"a": Work(lambda: (turns.append(1), clock(1000)))}, 100, 1)
    assert len(turns) == 1 + 3


def test_the_median_of_the_sum_is_not_the_sum_of_medians(clock):
    forwards, backwards = iter([0, 1, 2, 9]), iter([0, 9, 2, 1])
    times = race({"a": Work(lambda: clock(next(forwards)), lambda y: clock(next(backwards)))}, 3, 1e9)
    assert times["a"] == (2, 2, 10)


def test_what_bounds_work():
    ceiling = Ceiling(flops=100.0, bytes=10.0)
    assert ceiling.seconds(200, 1) == 2 and ceiling.seconds(1, 50) == 5


def test_a_machine_has_ceilings(monkeypatch):
    monkeypatch.setattr(timing, "PAUSE", 0)
    with threads.threads(1):
        ceiling = measure_ceiling("cpu", quick=True)
    assert 1e8 < ceiling.flops < 1e14 and 1e7 < ceiling.bytes < 1e13
