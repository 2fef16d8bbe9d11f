"""Optimisers against the recursions in their papers; averaging, clipping and warm-up against their definitions."""

import math
from contextlib import nullcontext

import numpy as np
import pytest

import tinydiff as td
from tinydiff.dispatch import by_definition
from tinydiff.errors import InputError
from tinydiff.machine.threads import threads
from tinydiff.nn import Parameter
from tinydiff.optim import EMA, SGD, Adam, AdamW, clip_grad_norm, warmup

SHAPES = [(3, 4), (), (200, 400)]  # the last one is larger than a block


@pytest.fixture(params=[nullcontext, by_definition], ids=["fast", "by definition"], autouse=True)
def computed(request):
    with request.param():
        yield


def make(rng, dtype=np.float64):
    return [Parameter(rng.normal(size=shape).astype(dtype)) for shape in SHAPES]


def gradients(rng, steps, dtype=np.float64):
    return [[rng.normal(size=shape).astype(dtype) for shape in SHAPES] for _ in range(steps)]


def run(optimizer, parameters, grads):
    for step in grads:
        for p, g in zip(parameters, step, strict=True):
            p.grad = g.copy()
        optimizer.step()


def adam_by_the_paper(p, grads, lr, beta1, beta2, eps, l2=0.0, decoupled=0.0):
    """Kingma & Ba (2015), algorithm 1, line by line; Loshchilov & Hutter (2019), algorithm 2, for the decay."""
    m = v = 0.0
    for t, g in enumerate(grads, start=1):
        g = g + l2 * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        p = p - lr * decoupled * p - lr * m_hat / (np.sqrt(v_hat) + eps)
    return p


@pytest.mark.parametrize(
    ("cls", "options", "paper"),
    [
        (Adam, {"lr": 0.02}, (0.02, 0.9, 0.999, 1e-8)),
        (Adam, {"lr": 0.02, "betas": (0.5, 0.8), "eps": 0.1}, (0.02, 0.5, 0.8, 0.1)),
        (Adam, {"lr": 0.02, "betas": (0.0, 0.0)}, (0.02, 0.0, 0.0, 1e-8)),
        (Adam, {"weight_decay": 0.3}, (1e-3, 0.9, 0.999, 1e-8, 0.3)),
        (AdamW, {"lr": 0.02, "weight_decay": 0.3}, (0.02, 0.9, 0.999, 1e-8, 0.0, 0.3)),
        (AdamW, {}, (1e-3, 0.9, 0.999, 1e-8, 0.0, 0.01)),
    ],
)
def test_adam_is_the_papers(rng, cls, options, paper):
    parameters, grads = make(rng), gradients(rng, 5)
    expected = [adam_by_the_paper(p.data, [g[i] for g in grads], *paper) for i, p in enumerate(parameters)]
    run(cls(parameters, **options), parameters, grads)
    for p, e in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(p.data, e, rtol=1e-13, atol=1e-14)


def test_adam_in_float32_keeps_its_dtype_and_accuracy(rng):
    parameters, grads = make(rng, np.float32), gradients(rng, 20, np.float32)
    start = [p.data.astype(np.float64) for p in parameters]
    optimizer = Adam(parameters, lr=0.01)
    run(optimizer, parameters, grads)
    for i, p in enumerate(parameters):
        expected = adam_by_the_paper(start[i], [g[i].astype(np.float64) for g in grads], 0.01, 0.9, 0.999, 1e-8)
        assert p.dtype == np.float32 and all(a.dtype == np.float32 for a in optimizer.state[i])
        np.testing.assert_allclose(p.data, expected, rtol=0, atol=2e-6)


def test_sgd_by_hand():
    p = Parameter(np.array([1.0, -2.0]))
    run(SGD([p], lr=0.1), [p], [[np.array([1.0, 4.0])]])
    np.testing.assert_allclose(p.data, [0.9, -2.4], rtol=1e-15)
    p = Parameter(np.array([1.0]))
    run(SGD([p], lr=0.1, momentum=0.5, weight_decay=0.2), [p], [[np.array([3.0])], [np.array([1.0])]])
    # v1 = 3 + .2 = 3.2, p1 = .68; v2 = 1.6 + 1 + .136 = 2.736, p2 = .4064
    np.testing.assert_allclose(p.data, [0.4064], rtol=1e-15)


