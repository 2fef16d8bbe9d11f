"""A whole training run by the definitions alone, as the environment variable TINYDIFF_PLAIN=1 has it."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest

import tinydiff as td
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.random import Generator

WORDS = [
    "train", "--data", "glyphs", "--image-size", "8", "--channels", "8", "--mults", "1,2", "--groups", "4", "--batch-size", "4",
    "--steps", "3", "--timesteps", "4", "--preview-every", "2", "--dropout", "0.1", "--labels", "--variance", "learned",
]  # fmt: skip


def run(out, plain):
    """The rows of log.csv, and the samples' file."""
    environment = {**os.environ, "TINYDIFF_PLAIN": plain}
    command = [sys.executable, "-m", "tinydiff", *WORDS, "--out", str(out), "--device", "cpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with open(out / "log.csv", newline="") as file:
        return list(csv.DictReader(file)), (out / "samples.png").stat().st_size


@pytest.mark.slow
def test_the_command_line_trains_by_definition(tmp_path):
    plain, picture = run(tmp_path / "plain", "1")
    fast, _ = run(tmp_path / "fast", "0")
    assert len(plain) == len(fast) == 3 and picture
    for a, b in zip(plain, fast, strict=True):
        for name in ("loss", "grad_norm"):
            np.testing.assert_allclose(float(a[name]), float(b[name]), rtol=1e-4)


def gradients(dtype):
    unet = td.UNet(8, 2, channels=16, channel_mults=(1, 2), blocks_per_level=1, attention_resolutions=(4,), groups=8,
                   generator=Generator(1))  # fmt: skip
    for p in unet.parameters():
        p.data += Generator(2, 1).normal(p.shape) * np.float32(0.1)
    unet.astype(dtype)
    x0 = (Generator(3).uniform((8, 8, 8, 2)) * 2 - 1).astype(dtype)
    loss = Diffusion(Schedule.cosine(50), predict="v").loss(unet, x0, Generator(0, 3, 7))
    loss.backward()
    return [loss.data, *(p.grad for p in unet.parameters())]


def test_gradients_of_a_network_agree_in_both_precisions():
    with td.by_definition():
        exact, single = gradients(np.float64), gradients(np.float32)
    scale = max(np.abs(g).max() for g in exact)
    # the noise is drawn in each precision and differs by rounding
    for by, tolerance in ((gradients(np.float64), 1e-12), (gradients(np.float32), 3e-6), (single, 3e-6)):
        for a, b in zip(by, exact, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)
