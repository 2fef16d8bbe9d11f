"""The U-Net against diffusers' UNet2DModel with the same random weights: outputs and the gradients of all weights.

The network is made from diffusers' own configuration, so this is also the test of how that is read. diffusers computes
the time embedding in float32 whatever the network's type; where outputs are compared in float64, that is replaced.
"""

import dataclasses
import inspect
import warnings

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import tinydiff as td
from tinydiff.runs import diffusers as exchange
from tinydiff.unet.variant import Variant

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from diffusers.models import embeddings  # noqa: E402

pytestmark = pytest.mark.parity

PAPER = {
    "norm_eps": 1e-6, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "attention_head_dim": None,
}  # fmt: skip
DIFFUSERS = {
    "norm_eps": 1e-5, "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "attention_head_dim": 8,
}  # fmt: skip


def levels(attended, attended_up=None):
    """Block types from a string such as "-a": no attention at the first level, attention at the second."""
    up = attended if attended_up is None else attended_up
    return {
        "down_block_types": tuple("AttnDownBlock2D" if a == "a" else "DownBlock2D" for a in attended),
        "up_block_types": tuple("AttnUpBlock2D" if a == "a" else "UpBlock2D" for a in reversed(up)),
    }


CASES = {
    "paper": PAPER,
    "diffusers": DIFFUSERS,
    "grey 28x28": PAPER | {"sample_size": 28, "in_channels": 1, "out_channels": 1, "block_out_channels": (16, 32, 32)}
    | levels("-a-"),
    "64x64, four channels": PAPER | {"sample_size": 64, "in_channels": 4, "out_channels": 4,
                                     "block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4} | levels("---a"),
    "two channels, one level": PAPER | {"in_channels": 2, "out_channels": 2, "block_out_channels": (16,)} | levels("a"),
    "three blocks per level": PAPER | {"layers_per_block": 3},
    "attention everywhere, heads": PAPER | {"attention_head_dim": 4} | levels("aa"),
    "no attention": PAPER | {"add_attention": False} | levels("--"),
    "attention on the way up elsewhere": PAPER | levels("a-", "-a"),
    "widths that are no multiples": PAPER | {"block_out_channels": (16, 24)},
    "one group": PAPER | {"norm_num_groups": 1},
    "odd number of channels": PAPER | {"norm_num_groups": 3, "block_out_channels": (9, 18)},
    "learned variance": PAPER | {"out_channels": 6},
    "labels": PAPER | {"num_class_embeds": 5},
    "labels, diffusers": DIFFUSERS | {"num_class_embeds": 5},
    "scale and shift": PAPER | {"resnet_time_scale_shift": "scale_shift"},
    "scale and shift, norm in the middle": PAPER | {"resnet_time_scale_shift": "scale_shift",
                                                    "attn_norm_num_groups": 2},
    "residual resampling": PAPER | {"downsample_type": "resnet", "upsample_type": "resnet"} | levels("a-a")
    | {"block_out_channels": (16, 24, 32)},
    "scaled middle": PAPER | {"mid_block_scale_factor": 1.7},
    "no middle": PAPER | {"mid_block_type": None},
    "relu": PAPER | {"act_fn": "relu"},
    "gelu": PAPER | {"act_fn": "gelu"},
    "swish, dropout": PAPER | {"act_fn": "swish", "dropout": 0.3},
    "centred input": PAPER | {"center_input_sample": True},
    "time embedding of another size": PAPER | {"time_embedding_dim": 20},
    "learned times": PAPER | {"time_embedding_type": "learned", "num_train_timesteps": 1000},
}  # fmt: skip


def make(**settings):
    """diffusers' network with random weights in eval mode, and ours."""
    config = {
        "sample_size": 16, "in_channels": 3, "out_channels": 3, "block_out_channels": (16, 32), "layers_per_block": 1,
        "norm_num_groups": 8, **levels("-a"), **settings,
    }  # fmt: skip
    torch.manual_seed(1)
    theirs = diffusers.UNet2DModel(**config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.mul_(1.5).add_(0.1 * torch.randn_like(p))
    ours = exchange.unet_from_config(dict(theirs.config), None, "config.json").eval()
    return theirs, ours


def close(ours, theirs, tolerance, what, floor=0.0):
    """Within the tolerance relative to the largest value or to `floor`, as some gradients are zero but for rounding."""
    assert ours.shape == theirs.shape, what
    assert np.abs(ours - theirs).max() <= tolerance * max(np.abs(theirs).max(), floor), what


@pytest.fixture(autouse=True)
def one_thread():
    """For networks as small as these, threads only get into each other's way."""
    with threadpool_limits(1):
        yield


@pytest.fixture
def exact_times(monkeypatch):
    """diffusers' time embedding in float64, from its formula."""

    def embed(timesteps, embedding_dim, flip_sin_to_cos=False, downscale_freq_shift=1, scale=1, max_period=10000):
        half = embedding_dim // 2
        frequencies = max_period ** (-torch.arange(half, dtype=torch.float64) / (half - downscale_freq_shift))
        angles = scale * timesteps.double()[:, None] * frequencies
        parts = [angles.cos(), angles.sin()] if flip_sin_to_cos else [angles.sin(), angles.cos()]
        return torch.nn.functional.pad(torch.cat(parts, -1), (0, embedding_dim % 2))

    monkeypatch.setattr(embeddings, "get_timestep_embedding", embed)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients(rng, request, name, dtype):
    if dtype == np.float64:
        request.getfixturevalue("exact_times")
    theirs, ours = make(**CASES[name])
    theirs = theirs.double() if dtype == np.float64 else theirs
    ours.astype(dtype).load_torch_state_dict(theirs.state_dict())
    size, channels = ours.image_size, ours.in_channels
    x = td.Tensor(rng.normal(size=(2, size, size, channels)).astype(dtype), requires_grad=True)
    t = np.array([1, 731])
    labels = None if ours.num_classes is None else np.array([4, 0])
    y = ours(x, t, labels)
    L_Y = rng.normal(size=y.shape).astype(dtype)
    y.backward(L_Y)

    x_t = torch.tensor(x.data.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    y_t = theirs(x_t, torch.tensor(t - 1), None if labels is None else torch.tensor(labels)).sample
    (y_t * torch.tensor(L_Y.transpose(0, 3, 1, 2).copy())).sum().backward()

    tolerance = 1e-9 if dtype == np.float64 else 1e-4
    close(y.data, y_t.detach().numpy().transpose(0, 2, 3, 1), tolerance, "output")
    close(x.grad, x_t.grad.numpy().transpose(0, 2, 3, 1), tolerance, "gradient of the image")
    gradients = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    floor = (1e-3 if dtype == np.float64 else 1e-2) * max(np.abs(g).max() for g in gradients.values())
    for p in ours.parameters():  # through the same conversion as the weights
        p.data[...] = p.grad
    for name, gradient in ours.torch_state_dict().items():
        close(gradient, gradients.pop(name), tolerance, f"gradient of {name}", floor)
    assert not gradients


def test_the_papers_network_is_diffusers_with_these_settings():
    config = exchange.unet_config(td.UNet(32, 3))
    with warnings.catch_warnings(action="error"):
        theirs = diffusers.UNet2DModel.from_config(config)
    assert sum(p.numel() for p in theirs.parameters()) == 35_746_307
    assert {key: theirs.config[key] for key in PAPER} == PAPER


@pytest.mark.parametrize("name", CASES)
def test_configurations_make_the_round_trip(name):
    theirs, ours = make(**CASES[name])
    config = exchange.unet_config(ours)
    again = exchange.unet_from_config(config, None, "config.json")
    assert again.config == ours.config and again.variant == ours.variant
    written = diffusers.UNet2DModel.from_config(config).config
    different = {key for key in theirs.config if not key.startswith("_") and written[key] != theirs.config[key]}
    assert different <= {"block_out_channels", "down_block_types", "up_block_types"}  # lists for tuples
    assert all(list(written[key]) == list(theirs.config[key]) for key in different)


def test_every_setting_of_diffusers_is_known_and_has_its_default():
    parameters = inspect.signature(diffusers.UNet2DModel.__init__).parameters.values()
    assert {p.name: p.default for p in parameters if p.name != "self"} == exchange._UNET_DEFAULTS
    names = {field.name for field in dataclasses.fields(Variant)} - {"up_attention_resolutions"}
    assert names <= set(exchange._UNET_DEFAULTS)
