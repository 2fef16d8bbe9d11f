"""Reading and writing diffusers' configurations: what comes back, which defaults hold, what is refused and how."""

import json
import warnings

import numpy as np
import pytest

import tinydiff as td
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.errors import InputError
from tinydiff.random import Generator
from tinydiff.runs import diffusers

UNET = {
    "_class_name": "UNet2DModel", "_diffusers_version": "0.1", "sample_size": 8, "in_channels": 1, "out_channels": 1,
    "block_out_channels": [8, 16], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "layers_per_block": 1, "norm_num_groups": 4,
}  # fmt: skip


def unet(out_channels=1):
    return diffusers.unet_from_config(UNET | {"out_channels": out_channels}, None, "config.json")


def through_json(value):
    return json.loads(json.dumps(value))


SCHEDULES = {
    "linear": lambda: Schedule.linear(),
    "other linear": lambda: Schedule.linear(20, 1e-3, 0.4),
    "cosine": lambda: Schedule.cosine(30),
    "cosine, other s": lambda: Schedule.cosine(30, s=0.02),
    "sigmoid": lambda: Schedule.sigmoid(30),
    "numbers": lambda: Schedule.from_betas([0.1, 0.9, 0.5, 0.999]),
    "one step": lambda: Schedule.from_betas([0.995]),
    "down to nothing": lambda: Schedule.linear(30, 1e-3, 0.4).zero_terminal_snr(),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_come_back_exactly(name):
    schedule = SCHEDULES[name]()
    config = through_json(diffusers.scheduler_config(Diffusion(schedule, "x0")))
    again = diffusers.diffusion_from_config(config, unet(), "scheduler.json").schedule
    np.testing.assert_array_equal(again.beta, schedule.beta)
    np.testing.assert_array_equal(again.timesteps, schedule.timesteps)
    for field in ("alpha_bar", "posterior_variance"):
        tolerance = 1e-13 if name == "down to nothing" else 0  # there, betas are not what the rest was computed from
        np.testing.assert_allclose(getattr(again, field), getattr(schedule, field), tolerance, err_msg=field)
    formula = {"linear": "linear", "other linear": "linear", "one step": "linear", "cosine": "squaredcos_cap_v2"}
    assert (config["trained_betas"] is None) == (name in formula)
    assert config["beta_schedule"] == formula.get(name, "linear") and config["num_train_timesteps"] == schedule.T


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
@pytest.mark.parametrize("variance", ["beta", "posterior", "learned"])
@pytest.mark.parametrize("clip", [True, False])
def test_diffusions_come_back(predict, variance, clip):
    diffusion = Diffusion(Schedule.linear(), predict, variance, clip)
    config = through_json(diffusers.scheduler_config(diffusion))
    again = diffusers.diffusion_from_config(config, unet(2 if variance == "learned" else 1), "scheduler.json", 5.0)
    assert (again.predict, again.variance, again.clip_x0, again.min_snr) == (predict, variance, clip, 5.0)
    assert config["timestep_spacing"] == "trailing"
    names = {"beta": "fixed_large", "posterior": "fixed_small", "learned": "learned_range"}
    assert config["variance_type"] == names[variance]
    assert config["prediction_type"] == {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}[predict]


def read(**config):
    return diffusers.diffusion_from_config(config, unet(), "scheduler.json")


def test_what_is_absent_has_diffusers_default():
    diffusion = read()
    np.testing.assert_array_equal(diffusion.schedule.beta, Schedule.linear(1000, 1e-4, 0.02).beta)
    assert (diffusion.predict, diffusion.variance, diffusion.clip_x0) == ("eps", "posterior", True)
    config = {"sample_size": 64, "block_out_channels": [32] * 4}
    bare = diffusers.unet_from_config(config, None, "config.json")
    assert bare.config["attention_resolutions"] == (32, 16, 8) and bare.variant.attention_head_dim == 8
    assert (
        bare.config["in_channels"] == 3
        and bare.variant.norm_eps == 1e-5
        and bare.variant.downsample_padding == 1
        and bare.variant.flip_sin_to_cos
    )


def test_old_and_other_ways_to_say_it():
    assert read(predict_epsilon=False).predict == "x0" and read(predict_epsilon=True).predict == "eps"
    assert read(variance_type="fixed_small_log").variance == "posterior"
    assert read(_class_name="DDIMScheduler", set_alpha_to_one=True, steps_offset=1, timestep_spacing="leading").predict
    assert read(tensor_format="pt", timestep_values=None, skip_prk_steps=None, clip_sample=False, clip_sample_range=7)
    np.testing.assert_allclose(
        read(beta_schedule="scaled_linear", num_train_timesteps=3, beta_start=0.04, beta_end=0.36).schedule.beta,
        [0, 0.04, 0.16, 0.36],
    )
    beta = read(beta_schedule="sigmoid", num_train_timesteps=3, beta_start=0.1, beta_end=0.7).schedule.beta
    np.testing.assert_allclose(beta[2], 0.4)
    np.testing.assert_allclose(beta[1] - 0.1, 0.6 / (1 + np.exp(6)))
    zero = read(rescale_betas_zero_snr=True, prediction_type="v_prediction").schedule
    np.testing.assert_array_equal(zero.beta, Schedule.linear().zero_terminal_snr().beta)
    square = diffusers.unet_from_config(UNET | {"sample_size": [8, 8], "new_setting": None}, None, "config.json")
    assert square.image_size == 8


def test_reading_a_noisy_schedule_does_not_warn_again():
    with warnings.catch_warnings(action="error"):
        read(num_train_timesteps=10)
        diffusers.scheduler_config(read(num_train_timesteps=10))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"_class_name": "EDMEulerScheduler"},
            '_class_name = "EDMEulerScheduler" .*; supported: those of a DDPM.s noise',
        ),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, 'supported: "discrete"'),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "use_flow_sigmas = true .*: false"),
        ({"_class_name": "PNDMScheduler", "eta": 1.0}, "eta = 1.0 .*; supported: only null"),
        ({"beta_schedule": "laplace"}, 'beta_schedule = "laplace" is not supported; supported: "linear", "sc'),
        ({"prediction_type": "flow"}, 'prediction_type = "flow" .* supported: "epsilon", "sample", "v_prediction"'),
        ({"variance_type": "learned"}, 'variance_type = "learned" .* supported: "fixed_small", "fixed_small_log"'),
        ({"variance_type": "fixed_large_log"}, 'variance_type = "fixed_large_log" is not supported'),
        ({"variance_type": "learned_range"}, 'variance_type = "learned_range" .* has 1 input and 1 output channels'),
        ({"thresholding": True}, "thresholding = true is not supported; supported: false"),
        ({"clip_sample_range": 2.0}, "clip_sample_range = 2.0 is not supported; supported: 1.0"),
        ({"clip_sample": "yes"}, 'clip_sample = "yes" is not supported; supported: true, false'),
        ({"num_train_timesteps": 0}, "num_train_timesteps = 0 is not supported; supported: a whole number"),
        ({"trained_betas": [0.1]}, r"trained_betas = \[0.1\] .* a list of num_train_timesteps = 1000 numbers"),
        ({"trained_betas": [0.5, 1.5], "num_train_timesteps": 2}, "beta_2 of 2 is 1.5"),
        ({"beta_end": None}, "scheduler.json: "),
        ({"beta_start": 2}, "beta_start must be between 0 and 1"),
        ({"sigma_min": 0.1}, "sigma_min = 0.1 .*; supported: only null: tinydiff does not know this setting"),
        ({"rescale_betas_zero_snr": True}, "a schedule with alpha_bar_T = 0 needs"),
    ],
)
def test_schedulers_that_are_refused(config, message):
    with pytest.raises(InputError, match=message) as told:
        read(**config)
    assert str(told.value).startswith("scheduler.json: ")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, '_class_name = "UNet2DConditionModel" .* supported: UNet2DModel'),
        ({"sample_size": None}, "sample_size = null is not supported; supported: the side of square images"),
        ({"sample_size": 9}, "sample_size = 9 is not supported; supported: multiples of 2 with 2 levels"),
        ({"sample_size": [8, 16]}, r"sample_size = \[8, 16\] is not supported"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type must be .* 'learned', not 'fourier'"),
        ({"class_embed_type": "timestep"}, 'class_embed_type = "timestep" is not supported; supported: null'),
        ({"class_embed_type": "identity"}, 'class_embed_type = "identity" is not supported; supported: null'),
        ({"act_fn": "mish"}, "act_fn must be one of 'silu', 'swish', 'relu', 'gelu', not 'mish'"),
        ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, 'down_block_types has "SkipDownBlock2D", which'),
        ({"up_block_types": ["UpBlock2D"]}, r'up_block_types = \["UpBlock2D"\] .* 2 entries, as many as'),
        ({"block_out_channels": []}, r"block_out_channels = \[\] is not supported; supported: a list"),
        ({"block_out_channels": [8, 16.5]}, "block_out_channels has 16.5, which .*; supported: whole numbers"),
        ({"layers_per_block": [1, 2]}, r"layers_per_block = \[1, 2\] is not supported; supported: a whole number"),
        ({"norm_num_groups": None}, "norm_num_groups = null is not supported; supported: a whole number"),
        ({"norm_num_groups": 16}, r"norm_num_groups = 16 .* divides all of block_out_channels = \[8, 16\]"),
        ({"attention_head_dim": 5}, "attention_head_dim=5 must divide the 16 channels of a level with attention"),
        ({"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift must be one of 'default', 'scale_shift'"),
        ({"downsample_type": "kernel"}, "downsample_type must be one of 'conv', 'resnet', not 'kernel'"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type must be one of 'UNetMidBlock2D', None"),
        ({"dropout": "none"}, "dropout must be a finite number, not 'none'"),
        ({"num_class_embeds": 0}, "num_class_embeds = 0 is not supported"),
        ({"encoder_hid_dim": 64}, "encoder_hid_dim = 64 is not supported; supported: only null"),
    ],
)
def test_networks_that_are_refused(config, message):
    with pytest.raises(InputError, match=message) as told:
        diffusers.unet_from_config(UNET | config, None, "config.json")
    assert str(told.value).startswith("config.json: ") and "\n" not in str(told.value)


