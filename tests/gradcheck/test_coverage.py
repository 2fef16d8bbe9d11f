"""Everything in tinydiff that has a gradient is held to the check: operations, layers, losses and the whole network."""

import importlib
import pkgutil

import numpy as np
import pytest
from right_operations import cases

import tinydiff
from tinydiff import nn, ops
from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import _Transfer
from tinydiff.cpu.winograd import convolution as winograd
from tinydiff.cuda import host
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.errors import InputError
from tinydiff.gradcheck import gradcheck
from tinydiff.gradcheck.formula import recorded
from tinydiff.gradcheck.making import make_subject
from tinydiff.nn.hooks import _Inputs, _Outputs
from tinydiff.ops.convolution import upsample_conv2d
from tinydiff.random import Generator
from tinydiff.unet import UNet

needs_compiler = pytest.mark.skipif(bool(host.missing()), reason=host.missing() or "")


def subclasses(kind):
    for cls in kind.__subclasses__():
        yield cls
        yield from subclasses(cls)


def operations():
    """Every Function of tinydiff that has both passes, but for those that move arrays between devices and stand at a
    module's borders where it has hooks: they hand on what they get."""
    for module in pkgutil.walk_packages(tinydiff.__path__, "tinydiff."):
        if not module.name.startswith(("tinydiff.gradcheck", "tinydiff.__main__", "tinydiff.cuda")):
            importlib.import_module(module.name)
    ours = (f for f in subclasses(Function) if f.__module__.startswith("tinydiff.") and "gradcheck" not in f.__module__)
    return {f for f in ours if f.forward is not Function.forward and f.backward is not Function.backward} - {
        _Transfer,
        _Inputs,
        _Outputs,
    }


def test_every_operation_is_among_those_that_are_checked():
    checked = set()
    for right in cases(0):
        subject_of = {
            name: right.options[name] for name in ("backward", "cache", "parameters") if name in right.options
        }
        subject = make_subject(right.fn, right.inputs, **subject_of)
        calls = []
        with recorded(calls), np.errstate(all="ignore"):
            subject.forward(subject.point)
        checked |= {call.function for call in calls}
    assert operations() - checked == set()


@pytest.mark.parametrize("bias", [True, False])
def test_upsampling_convolution_by_winograd(bias, rng, monkeypatch):
    for limit in ("CHANNELS_WORTH_TRANSFORMS", "TILES_WORTH_TRANSFORMS", "MULTIPLICATIONS_LEFT_TO_PATCHES"):
        monkeypatch.setattr(winograd, limit, 0)
    used = []
    for name in ("_filtered", "_weight_gradient"):
        original = getattr(winograd, name)
        monkeypatch.setattr(winograd, name, lambda *a, f=original, name=name, **k: used.append(name) or f(*a, **k))
    arrays = [rng.normal(size=s) for s in ((2, 3, 5, 4), (3, 3, 4, 6), (6,))[: 2 + bias]]
    report = gradcheck(upsample_conv2d, arrays, dtype=np.float32, reference=upsample_by_definition)
    assert [v.name for v in report.verdicts] == ["x", "w", "b"][: 2 + bias]
    assert set(used) == {"_filtered", "_weight_gradient"}


def upsample_by_definition(x, w, b=None):
    return ops.conv2d(ops.upsample_nearest2d(x), w, b, padding=1)


def redrawn(module, rng, scale=1.0):
    """With random parameters, also where a layer starts at zero."""
    for p in module.parameters():
        p.data = (scale * rng.normal(size=p.shape)).astype(p.dtype)
    return module


LAYERS = {
    nn.Linear: (lambda: nn.Linear(3, 2), [(4, 3)]),
    nn.Conv2d: (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), [(2, 5, 4, 4)]),
    nn.GroupNorm: (lambda: nn.GroupNorm(2, 4), [(2, 3, 4, 4)]),
    nn.LayerNorm: (lambda: nn.LayerNorm(5), [(3, 5)]),
    nn.BatchNorm: (lambda: nn.BatchNorm(5), [(2, 2, 5)]),
    nn.Dropout: (lambda: nn.Dropout(0.3).train(Generator(3)), [(4, 5)]),
    nn.Attention: (lambda: nn.Attention(4, 2, 2), [(1, 2, 3, 4)]),
    nn.Sequential: (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), [(5, 3)]),
    nn.Embedding: (lambda: nn.Embedding(5, 3), []),
}


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_layers(layer, rng):
    make, shapes = LAYERS[layer]
    module = redrawn(make(), rng)
    labels = np.array([[4, 0, 2], [0, 0, 1]])
    fn = (lambda: module(labels)) if layer is nn.Embedding else module
    report = gradcheck(fn, [rng.normal(size=shape) for shape in shapes], parameters=module, name=layer.__name__)
    names = [name for name, _ in module.named_parameters()]
    if len(names) <= 8:
        assert [v.name for v in report.verdicts][len(shapes) :] == names


