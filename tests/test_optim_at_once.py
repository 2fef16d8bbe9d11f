"""Adam, averages and clipping of all weights at once, by kernels, give what they give weight by weight."""

from contextlib import nullcontext

import numpy as np
import pytest

from tinydiff import optim
from tinydiff.autograd.tensor import Tensor
from tinydiff.cuda import flat as flat_memory
from tinydiff.cuda import host
from tinydiff.cuda import optim as kernels
from tinydiff.dispatch import by_definition, on_host
from tinydiff.nn import Parameter

needs_compiler = pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))
SHAPES = [(3, 5), (7,), (1,), (2, 3, 4), (0, 2), (130,)]


def make(rng, dtype=np.float32):
    return [Tensor(rng.normal(size=shape).astype(dtype), requires_grad=True) for shape in SHAPES]


def train(kind, options, steps, on, max_norm=1.0):
    rng = np.random.default_rng(0)
    weights = make(rng)
    optimizer, ema = kind(weights, 0.01, **options), optim.EMA(weights, 0.9)
    norms = []
    for _ in range(steps):
        for p in weights:
            p.grad = rng.normal(size=p.shape).astype(np.float32)
        with on():
            norms.append(optim.clip_grad_norm(weights, max_norm))
            optimizer.step(ema)
    return weights, optimizer, ema, norms


@needs_compiler
@pytest.mark.parametrize(
    "kind, options",
    [(optim.Adam, {}), (optim.Adam, {"weight_decay": 0.1, "betas": (0.8, 0.95)}), (optim.AdamW, {"weight_decay": 0.1})],
)
@pytest.mark.parametrize("max_norm", [1.0, np.inf])
def test_all_at_once_is_weight_by_weight(kind, options, max_norm):
    weights, optimizer, ema, norms = train(kind, options, 4, on_host, max_norm)
    others, other_optimizer, other_ema, other_norms = train(kind, options, 4, nullcontext, max_norm)
    np.testing.assert_allclose(norms, other_norms, rtol=1e-6)
    for p, q in zip(weights, others, strict=True):
        np.testing.assert_allclose(p.data, q.data, rtol=1e-5, atol=1e-6)
        assert p._version.count == 4
    for state, other in ((optimizer, other_optimizer), (ema, other_ema)):
        ours, expected = state.state_dict(), other.state_dict()
        assert ours.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(ours[key], value, rtol=1e-5, atol=1e-6, err_msg=key)


@needs_compiler
def test_the_arena_is_kept_from_step_to_step():
    weights, optimizer, ema, _ = train(optim.Adam, {}, 1, on_host)
    bases = [
        {id(a.base) for a in of}
        for of in ([p.data for p in weights], ema.averages, *zip(*optimizer.state, strict=True))
    ]
    assert all(len(of) == 1 for of in bases) and len(set().union(*bases)) == 4
    before = [p.data for p in weights]
    for p in weights:
        p.grad = np.ones(p.shape, np.float32)
    with on_host():
        optimizer.step(ema)
    assert all(p.data is a or np.shares_memory(p.data, a) or not a.size for p, a in zip(weights, before, strict=True))


@needs_compiler
def test_a_saved_state_goes_on_by_kernels():
    weights, optimizer, _, _ = train(optim.Adam, {}, 2, on_host)
    again = optim.Adam([Tensor(p.data.copy(), requires_grad=True) for p in weights], 0.01)
    again.load_state_dict(optimizer.state_dict())
    with on_host():
        for ps, o in ((weights, optimizer), (again.parameters, again)):
            for p in ps:
                p.grad = np.full(p.shape, 0.5, np.float32)
            o.step()
    for p, q in zip(weights, again.parameters, strict=True):
        np.testing.assert_array_equal(p.data, q.data)


@pytest.fixture
def launches(monkeypatch):
    """The shapes of the weights of each launch of Adam's kernel."""
    shapes, launch = [], kernels.launch_adam

    def noted(p, *rest):
        shapes.append(p.shape)
        launch(p, *rest)

    monkeypatch.setattr(kernels, "launch_adam", noted)
    return shapes


