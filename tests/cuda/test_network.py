"""A whole training step of a U-Net on kernels, and sampling from it, agree with NumPy."""

import importlib
import inspect
from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest

import tinydiff as td
from tinydiff import optim
from tinydiff.cuda import host, tensor
from tinydiff.diffusion import Diffusion, Schedule, sample
from tinydiff.dispatch import on_host
from tinydiff.random import Generator

pytestmark = pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))

FILES = ("attending", "convolution", "fully_connected", "noise", "normalization", "optim", "pooling", "random", "shape")


@pytest.fixture
def taken(monkeypatch):
    """Which functions were called, with every answer held to be the kernel's own."""
    calls = set()

    def watch(module, name, function):
        def watched(*args, **kwargs):
            result = function(*args, **kwargs)
            assert result is not NotImplemented, f"{name} left its work to NumPy"
            calls.add(name)
            return result

        monkeypatch.setattr(module, name, watched)

    for file in FILES:
        module = importlib.import_module(f"tinydiff.cuda.{file}")
        own = {name: f for name, f in vars(module).items() if getattr(f, "__module__", "") == module.__name__}
        for name, function in own.items():
            if inspect.isfunction(function) and not name.startswith("_") and not name.endswith("_cost"):
                watch(module, name, function)
    return calls


def make(dtype=np.float32, channels=8):
    unet = td.UNet(8, 2, channels=channels, channel_mults=(1, 2), blocks_per_level=1, attention_resolutions=(4,), groups=4,
                   num_classes=3, generator=Generator(1))  # fmt: skip
    for p in unet.parameters():
        p.data += Generator(2, 1).normal(p.shape) * np.float32(0.1)
    return unet.astype(dtype)


def step(unet, diffusion, predict_with):
    """Loss, gradients, norm of one training step; the weights and averages after it."""
    parameters = list(unet.parameters())
    optimizer, ema = optim.Adam(parameters, 1e-3), optim.EMA(parameters, 0.99)
    x0 = (Generator(3).uniform((3, 8, 8, 2)) * 2 - 1).astype(parameters[0].dtype)
    with predict_with:
        loss = diffusion.loss(unet, x0, Generator(0, 3, 7), labels=[0, 1, 2])
        loss.backward()
        gradients = [p.grad.copy() for p in parameters]
        norm = optim.clip_grad_norm(parameters, 1.0)
        optimizer.step(ema)
    return loss.item(), norm, gradients, [p.data for p in parameters], ema.averages


@pytest.mark.parametrize("predict", ["eps", "v"])
def test_a_training_step_runs_on_kernels_alone(taken, predict):
    diffusion = Diffusion(Schedule.cosine(50), predict=predict)
    loss, norm, gradients, weights, averages = step(make(), diffusion, on_host())
    needed = {"convolve", "convolve_input_gradient", "convolve_weight_gradient", "group_normalize", "attend",
              "group_normalize_backward", "attend_backward", "q_sample", "mse_loss", "adam", "clip", "gathered", "cut",
              "linear_forward", "linear_input_gradient", "linear_weight_gradient", "join", "sum_rows",
              "upsample_convolve", "upsample_convolve_input_gradient", "upsample_convolve_weight_gradient"}  # fmt: skip
    assert needed <= taken, f"not on kernels: {needed - taken}"
    exact = step(make(np.float64), diffusion, nullcontext())
    plain = step(make(), diffusion, nullcontext())
    # the noise of float32 and float64 are drawn alike and differ by rounding
    assert loss == pytest.approx(exact[0], rel=1e-5) and norm == pytest.approx(exact[1], rel=1e-4)
    scale = max(np.abs(g).max() for g in exact[2])
    for ours, truth in zip(gradients, exact[2], strict=True):
        np.testing.assert_allclose(ours, truth, rtol=0, atol=2e-5 * scale)
    for ours, theirs in ((weights, plain[3]), (averages, plain[4])):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2.1e-3)  # Adam: the sign of a gradient that is rounding alone


@pytest.mark.slow
def test_a_training_step_on_tensor_cores(monkeypatch):
    """In a block of TF32: the same bits whatever the order of threads, near float32, and by these kernels."""
    ran, run = Counter(), host.run

    def noted(name, text, kernel, *rest, **options):
        ran[kernel] += 1
        run(name, text, kernel, *rest, **options)

    monkeypatch.setattr(host, "run", noted)
    diffusion = Diffusion(Schedule.cosine(50))

    def both(seed):
        with on_host(seed), tensor.precision("tf32"):
            return step(make(channels=16), diffusion, nullcontext())

    (loss, norm, gradients, _, _), other = both(1), both(2)
    assert (loss, norm) == other[:2]
    for a, b in zip(gradients, other[2], strict=True):
        np.testing.assert_array_equal(a, b)
    exact = step(make(np.float64, channels=16), diffusion, nullcontext())
    assert loss == pytest.approx(exact[0], rel=1e-3) and norm == pytest.approx(exact[1], rel=1e-3)
    assert loss != pytest.approx(exact[0], rel=1e-7)
    off = [np.linalg.norm(ours - truth) for ours, truth in zip(gradients, exact[2], strict=True)]
    assert np.linalg.norm(off) < 2e-3 * norm
    # left to float32: the first convolution and the last, of 2 channels. Doubled pixels are nowhere.
    assert ran["conv_forward"] == 2 * (2 + 1) and ran["conv_weight_gradient"] == 2 * 2
    assert ran["tensor_convolution"] > 2 * 20 and ran["tensor_weight_gradient"] > 2 * 10 and ran["tensor_product"]
    kernels = "forward", "queries_gradient", "keys_gradient"
    assert [ran[f"attention_{kernel}"] for kernel in kernels] == [2 * 4] * 3 and not ran["softmax_short"]
    assert ran["filters_of_parities"] == 2 and ran["sum_taps_turned"] == 2 * 2
    assert not ran["upsample"] and not ran["upsample_backward"]


def test_two_steps_have_the_same_bits():
    diffusion = Diffusion(Schedule.cosine(50))
    first, second = (step(make(), diffusion, on_host(seed)) for seed in (1, 2))
    assert first[:2] == second[:2]
    for a, b in zip(first[2] + first[3] + first[4], second[2] + second[3] + second[4], strict=True):
        np.testing.assert_array_equal(a, b)


def test_sampling_runs_on_kernels_alone(taken):
    unet, diffusion = make(), Diffusion(Schedule.linear(50, 1e-3, 0.2))

    def draw():
        return sample(unet, diffusion, (1, 8, 8, 2), Generator(5), steps=3, labels=1, progress=False)

    with on_host():
        ours = draw()
    assert {"normal", "reverse_step", "convolve", "upsample_convolve"} <= taken
    np.testing.assert_allclose(ours, draw(), rtol=0, atol=1e-4)
