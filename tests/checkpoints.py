"""Small checkpoints, for the tests of how they are written and read."""

import numpy as np

import tinydiff as td
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.random import Generator
from tinydiff.runs import checkpoint

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def make(seed=1, **changes):
    settings = {"num_classes": 4, "null_label": 3, "dropout": 0.5} | changes
    unet = td.UNet(8, 1, None, 8, (1, 2), 1, (4,), 4, **settings, generator=Generator(seed))
    for p in unet.parameters():  # as it is made, the last layer hides the others
        p.data += Generator(seed, 1).normal(p.shape) * np.float32(0.1)
    return unet


def diffusion(**options):
    return Diffusion(Schedule.linear(20, 1e-3, 0.4), **options)


def save(run, seed=1, step=7):
    unet = make(seed)
    arrays = {"adam.m": np.full(3, seed), "count": np.array(seed)} | {
        f"raw.{name}": p.data + 1 for name, p in unet.named_parameters()
    }
    checkpoint.save(run, unet, diffusion(), ["a", "b", "c"], (arrays, {"step": str(step), "note": "é"}))
    return unet


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
