"""The U-Net: its size and names, what it is told about time and labels, its gradients, and what it refuses."""

import math

import numpy as np
import pytest

import tinydiff as td
from tinydiff.errors import InputError
from tinydiff.random import Generator
from tinydiff.unet import time_embedding


def tiny(**changes):
    settings = {
        "image_size": 8, "in_channels": 2, "channels": 8, "channel_mults": (1, 2), "blocks_per_level": 1,
        "attention_resolutions": (4,), "groups": 4, "generator": Generator(1),
    } | changes  # fmt: skip
    return td.UNet(**settings)


def randomised(unet, rng, dtype=np.float32):
    """With weights under which no part of the network is idle; freshly made, half of it multiplies by 1e-5."""
    for p in unet.astype(dtype).parameters():
        p.data[...] = rng.normal(size=p.shape) * (0.5 if p.ndim == 1 else 1 / math.sqrt(np.prod(p.shape[:-1])))
    return unet


def count(unet):
    return sum(p.size for p in unet.parameters())


def test_the_cifar10_network_has_the_papers_number_of_weights():
    assert count(td.UNet(32, 3)) == 35_746_307
    assert count(td.UNet(32, 3, num_classes=11)) == 35_746_307 + 11 * 512
    assert count(td.UNet(32, 3, 6)) == 35_746_307 + 3 * (9 * 128 + 1)