@pytest.mark.parametrize("cls", [SGD, Adam, AdamW])
def test_weights_change_in_place_and_the_tape_notes_it(rng, cls):
    p = Parameter(rng.normal(size=(2, 2)))
    memory = p.data
    loss = (p * p).sum()
    p.grad = np.ones((2, 2))
    optimizer = cls([p], lr=0.1)
    optimizer.step()
    assert p.data is memory
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()
    optimizer.zero_grad()
    assert p.grad is None


def test_a_weight_that_is_not_contiguous_is_updated_too(rng):
    whole = rng.normal(size=(4, 6))
    apart, plain = Parameter(whole.T[::2]), Parameter(whole.T[::2].copy())
    grad = rng.normal(size=(3, 4))
    for p in (apart, plain):
        run(AdamW([p]), [p], [[grad], [grad.T.copy().T]])
    np.testing.assert_allclose(apart.data, plain.data, rtol=1e-14)
    assert np.shares_memory(apart.data, whole)


def test_a_weight_without_gradient_waits_and_keeps_its_own_count(rng):
    a, b = Parameter(np.ones(2)), Parameter(np.ones(2))
    optimizer = Adam([a, b], lr=0.1)
    grads = [rng.normal(size=2) for _ in range(3)]
    for i, g in enumerate(grads):
        a.grad, b.grad = g.copy(), g.copy() if i == 2 else None
        optimizer.step()
    assert optimizer.steps == [3, 1]
    np.testing.assert_allclose(a.data, adam_by_the_paper(np.ones(2), grads, 0.1, 0.9, 0.999, 1e-8), rtol=1e-13)
    np.testing.assert_allclose(b.data, adam_by_the_paper(np.ones(2), grads[2:], 0.1, 0.9, 0.999, 1e-8), rtol=1e-13)


