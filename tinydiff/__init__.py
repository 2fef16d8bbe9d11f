"""tinydiff: automatic differentiation by hand on NumPy and CuPy, and small diffusion models on top of it.

import tinydiff as td

td.Tensor, td.Function, td.ops, td.no_grad, td.recompute      automatic differentiation
td.nn, td.optim, td.UNet                                      networks and optimisers
td.diffusion, td.data, td.Trainer, td.load                    diffusion models
td.gradcheck                                                  is a gradient right?
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tinydiff import backend, errors, nn, ops, optim, random
from tinydiff.function import Function
from tinydiff.gradcheck import GradientError, gradcheck
from tinydiff.tape import no_grad, recompute
from tinydiff.tensor import Tensor, from_dlpack

if TYPE_CHECKING:
    from tinydiff import checkpoint, data, diffusion, images
    from tinydiff.checkpoint import load
    from tinydiff.config import TrainConfig
    from tinydiff.trainer import Trainer
    from tinydiff.unet import UNet

__version__ = "0.1.0"

__all__ = [
    "Function",
    "GradientError",
    "Tensor",
    "TrainConfig",
    "Trainer",
    "UNet",
    "backend",
    "checkpoint",
    "data",
    "diffusion",
    "errors",
    "from_dlpack",
    "gradcheck",
    "images",
    "load",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "random",
    "recompute",
]

# Loaded when first asked for, so that `import tinydiff` stays quick: where each name comes from.
_LATER = {
    "checkpoint": None,
    "data": None,
    "diffusion": None,
    "images": None,
    "load": "checkpoint",
    "Trainer": "trainer",
    "TrainConfig": "config",
    "UNet": "unet",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'tinydiff' has no attribute {name!r}")
    home = _LATER[name]
    value = import_module(f"tinydiff.{name}") if home is None else getattr(import_module(f"tinydiff.{home}"), name)
    globals()[name] = value
    return value
