"""nn.BatchNorm and buffers: running averages against their definition, and what is saved, moved and cast with a module."""

import copy

import numpy as np
import pytest

import tinydiff as td
from tinydiff import nn


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
def test_running_averages(rng, momentum):
    norm = nn.BatchNorm(3, momentum=momentum)
    mean, variance = np.zeros(3), np.ones(3)
    for k in range(1, 4):
        x = rng.normal(k, k, (4, 2, 3)).astype(np.float32)
        share = 1 / k if momentum is None else momentum
        rows = x.reshape(-1, 3).astype(np.float64)
        mean, variance = mean + share * (rows.mean(0) - mean), variance + share * (rows.var(0, ddof=1) - variance)
        y = norm(x)
        np.testing.assert_allclose(
            y.data.reshape(-1, 3), (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5), atol=1e-5
        )
    np.testing.assert_allclose(norm.running_mean.data, mean, rtol=1e-5)
    np.testing.assert_allclose(norm.running_var.data, variance, rtol=1e-5)
    assert norm.num_batches_tracked.data == 3
    before = norm.state_dict()
    y = norm.eval()(x)
    expected = (x - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(y.data, expected, rtol=1e-4, atol=1e-5)
    assert all((before[name] == array).all() for name, array in norm.state_dict().items())


def test_evaluation_passes_no_gradient_through_the_averages(rng):
    norm = nn.BatchNorm(2).eval()
    norm.running_var.data[:] = [3, 8]
    norm.weight.data[:] = [2, 3]
    x, L_Y = td.Tensor(rng.normal(size=(3, 2)), requires_grad=True), rng.normal(size=(3, 2))
    norm(x).backward(L_Y)
    np.testing.assert_allclose(x.grad, L_Y * [2, 3] / np.sqrt(np.array([3, 8]) + 1e-5), rtol=1e-6)


def test_averages_that_move_later_do_not_change_a_gradient(rng):
    x, later, L_Y = (rng.normal(size=(3, 2)) for _ in range(3))
    norm = nn.BatchNorm(2)
    gradients = []
    for moved in (False, True):
        y = norm.eval()(x)
        norm.train()
        if moved:
            norm(later)
        norm.weight.grad = None
        y.backward(L_Y)
        gradients.append(norm.weight.grad)
    np.testing.assert_array_equal(*gradients)


def test_recompute_moves_the_averages_once(rng):
    one = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm(3))
    two = copy.deepcopy(one)
    x = rng.normal(size=(4, 3)).astype(np.float32)
    L_Y = rng.normal(size=(4, 3)).astype(np.float32)
    one(td.Tensor(x)).backward(L_Y)
    td.recompute(two, td.Tensor(x)).backward(L_Y)
    assert two[1].num_batches_tracked.data == 1
    for (name, a), b in zip(one.named_buffers(), two.buffers(), strict=True):
        np.testing.assert_array_equal(a.data, b.data, err_msg=name)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        np.testing.assert_array_equal(a.grad, b.grad)


def test_buffers_are_kept_with_the_weights_but_are_not_learned():
    net = nn.Sequential(nn.BatchNorm(2), nn.Linear(2, 1))
    assert [name for name, _ in net.named_parameters()] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert [name for name, _ in net.named_buffers()] == ["0.running_mean", "0.running_var", "0.num_batches_tracked"]
    net(np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32))
    state = net.state_dict()
    assert state["0.num_batches_tracked"].shape == () and state["0.num_batches_tracked"].dtype == np.int64
    other = nn.Sequential(nn.BatchNorm(2), nn.Linear(2, 1))
    other.load_state_dict(state)
    assert all((a == state[name]).all() for name, a in other.state_dict().items())
    with pytest.raises(td.errors.InputError, match=r"1 are missing, 0.running_mean"):
        other.load_state_dict({name: a for name, a in state.items() if name != "0.running_mean"})
    net.astype(np.float64)
    assert net[0].running_mean.dtype == np.float64 and net[0].num_batches_tracked.dtype == np.int64
    assert net.to("cpu") is net and not any(b.requires_grad for b in net.buffers())
    assert not any(b.requires_grad for b in net.requires_grad_(True).buffers())


def test_what_makes_no_batch_norm():
    with pytest.raises(ValueError, match="BatchNorm: momentum must be"):
        nn.BatchNorm(2, momentum=1.5)
    with pytest.raises(ValueError, match="BatchNorm: channels must be a whole number"):
        nn.BatchNorm(0)
    with pytest.raises(ValueError, match="has 1 element in a channel"):
        nn.BatchNorm(2)(np.ones((1, 2)))
    assert nn.BatchNorm(2).eval()(np.ones((1, 2))).shape == (1, 2)