@pytest.mark.parametrize(
    "fresh", [lambda ps: SGD(ps, 0.1, momentum=0.9), lambda ps: SGD(ps, 0.1), lambda ps: Adam(ps, 0.1), AdamW]
)
@pytest.mark.parametrize("cut", [1, 4])  # before and after the last weight's first gradient
def test_an_optimizer_goes_on_bit_for_bit(rng, fresh, cut):
    whole, grads = make(rng, np.float32), gradients(rng, 6, np.float32)
    parts = [Parameter(p.data.copy()) for p in whole]

    def go(optimizer, parameters, steps):
        for k in steps:
            for i, p in enumerate(parameters):
                p.grad = None if i == 2 and k < 2 else grads[k][i].copy()
            optimizer.step()

    go(fresh(whole), whole, range(6))
    first, second = fresh(parts), fresh(parts)
    go(first, parts, range(cut))
    first.lr *= 0.5
    state = first.state_dict()
    second.load_state_dict(state)
    assert second.lr == first.lr
    second.lr *= 2
    for array in state.values():  # a copy on both ways
        array[...] = 77
    go(second, parts, range(cut, 6))
    for p, q in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(p.data, q.data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("steps"), "it needs lr and steps for 3 weights"),
        (lambda s: s.update(steps=np.zeros(2, np.int64)), "it needs lr and steps for 3 weights"),
        (lambda s: s.pop("v.1"), "v.1 is missing or not part of it"),
        (lambda s: s.update({"v.9": np.zeros(1)}), "v.9 is missing or not part of it"),
        (lambda s: s.update({"m.0": np.zeros((4, 3))}), r"m.0 of the saved Adam has shape \(4, 3\), weight 0 \(3, 4\)"),
    ],
)
def test_a_saved_state_that_does_not_fit_is_refused_before_anything_changes(rng, change, message):
    parameters = make(rng)
    optimizer = Adam(parameters)
    run(optimizer, parameters, gradients(rng, 1))
    state = {name: array + 1 for name, array in optimizer.state_dict().items()}
    before = optimizer.state_dict()
    change(state)
    with pytest.raises(InputError, match=message):
        optimizer.load_state_dict(state)
    for name, array in optimizer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ("make_one", "message"),
    [
        (lambda p: SGD([p], -1.0), "SGD: lr must be a number of at least 0 and finite, not -1.0"),
        (lambda p: Adam([p], math.nan), "Adam: lr must be"),
        (lambda p: Adam([p], math.inf), "Adam: lr must be"),
        (lambda p: AdamW([p], "fast"), "AdamW: lr must be .*, not 'fast'"),
        (lambda p: Adam([p], betas=(1.0, 0.9)), "Adam: beta1 must be a number of at least 0 and below 1, not 1.0"),
        (lambda p: Adam([p], betas=(0.9, -0.1)), "Adam: beta2 must be"),
        (lambda p: Adam([p], eps=-1e-8), "Adam: eps must be"),
        (lambda p: AdamW([p], weight_decay=-1), "AdamW: weight_decay must be"),
        (lambda p: SGD([p], 0.1, momentum=1), "SGD: momentum must be"),
        (lambda p: EMA([p], 1.0), "EMA: decay must be a number of at least 0 and below 1, not 1.0"),
        (lambda p: EMA([p], math.nan), "EMA: decay must be"),
        (lambda p: clip_grad_norm([p], 0), "clip_grad_norm: max_norm must be greater than 0"),
        (lambda p: clip_grad_norm([p], math.nan), "clip_grad_norm: max_norm must be greater than 0"),
        (lambda p: warmup(-1, 1, 2), "warmup: lr must be"),
        (lambda p: warmup(0.1, 1, -2), "warmup: step 1 and warmup_steps -2 must be at least 0"),
        (lambda p: Adam([]), "Adam got no parameters"),
        (lambda p: Adam([p, p]), "Adam got a parameter twice"),
    ],
)
def test_numbers_that_make_no_sense(make_one, message):
    with pytest.raises(ValueError, match=message):
        make_one(Parameter(np.ones(2)))


def test_what_can_not_be_optimised():
    p = Parameter(np.ones(2))
    for wrong in (td.Tensor(np.ones(2)), np.ones(2), p * 2):
        with pytest.raises(TypeError, match="SGD takes tensors made with requires_grad=True; number 1 is not one"):
            SGD([p, wrong], 0.1)
    with pytest.raises(TypeError, match="not one tensor"):
        SGD(p, 0.1)
    p.grad = np.ones((1, 2))
    with pytest.raises(ValueError, match=r"SGD: weight 0 has shape \(2,\), its gradient \(1, 2\)"):
        SGD([p], 0.1).step()


def test_moving_average(rng):
    parameters = make(rng, np.float32)
    ema, averages = EMA(parameters, 0.5), [p.data.astype(np.float64) for p in parameters]
    for k in range(12):
        for i, p in enumerate(parameters):
            p.data += rng.normal(size=p.shape).astype(np.float32)
            decay = min(0.5, (1 + k) / (10 + k))
            averages[i] = decay * averages[i] + (1 - decay) * p.data
        assert ema.current_decay == decay
        ema.update()
    for a, average in zip(ema.averages, averages, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, average, rtol=0, atol=2e-6)
    assert EMA(parameters, 0.9999).current_decay == 0.1


def test_the_average_is_applied_for_a_while_only(rng):
    parameters = make(rng)
    ema = EMA(parameters, 0.9)
    for p in parameters:
        p.data += 1
    ema.update()
    live, averages = [p.data for p in parameters], [a.copy() for a in ema.averages]
    state = ema.state_dict()
    with pytest.raises(KeyError, match="stop"), ema.applied():
        for p, average in zip(parameters, averages, strict=True):
            np.testing.assert_array_equal(p.data, average)
        for name, array in ema.state_dict().items():
            np.testing.assert_array_equal(array, state[name])
        with pytest.raises(RuntimeError, match=r"EMA.update inside EMA.applied"):
            ema.update()
        with pytest.raises(RuntimeError, match=r"EMA.applied inside EMA.applied"), ema.applied():
            pass
        raise KeyError("stop")
    assert all(p.data is array for p, array in zip(parameters, live, strict=True))
    for a, average in zip(ema.averages, averages, strict=True):
        np.testing.assert_array_equal(a, average)


