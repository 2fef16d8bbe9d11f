"""Gradients of several backward passes, added up in one piece on the stand-in for CuPy."""

import sys

import numpy as np
import pytest

import tinydiff as td
from tests import cupy_stand_in
from tinydiff import backend, optim
from tinydiff.runs.sums import Sums


@pytest.fixture
def cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", cupy_stand_in.make())
    backend.cupy.cache_clear()
    yield
    backend.cupy.cache_clear()


def gradients(device, steps, use_sums, unused=()):
    """The gradients of each step of three passes; `unused`: (pass, weight) that takes no part."""
    rng = np.random.default_rng(0)
    shapes = [(3, 4), (4,), (), (2, 5)]
    weights = [td.Tensor(rng.normal(size=s).astype(np.float32), requires_grad=True).to(device) for s in shapes]
    weights = [td.nn.Parameter(w.data) for w in weights]
    optimizer, found = optim.Adam(weights, 1e-3), []
    sums = Sums(weights if use_sums else ())
    for _ in range(steps):
        optimizer.zero_grad()
        for part in range(3):
            factors = [backend.to_device(rng.normal(size=s).astype(np.float32), device) for s in shapes]
            terms = [
                (w * f).sum() for i, (w, f) in enumerate(zip(weights, factors, strict=True)) if (part, i) not in unused
            ]
            sums.before(first=part == 0)
            sum(terms[1:], terms[0]).backward()
            sums.after()
        found.append([None if w.grad is None else backend.to_numpy(w.grad).copy() for w in weights])
        optimizer.step()
    return found


@pytest.mark.parametrize("unused", [(), ((0, 1),), ((1, 1),), ((2, 3),), ((0, 0), (1, 0), (2, 0))], ids=str)
def test_the_sums_are_those_of_the_tape(unused, cupy):
    for ours, theirs in zip(gradients("cuda", 3, True, unused), gradients("cpu", 3, False, unused), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            if b is not None:
                np.testing.assert_array_equal(a, b)


def test_on_the_cpu_the_tape_adds():
    for ours, theirs in zip(gradients("cpu", 2, True), gradients("cpu", 2, False), strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
