"""The operations that are measured: their work is what is claimed, they run, and they are the network's own."""

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd import tape
from tinydiff.bench.cases import GLYPHS, Case, _flops_of_step, all_cases
from tinydiff.machine import threads
from tinydiff.nn import layers
from tinydiff.unet import UNet

CASES = {case.name: case for case in all_cases(quick=True)}


@pytest.mark.parametrize("name", CASES)
def test_every_case_runs(name):
    case, operations = CASES[name], []

    def note(op, phase, arrays, options):
        operations.append((type(op).__name__, phase))
        return getattr(op, phase)(*arrays, **options)

    with threads.threads(1), tape.observing(note):
        work = case.work("cpu")
        for _ in range(2):
            y = work.forward()
            if work.backward is not None:
                assert np.isfinite(y.data).all()
                work.backward(y)
    if case.kind == "adam":
        assert not operations
        return
    assert {phase for _, phase in operations} == {"forward", "backward"}
    network = UNet(**GLYPHS)
    own = []
    with tape.observing(
        lambda op, phase, arrays, options: own.append(type(op).__name__) or getattr(op, phase)(*arrays, **options)
    ):
        network(np.zeros((1, 28, 28, 1), np.float32), 1)
    if case.kind not in ("norm", "linear"):  # the network may have them only as parts of something larger
        assert {op for op, _ in operations} <= {*own, "Attention"}, "the network does this in another way"


def test_names_are_told_apart():
    names = [case.name for case in all_cases()]
    assert len(set(names)) == len(names)


def test_the_work_of_a_convolution():
    case = CASES["conv 3x3 64 -> 64 at 14"]
    assert case.flops == 2 * 32 * 14 * 14 * 3 * 3 * 64 * 64
    assert case.bytes == 4 * (2 * 32 * 14 * 14 * 64 + 3 * 3 * 64 * 64)


def test_the_work_of_a_step_grows_with_the_batch():
    assert _flops_of_step(4) == 4 * _flops_of_step(1)
    exact = 2 * 28 * 28 * 9 * 32 * (1 + 1)  # first and last layer alone
    assert 50 * 3 * exact < _flops_of_step(1) < 500 * 3 * exact


def test_several_products_of_one_input_count_as_many(monkeypatch):
    together = _flops_of_step(1)
    monkeypatch.setattr(layers, "linears", lambda x, layers: [ops.linear(x, w, b) for w, b in layers])
    assert _flops_of_step(1) == together


def test_sizes_reach_what_makes_the_work():
    case = Case("tiny", "linear", {"rows": 5, "d": 3, "m": 2}, 0, 0)
    work = case.work("cpu")
    y = work.forward()
    work.backward(y)
    assert y.shape == (5, 2)
