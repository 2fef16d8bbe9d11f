"""tinydiff/cuda/updates.py against optimisers in float64."""

import math

import numpy as np
import pytest

from tests.cuda.conftest import HALVES
from tinydiff import optim
from tinydiff.autograd.tensor import Tensor
from tinydiff.cuda import updates
from tinydiff.ops.optim import move_loss_scale, overflowed
from tinydiff.precision import in_memory

LR, BETAS, EPS = 3e-3, (0.8, 0.97), 1e-4


def update(p, g, m, v, ema, scalars, *args):
    updates.launch_adam(p, g, m, v, ema, scalars, *args)
    return p, m, v, ema


@pytest.mark.parametrize("n", [1, 3, 4, 1027, 5000])
@pytest.mark.parametrize(
    ("kind", "decay"), [(optim.Adam, 0.0), (optim.Adam, 0.1), (optim.AdamW, 0.0), (optim.AdamW, 0.1)]
)
def test_adam_and_the_average_of_the_weights(n, kind, decay, device, rng):
    start = rng.normal(size=n).astype(np.float32)
    exact = Tensor(start.astype(np.float64), requires_grad=True)
    theirs, average = kind([exact], LR, BETAS, EPS, decay), optim.EMA([exact], 0.3)
    p, m, v, ema = start.copy(), np.zeros_like(start), np.zeros_like(start), start.copy()
    coupled, decoupled = (0.0, decay) if kind is optim.AdamW else (decay, 0.0)
    for step in range(1, 6):
        g = rng.normal(size=n).astype(np.float32) * np.float32(10.0) ** rng.integers(-4, 2, n).astype(np.float32)
        exact.grad = g.astype(np.float64) * 0.5
        theirs.lr = LR * step
        scalars = updates.adam_scalars(step, LR * step, BETAS, EPS, decoupled, average.current_decay, scale=0.5)
        theirs.step()
        average.update()
        p, m, v, ema = device.run(update, p, g, m, v, ema, scalars, BETAS, coupled)
        np.testing.assert_allclose(m, theirs.state[0][0], rtol=2e-6, atol=1e-7 * np.abs(m).max())
        np.testing.assert_allclose(v, theirs.state[0][1], rtol=2e-6, atol=1e-10)
        np.testing.assert_allclose(p, exact.data, rtol=1e-6, atol=5e-7)
        np.testing.assert_allclose(ema, average.averages[0], rtol=1e-6, atol=5e-7)


def test_adam_rounds_like_the_arrays_of_numpy(device, rng):
    """Beside optim.Adam and EMA in float32: the same steps but for the last digit."""
    n = 3000
    start, g = rng.normal(size=(2, n)).astype(np.float32)
    weight = Tensor(start.copy(), requires_grad=True)
    theirs, average = optim.Adam([weight], 1e-3), optim.EMA([weight], 0.999)
    weight.grad = g
    decay = average.current_decay
    theirs.step()
    average.update()
    zeros = np.zeros_like(start)
    scalars = updates.adam_scalars(1, 1e-3, average_decay=decay)
    p, m, v, ema = device.run(update, start.copy(), g, zeros, zeros.copy(), start.copy(), scalars)
    for ours, e in ((p, weight.data), (m, theirs.state[0][0]), (v, theirs.state[0][1]), (ema, average.averages[0])):
        np.testing.assert_allclose(ours, e, rtol=3e-7, atol=1.5e-7)


@pytest.mark.parametrize("precision", HALVES)
def test_adam_writes_the_weights_in_16_bits_as_well(precision, device, rng):
    for n, first, averaged in ((1, 0, False), (1027, 0, True), (41, 1, True)):  # from 1 on off 16 bytes
        p, g, m, v, average = rng.uniform(size=(5, n)).astype(np.float32)
        half = in_memory(rng.normal(size=n + first).astype(np.float32), precision)
        average = average if averaged else None

        def both(p, g, m, v, average, half, scalars, first=first):
            alone = p.copy()
            updates.launch_adam(alone, g, m.copy(), v.copy(), None, scalars)
            updates.launch_adam(p, g, m, v, average, scalars, half=half[first:])
            return alone, p, half

        scalars = updates.adam_scalars(1, 0.1, average_decay=0.5)
        alone, p, after = device.run(both, p, g, m, v, average, half.copy(), scalars)
        np.testing.assert_array_equal(p, alone)
        np.testing.assert_array_equal(after[first:], in_memory(p, precision))
        np.testing.assert_array_equal(after[:first], half[:first])


