"""tinydiff/runs/state.py: a run with frozen weights goes on bit for bit, and only with the same ones frozen."""

import numpy as np
import pytest

import tinydiff as td
from tests.runs.test_trainer import tiny_data, tiny_unet, weights
from tinydiff.errors import InputError
from tinydiff.runs.trainer import Trainer


def trainer(out, steps, frozen=("conv_in.weight", "conv_in.bias")):
    unet = tiny_unet()
    for name, p in unet.named_parameters():
        p.requires_grad_(name not in frozen)
    config = td.TrainConfig(out=str(out), device="cpu", steps=steps, batch_size=2, preview_every=0, warmup=2)
    return Trainer(unet, td.diffusion.Diffusion(td.diffusion.Schedule.linear(20, 1e-3, 0.4)), tiny_data(), config)


def test_a_run_with_frozen_weights_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "_finish", lambda self: None)
    whole = trainer(tmp_path / "whole", 4)
    before = whole.unet.conv_in.weight.data.copy(), whole.unet.conv_out.weight.data.copy()
    whole.run()
    np.testing.assert_array_equal(whole.unet.conv_in.weight.data, before[0])
    assert not np.array_equal(whole.unet.conv_out.weight.data, before[1])
    trainer(tmp_path / "parts", 2).run()
    trainer(tmp_path / "parts", 4).run(resume=True)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)
    for frozen, told in (
        ((), "conv_in.bias was frozen"),
        (("conv_in.weight", "conv_in.bias", "conv_out.bias"), "was not"),
    ):
        with pytest.raises(InputError, match=told):
            trainer(tmp_path / "parts", 6, frozen).run(resume=True)