@needs_compiler
@pytest.mark.parametrize("case", ["all at once", "no gradient", "float64", "unequal counts", "unlike gradient"])
def test_what_cannot_go_at_once_goes_weight_by_weight(case, rng, launches):
    weights = make(rng, np.float64 if case == "float64" else np.float32)
    optimizer, ema = optim.Adam(weights, 0.01), optim.EMA(weights, 0.5)
    others = [Tensor(p.data.astype(np.float64), requires_grad=True) for p in weights]
    exact, exact_ema = optim.Adam(others, 0.01), optim.EMA(others, 0.5)

    def step(without, context):
        for i, (p, q) in enumerate(zip(weights, others, strict=True)):
            p.grad = None if i == without else rng.normal(size=p.shape).astype(p.dtype)
            q.grad = None if i == without else p.grad.astype(np.float64)
        if case == "unlike gradient":
            weights[3].grad = others[3].grad
        with by_definition():
            exact.step(exact_ema)
        with context():
            optimizer.step(ema)

    if case == "unequal counts":
        step(1, nullcontext)
    places = [p.data for p in weights]
    step(0 if case == "no gradient" else None, on_host)
    sizes = {"all at once": [sum(-(-p.data.size // 32) * 32 for p in weights)], "float64": [], "unlike gradient": [],
             "no gradient": [p.data.size for p in weights[1:]]}  # fmt: skip
    others_first = [p.data.size for p in (weights[0], *weights[2:], weights[1])]
    assert launches == [(n,) for n in sizes.get(case, others_first)]
    for p, q, place in zip(weights, others, places, strict=True):
        np.testing.assert_allclose(p.data, q.data, rtol=1e-6, atol=1e-6)
        assert (p.data is place) == (case != "all at once") and p.dtype == place.dtype
    for ours, expected in ((optimizer, exact), (ema, exact_ema)):
        ours, expected = ours.state_dict(), expected.state_dict()
        assert ours.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(ours[key], value, rtol=1e-5, atol=1e-6, err_msg=key)


@needs_compiler
def test_a_norm_that_is_not_finite_leaves_the_gradients(rng):
    weights = make(rng)
    for p in weights:
        p.grad = np.ones_like(p.data)
    weights[0].grad[0, 0] = np.inf
    with on_host():
        assert optim.clip_grad_norm(weights, 1.0) == np.inf
    assert all((p.grad[np.isfinite(p.grad)] == 1).all() for p in weights)


def test_averages_of_other_weights_are_refused(rng):
    weights, others = make(rng), make(rng)
    for p in weights:
        p.grad = np.ones_like(p.data)
    with pytest.raises(ValueError, match="other weights"):
        optim.Adam(weights).step(optim.EMA(others))


def test_an_average_that_updates_in_its_own_way_is_asked(rng):
    class Every(optim.EMA):
        def update(self):
            self.averages = [p.data.copy() for p in self.parameters]

    weights = make(rng)
    for p in weights:
        p.grad = np.ones_like(p.data)
    ema = Every(weights)
    optim.Adam(weights).step(ema)
    assert all(np.array_equal(a, p.data) for a, p in zip(ema.averages, weights, strict=True)) and not ema.updates


@needs_compiler
def test_the_gaps_between_arrays_stay_zero():
    weights, optimizer, ema, _ = train(optim.Adam, {}, 3, on_host)
    for array in (weights[0].data, ema.averages[0], *optimizer.state[0]):
        flat = array.base
        inside = np.zeros(flat.size, bool)
        for part in flat_memory.part(inside, [p.data for p in weights]):
            part[...] = True
        assert not flat[~inside].any()


@needs_compiler
@pytest.mark.parametrize("on", [on_host, nullcontext, by_definition])
@pytest.mark.parametrize(
    "losses, broken", [([1.0], False), ([1.0, 3.0], False), ([np.inf], True), ([2.0, np.nan], True)]
)
def test_a_step_with_clipping_is_both_one_after_the_other(on, losses, broken, rng):
    """And where a loss or the norm is not finite, nothing changes."""
    values = [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]
    slopes = [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]
    losses = [np.array(loss, np.float32) for loss in losses]
    results = []
    for clipped in (True, False):
        weights = [Tensor(v.copy(), requires_grad=True) for v in values]
        for p, g in zip(weights, slopes, strict=True):
            p.grad = g.copy()
        optimizer, ema = optim.AdamW(weights, 0.1, weight_decay=0.1), optim.EMA(weights, 0.9)
        with on():
            if clipped:
                numbers, norm = optimizer.clipped_step(losses, 1.0, ema)
                np.testing.assert_array_equal(numbers, losses)
            else:
                norm = optim.clip_grad_norm(weights, 1.0)
                optimizer.step(ema) if not broken else None
        results.append([norm, optimizer.steps, ema.updates, *(p.data for p in weights), *ema.averages])
    assert results[0][1:3] == results[1][1:3]
    for ours, expected in zip(*results, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


@needs_compiler
@pytest.mark.parametrize("on", [on_host, nullcontext])
def test_a_norm_that_is_not_finite_changes_no_weight(on, rng):
    weights = make(rng)
    before = [p.data.copy() for p in weights]
    for p in weights:
        p.grad = np.full(p.shape, np.nan, np.float32)
    with on():
        numbers, norm = optim.Adam(weights, 0.1).clipped_step([np.ones((), np.float32)], 1.0)
    assert numbers == [1.0] and not np.isfinite(norm)
    for p, data in zip(weights, before, strict=True):
        np.testing.assert_array_equal(p.data, data)


@needs_compiler
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("on", [on_host, nullcontext, by_definition])
def test_a_step_with_an_overflow_is_left_out_and_counted(on, frozen, rng):
    """The next one divides the gradient by half the loss scale. frozen: one weight, so that no pass can update all."""
    slopes = [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]
    results = []
    for scaled in (True, False):
        weights = [Parameter(np.ones(shape, np.float32)) for shape in SHAPES]
        weights[0].requires_grad_(not frozen)
        optimizer, ema = optim.Adam(weights, 0.1), optim.EMA(weights, 0.9)
        loss_scale, S = np.array([2.0**15, 7], np.float32) if scaled else None, 2.0**14 if scaled else 1.0
        losses = [np.ones((), np.float32)]
        with on():
            if scaled:
                for p in weights:
                    p.grad = np.full(p.shape, np.inf, np.float32)
                numbers, norm = optimizer.clipped_step(losses, 1.0, ema, None, loss_scale)
                assert numbers == [1, 2.0**15] and not np.isfinite(norm)
                np.testing.assert_array_equal(loss_scale, [S, 0])
                assert all((p.data == 1).all() for p in weights)
            else:
                optimizer.steps, ema.updates = [int(p.requires_grad) for p in weights], 1
                optimizer.state = [[np.zeros_like(p.data), np.zeros_like(p.data)] for p in weights]
            for p, g in zip(weights, slopes, strict=True):
                p.grad = np.float32(S) * g
            numbers, norm = optimizer.clipped_step(losses, 1.0, ema, None, loss_scale)
            assert numbers == ([1, S] if scaled else [1])
        results.append([norm, optimizer.steps, ema.updates, *(p.data for p in weights), *ema.averages])
    for ours, expected in zip(*results, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)
