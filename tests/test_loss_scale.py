"""fp16's loss scale in the optimiser: gradients divided by it, steps left out, and the kernel that moves it."""

import numpy as np
import pytest

import tinydiff as td


@pytest.fixture(params=[False, True], ids=["all weights", "a frozen one"])
def scaled(request):
    """Weights, their optimiser and average, and a function that makes a step of gradients times a scale."""
    weights = [td.nn.Parameter(np.ones(3, np.float32)) for _ in range(2)]
    weights[1].requires_grad = not request.param
    adam, ema = td.optim.Adam(weights, 0.1), td.optim.EMA(weights, 0.5)

    def step(g, state, loss=1.0):
        for w in weights:
            w.grad = np.full(3, g, np.float32) if w.requires_grad else None
        return adam.clipped_step([np.float32(loss).reshape(())], 1.0, ema, loss_scale=state)

    return weights, adam, ema, step


def test_a_step_is_that_of_the_gradients_without_the_scale(scaled):
    weights, adam, _, step = scaled
    state = np.float32([1024, 1999])
    numbers, norm = step(1024 * 0.25, state)
    assert numbers == [1, 1024] and state.tolist() == [2048, 0]
    assert norm == np.sqrt(3 * len([w for w in weights if w.requires_grad])) * 0.25
    plain = td.Tensor(np.ones(3, np.float32), requires_grad=True)
    plain.grad = np.full(3, 0.25, np.float32)
    td.optim.Adam([plain], 0.1).clipped_step([np.float32(1).reshape(())], 1.0)
    np.testing.assert_array_equal(weights[0].data, plain.data)
    assert adam.steps[0] == 1


@pytest.mark.parametrize(("g", "loss"), [(np.inf, 1.0), (np.nan, 1.0), (1.0, np.nan)])
def test_an_overflow_changes_nothing_but_the_counters(scaled, g, loss):
    weights, adam, ema, step = scaled
    state = np.float32([4, 7])
    step(1.0, state)
    before = [a.copy() for a in (weights[0].data, weights[1].data, *adam.state[0], *ema.averages)]
    numbers, norm = step(g, state, loss)
    assert numbers[1] == 4 and not np.isfinite([numbers[0], norm]).all() and state.tolist() == [2, 0]
    for a, b in zip((weights[0].data, weights[1].data, *adam.state[0], *ema.averages), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert adam.steps[0] == ema.updates == 2
    state[0] = 1
    step(g, state, loss)  # a failure, which does not count
    assert adam.steps[0] == ema.updates == 2 and state.tolist() == [1, 0]