def test_weights_have_diffusers_names():
    resnet = ["norm1", "conv1", "time_emb_proj", "norm2", "conv2"]
    attention = ["group_norm", "to_q", "to_k", "to_v", "to_out.0"]
    layers = [
        "conv_in",
        *(f"time_embedding.linear_{i}" for i in (1, 2)),
        *(f"down_blocks.0.resnets.0.{name}" for name in resnet),
        "down_blocks.0.downsamplers.0.conv",
        *(f"down_blocks.1.resnets.0.{name}" for name in [*resnet, "conv_shortcut"]),
        *(f"down_blocks.1.attentions.0.{name}" for name in attention),
        *(f"mid_block.resnets.0.{name}" for name in resnet),
        *(f"mid_block.resnets.1.{name}" for name in resnet),
        *(f"mid_block.attentions.0.{name}" for name in attention),
        *(f"up_blocks.0.resnets.{i}.{name}" for i in (0, 1) for name in [*resnet, "conv_shortcut"]),
        *(f"up_blocks.0.attentions.{i}.{name}" for i in (0, 1) for name in attention),
        "up_blocks.0.upsamplers.0.conv",
        *(f"up_blocks.1.resnets.{i}.{name}" for i in (0, 1) for name in [*resnet, "conv_shortcut"]),
        "conv_norm_out",
        "conv_out",
    ]
    state = tiny().state_dict()
    assert list(state) == [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    assert "class_embedding.weight" in tiny(num_classes=3).state_dict()
    # skips: conv_in, block and downsampling of level 0, block of level 1; the last is the first to be taken back
    inputs = [state[f"up_blocks.{i}.resnets.{j}.conv1.weight"].shape[2] for i in (0, 1) for j in (0, 1)]
    assert inputs == [16 + 16, 16 + 8, 16 + 8, 8 + 8]
    assert state["time_embedding.linear_1.weight"].shape == (8, 32)


@pytest.mark.parametrize(
    ("size", "channels", "mults", "attention"),
    [(28, 1, (1, 2, 2), (14, 7)), (16, 4, (1, 1.5), ()), (5, 3, (1,), (5,))],
)
def test_any_size_and_number_of_channels(rng, size, channels, mults, attention):
    unet = randomised(td.UNet(size, channels, None, 16, mults, 1, attention, groups=8), rng)
    x = rng.normal(size=(2, size, size, channels)).astype(np.float32)
    y = unet(x, 3)
    assert y.shape == x.shape and y.dtype == np.float32 and np.isfinite(y.data).all()
    twice = td.UNet(size, channels, 2 * channels, 16, mults, 1, attention, groups=8)
    assert twice(x, 3).shape == (2, size, size, 2 * channels)


def test_a_new_network_is_as_good_as_zero_and_yet_learns_everywhere(rng):
    unet = tiny(num_classes=3)
    x = rng.normal(size=(4, 8, 8, 2)).astype(np.float32)
    y = unet(x, 5, 1)
    assert 0 < np.abs(y.data).max() < 1e-3
    randomised(unet, rng)(x, np.array([1, 2, 3, 4]), np.array([0, 1, 2, 0])).sum().backward()
    assert all(p.grad is not None and np.abs(p.grad).max() > 0 for p in unet.parameters())


def test_time_counts_from_one_and_is_one_number_or_one_for_each_image(rng):
    unet = randomised(tiny(), rng, np.float64)
    x = rng.normal(size=(3, 8, 8, 2))
    told = []
    unet.time_embedding, embed = lambda h: told.append(h) or embed(h), unet.time_embedding
    y = unet(x, np.array([1, 4, 4])).data
    np.testing.assert_array_equal(told[0], time_embedding(np.array([0, 3, 3]), 8, dtype=np.float64))
    np.testing.assert_allclose(y[1:], unet(x[1:], 4).data, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(y[:1], unet(x[:1], td.Tensor(np.array([1]))).data, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(unet(x, np.int32(4)).data, unet(td.Tensor(x), np.full(3, 4, np.uint8)).data)
    assert np.abs(y[0] - unet(x, 4).data[0]).max() > 1e-3


def test_labels(rng):
    unet = randomised(tiny(num_classes=4, null_label=3), rng, np.float64)
    x = rng.normal(size=(2, 8, 8, 2))
    ys = [unet(x, 2, label).data for label in range(4)]
    assert min(np.abs(a - b).max() for a in ys for b in ys if a is not b) > 1e-3
    np.testing.assert_array_equal(unet(x, 2).data, ys[3])
    np.testing.assert_array_equal(unet(x, 2, np.array([0, 2])).data, [ys[0][0], ys[2][1]])
    with pytest.raises(ValueError, match=r"needs labels in 0..3: it has no null label"):
        tiny(num_classes=4)(x, 2)
    with pytest.raises(ValueError, match=r"this UNet knows labels in 0..3, but was given 1..4"):
        unet(x, 2, np.array([1, 4]))
    with pytest.raises(ValueError, match=r"given -1..-1"):
        unet(x, 2, -1)
    with pytest.raises(ValueError, match="made without num_classes, so it takes no labels"):
        tiny()(x, 2, 0)
    with pytest.raises(TypeError, match="labels must be integers, not float64"):
        unet(x, 2, np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"labels must be one integer or 2, one for each image, not of shape \(3,\)"):
        unet(x, 2, np.array([0, 1, 2]))


@pytest.mark.parametrize(
    ("shape", "dtype", "t", "error", "message"),
    [
        ((2, 8, 8, 3), "f4", 1, ValueError, r"x must be images \(N, 8, 8, 2\), not of shape \(2, 8, 8, 3\)"),
        ((2, 4, 4, 2), "f4", 1, ValueError, r"not of shape \(2, 4, 4, 2\)"),
        ((8, 8, 2), "f4", 1, ValueError, r"not of shape \(8, 8, 2\)"),
        ((2, 8, 8, 2), "u1", 1, TypeError, r"x must be floating point in \[-1, 1\], not uint8"),
        ((2, 8, 8, 2), "f4", 0, ValueError, "t counts from 1 .* the smallest is 0"),
        ((2, 8, 8, 2), "f4", 1.0, TypeError, "t must be integers, not float64"),
        ((2, 8, 8, 2), "f4", True, TypeError, "t must be integers, not bool"),
        ((2, 8, 8, 2), "f4", np.array([1, 2, 3]), ValueError, "t must be one integer or 2, one for each"),
    ],
)
def test_images_and_times_that_do_not_fit(shape, dtype, t, error, message):
    with pytest.raises(error, match=message):
        tiny()(np.zeros(shape, dtype), t)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 10, "channel_mults": (1, 2, 2)}, "image_size 10 must be divisible by 4 to have 3 levels"),
        ({"attention_resolutions": (16,)}, "attention at resolution 16 is not possible: .* resolutions are 8, 4"),
        ({"attention_resolutions": 4}, "attention_resolutions must be a tuple of numbers, .*, not 4"),
        ({"channel_mults": 2}, "channel_mults must be a tuple of numbers, .*, not 2"),
        ({"groups": 3}, "groups=3 must divide the channels of every level, but one has 8"),
        ({"channel_mults": (1, 1.5), "groups": 8}, "groups=8 must divide the channels of every level, but one has 12"),
        ({"channel_mults": (2, 2)}, "channel_mults must start with 1"),
        ({"channel_mults": ()}, "channel_mults must start with 1"),
        ({"channel_mults": (1, 1.3)}, "whole numbers of channels"),
        ({"in_channels": 0}, "in_channels must be a whole number of at least 1, not 0"),
        ({"blocks_per_level": 1.5}, "blocks_per_level must be a whole number of at least 1, not 1.5"),
        ({"dropout": 1}, "dropout must be at least 0 and below 1, not 1"),
        ({"dropout": math.nan}, "dropout must be a finite number"),
        ({"null_label": 3}, "null_label=3 must be one of the network's labels, but it has none"),
        ({"num_classes": 3, "null_label": 3}, r"null_label=3 must be .*, 0..2 \(num_classes counts it too\)"),
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1"),
        ({"channels": 2, "groups": 1}, "channels=2 with freq_shift=1 leave the time without frequencies"),
        ({"attention_head_dim": 3}, "attention_head_dim=3 must divide the 16 channels of a level with attention"),
        ({"attn_norm_num_groups": 3}, "attn_norm_num_groups=3 must divide the 16 channels of the middle"),
        ({"act_fn": "mish"}, "act_fn must be one of 'silu', 'swish', 'relu', 'gelu', not 'mish'"),
        ({"norm_eps": 0}, "norm_eps must be a finite number greater than 0, not 0"),
        ({"downsample_padding": -1}, "downsample_padding must be a whole number of at least 0"),
        ({"time_embedding_type": "learned"}, "time_embedding_type 'learned' needs num_train_timesteps"),
    ],
)
def test_networks_that_can_not_be(changes, message):
    with pytest.raises(InputError, match=message):
        tiny(**changes)


