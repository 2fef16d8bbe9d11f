"""Whole runs in 16 bits on the stand-in for CuPy: which kernels run, that graphs have the bits of eager steps, and how far the
losses are from those of float32."""

import csv

import numpy as np
import pytest

import tinydiff as td
from tests.runs.test_arithmetic import launched  # noqa: F401
from tests.runs.test_replays import cupy, state, trainer  # noqa: F401
from tinydiff.autograd import halves
from tinydiff.cli import main
from tinydiff.runs import replays

TOLERANCE = {"fp16": 2.0**-10, "bf16": 2.0**-7}


def losses(one):
    with open(one.folder.path / "log.csv", newline="") as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


@pytest.mark.slow
@pytest.mark.parametrize("precision", TOLERANCE)
def test_losses_are_those_of_float32_to_rounding_and_replays_have_the_bits(precision, tmp_path, monkeypatch, capsys):
    if precision == "bf16":
        pytest.importorskip("ml_dtypes", reason="gives NumPy bfloat16")
    monkeypatch.setattr(replays, "EAGER", 1)
    settings = {"classes": None, "dropout": 0.0, "steps": 4, "lr": 0.01, "warmup": 0}
    runs = {p: trainer(tmp_path / p, precision=p, **settings) for p in ("float32", precision)}
    for one in runs.values():
        one.run(graph=False)
    replayed = trainer(tmp_path / "replayed", precision=precision, **settings)
    replayed.run()
    assert replayed._replays.replaying
    for a, b in zip(state(replayed)[0], state(runs[precision])[0], strict=True):
        np.testing.assert_array_equal(a, b)
    ours, exact = losses(runs[precision]), losses(runs["float32"])
    assert 0 < np.abs(ours / exact - 1).max() < TOLERANCE[precision]
    weight = runs[precision].unet.mid_block.resnets[0].conv1.weight
    assert weight._half.array.dtype == td.precision.half(precision) and weight._half.array.base is not None
    np.testing.assert_array_equal(
        weight._half.array.get().astype(np.float32),
        weight.data.get().astype(td.precision.half(precision)).astype(np.float32),
    )
    capsys.readouterr()
    words = ["sample", str(tmp_path / precision), "--n=1", "--steps=1", "--device=cuda", "--precision", precision]
    assert main(words) == 0 and f"precision-{precision}" in capsys.readouterr().out


def test_an_update_rounds_all_weights_in_one_pass(tmp_path, monkeypatch):
    """Not each where it is used: of so many launches a step would be made."""
    found = []
    original = halves.of
    one = trainer(tmp_path, precision="fp16", steps=2, classes=None)
    one.run(graph=False)
    rounded = [w for w in one.parameters if w._half is not None]
    assert rounded and all((w._half.array.get() == w.data.get().astype(np.float16)).all() for w in rounded)

    def of(x, dtype):
        half = getattr(x, "_half", None)
        found.append(half is not None and half.count == x._version.count and half.data is x.data)
        return original(x, dtype)

    monkeypatch.setattr(halves, "of", of)
    with td.precision.mixed("fp16"):
        one.gradients(3)
    assert found and all(found)
