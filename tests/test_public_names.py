"""The names that are relied on from outside: where each is found, and what it takes."""

import inspect
import subprocess
import sys

import numpy as np
import pytest

import tinydiff as td

WORDS = [691336261, 3937831388, 2601299232, 3411203207, 3392853331]  # as 0.1.0 drew them
NORMALS = [1.584938883781433, -1.0557219982147217, -0.4237397015094757]

NAMES = {
    td: "Function GradientError Tensor TrainConfig Trainer UNet backend by_definition checkpoint data diffusion errors from_dlpack "
    "gradcheck images jacobian load nn no_grad numerical_gradient numerical_jacobian ops optim random recompute "
    "trace",
    td.ops: "linear matmul einsum conv2d conv_transpose2d patches unpatches group_norm layer_norm attention softmax log_softmax "
    "logsumexp relu silu sigmoid tanh gelu softplus erf exp log sqrt abs sin cos add subtract multiply divide power maximum "
    "minimum where clip sum mean var max min reshape transpose expand_dims squeeze broadcast_to concatenate stack split getitem "
    "pad upsample_nearest2d avg_pool2d max_pool2d embedding dropout mse_loss cross_entropy batch_norm",
    td.nn: "Module Parameter Buffer Sequential Linear Conv2d GroupNorm LayerNorm BatchNorm Embedding Dropout Attention ReLU SiLU "
    "GELU Tanh Sigmoid Softplus Softmax LogSoftmax Identity Flatten MaxPool2d AvgPool2d",
    td.optim: "SGD Adam AdamW EMA clip_grad_norm warmup",
    td.random: "Generator",
    td.data: "load",
    td.diffusion: "Bound Diffusion Schedule Step ddim_invert gaussian inpaint interpolate sample sample_steps",
    td.diffusion.gaussian: "log_prob entropy kl product change_of_variable",
    td.images: "to_float to_bytes convert_channels fit resize grid save_png save_gif plot_loss check_place write_file",
    td.checkpoint: "Pipeline save load load_training_state find",
    td.backend: "cupy array_module resolve_device to_device to_numpy device_of is_array",
    td.Tensor: "data grad requires_grad shape dtype ndim size device backward numpy item detach to retain_grad zero_grad",
    td.nn.Module: "parameters named_parameters zero_grad train eval to state_dict load_state_dict torch_state_dict "
    "load_torch_state_dict",
    td.diffusion.Diffusion: "q_sample q_posterior predict_x0 loss draw vlb",
    td.diffusion.Schedule: "linear cosine sigmoid from_betas respaced",
}

SIGNATURES = {
    td.ops.linear: "x w b",
    td.ops.conv2d: "x w b stride padding dilation groups",
    td.ops.conv_transpose2d: "x w b stride padding output_padding dilation groups",
    td.ops.group_norm: "x groups weight bias eps",
    td.ops.layer_norm: "x weight bias eps",
    td.ops.batch_norm: "x weight bias mean variance eps",
    td.ops.attention: "q k v mask scale",
    td.ops.dropout: "x p generator",
    td.ops.mse_loss: "prediction target reduction",
    td.ops.cross_entropy: "logits labels reduction",
    td.ops.pad: "x widths mode value",
    td.ops.clip: "x low high",
    td.optim.Adam: "parameters lr betas eps weight_decay",
    td.optim.EMA: "parameters decay",
    td.diffusion.Diffusion.loss: "self model x0 generator labels t eps",
    td.diffusion.Diffusion.vlb: "self model x0 generator labels t",
    td.diffusion.Diffusion.q_sample: "self x0 t eps",
    td.diffusion.sample: "model diffusion shape generator sampler steps eta labels guidance progress",
}


@pytest.mark.parametrize("place", NAMES, ids=lambda place: place.__name__)
def test_names(place):
    missing = [
        name for name in NAMES[place].split() if not (hasattr(place, name) or name in getattr(place, "__slots__", ()))
    ]
    assert not missing


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f.__qualname__)
def test_arguments_keep_their_names_and_order(function):
    names, wanted = list(inspect.signature(function).parameters), SIGNATURES[function].split()
    assert names[: len(wanted)] == wanted


def test_the_last_names_of_the_unet():
    names = list(inspect.signature(td.UNet).parameters)
    assert names[:11] == [
        "image_size", "in_channels", "out_channels", "channels", "channel_mults", "blocks_per_level", "attention_resolutions",
        "groups", "dropout", "num_classes", "null_label",
    ]  # fmt: skip


def test_importing_loads_neither_the_trainer_nor_cupy_nor_pillow():
    """`import tinydiff` stays quick because of what it does not load."""
    code = "import sys, tinydiff; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    for name in (
        "cupy",
        "PIL",
        "tqdm",
        "safetensors",
        "tinydiff.runs.trainer",
        "tinydiff.diffusion",
        "tinydiff.cuda",
        "tinydiff.cpu",
    ):
        assert name not in loaded, name


def test_a_seed_has_its_words():
    """Known since 0.1.0: what was drawn once is drawn again."""
    generator = td.random.Generator(7, 4, 3)
    assert generator.words(5).tolist() == WORDS
    np.testing.assert_allclose(generator.normal(3), NORMALS, rtol=0, atol=1e-6)
