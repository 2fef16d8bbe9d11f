"""What a step gives the GPU to do, counted on the stand-in for CuPy: ceilings, so that a regression fails.

Where work is small, the GPU waits for Python, which takes about the same time for each launch, however small. A copy to
the device and a synchronisation cost more, and neither is possible inside a CUDA graph.
"""

import numpy as np
import pytest

import tinydiff as td
from tests import cupy_stand_in
from tests.runs.test_trainer import tiny_data, tiny_unet
from tinydiff.diffusion import Diffusion, Schedule, sample
from tinydiff.random import Generator


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    with cupy_stand_in.put_in_place(monkeypatch) as module:
        yield module


KINDS = ("launches of kernels", "launches of CuPy", "copies to the device", "synchronisations", "allocations")


def counted(work):
    """What the second of two calls took, in the order of KINDS; the first warms up."""
    work()
    cupy_stand_in.COUNTS.clear()
    work()
    return np.array([cupy_stand_in.COUNTS[kind] for kind in KINDS])


def refuse_above(ceilings, counts):
    """Fails above a ceiling; also far below one, which has to follow the counts."""
    counts = tuple(map(int, counts))
    assert all(0.9 * most <= n <= most for n, most in zip(counts, ceilings, strict=True)), (
        f"{counts} {', '.join(KINDS)}; the ceilings are {ceilings}"
    )


TRAINING = [
    ({}, (296, 18, 0, 1, 348)),
    ({"classes": 3, "dropout": 0.1}, (298, 22, 0, 1, 353)),
    ({"accumulate": 2}, (587, 38, 0, 1, 695)),
]


@pytest.mark.parametrize("options, ceilings", TRAINING, ids=["plain", "labels and dropout", "two parts"])
def test_a_training_step(options, ceilings, tmp_path):
    settings = dict(options)
    classes, dropout = settings.pop("classes", None), settings.pop("dropout", 0.0)
    config = td.TrainConfig(device="cuda", steps=9, batch_size=2, out=str(tmp_path), **settings)
    unet, diffusion = tiny_unet(classes, dropout), Diffusion(Schedule.cosine(50))
    trainer, steps = td.Trainer(unet, diffusion, tiny_data(classes=classes), config), iter((1, 2))
    refuse_above(ceilings, counted(lambda: trainer.train_step(next(steps))))


@pytest.mark.parametrize(
    "guidance, ceilings", [(None, (80, 15, 2, 0, 163)), (2.0, (81, 22, 2, 0, 171))], ids=["plain", "guided"]
)
def test_a_step_of_sampling(guidance, ceilings):
    unet = tiny_unet(None if guidance is None else 3).to("cuda")
    diffusion, labels = Diffusion(Schedule.cosine(50)), None if guidance is None else 1

    def draw(steps):
        sample(unet, diffusion, (1, 8, 8, 1), Generator(1), "ddim", steps, labels=labels, guidance=guidance,
               progress=False)  # fmt: skip

    refuse_above(ceilings, counted(lambda: draw(2)) - counted(lambda: draw(1)))
