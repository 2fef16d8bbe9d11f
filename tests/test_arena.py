"""tinydiff/arena.py: Adam, averages and clipping by kernels give what they give weight by weight."""

from contextlib import nullcontext

import numpy as np
import pytest

from tinydiff import arena, optim
from tinydiff.autograd.tensor import Tensor
from tinydiff.cuda import host
from tinydiff.dispatch import on_host

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


@needs_compiler
@pytest.mark.parametrize("case", ["no gradient", "float64", "unequal counts"])
def test_what_kernels_do_not_take_goes_weight_by_weight(case, rng):
    weights = make(rng, np.float64 if case == "float64" else np.float32)
    optimizer = optim.Adam(weights, 0.01)
    for p in weights:
        p.grad = np.ones_like(p.data)
    if case == "unequal counts":
        weights[1].grad = None
        optimizer.step()
        weights[1].grad = np.ones_like(weights[1].data)
    if case == "no gradient":
        weights[0].grad = None
    before = [p.data.copy() for p in weights]
    with on_host():
        assert not arena.adam_step(optimizer, None)
        optimizer.step()
    for i, (p, old) in enumerate(zip(weights, before, strict=True)):
        moved = not (case == "no gradient" and i == 0)
        assert np.all((p.data != old) == moved) and p.data.dtype == old.dtype


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


@needs_compiler
def test_every_array_starts_at_a_cache_line_and_the_gaps_stay_zero():
    weights, optimizer, ema, _ = train(optim.Adam, {}, 3, on_host)
    for array in (weights[0].data, ema.averages[0], *optimizer.state[0]):
        flat = array.base
        inside = np.zeros(flat.size, bool)
        for part in arena.part(inside, [p.data for p in weights]):
            assert (part.ctypes.data - inside.ctypes.data) % 32 == 0
            part[...] = True
        assert not flat[~inside].any()


@pytest.mark.parametrize("change", ["order", "gap", "copy", "part"])
def test_arrays_that_do_not_fill_a_piece_of_memory_are_copied(change):
    flat, (a, b) = arena.join([np.ones((2, 3)), np.zeros(4)])
    assert arena.join([a, b])[0] is flat
    other = {"order": [b, a], "gap": [a, b[1:]], "copy": [a, b.copy()], "part": [a]}[change]
    joined, views = arena.join(other)
    assert joined is not flat
    for view, array in zip(views, other, strict=True):
        np.testing.assert_array_equal(view, array)