def test_an_average_goes_on_bit_for_bit(rng):
    parameters = make(rng, np.float32)
    ema, other = EMA(parameters, 0.9), EMA(parameters, 0.9)
    for p in parameters:
        p.data += 1
    ema.update()
    other.load_state_dict(ema.state_dict())
    for e in (ema, other):
        e.update()
    assert ema.updates == other.updates == 2
    for a, b in zip(ema.averages, other.averages, strict=True):
        np.testing.assert_array_equal(a, b)
    state = ema.state_dict()
    with pytest.raises(InputError, match=r"average.1 is missing or not part of it"):
        other.load_state_dict({name: a for name, a in state.items() if name != "average.1"})
    with pytest.raises(InputError, match=r"average.0 has shape \(4, 3\), weight 0 \(3, 4\)"):
        other.load_state_dict(state | {"average.0": np.zeros((4, 3))})


def test_clipping(rng):
    parameters = make(rng, np.float32)
    grads = gradients(rng, 1, np.float32)[0]
    norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads))

    def clip(max_norm):
        for p, g in zip(parameters, grads, strict=True):
            p.grad = g.copy()
        return clip_grad_norm([*parameters, Parameter(np.ones(3))], max_norm)  # the last one has no gradient

    assert clip(0.5 * norm) == pytest.approx(norm, rel=1e-12)
    for p, g in zip(parameters, grads, strict=True):
        np.testing.assert_allclose(p.grad, g * np.float32(0.5), rtol=3e-7)
    for max_norm in (norm * 1.01, math.inf):
        assert clip(max_norm) == pytest.approx(norm, rel=1e-12)
        assert all(np.array_equal(p.grad, g) for p, g in zip(parameters, grads, strict=True))
    assert clip_grad_norm([Parameter(np.ones(3))], 1.0) == 0


def test_frozen_weights_stay_and_do_not_count(rng):
    weights = make(rng)
    weights[1].requires_grad_(False)
    learned = [p for i, p in enumerate(weights) if i != 1]
    alone = [Parameter(p.data.copy()) for p in learned]
    kept = weights[1].data.copy()
    results = []
    for all_of_them, some in ((weights, learned), (alone, alone)):
        draw = np.random.default_rng(0)
        optimizer, ema = AdamW(all_of_them, 0.1, weight_decay=0.1), EMA(all_of_them, 0.9)
        for _ in range(3):
            for p in some:
                p.grad = draw.normal(size=p.shape)
            if all_of_them is weights:
                weights[1].grad = np.full(weights[1].shape, 1e6)  # from before it was frozen
            norm = clip_grad_norm(all_of_them, 0.5)
            optimizer.step(ema)
        _, other_norm = optimizer.clipped_step([np.array(1.0)], 0.5, ema)
        results.append((norm, other_norm, [p.data for p in some], optimizer, ema))
    (norm, other, data, optimizer, ema), (norm_alone, other_alone, data_alone, _, ema_alone) = results
    assert (norm, other) == pytest.approx((norm_alone, other_alone))
    for p, q in zip(data, data_alone, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-12)
    np.testing.assert_array_equal(weights[1].data, kept)
    np.testing.assert_allclose(ema.averages[1], kept, rtol=1e-12)
    np.testing.assert_allclose(ema.averages[0], ema_alone.averages[0], rtol=1e-12)
    assert optimizer.steps[1] == 0 and optimizer.steps[0] == 4 and "m.1" not in optimizer.state_dict()
    with pytest.raises(TypeError, match="frozen weights only"):
        SGD([weights[1]], 0.1)