def test_a_long_value_is_cut():
    with pytest.raises(InputError) as told:
        read(trained_betas=[0.5] * 400)
    assert len(str(told.value)) < 300 and "0.5, 0.5" in str(told.value)


def test_networks_come_back():
    for settings in ({}, {"up_attention_resolutions": (8,)}, {"attention_head_dim": 4, "downsample_type": "resnet"}):
        one = td.UNet(
            8, 2, 4, 8, (1, 1.5), 2, (4,), 4, 0.1, num_classes=3, null_label=2, generator=Generator(0), **settings
        )
        config = through_json(diffusers.unet_config(one))
        two = diffusers.unet_from_config(config, 2, "config.json")
        assert two.config == one.config and two.variant == one.variant
        assert config["block_out_channels"] == [8, 12] and config["num_class_embeds"] == 3


def test_old_names():
    state = {"a.attentions.0.query.weight": 1, "a.attentions.0.proj_attn.bias": 2, "query.weight": 3, "x": 4}
    state |= {"a.attentions.1.to_k.weight": 5, "a.resnets.0.value.weight": 6}
    assert diffusers.current_names(state) == {
        "a.attentions.0.to_q.weight": 1, "a.attentions.0.to_out.0.bias": 2, "query.weight": 3, "x": 4,
        "a.attentions.1.to_k.weight": 5, "a.resnets.0.value.weight": 6,
    }  # fmt: skip