def test_no_layer_is_left_out():
    assert {m for m in subclasses(nn.Module) if m.__module__ == "tinydiff.nn.layers"} == set(LAYERS)


class Denoiser(nn.Module):
    """The smallest model that has an image, a time and weights."""

    def __init__(self):
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t, labels=None):
        return self.conv(x) * np.cos(0.01 * np.asarray(t)).astype(x.dtype).reshape(-1, 1, 1, 1)


class VarianceModel(Denoiser):
    """Predicts 0.3 x_t and learns the variance alone."""

    def forward(self, x, t, labels=None):
        return ops.concatenate([0.3 * x, super().forward(x, t)], -1)


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
@pytest.mark.parametrize("options", [{}, {"min_snr": 5}, {"variance": "learned"}], ids=str)
def test_losses_of_diffusion(predict, options, rng):
    """The bound's part in the loss stops the gradient of the prediction (Nichol & Dhariwal, 2021), which is therefore
    without weights where the variance is learned."""
    diffusion = Diffusion(Schedule.cosine(4), predict=predict, **options)
    model = redrawn(VarianceModel() if options.get("variance") == "learned" else Denoiser(), rng, 0.3)
    images, noise = rng.uniform(-1, 1, size=(6, 4, 4, 1)), Generator(5)
    report = gradcheck(lambda: diffusion.loss(model, images, noise), [], parameters=model)
    assert [v.name for v in report.verdicts] == ["conv.weight", "conv.bias"]
    assert all(abs(v.backward) > 1e-6 for v in report.verdicts), report


@pytest.mark.slow  # test_backends.py checks each kernel by itself
@needs_compiler
def test_operations_by_kernels():
    """Every operation that has a kernel agrees with itself in float64 when the kernel computes it."""
    ran = set()
    for right in cases(0):
        try:
            report = gradcheck(right.fn, right.inputs, kernels=True, name=right.name, **right.options)
        except InputError as error:
            assert "no kernel took these arrays" in str(error), right.name
            continue
        ran |= {name for note in report.notes if "kernels that ran" in note for name in note.split(": ")[1].split(", ")}
    assert {
        "attention" if name.startswith("softmax") else name for name in ran
    } >= {
        "attention", "column_sums", "concatenate", "conv_forward", "conv_weight_gradient", "group_norm_backward",
        "group_norm_forward", "matrix_product", "split", "upsample", "upsample_backward",
    }  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
@pytest.mark.parametrize("options", [{}, {"min_snr": 5}], ids=str)
def test_losses_by_kernels(predict, options, rng):
    diffusion = Diffusion(Schedule.cosine(4), predict=predict, **options)
    model, noise = redrawn(Denoiser(), rng, 0.3), Generator(5)
    images = rng.uniform(-1, 1, size=(6, 4, 4, 1)).astype(np.float32)
    report = gradcheck(lambda: diffusion.loss(model, images, noise), [], parameters=model, kernels=True)
    assert "mse" in str(report.notes)


VARIANTS = {
    "paper": {},
    "variant": {"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"},
}


def network(variant, rng):
    unet = UNet(
        4, 1, channels=4, channel_mults=(1, 2), blocks_per_level=1, attention_resolutions=(2,), groups=2, dropout=0.1,
        num_classes=3, **VARIANTS[variant],
    )  # fmt: skip
    return redrawn(unet, rng, 0.4).train(Generator(2))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_whole_network(variant, rng):
    unet, t, labels = network(variant, rng), np.array([3, 700]), np.array([2, 0])
    report = gradcheck(lambda x: unet(x, t, labels), [rng.normal(size=(2, 4, 4, 1))], parameters=unet, name="UNet")
    assert report.verdicts[1].name == f"{len(list(unet.parameters()))} arrays"
    assert abs(report.verdicts[1].backward) > 1e-3


def test_no_part_of_the_network_is_left_out(rng):
    parts = {type(part) for variant in VARIANTS for part in network(variant, rng).modules()}
    assert {m for m in subclasses(nn.Module) if m.__module__ == "tinydiff.unet"} <= parts
