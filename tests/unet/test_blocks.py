"""The blocks of the U-Net: the time, projected for all of them in one operation, and that replaced blocks are called."""

import math
import sys

import numpy as np
import pytest

import tinydiff as td
from tests import cupy_stand_in
from tinydiff import backend, nn
from tinydiff.autograd import tape
from tinydiff.random import Generator
from tinydiff.unet.blocks import ResBlock, time_embedding
from tinydiff.unet.variant import Variant

T = np.array([3, 900])
RESAMPLING = {"downsample_type": "resnet", "upsample_type": "resnet", "attention_resolutions": (8, 4)}
NETWORKS = {
    "paper": {},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "residual resampling": RESAMPLING,
    "no middle": {"mid_block_type": None},
}


@pytest.fixture
def make(rng):
    """A function that makes small networks in float64 with weights under which no part is idle."""

    def network(**changes):
        settings = {
            "channels": 8,
            "channel_mults": (1, 2),
            "blocks_per_level": 2,
            "attention_resolutions": (4,),
        } | changes
        unet = td.UNet(8, 2, groups=4, generator=Generator(1), **settings).astype(np.float64)
        for p in unet.parameters():
            p.data[...] = rng.normal(size=p.shape) * (0.5 if p.ndim == 1 else 1 / math.sqrt(np.prod(p.shape[:-1])))
        return unet

    return network


@pytest.fixture
def x(rng):
    return rng.normal(size=(2, 8, 8, 2))


def places(unet):
    """(list, index) of every residual block."""
    for level in [*unet.down_blocks, unet.mid_block, *unet.up_blocks]:
        for name in ("resnets", "downsamplers", "upsamplers"):
            blocks = getattr(level, name, [])
            yield from ((blocks, i) for i, block in enumerate(blocks) if isinstance(block, ResBlock))


def results(unet, x, L_Y):
    """The output and the gradients of the images and of all weights."""
    x, weights = td.Tensor(x, requires_grad=True), list(unet.parameters())
    unet.zero_grad()
    y = unet(x, T)
    y.backward(L_Y)
    return [y.data, x.grad, *(p.grad for p in weights)]


class Alone(nn.Module):
    """A block in a wrapping, so that it projects the time on its own."""

    def __init__(self, block):
        self.block = block

    def forward(self, x, time):
        return self.block(x, time)


@pytest.mark.parametrize("changes", NETWORKS.values(), ids=NETWORKS)
def test_blocks_do_the_same_when_each_projects_the_time_alone(changes, make, x, rng):
    unet, L_Y = make(**changes), rng.normal(size=(2, 8, 8, 2))
    together = results(unet, x, L_Y)
    for blocks, i in list(places(unet)):
        blocks[i] = Alone(blocks[i])
    alone = results(unet, x, L_Y)
    np.testing.assert_array_equal(together[0], alone[0])
    for ours, truth in zip(together[1:], alone[1:], strict=True):
        np.testing.assert_allclose(ours, truth, rtol=0, atol=1e-12 * (1 + np.abs(truth).max()))


