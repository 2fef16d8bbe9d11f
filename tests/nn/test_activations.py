"""tinydiff/nn/activations.py: modules that do what the operations of the same names do, with options handed on."""

import inspect

import numpy as np
import pytest

from tinydiff import nn, ops
from tinydiff.autograd.tensor import Tensor
from tinydiff.nn import activations

CASES = {
    nn.Identity: [((), lambda x: x)],
    nn.ReLU: [((), lambda x: np.maximum(x, 0))],
    nn.SiLU: [((), lambda x: x / (1 + np.exp(-x)))],
    nn.GELU: [((), lambda x: ops.gelu(x).data), (("tanh",), lambda x: ops.gelu(x, "tanh").data)],
    nn.Tanh: [((), np.tanh)],
    nn.Sigmoid: [((), lambda x: 1 / (1 + np.exp(-x)))],
    nn.Softplus: [((), lambda x: np.log1p(np.exp(x)))],
    nn.Softmax: [((axis,), lambda x, axis=axis: np.exp(x) / np.exp(x).sum(axis, keepdims=True)) for axis in (-1, 1)],
    nn.LogSoftmax: [((axis,), lambda x, axis=axis: x - np.log(np.exp(x).sum(axis, keepdims=True))) for axis in (-1, 1)],
    nn.Flatten: [((), lambda x: x.reshape(2, -1)), ((2,), lambda x: x.reshape(2, 4, -1))],
    nn.MaxPool2d: [
        ((2,), lambda x: x.reshape(2, 2, 2, 2, 2, 3).max((2, 4))),
        (((2, 1), 1, (1, 0)), lambda x: ops.max_pool2d(x, (2, 1), 1, (1, 0)).data),
    ],
    nn.AvgPool2d: [
        ((2,), lambda x: x.reshape(2, 2, 2, 2, 2, 3).mean((2, 4))),
        (((2, 1), 1, (1, 0)), lambda x: ops.avg_pool2d(x, (2, 1), 1, (1, 0)).data),
    ],
}


@pytest.mark.parametrize("module", CASES, ids=lambda module: module.__name__)
def test_values(module, rng):
    x = rng.normal(size=(2, 4, 4, 3))
    for options, expected in CASES[module]:
        layer = module(*options)
        np.testing.assert_allclose(layer(Tensor(x)).data, expected(x), rtol=1e-12, atol=1e-12)
        assert list(layer.parameters()) == [] and layer.state_dict() == {}


def test_none_is_left_out():
    assert {
        m for _, m in inspect.getmembers(activations, inspect.isclass) if m.__module__ == activations.__name__
    } == set(CASES)


def test_an_unknown_gelu_is_refused_when_it_is_made():
    with pytest.raises(ValueError, match="approximate"):
        nn.GELU("fast")


def test_a_classifier_as_it_is_usually_written(rng):
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3)
    )
    x, labels = rng.normal(size=(5, 8, 8, 1)).astype(np.float32), np.array([0, 1, 2, 0, 1])
    ops.cross_entropy(net(x), labels).backward()
    assert all(p.grad is not None and np.isfinite(p.grad).all() for p in net.parameters())