def test_an_unknown_argument_is_named():
    with pytest.raises(TypeError, match="UNet has no argument 'chanels'; the settings of a variant are norm_eps, "):
        tiny(chanels=3)


def test_gradients_along_random_directions(rng):
    """In float64, the slope of the loss along random directions in all weights and the images together."""
    unet = randomised(tiny(num_classes=3, blocks_per_level=2), rng, np.float64)
    parameters = list(unet.parameters())
    x, L_Y = td.Tensor(rng.normal(size=(2, 8, 8, 2)), requires_grad=True), rng.normal(size=(2, 8, 8, 2))
    t, labels = np.array([3, 900]), np.array([0, 2])
    unet(x, t, labels).backward(L_Y)
    leaves = [x, *parameters]
    start = [leaf.data.copy() for leaf in leaves]
    for _ in range(3):
        directions = [rng.normal(size=leaf.shape) * np.abs(leaf.data).mean() for leaf in leaves]
        slope = sum((leaf.grad * d).sum() for leaf, d in zip(leaves, directions, strict=True))
        values = []
        with td.no_grad():
            for h in (1e-5, -1e-5):
                for leaf, a, d in zip(leaves, start, directions, strict=True):
                    leaf.data[...] = a + h * d
                values.append((unet(x, t, labels).data * L_Y).sum())
        assert abs((values[0] - values[1]) / 2e-5 - slope) < 1e-6 * abs(slope) + 1e-7 * np.abs(values).max()


def test_images_of_a_batch_do_not_see_each_other(rng):
    unet = randomised(tiny(), rng, np.float64)
    x, t = rng.normal(size=(3, 8, 8, 2)), np.array([5, 6, 7])
    together = unet(x, t).data
    for i in range(3):
        np.testing.assert_allclose(together[i : i + 1], unet(x[i : i + 1], t[i : i + 1]).data, rtol=1e-10, atol=1e-12)
    assert unet(x[:0], t[:0]).shape == (0, 8, 8, 2)