def test_a_step_that_is_left_out_leaves_the_weights_in_16_bits(device, rng):
    p, g, m, v = rng.uniform(size=(4, 9)).astype(np.float32)
    half = np.ones(9, np.float16)

    def step(p, g, m, v, half, scalars):
        updates.launch_adam(p, g, m, v, None, scalars, half=half)
        return half

    scalars = updates.adam_scalars(1, 0.1, scale=np.nan)
    np.testing.assert_array_equal(device.run(step, p, g, m, v, half.copy(), scalars), half)


def test_a_weight_without_gradient_and_moments_stays(device):
    p = np.array([1, -2, 3], np.float32)
    zeros = np.zeros(3, np.float32)
    after, *_ = device.run(update, p.copy(), zeros, zeros.copy(), zeros.copy(), None, updates.adam_scalars(1, 0.1))
    np.testing.assert_array_equal(after, p)


def test_adam_without_an_average(device, rng):
    p, g, m, v = rng.uniform(size=(4, 37)).astype(np.float32)
    scalars = updates.adam_scalars(7, 0.1, average_decay=0.5)
    with_average = device.run(update, p.copy(), g, m.copy(), v.copy(), p.copy(), scalars)
    without = device.run(update, p.copy(), g, m.copy(), v.copy(), None, scalars)
    for a, e in zip(without[:3], with_average[:3], strict=True):
        np.testing.assert_array_equal(a, e)
    assert without[3] is None


def test_parts_of_an_array_that_do_not_start_at_a_multiple_of_16_bytes(device, rng):
    arrays = rng.uniform(size=(5, 42)).astype(np.float32)
    scalars = updates.adam_scalars(7, 0.1)
    whole = device.run(update, *(a.copy() for a in arrays), scalars)

    def parts(p, g, m, v, ema, scalars):
        for part in (slice(0, 3), slice(3, 42)):
            updates.launch_adam(p[part], g[part], m[part], v[part], ema[part], scalars)
        return p, m, v, ema

    for a, e in zip(device.run(parts, *(a.copy() for a in arrays), scalars), whole, strict=True):
        np.testing.assert_array_equal(a, e)


def test_arrays_that_do_not_fit_each_other(device):
    a, b = np.zeros(4, np.float32), np.zeros(5, np.float32)
    with pytest.raises(ValueError, match=r"flat arrays of one length.*\(4,\), \(5,\)"):
        device.run(update, a, b, a.copy(), a.copy(), None, np.zeros(5, np.float32))
    with pytest.raises(ValueError, match="5 scalars"):
        device.run(update, a, a.copy(), a.copy(), a.copy(), None, np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="flat arrays"):
        device.run(update, *(np.zeros((2, 2), np.float32) for _ in range(4)), None, np.zeros(5, np.float32))


@pytest.mark.parametrize("n", [0, 1, 5, 4095, 4097, 20000, 4_300_001])
def test_squared_norm(n, device, rng):
    g = (3 + rng.normal(size=n)).astype(np.float32)
    squared = device.run(updates.launch_squared_norm, g)
    assert squared.shape == ()
    np.testing.assert_allclose(squared, np.sum(g.astype(np.float64) ** 2), rtol=1e-6)


def test_squared_norm_has_the_same_bits_whatever_the_order_of_threads(device, rng):
    g = rng.normal(size=30_001).astype(np.float32)
    np.testing.assert_array_equal(*(device.run(updates.launch_squared_norm, g, seed=seed) for seed in (1, 2)))


def test_squared_norm_reads_nothing_beside_a_part_of_an_array(device, rng):
    g = np.full(10_001, np.nan, np.float32)
    g[1:-3] = rng.normal(size=9997)
    squared = device.run(lambda g: updates.launch_squared_norm(g[1:-3]), g)
    np.testing.assert_allclose(squared, np.sum(g[1:-3].astype(np.float64) ** 2), rtol=1e-6)


