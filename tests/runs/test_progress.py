"""What a long loop says."""

import io
import sys
import time

import pytest

from tinydiff.runs.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch):
    """A function that lets time pass."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_lines_say_what_the_time_left_is_for(clock, capsys):
    progress = Progress(10, 20)
    for step in range(11, 21):
        clock(10)
        progress.update(step, 0.5, 32.4)
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 11/20  loss 0.5000  32 images/s  1m30s left"
    assert [line.split()[1] for line in lines] == ["11/20", "13/20", "15/20", "17/20", "19/20", "20/20"]
    assert lines[-1].endswith("  0s left")


def test_a_bar_says_what_it_is_for(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress(0, 3)
    for step in (1, 2, 3):
        progress.update(step, 0.25, 10)
    progress.close()
    last = terminal.getvalue().split("\r")[-1]
    assert last.startswith("training: 100%") and "3/3" in last and "loss 0.2500, 10 images/s" in last


def test_durations_for_people():
    assert [duration(s) for s in (0.4, 45, 130, 4000)] == ["0s", "45s", "2m10s", "1h06m"]


@pytest.mark.parametrize(
    "error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device")], ids=repr
)
def test_a_line_that_cannot_be_written_ends_nothing(error, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise error

    monkeypatch.setattr(sys, "stderr", Closed())
    progress = Progress(0, 2, seconds=0)
    for step in (1, 2):
        progress.update(step, 0.5, 3.0)
    progress.close()
