"""Sheets of samples: batches, memory, what is said of long ones."""

import time

import numpy as np
import pytest

import tinydiff as td
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.errors import InputError
from tinydiff.machine import limits
from tinydiff.random import Generator
from tinydiff.runs import sheets

DIFFUSION = Diffusion(Schedule.cosine(4))


def draw(n, seed=7, **options):
    unet = td.UNet(8, 1, channels=8, channel_mults=(1,), blocks_per_level=1, attention_resolutions=(), groups=4,
                   generator=Generator(seed))  # fmt: skip
    return sheets.draw_sheet(unet, DIFFUSION, Generator(1), n, steps=2, **options)


def test_more_pictures_than_a_batch(monkeypatch, capsys):
    monkeypatch.setattr(sheets, "PIXELS_AT_ONCE", 3 * 64)
    sheet = draw(7)
    assert sheet.frames[-1].shape == (7, 8, 8, 1) and sheet.frames[-1].dtype == np.uint8
    first, last = draw(3).frames[-1], draw(6).frames[-1]
    np.testing.assert_array_equal(sheet.frames[-1][:3], first)
    np.testing.assert_array_equal(sheet.frames[-1][:6], last)
    assert not np.array_equal(last[3:], first)  # each batch has noise of its own
    assert len({frame.shape for frame in draw(7, animate=True).frames}) == 1
    assert capsys.readouterr().err == ""


def test_more_pictures_than_there_is_memory_for(monkeypatch):
    monkeypatch.setattr(limits, "memory", lambda: (4 * 1000 * 64, 0))
    assert len(draw(1000).frames[-1]) == 1000
    with pytest.raises(
        InputError, match=r"^1,001 pictures on one sheet need about 250 KiB of memory, and this machine"
    ):
        draw(1001)
    with pytest.raises(InputError, match=r"^1,000 pictures on one sheet need about 5.6 MiB"):
        draw(1000, animate=True)


def test_long_sampling_is_announced(monkeypatch, capsys):
    monkeypatch.setattr(sheets, "PIXELS_AT_ONCE", 3 * 64)
    times = iter([0.0, 50.0, 100.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times, 1e9))
    draw(7)
    assert capsys.readouterr().err == "7 pictures take 3 batches, another 1m40s or so\n"
    draw(7, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("classes", "shape", "said"),
    [
        (2, (20, 10), ""),
        (4, (24, 6), "the sheet shows 6 pictures of each of the 4 classes, not 10\n"),
        (30, (25, 1), "the sheet shows the first 25 of 30 classes, a picture each\n"),
    ],
)
def test_a_sheet_of_many_classes_is_capped_and_says_so(monkeypatch, capsys, classes, shape, said):
    monkeypatch.setattr(sheets, "MOST", 25)
    unet = td.UNet(8, 1, channels=8, channel_mults=(1,), blocks_per_level=1, attention_resolutions=(), groups=4,
                   num_classes=classes, generator=Generator(0))  # fmt: skip
    sheet = sheets.draw_sheet(unet, DIFFUSION, Generator(1), steps=1)
    assert (len(sheet.frames[-1]), sheet.columns) == shape
    assert capsys.readouterr().err == said
    asked = sheets.draw_sheet(unet, DIFFUSION, Generator(1), n=60, steps=1, progress=False)
    assert len(asked.frames[-1]) == 60  # who asks for more gets them
