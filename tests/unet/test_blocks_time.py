"""The time that the blocks of the U-Net take: a tensor like any other that carries their projections of it."""

import math

import numpy as np
import pytest

import tinydiff as td
from tinydiff.unet.blocks import Time


def slopes(y, *leaves):
    """The gradients of the leaves when L_Y is cos(0, 1, 2, ...), which no symmetry of y hides."""
    for leaf in leaves:
        leaf.zero_grad()
    y.backward(np.cos(np.arange(y.size)).reshape(y.shape))
    return [leaf.grad for leaf in leaves]


def assert_close(ours, truth):
    for a, b in zip(ours, truth, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * (1 + np.abs(b).max()))


@pytest.fixture
def middle(rng):
    """The middle of a network, an image, a time that needs a gradient, and these with all weights, as leaves."""
    level = td.UNet(4, 1, channels=8, channel_mults=(1,), attention_resolutions=(), groups=4).mid_block
    for p in level.astype(np.float64).parameters():
        p.data[...] = rng.normal(size=p.shape) * (0.5 if p.ndim == 1 else 1 / math.sqrt(np.prod(p.shape[:-1])))
    h, time = (td.Tensor(rng.normal(size=shape), requires_grad=True) for shape in ((2, 4, 4, 8), (2, 32)))
    return level, h, time, (h, time, *level.parameters())


def test_levels_and_blocks_take_any_tensor_as_time(middle):
    """A time that carries their projection, one that carries those of others, and a plain one."""
    level, h, time, leaves = middle
    computed = time * 1  # not a leaf: it has a place on the tape
    y = level(h, time)
    expected = slopes(y, *leaves)
    for carrying in (Time(time, [level]), Time(time, []), Time(computed, [level]), Time(time, [level]).detach()):
        again = level(h, carrying)
        np.testing.assert_array_equal(again.data, y.data)
        if carrying.requires_grad:
            assert_close(slopes(again, *leaves), expected)


def test_a_time_is_a_tensor_like_any_other(middle, rng):
    level, h, time, leaves = middle
    w = rng.normal(size=(32, 8))

    def own(time):
        """What a block of somebody else's may do with it, besides handing it on."""
        scaled = (time[:, ::-1] * 2 + time) @ w
        return level(h * td.ops.expand_dims(td.ops.silu(scaled), (1, 2)), time) + level(h, time / 3)

    plain = own(time)
    expected = slopes(plain, *leaves)
    carrying = Time(time, [level])
    assert isinstance(carrying, td.Tensor) and carrying.requires_grad
    assert np.shares_memory(carrying.data, time.data)
    y = own(carrying)
    np.testing.assert_array_equal(y.data, plain.data)
    assert_close(slopes(y, *leaves), expected)
    for derived in (carrying * 1, carrying.detach(), carrying[:1]):
        assert type(derived) is td.Tensor
    assert carrying.to("cpu") is carrying
    carrying = Time(time * 2, [level])
    carrying.retain_grad()
    np.testing.assert_allclose(slopes(own(carrying), time)[0], 2 * carrying.grad, rtol=1e-12)
    with td.no_grad():
        assert not level(h, Time(time, [level])).requires_grad
        assert not level(h, carrying).requires_grad


def test_a_time_that_is_changed_in_place_is_projected_anew(middle):
    level, h, time, _ = middle
    with td.no_grad():
        doubled = level(h, td.Tensor(time.data * 2)).data
        for alias in (lambda carrying: carrying, lambda carrying: carrying.detach()):
            carrying = Time(td.Tensor(time.data.copy()), [level])
            other = alias(carrying)
            other *= 2
            np.testing.assert_array_equal(level(h, carrying).data, doubled)
    carrying = Time(time * 1, [level])
    y = level(h, carrying)
    with td.no_grad():
        carrying *= 2
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward(y.data)


def test_recomputed_blocks_have_the_same_gradients(middle):
    """With projections made outside of what is recomputed, inside of it, and not at all."""
    level, h, time, leaves = middle
    y = level(h, time)
    expected = slopes(y, *leaves)

    def outside():
        carrying = Time(time, [level])
        return td.recompute(lambda h: level(h, carrying), h)

    for run in (
        outside,
        lambda: td.recompute(level, h, Time(time, [level])),
        lambda: td.recompute(level, h, Time(time * 1, [level])),
        lambda: td.recompute(lambda h, time: level(h, Time(time, [level])), h, time),
        lambda: td.recompute(level, h, time),
    ):
        again = run()
        np.testing.assert_array_equal(again.data, y.data)
        assert_close(slopes(again, *leaves), expected)
    for p in (h, time):
        p.requires_grad = False  # only the weights need gradients: those of the projections were used outside
    assert_close(slopes(outside(), *leaves[2:]), expected[2:])


def test_a_time_leaves_nothing_behind(middle, alive):
    level, h, time, _ = middle
    before = alive()
    for carrying in (Time(time, [level]), Time(time * 1, [level])):
        assert alive() > before
        y = level(h, carrying)
        del y
    del carrying
    assert alive() == before
