"""Compiles on a GPU, before the first step of sampling, what all of its steps will launch."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from tinydiff.backend import module_for
from tinydiff.cuda import tensor
from tinydiff.cuda.compiling import compile_for
from tinydiff.diffusion.model import Predictor
from tinydiff.dispatch import uses_kernels
from tinydiff.precision import held
from tinydiff.unet import UNet

_done: WeakKeyDictionary[Any, set[Any]] = WeakKeyDictionary()  # of each network


def compile_sampling(unet: Any, sizes: list[int], labels: Any = None, guidance: float | None = None) -> None:
    """Compiles the kernels that the network launches for batches of these sizes, on all cores, with a bar where it takes long.
    Nothing is done on a CPU, for other models, and for what was compiled before.

    labels, guidance: as for `diffusion.sample`; whether there are any is what counts.
    """
    if not isinstance(unet, UNet) or unet.conv_in.weight.device != "cuda" or not uses_kernels():
        return
    done, how = _done.setdefault(unet, set()), (labels is not None, guidance not in (None, 1), tensor.chosen(), held())
    sizes = [n for n in dict.fromkeys(sizes) if (n, *how) not in done]
    if sizes:
        label = None if labels is None else 0
        compile_for([lambda n=n: _predict(unet, n, label, guidance) for n in sizes], ("draws",))  # type: ignore[misc]
        done.update((n, *how) for n in sizes)


def _predict(unet: UNet, n: int, label: int | None, guidance: float | None) -> None:
    x = module_for("cuda").zeros((n, unet.image_size, unet.image_size, unet.in_channels), np.float32)
    Predictor(unet, n, label, guidance)(x, 1)
