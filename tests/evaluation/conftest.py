"""Random pictures, and a run of two steps on them."""

import numpy as np
import pytest

from tinydiff.evaluation import features
from tinydiff.runs import building
from tinydiff.runs.config import RunConfig
from tinydiff.runs.trainer import Trainer


def _pictures(n, seed=0, size=8, channels=1):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def _make_run(out, variance="beta", holdout=0.25, labelled=True):
    file = out.parent / f"{out.name}.npz"
    arrays = {"images": _pictures(40)} | ({"labels": np.arange(40) % 3} if labelled else {})
    np.savez(file, **arrays)
    config = RunConfig(
        out=str(out), data=str(file), steps=2, batch_size=4, preview_every=0, holdout=holdout, channels=8,
        mults=(1, 2), attention=(4,), groups=4, timesteps=20, variance=variance, labels=labelled, device="cpu",
    )  # fmt: skip
    data = building.load_data(config)
    config = building.resolve(config, data)
    trainer = Trainer(building.build_network(config, data), building.build_diffusion(config), data, config)
    trainer._finish = lambda: None  # no pictures
    trainer.run()
    return out


@pytest.fixture(scope="session")
def pictures():
    """A function that makes n random pictures, uint8 (n, size, size, channels)."""
    return _pictures


@pytest.fixture(scope="session")
def make_run():
    """A function that trains two steps on 40 random pictures in the folder given."""
    return _make_run


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A labelled run with 10 of its 40 pictures held out."""
    return _make_run(tmp_path_factory.mktemp("evaluation") / "run")


@pytest.fixture(autouse=True, scope="package")
def quick_features():
    """Features that are hardly trained."""
    before, features.STEPS = features.STEPS, 3
    yield
    features.STEPS = before
