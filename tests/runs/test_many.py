"""tinydiff/runs/many.py; what the command line makes of it is in tests/cli/test_sample_uses.py."""

import pytest

from tests.runs.test_trainer import tiny_unet
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.errors import InputError
from tinydiff.runs.many import draw_many


def test_wrong_arguments_leave_nothing_behind(tmp_path):
    model = tiny_unet(3, 0.0), Diffusion(Schedule.linear(20, 1e-3, 0.4))
    for wrong in ({"sampler": "dmp++"}, {"steps": 0}, {"eta": -1.0}, {"guidance": float("nan")}):
        with pytest.raises((InputError, ValueError)):
            draw_many(tmp_path / "drawn", *model, 2, progress=False, **({"steps": 2} | wrong))
        assert not (tmp_path / "drawn").exists(), wrong
    assert draw_many(tmp_path / "drawn", *model, 2, steps=2, progress=False) == 2