def test_clipping_of_large_and_of_broken_gradients():
    p, q = Parameter(np.ones(2, np.float32)), Parameter(np.ones(1, np.float32))
    p.grad, q.grad = np.array([3e30, 4e30], np.float32), np.zeros(1, np.float32)
    assert clip_grad_norm([p, q], 1.0) == pytest.approx(5e30, rel=1e-6)  # whose square float32 does not have
    np.testing.assert_allclose(p.grad, [0.6, 0.8], rtol=1e-6)
    for broken in (np.nan, np.inf):
        p.grad, q.grad = np.array([broken, 1], np.float32), np.array([5], np.float32)
        assert not math.isfinite(clip_grad_norm([p, q], 1.0))
        assert q.grad[0] == 5 and p.grad[1] == 1


def test_warmup():
    assert [warmup(0.8, step, 4) for step in (0, 1, 2, 4, 5, 1000)] == [0.0, 0.2, 0.4, 0.8, 0.8, 0.8]
    assert warmup(0.8, 1, 0) == 0.8


def test_the_number_of_threads_changes_no_bit(rng):
    """A weight of several blocks, one that is not contiguous and small ones; steps, averages and clipping."""
    shapes = [(700, 500), (3, 4), (), (300, 700)]
    start, grads = [[rng.normal(size=s).astype(np.float32) for s in shapes] for _ in range(2)]

    def run(n):
        parameters = [Parameter(a.copy()) for a in start[:-1]] + [Parameter(np.asfortranarray(start[-1]))]
        optimizer, average = Adam(parameters, lr=0.1), EMA(parameters)
        with threads(n):
            for _ in range(3):
                for p, g in zip(parameters, grads, strict=True):
                    p.grad = g.copy()
                norm = clip_grad_norm(parameters, 1.0)
                optimizer.step()
                average.update()
        return [norm, *(p.data for p in parameters), *average.averages]

    first = run(1)
    for n in (2, 3):
        for a, b in zip(first, run(n), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cls", [SGD, Adam, AdamW])
def test_weights_of_half_precision(cls, rng):
    """Small gradients, whose squares half rounds to 0, and a state that is loaded again; exact but for rounding the weights."""
    start = rng.normal(size=(50, 3)).astype(np.float16)
    grads = [(1e-4 * rng.normal(size=start.shape)).astype(np.float16) for _ in range(6)]
    options = {"lr": 300.0, "momentum": 0.9} if cls is SGD else {"lr": 0.02, "eps": 1e-8}
    p, exact = Parameter(start.copy()), Parameter(start.astype(np.float64))
    optimizer, reference = cls([p], **options), cls([exact], **options)
    for i, g in enumerate(grads):
        if i == 3:
            state = optimizer.state_dict()
            optimizer = cls([p], **options)
            optimizer.load_state_dict(state)
        p.grad, exact.grad = g, g.astype(np.float64)
        optimizer.step()
        reference.step()
    assert p.dtype == np.float16
    assert all(a.dtype == np.float32 for a in optimizer.state[0])
    np.testing.assert_allclose(p.data, exact.data, rtol=0, atol=6 * 2e-3)
    assert np.abs(p.data - start).max() > 0.01


def test_the_average_of_half_precision_moves_by_little():
    p = Parameter(np.zeros(3, np.float16))
    ema = EMA([p], 0.9999)
    ema.updates = 10**6
    p.data[...] = 1
    for _ in range(100):
        ema.update()
    np.testing.assert_allclose(ema.averages[0], 1 - 0.9999**100, rtol=1e-4)
    restored = EMA([p], 0.9999)
    restored.load_state_dict(ema.state_dict())
    np.testing.assert_array_equal(restored.averages[0], ema.averages[0])
    with ema.applied():
        np.testing.assert_array_equal(p.data, restored.averages[0])
    assert p.dtype == np.float16


def test_clipping_of_half_precision():
    p = Parameter(np.zeros(400, np.float16))
    p.grad = np.full(400, 300, np.float16)  # whose squares overflow
    assert clip_grad_norm([p], 60.0) == pytest.approx(6000)
    np.testing.assert_array_equal(p.grad, np.full(400, 3, np.float16))