def test_dropout_is_in_every_residual_block_and_in_training_only(rng):
    unet = randomised(tiny(dropout=0.5), rng)
    x = rng.normal(size=(2, 8, 8, 2)).astype(np.float32)
    with pytest.raises(ValueError, match="needs a generator in training mode"):
        unet(x, 1)
    generator = Generator(1)
    y = unet.train(generator)(x, 1).data
    in_blocks = [(8, 8), (16, 4), (16, 4), (16, 4), (16, 4), (16, 4), (8, 8), (8, 8)]  # (channels, size) after norm2
    assert generator.offset == sum(-(-2 * c * n * n // 4) for c, n in in_blocks)
    np.testing.assert_array_equal(unet.train(Generator(1))(x, 1).data, y)
    assert not np.array_equal(unet.eval()(x, 1).data, y)
    np.testing.assert_array_equal(unet(x, 1).data, unet(x, 1).data)


def test_a_network_is_made_again_from_its_config_and_seed():
    unet = tiny(num_classes=4, null_label=3, dropout=0.25, attention_head_dim=8, flip_sin_to_cos=True)
    again = td.UNet(**unet.config, generator=Generator(1))
    assert again.config == unet.config and again.variant == unet.variant
    a, b = unet.state_dict(), again.state_dict()
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(tiny(generator=Generator(2)).conv_in.weight.data, unet.conv_in.weight.data)


def test_attention_only_where_it_was_asked_for():
    unet = td.UNet(16, 1, None, 8, (1, 1, 1), 1, (16, 4), 4, up_attention_resolutions=(8,))
    assert [bool(block.attentions) for block in unet.down_blocks] == [True, False, True]
    assert [bool(block.attentions) for block in unet.up_blocks] == [False, True, False]
    assert unet.mid_block.attentions and not tiny(add_attention=False).mid_block.attentions
    assert tiny(mid_block_type=None).mid_block is None
    assert tiny(attention_head_dim=4).mid_block.attentions[0].heads == 4


def test_hooks_on_every_module_are_called_and_change_nothing():
    """Also on those whose weights a block gives to an operation that joins several layers."""
    generator = td.random.Generator(3)
    unet = td.UNet(
        8,
        1,
        channels=4,
        channel_mults=(1, 2),
        blocks_per_level=1,
        attention_resolutions=(4,),
        groups=2,
        generator=generator,
    )
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)

    def run():
        unet.zero_grad()
        y = unet(x, 3)
        (y * x).sum().backward()
        return y.data, {name: p.grad for name, p in unet.named_parameters()}

    plain, gradients = run()
    names = {id(module): name for name, module in unet.named_modules()}
    seen = {"before": [], "after": [], "backward": []}
    for module in unet.modules():
        module.register_forward_pre_hook(lambda m, args: seen["before"].append(names[id(m)]))
        module.register_forward_hook(lambda m, args, output: seen["after"].append(names[id(m)]))
        module.register_full_backward_hook(lambda m, L_Xs, L_Ys: seen["backward"].append(names[id(m)]))
    hooked, hooked_gradients = run()
    for kind, called in seen.items():
        assert sorted(called) == sorted(names.values()), kind
    np.testing.assert_allclose(hooked, plain, atol=1e-6)
    for name, L in gradients.items():
        np.testing.assert_allclose(hooked_gradients[name], L, rtol=1e-3, atol=1e-6, err_msg=name)


def test_what_does_not_fit_comes_with_what_would():
    with pytest.raises(InputError, match=r"groups=32 must divide .* one has 24: groups=24 would do"):
        td.UNet(8, 1, channels=24, channel_mults=(1, 2))
    with pytest.raises(InputError, match=r"one has 40: groups=20 would do"):
        td.UNet(8, 1, channels=40, channel_mults=(1, 1.5, 2))
    td.UNet(8, 1, channels=40, channel_mults=(1, 1.5, 2), groups=20, blocks_per_level=1, attention_resolutions=())
    with pytest.raises(ValueError, match=r"into 32 groups; 12 would do"):
        td.nn.GroupNorm(32, 12)
    unet = td.UNet(8, 3, channels=4, channel_mults=(1,), blocks_per_level=1, attention_resolutions=(), groups=2)
    with pytest.raises(ValueError, match=r"not of shape \(2, 3, 8, 8\).*write x\.transpose\(0, 2, 3, 1\)"):
        unet(np.zeros((2, 3, 8, 8), np.float32), 1)
    with pytest.raises(ValueError, match=r"not of shape \(2, 3, 4, 8\)$"):
        unet(np.zeros((2, 3, 4, 8), np.float32), 1)
