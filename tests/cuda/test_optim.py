"""tinydiff/cuda/optim.py against the definitions in float64."""

import math
from functools import partial

import numpy as np
import pytest

from tinydiff import optim
from tinydiff.cuda import optim as kernels
from tinydiff.precision import in_memory

LR, BETAS, EPS = 3e-3, (0.8, 0.97), 1e-4
SHAPES = [(3, 5), (), (1,), (0, 2), (2, 3, 4), (1030,)]


def lists(rng, count):
    return [[rng.uniform(0.1, 1, shape).astype(np.float32) for shape in SHAPES] for _ in range(count)]


def doubles(arrays):
    return [a.astype(np.float64) for a in arrays]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("averages", [True, False])
@pytest.mark.parametrize(("decay", "decoupled"), [(0.0, False), (0.2, False), (0.2, True)])
def test_adam_is_its_definition(at_once, averages, decay, decoupled, device, rng):
    options = 3, LR, BETAS, EPS, decay, decoupled, 0.3
    arrays = lists(rng, 4 + averages)
    exact = [doubles(a) for a in arrays] + [None] * (not averages)
    optim.adam.definition(*exact, *options)

    def step(*arrays):
        pieces, parts = zip(*(kernels.gathered(a) if at_once else (a, a) for a in arrays), strict=True)
        assert kernels.adam(*pieces, *[None] * (not averages), *options) is None
        return parts

    for ours, truth in zip(device.run(step, *arrays), exact, strict=False):
        for a, e in zip(ours, truth, strict=True):
            assert a.shape == e.shape
            np.testing.assert_allclose(a, e, rtol=1e-6, atol=5e-7)


@pytest.mark.parametrize("S", [None, 2.0**15])
@pytest.mark.parametrize("overflow", [False, True])
def test_a_clipped_step_with_a_loss_scale_and_weights_in_16_bits(S, overflow, device, rng):
    arrays = [a[:1] for a in lists(rng, 5)]
    p, g, m, v, average = arrays
    g[0] *= np.float32(S or 1)
    g[0][1, 2] = np.inf if overflow else g[0][1, 2]
    halves, losses = [in_memory(np.zeros((3, 5), np.float32), "bf16")], [np.array(0.5, np.float32)]
    loss_scale = None if S is None else np.array([2.0**15, 7], np.float32)
    exact = [doubles(a) for a in arrays]
    theirs = [np.zeros((3, 5))], None if S is None else np.array([2.0**15, 7], np.float32)

    def step(take, p, g, m, v, average, halves, loss_scale, losses):
        options = 3, LR, BETAS, EPS, 0.0, False, 0.3, halves
        result = take(g, losses, 0.5, (p, g, m, v, average, *options), None, loss_scale)
        return result, p, m, v, average, halves, loss_scale

    found, *after = device.run(partial(step, kernels.clipped_adam), p, g, m, v, average, halves, loss_scale, losses)
    with np.errstate(invalid="ignore"):
        expected, *truth = step(optim.clipped_adam.definition, *exact, *theirs, losses)
    assert found[0] == expected[0] == [0.5] + [S] * (S is not None)
    assert found[1] == pytest.approx(expected[1], rel=1e-6) or overflow
    for a, e in zip(after[:4], truth[:4], strict=True):
        np.testing.assert_allclose(a[0], e[0], rtol=1e-6, atol=5e-7)
    np.testing.assert_array_equal(after[4][0], in_memory(after[0][0], "bf16") if not overflow else halves[0])
    if S is not None:
        np.testing.assert_array_equal(after[5], truth[5])
        assert after[5][0] == (S / 2 if overflow else S)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("max_norm", [0.5, 99.0, math.inf])
def test_clip_is_its_definition(at_once, max_norm, device, rng):
    (gradients,) = lists(rng, 1)
    exact = doubles(gradients)
    norm = optim.clip.definition(exact, max_norm)

    def clip(gradients):
        pieces, parts = kernels.gathered(gradients) if at_once else (gradients, gradients)
        return kernels.clip(pieces, max_norm), parts

    ours, parts = device.run(clip, gradients)
    assert ours == pytest.approx(norm, rel=1e-6) and isinstance(ours, float)
    for a, e in zip(parts, exact, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-6)


def test_gathered_are_the_arrays(device, rng):
    (arrays,) = lists(rng, 1)
    pieces, parts = device.run(kernels.gathered, arrays)
    assert len(pieces) == 1 and pieces[0].ndim == 1
    for a, e in zip(parts, arrays, strict=True):
        np.testing.assert_array_equal(a, e)


def with_gaps(a):
    return a[..., None].repeat(2, -1)[..., 0]


@pytest.mark.parametrize("change", [lambda a: a.astype("float64"), lambda a: a.astype("float16"), with_gaps])
@pytest.mark.parametrize("place", range(5))
def test_what_the_kernels_leave_to_the_definition(change, place, device, rng):
    def changed(arrays):
        return [*arrays[:4], change(arrays[4]), arrays[5]]

    def adam(*arrays):
        arrays = [changed(a) if i == place else a for i, a in enumerate(arrays)]
        return kernels.adam(*arrays, 3, LR, BETAS, EPS, 0.0, False, 0.3)

    arrays = lists(rng, 5)
    assert device.run(adam, *arrays) is NotImplemented
    assert device.run(lambda a: kernels.clip(changed(a), 1.0), arrays[0]) is NotImplemented
    if change is not with_gaps:
        assert device.run(lambda a: kernels.gathered(changed(a)), arrays[0]) is NotImplemented


def test_more_elements_than_a_kernel_counts_are_not_gathered(monkeypatch):
    monkeypatch.setattr(kernels, "MOST_ELEMENTS", 1000)
    assert kernels.gathered([np.ones(1000, np.float32)]) is NotImplemented  # 1024 with the gap
    assert kernels.gathered([np.ones(960, np.float32)])[0][0].size == 960
