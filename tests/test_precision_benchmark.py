"""tests/benchmarks/precisions.py: its loop is the trainer's, a scaled loss changes nothing, an overflow skips a step."""

import json

import numpy as np
import pytest

import tinydiff as td
from tests.benchmarks import precisions
from tests.benchmarks.precisions import LossScale, train


def trainer(steps=3, **settings):
    unet = td.UNet(4, 1, channels=4, channel_mults=(1,), blocks_per_level=1, attention_resolutions=(4,), groups=2,
                   dropout=0.1, generator=td.random.Generator(1))  # fmt: skip
    data = td.data.Dataset(np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1)).astype(np.uint8), source="tiny")
    config = td.TrainConfig(device="cpu", steps=steps, batch_size=2, warmup=1, out="none", **settings)
    return td.Trainer(unet, td.diffusion.Diffusion(td.diffusion.Schedule.cosine(50)), data, config)


def state(one):
    return np.concatenate([a.ravel() for p in one.parameters for a in (p.data, *one.optimizer.state[0])])


def test_its_float32_is_the_trainers_with_and_without_a_scale():
    runs = [trainer(clip=0.0) for _ in range(3)]
    losses = [runs[0].train_step(step)[0] for step in (1, 2, 3)]
    assert train(runs[1], "float32") == train(runs[2], "float32", LossScale()) == losses
    for other in runs[1:]:
        np.testing.assert_array_equal(state(other), state(runs[0]))


def test_an_overflow_skips_a_step_and_halves_the_scale():
    one, scale = trainer(steps=1), LossScale(2.0**40)
    before = [p.data.copy() for p in one.parameters]
    train(one, "fp16", scale)
    assert (scale.factor, scale.skipped, scale.good) == (2.0**39, 1, 0) and one.optimizer.steps[0] == 0
    for p, a in zip(one.parameters, before, strict=True):
        np.testing.assert_array_equal(p.data, a)
    scale = LossScale(good_in_a_row=2)
    train(one := trainer(), "fp16", scale)
    assert (scale.factor, scale.skipped, scale.good) == (2.0**16, 0, 1) and one.optimizer.steps[0] == 3


def test_distances_are_from_float32_of_the_same_seed():
    rows = [
        {"precision": p, "seed": s, "last third": a, "other glyphs": b, "skipped": 0, "seconds": 1.0}
        for p, s, a, b in (("float32", 0, 2, 1), ("bf16", 0, 2.2, 1), ("float32", 1, 4, 1), ("bf16", 1, 3.6, 1))
    ]
    assert precisions.distances(rows) == {"bf16": pytest.approx({"last third": 0.1, "other glyphs": 0})}
    assert "10.00 %" in precisions.show(rows)


@pytest.mark.slow
def test_thirty_steps_of_a_small_network(tmp_path, capsys):
    """Each precision differs from float32, by less than the bound. What was computed is not computed again."""
    words = ["--small", "--steps", "30", "--seeds", "1", "--out", str(tmp_path / "found.json")]
    assert precisions.main(words) == 0
    rows = json.loads((tmp_path / "found.json").read_text())["runs"]
    assert len({row["other glyphs"] for row in rows}) == len(rows) == 4 and not any(row["skipped"] for row in rows)
    assert all(row["last third"] < 0.8 * row["losses"][0] for row in rows)  # they learn
    capsys.readouterr()
    assert precisions.main(words) == 0 and "'precision'" not in capsys.readouterr().out
