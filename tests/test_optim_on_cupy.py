"""Optimisers of CuPy's arrays, by kernels and by definition, on the stand-in for CuPy (see cupy_stand_in/)."""

from contextlib import nullcontext

import numpy as np
import pytest

import tinydiff as td
from tests import cupy_stand_in
from tinydiff import backend, ops, optim
from tinydiff.autograd.tensor import Tensor
from tinydiff.dispatch import by_definition

SHAPES = [(3, 4), (), (200,), (0, 2)]


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    with cupy_stand_in.put_in_place(monkeypatch) as module:
        yield module


def train(kind, dtype, devices, skipped=()):
    """Norms, weights, averages and state after three steps. devices: of each weight; skipped: weights without a gradient."""
    rng = np.random.default_rng(0)
    weights = [
        Tensor(backend.to_device(rng.normal(size=shape).astype(dtype), device), requires_grad=True)
        for shape, device in zip(SHAPES, devices, strict=True)
    ]
    optimizer, ema, norms = kind(weights), optim.EMA(weights, 0.9), []
    for _ in range(3):
        for i, (p, device) in enumerate(zip(weights, devices, strict=True)):
            g = rng.normal(size=p.shape).astype(dtype)
            p.grad = None if i in skipped else backend.to_device(g, device)
        norms.append(optim.clip_grad_norm(weights, 2.0))
        optimizer.step(ema)
    state = optimizer.state_dict()
    return norms, [p.numpy() for p in weights], [backend.to_numpy(a) for a in ema.averages], [state[k] for k in state]


KINDS = {
    "SGD": lambda ps: optim.SGD(ps, 0.1, 0.9, 0.1),
    "Adam": lambda ps: optim.Adam(ps, 0.1, weight_decay=0.1),
    "AdamW": lambda ps: optim.AdamW(ps, 0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("context", [nullcontext, by_definition])
@pytest.mark.parametrize(
    "devices", [["cuda"] * 4, ["cuda", "cpu", "cpu", "cuda"], ["cpu", "cuda", "cuda", "cuda"]], ids=str
)
@pytest.mark.parametrize("skipped", [(), (1,), (0, 1, 2, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_those_of_the_cpu(kind, dtype, skipped, devices, context):
    with context():
        ours = train(KINDS[kind], dtype, devices, skipped)
    expected = train(KINDS[kind], dtype, ["cpu"] * 4, skipped)
    tolerance = {np.float32: 1e-5, np.float64: 1e-13, np.float16: 1e-2}[dtype]
    for a, b in zip(ours, expected, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def test_arrays_of_different_devices_are_refused(cupy):
    weights = [Tensor(np.ones(3), requires_grad=True), Tensor(cupy.ones(3), requires_grad=True)]
    optimizer = optim.Adam(weights)
    for p in weights:
        p.grad = np.ones(3)
    with pytest.raises(ValueError, match="Adam: weight 1, its gradient and its state are on different devices"):
        optimizer.step()
    assert optimizer.steps == [0, 0] and not optimizer.state[0]


def test_a_wrong_index_on_the_device_is_an_error_at_the_next_read(cupy):
    """And no step is taken with it."""
    table = td.nn.Parameter(backend.to_device(np.ones((3, 4), np.float32), "cuda"))
    wrong, right = (backend.to_device(np.array([0, i]), "cuda") for i in (3, 2))
    rows = ops.embedding(wrong, table)
    with pytest.raises(IndexError, match=r"embedding.*0\.\.2"):
        rows.numpy()
    ops.sum(ops.embedding(right, table)).item()  # told once
    optimizer = optim.Adam([table], 0.1)
    for indices in (right, wrong, right):
        before = table.numpy().copy()
        optimizer.zero_grad()
        loss = ops.sum(ops.embedding(indices, table) ** 2)
        loss.backward()
        if indices is right:
            assert np.isfinite(optimizer.clipped_step([loss.data], 1.0)[0][0])
            assert (table.numpy()[[0, 2]] != before[[0, 2]]).all()
        else:
            with pytest.raises(IndexError, match="embedding"):
                optimizer.clipped_step([loss.data], 1.0)
            np.testing.assert_array_equal(table.numpy(), before)
    with pytest.raises(IndexError, match=r"embedding: indices 0\.\.3"):  # of the host's indices at once
        ops.embedding(np.array([0, 3]), table)