@pytest.mark.parametrize("max_norm", [1.0, 99.0, 101.0, math.inf])
def test_clipping_scales_as_clip_grad_norm_does(max_norm, device, rng):
    g = rng.normal(size=5000)
    g = (g * 100 / np.linalg.norm(g)).astype(np.float32)
    weight = Tensor(g, requires_grad=True)
    weight.grad = g.copy()
    norm = optim.clip_grad_norm([weight], max_norm)

    def clip(g, scale):
        return updates.launch_squared_norm(g, max_norm, scale), scale

    squared, scale = device.run(clip, g, np.zeros(1, np.float32))
    np.testing.assert_allclose(np.sqrt(squared), norm, rtol=1e-6)
    np.testing.assert_allclose(scale * g, weight.grad, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("max_norm", [1.0, np.inf])
def test_a_norm_that_is_not_finite_changes_nothing(value, max_norm, device, rng):
    before = rng.uniform(size=(4, 2000)).astype(np.float32)
    g = np.ones(2000, np.float32)
    g[1500] = value

    def step(g, scalars, p, m, v, ema):
        squared = updates.launch_squared_norm(g, max_norm, scalars[:1])
        return squared, *update(p, g, m, v, ema, scalars)

    squared, *after = device.run(step, g, updates.adam_scalars(1, 0.1, average_decay=0.5), *before.copy())
    assert not np.isfinite(squared)
    np.testing.assert_array_equal(after, before)


def test_a_prepared_update_reports_by_the_clock_and_remembers_the_first_failure(device, rng):
    g = rng.normal(size=3000).astype(np.float32)
    report, failed = np.zeros((4, 4), np.float32), np.zeros(1, np.uint32)
    squared, scales = np.sum(g.astype(np.float64) ** 2), []
    for step, losses in ((5, [1, 2]), (6, [np.nan, 3]), (7, [4, 5])):

        def run(g, losses, scalars, clock, report, failed):
            prepared = updates.Prepared(scalars, clock, report, failed)
            updates.launch_squared_norm(g, math.inf, scalars[:1], losses, None, prepared)
            return scalars, report, failed

        scalars, clock = updates.adam_scalars(1, 0.1), np.array([step, 0], np.uint32)
        scalars, report, failed = device.run(
            run, g, np.array(losses, np.float32), scalars, clock, report.copy(), failed.copy()
        )
        scales.append(scalars[0])
        np.testing.assert_allclose(report[step % 4], [squared, 0, *losses], rtol=1e-6)
    np.testing.assert_array_equal(scales, [1, np.nan, np.nan])
    assert failed == [6] and not report[0].any()
    with pytest.raises(ValueError, match="2 losses need a report of 4 numbers"):
        device.run(run, g, np.zeros(2, np.float32), scalars, clock, np.zeros((4, 3), np.float32), failed)


GOOD, TOO_LARGE, LOST = 1.0, np.inf, np.nan  # gradients

# S, the good steps; gradient, loss; what the state then is, and whether Adam updates: None after a failure
LOSS_SCALES = {
    "good": ([2**15, 7], GOOD, 1.0, [2**15, 8], True),
    "doubled": ([2**15, 1999], GOOD, 1.0, [2**16, 0], True),
    "largest": ([2**24, 1999], GOOD, 1.0, [2**24, 0], True),
    "overflow": ([2**15, 1999], TOO_LARGE, 1.0, [2**14, 0], False),
    "nan": ([2, 0], LOST, 1.0, [1, 0], False),
    "not by S": ([1, 5], TOO_LARGE, 1.0, [1, 5], None),
    "loss": ([2**15, 5], LOST, np.nan, [2**14, 0], False),
    "loss alone": ([2**15, 5], GOOD, np.inf, [2**14, 0], False),
    "loss, not by S": ([1, 5], GOOD, np.inf, [1, 5], None),
}


@pytest.mark.parametrize("name", LOSS_SCALES)
def test_a_loss_scale(name, device, rng):
    """By the kernels, with and without a clock, and by the definition."""
    (S, *counts), kind, loss, expected, updated = LOSS_SCALES[name]
    true, factor = 1e-3 * rng.normal(size=3000), np.float32(S)
    g, norm = (true * S).astype(np.float32), np.linalg.norm(true)
    g[1234] *= kind
    arrays = g, np.array([1, loss], np.float32), np.zeros(1, np.float32), np.array([S, *counts], np.float32)

    def alone(g, losses, scale, loss_scale):
        report = updates.launch_squared_norm(g, norm / 4, scale, losses, None, None, loss_scale)
        return report, scale, loss_scale

    def by_clock(g, losses, scale, loss_scale, clock, report, failed):
        prepared = updates.Prepared(None, clock, report, failed)
        updates.launch_squared_norm(g, norm / 4, scale, losses, None, prepared, loss_scale)
        return report, scale, loss_scale, failed

    report, scale, moved = device.run(alone, *(a.copy() for a in arrays))
    np.testing.assert_array_equal(moved, expected)
    numbers, found = updates.read_report(report)
    np.testing.assert_array_equal(numbers, [1, loss, factor])
    assert found == pytest.approx(norm, rel=1e-6) if kind == GOOD else not np.isfinite(found)
    assert scale == pytest.approx(0.25 / S, rel=1e-6) if updated else np.isnan(scale)
    assert overflowed(numbers, found) == (updated is False)

    clock, ring, failed = np.array([6, 0], np.uint32), np.zeros((4, 5), np.float32), np.zeros(1, np.uint32)
    ring, *also, failed = device.run(by_clock, *(a.copy() for a in arrays), clock, ring, failed)
    np.testing.assert_array_equal(ring[2], report)
    np.testing.assert_array_equal(also[0], scale)
    np.testing.assert_array_equal(also[1], moved)
    assert failed == [6 * (updated is None)] and not ring[[0, 1, 3]].any()

    defined = np.array([S, *counts], np.float32)
    move_loss_scale(defined, bool(updated))
    np.testing.assert_array_equal(defined if updated is not None else moved, moved)


def test_after_a_failure_the_loss_scale_stays(device):
    arrays = np.array([np.inf, 1], np.float32), np.zeros(1, np.float32), np.ones(1, np.float32)
    state = np.array([3, 0], np.uint32), np.zeros((2, 4), np.float32), np.array([2], np.uint32)

    def step(g, scale, losses, clock, report, failed, loss_scale):
        prepared = updates.Prepared(None, clock, report, failed)
        updates.launch_squared_norm(g, 1.0, scale, losses, None, prepared, loss_scale)
        return scale, loss_scale, failed

    scale, loss_scale, failed = device.run(step, *arrays, *state, np.array([2.0**15, 7], np.float32))
    assert np.isnan(scale) and failed == [2]
    np.testing.assert_array_equal(loss_scale, np.array([2.0**15, 7], np.float32))


def test_a_wrong_index_is_no_overflow(device):
    def step(g, loss_scale, note):
        return updates.launch_squared_norm(g, 1.0, None, None, note, None, loss_scale), loss_scale

    report, loss_scale = device.run(
        step, np.array([np.inf], np.float32), np.array([2.0**15, 7], np.float32), np.array([5], np.int32)
    )
    assert report[1] == 5 and report[2] == 2**15
    np.testing.assert_array_equal(loss_scale, np.array([2.0**15, 7], np.float32))


def test_clipping_writes_into_what_adam_reads(device, rng):
    p, g, m, v = rng.uniform(size=(4, 50)).astype(np.float32)
    norm = float(np.linalg.norm(g))
    scalars = updates.adam_scalars(3, 0.1)

    def step(p, g, m, v, scalars):
        updates.launch_squared_norm(g, norm / 4, scalars[:1])
        return update(p, g, m, v, None, scalars)[:3]

    clipped = device.run(step, p.copy(), g, m.copy(), v.copy(), scalars.copy())
    expected = device.run(update, p.copy(), g / 4, m.copy(), v.copy(), None, scalars)
    for a, e in zip(clipped, expected[:3], strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-6)


def test_more_elements_than_a_kernel_counts(monkeypatch):
    monkeypatch.setattr(updates, "MOST_ELEMENTS", 1000)
    with pytest.raises(ValueError, match=r"fewer than 2\*\*31 elements, not 1001"):
        updates.launch_squared_norm(np.ones(1001, np.float32))