def projections(run):
    """The operation and number of layers of each projection of the time that `run` makes, that of its embedding first."""
    seen = []

    def note(op, which, arrays, options):
        if type(op).__name__ in ("Linear", "Linears") and which == "forward" and arrays[0].shape == (2, 32):
            seen.append((type(op).__name__, len(arrays) // 2))
        return getattr(op, which)(*arrays, **options)

    with tape.observing(note):
        run()
    return seen


@pytest.mark.parametrize("changes", NETWORKS.values(), ids=NETWORKS)
def test_the_time_is_projected_for_all_blocks_in_one_operation(changes, make, x):
    unet = make(**changes)
    blocks = len(list(places(unet)))
    assert blocks == 4 + 6 + 2 * ("mid_block_type" not in changes) + 2 * ("upsample_type" in changes)
    assert projections(lambda: unet(x, T)) == [("Linear", 1), ("Linears", blocks)]


def test_what_was_replaced_projects_the_time_when_it_is_called_and_the_others_together(make, x):
    unet = make()
    n = len(list(places(unet)))
    (first, second), level = unet.down_blocks[0].resnets, unet.up_blocks[1]
    inside = len(level.resnets)
    first.time_emb_proj.forward = lambda time: nn.Linear.forward(first.time_emb_proj, time)
    assert projections(lambda: unet(x, T)) == [("Linear", 1), ("Linears", n - 1), ("Linear", 1)]
    unet.down_blocks[0].resnets[1] = Alone(second)
    assert projections(lambda: unet(x, T)) == [("Linear", 1), ("Linears", n - 2), *2 * [("Linear", 1)]]
    level.forward = lambda *inputs: type(level).forward(level, *inputs)
    assert projections(lambda: unet(x, T)) == [
        ("Linear", 1),
        ("Linears", n - 2 - inside),
        *(2 + inside) * [("Linear", 1)],
    ]


class Tripled(nn.Module):
    """Another module in the place of a layer or a block."""

    def __init__(self, inner):
        self.inner = inner

    def forward(self, *inputs):
        return self.inner(*inputs) * 3


class Doubled(nn.Linear):
    """A class of its own."""

    def forward(self, x):
        return super().forward(x) * 2


def scale(factor, *layers):
    for layer in layers:
        layer.weight.data *= factor
        layer.bias.data *= factor


def test_whatever_projects_the_time_is_called(make, x):
    unet = make()
    blocks = [blocks[i] for blocks, i in places(unet)]
    tripled, doubled, patched = (blocks[i].time_emb_proj for i in (1, 5, -1))
    factors = ((tripled, 3), (doubled, 2), (patched, 4))
    for layer, factor in factors:
        scale(factor, layer)
    expected = unet(x, T).data
    for layer, factor in factors:
        scale(1 / factor, layer)

    blocks[1].time_emb_proj = Tripled(tripled)
    assert np.abs(unet(x, T).data - expected).max() > 1e-3
    blocks[5].time_emb_proj = twice = Doubled(1, 1)
    twice.weight, twice.bias = doubled.weight, doubled.bias
    assert np.abs(unet(x, T).data - expected).max() > 1e-3
    patched.forward = lambda time: nn.Linear.forward(patched, time) * 4
    np.testing.assert_allclose(unet(x, T).data, expected, rtol=0, atol=1e-11)


def test_whatever_stands_for_a_block_is_called(make, x):
    """With the image and the time alone: a module of another class, one of a class of its own, a changed `forward`."""

    class Own(ResBlock):
        def forward(self, x, time):
            calls.append("own")
            return super().forward(x, time)

    def patched(x, time):
        calls.append("patched")
        return ResBlock.forward(middle, x, time)

    unet, calls = make(), []
    middle, blocks = unet.mid_block.resnets[0], unet.up_blocks[1].resnets
    scale(3, blocks[1].conv2, blocks[1].conv_shortcut)
    expected = unet(x, T).data
    scale(1 / 3, blocks[1].conv2, blocks[1].conv_shortcut)

    unet.down_blocks[0].resnets[1].__class__ = Own
    middle.forward = patched
    assert np.abs(unet(x, T).data - expected).max() > 1e-3
    blocks[1] = Tripled(blocks[1])
    np.testing.assert_allclose(unet(x, T).data, expected, rtol=0, atol=1e-11)
    assert calls == 2 * ["own", "patched"]


def test_whatever_stands_for_a_level_is_called(make, x):
    class Level(nn.Module):
        def __init__(self, level):
            self.level = level

        def forward(self, h, *inputs):
            calls.append(len(inputs))
            return self.level(h, *inputs)

    unet, calls = make(), []
    expected = unet(x, T).data
    unet.down_blocks[1], unet.mid_block = Level(unet.down_blocks[1]), Level(unet.mid_block)
    unet.up_blocks[0] = Level(unet.up_blocks[0])
    np.testing.assert_array_equal(unet(x, T).data, expected)
    assert calls == [2, 1, 2]  # time and skips, time, time and skips


def test_a_block_and_a_projection_in_two_places(make, x, rng):
    unet, L_Y = make(), rng.normal(size=(2, 8, 8, 2))
    n = len(list(places(unet)))
    unet.mid_block.resnets[1] = unet.mid_block.resnets[0]
    (first, second) = unet.down_blocks[0].resnets
    second.time_emb_proj = first.time_emb_proj
    assert projections(lambda: unet(x, T)) == [("Linear", 1), ("Linears", n - 2)]
    together = results(unet, x, L_Y)
    for blocks, i in list(places(unet)):
        blocks[i] = Alone(blocks[i])
    for ours, truth in zip(together, results(unet, x, L_Y), strict=True):
        np.testing.assert_allclose(ours, truth, rtol=0, atol=1e-12 * (1 + np.abs(truth).max()))


def test_new_weights_and_new_blocks_count_from_the_next_pass_on(make, x):
    unet = make()
    unet(x, T)
    other = make()
    unet.down_blocks[0].resnets[0] = other.down_blocks[0].resnets[0]
    unet.load_state_dict(other.state_dict())
    np.testing.assert_array_equal(unet(x, T).data, other(x, T).data)


def test_a_recomputed_network_has_the_same_gradients(make, x, rng):
    unet, L_Y = make(dropout=0.3).train(Generator(3).at(5)), rng.normal(size=(2, 8, 8, 2))
    everything = [td.Tensor(x, requires_grad=True), *unet.parameters()]

    def gradients(run):
        unet.train(Generator(3).at(5)).zero_grad()
        everything[0].zero_grad()
        run(everything[0]).backward(L_Y)
        return [leaf.grad for leaf in everything]

    expected = gradients(lambda x: unet(x, T))
    for ours, truth in zip(gradients(lambda x: td.recompute(lambda x: unet(x, T), x)), expected, strict=True):
        np.testing.assert_allclose(ours, truth, rtol=0, atol=1e-12 * (1 + np.abs(truth).max()))

    class Recomputed(Alone):
        def forward(self, x, time):
            return td.recompute(self.block, x, time)

    for blocks, i in list(places(unet))[::2]:
        blocks[i] = Recomputed(blocks[i])
    for ours, truth in zip(gradients(lambda x: unet(x, T)), expected, strict=True):
        np.testing.assert_allclose(ours, truth, rtol=0, atol=1e-12 * (1 + np.abs(truth).max()))


def test_replaced_blocks_get_the_activated_embedding(make, x, rng):
    unet, seen = make(), []

    class Biased(nn.Module):
        """A block of another kind: a bias of its own for each channel, of which the time is told."""

        def __init__(self, block):
            self.block, self.mix = block, nn.Linear(32, 1)

        def forward(self, h, time):
            seen.append(time)
            gate = td.ops.expand_dims(td.ops.tanh(self.mix(time * 2)) + time.mean(1, keepdims=True), (1, 2))
            return self.block.conv2(h) + gate

    middle = unet.mid_block.resnets
    middle[0] = biased = Biased(middle[0])
    biased.mix.astype(np.float64)
    L_Y, weights = rng.normal(size=(2, 8, 8, 2)), list(unet.parameters())
    results(unet, x, L_Y)
    expected = td.ops.silu(unet.time_embedding(time_embedding(T - 1, 8, dtype=np.float64))).data
    assert all(isinstance(time, td.Tensor) for time in seen)
    np.testing.assert_array_equal(seen[0].data, expected)
    unused = {id(p) for layer in (biased.block.time_emb_proj, biased.block.conv1) for p in layer.parameters()}
    assert all(p.grad is None for p in weights if id(p) in unused)
    for layer in (unet.time_embedding.linear_1, biased.mix, middle[1].time_emb_proj):
        grad, direction = layer.weight.grad, rng.normal(size=layer.weight.shape)
        values = []
        for h in (1e-5, -1e-5):
            layer.weight.data += h * direction
            values.append((unet(x, T).data * L_Y).sum())
            layer.weight.data -= h * direction
        slope = (grad * direction).sum()
        assert abs((values[0] - values[1]) / 2e-5 - slope) < 1e-6 * (1 + abs(slope))


@pytest.mark.parametrize("where", ["layer", "block", "level"])
@pytest.mark.parametrize("how", ["subclass", "call", "instance", "class"])
def test_what_was_replaced_may_change_its_weights_first(where, how, make, x, monkeypatch):
    """As weight normalisation and pruning do. Nothing is computed with the weights as they were before."""
    unet = make()
    level = unet.down_blocks[0]
    block = level.resnets[1]
    module, weight = {"layer": block.time_emb_proj, "block": block, "level": level}[where], block.time_emb_proj.weight
    original = weight.data.copy()
    cls = type(module)
    forward = cls.forward

    def changed(self, *inputs):
        weight.data[...] = original * 3
        return forward(self, *inputs)

    weight.data *= 3
    expected = unet(x, T).data
    weight.data[...] = original
    assert np.abs(unet(x, T).data - expected).max() > 1e-3
    if how == "subclass":
        module.__class__ = type("Own", (cls,), {"forward": changed})
    elif how == "call":
        module.__class__ = type("Own", (cls,), {"__call__": changed})
    elif how == "instance":
        module.forward = lambda *inputs: changed(module, *inputs)
    else:
        monkeypatch.setattr(
            cls, "forward", lambda self, *inputs: (changed if self is module else forward)(self, *inputs)
        )
    np.testing.assert_allclose(unet(x, T).data, expected, rtol=0, atol=1e-11)


def test_modules_without_a_hash_and_plain_functions_as_replacements(make, x):
    unet = make()
    expected = unet(x, T).data

    class Unhashable(nn.Module):
        __hash__ = None

        def __init__(self, inner):
            self.inner = inner

        def __eq__(self, other):
            raise AssertionError("modules are compared by identity")

        def forward(self, *inputs):
            return self.inner(*inputs)

    (first, second), (third, *_) = unet.down_blocks[0].resnets, unet.up_blocks[0].resnets
    first.time_emb_proj = Unhashable(first.time_emb_proj)
    unet.down_blocks[0].resnets[1] = Unhashable(second)
    unet.mid_block = Unhashable(unet.mid_block)
    third.time_emb_proj = third.time_emb_proj.forward
    unet.up_blocks[1] = unet.up_blocks[1].forward
    np.testing.assert_array_equal(unet(x, T).data, expected)


def test_time_embedding():
    t, half = np.array([0, 1, 999]), 4
    for shift, flip in ((1, False), (0, False), (0, True)):
        table = time_embedding(t, 9, shift, flip, np.float64)
        for row, time in zip(table, t, strict=True):
            angles = [time * 10000 ** (-i / (half - shift)) for i in range(half)]
            sines, cosines = [math.sin(a) for a in angles], [math.cos(a) for a in angles]
            expected = [*cosines, *sines, 0] if flip else [*sines, *cosines, 0]
            np.testing.assert_allclose(row, expected, rtol=0, atol=1e-12)
    assert time_embedding(t, 8).dtype == np.float32
    exact = time_embedding(t, 8, dtype=np.float64)
    np.testing.assert_array_equal(time_embedding(t, 8), exact.astype(np.float32))  # not computed in float32


def test_a_class_whose_forward_was_replaced_is_called_as_before(rng, monkeypatch):
    """As hooks and profilers do it: with the arguments of a ResBlock or a Linear that is called alone."""
    unet = td.UNet(8, 1, channels=8, channel_mults=(1, 2), blocks_per_level=1, attention_resolutions=(), groups=4)
    x, seen = rng.normal(size=(2, 8, 8, 1)).astype(np.float32), []
    expected = unet(x, 3).data
    blocks = sum(isinstance(module, ResBlock) for module in unet.modules())
    block, linear = ResBlock.forward, td.nn.Linear.forward
    with monkeypatch.context() as patch:
        patch.setattr(td.nn.Linear, "forward", lambda self, x: seen.append("linear") or linear(self, x))
        np.testing.assert_allclose(unet(x, 3).data, expected, atol=1e-6)
    assert seen.count("linear") == blocks + 2 + 4  # those of the time embedding, and of the attention in the middle
    monkeypatch.setattr(ResBlock, "forward", lambda self, x, time: seen.append("block") or block(self, x, time))
    np.testing.assert_allclose(unet(x, 3).data, expected, atol=1e-6)
    assert seen.count("block") == blocks


@pytest.mark.parametrize("act_fn, norm_type", [("silu", "default"), ("relu", "default"), ("silu", "scale_shift")])
def test_dropout_on_a_gpu_draws_the_same_mask_and_keeps_none(act_fn, norm_type, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", cupy_stand_in.make())
    backend.cupy.cache_clear()
    variant, rng, found = Variant(act_fn=act_fn, resnet_time_scale_shift=norm_type), np.random.default_rng(0), []
    x, time, L_Y = (rng.normal(size=s).astype(np.float32) for s in ((2, 4, 4, 8), (2, 6), (2, 4, 4, 8)))
    for device in ("cpu", "cuda"):
        block = ResBlock(8, 8, features=6, groups=2, dropout=0.4, variant=variant, generator=Generator(1)).to(device)
        block.conv2.weight.data[...] = 0.1
        block.train(Generator(5, 5, 3))
        y = block(*(td.Tensor(backend.to_device(a, device), requires_grad=True) for a in (x, time)))
        y.backward(backend.to_device(L_Y, device))
        found.append([y.numpy(), *(backend.to_numpy(p.grad) for p in block.parameters()), block.generator.offset])
    for ours, expected in zip(found[1], found[0], strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5 * max(1, np.abs(expected).max()))
    backend.cupy.cache_clear()
