"""Noise made where it is needed: draws, x_t, the training loss and sampling's steps back (kernels/noise.cu).

`state` is that of a generator, (seed, stream, step, offset), and its clock where it has one, which kernels read. Element j
is what `Generator(*state)` would draw as its j-th: words and uniforms with the same bits, normals to rounding. `noise` is
such a state, or an array of existing noise, which is left to the definitions (tinydiff/diffusion/noise.py).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.cuda.draws import THREADS, blocks, int32, launch_draw
from tinydiff.cuda.launch import launch

TARGETS = ("eps", "x0", "v")  # as `enum Target` in the source


def q_sample(x0: Any, sqrt_alpha_bar: Any, sqrt_one_minus: Any, noise: Any) -> Any:
    """x_t and the state: eps is drawn on the way and not stored. x0 (N, ...) float32, weights (N,) or numbers.

    NotImplemented for other dtypes of x0, and for noise that is an array.
    """
    if not isinstance(noise, tuple) or x0.dtype != np.float32:
        return NotImplemented
    x0 = array_module(x0).ascontiguousarray(x0)
    a, b = _per_image(sqrt_alpha_bar, x0), _per_image(sqrt_one_minus, x0)
    xt = array_module(x0).empty_like(x0)
    launch_draw("q_sample", x0.size, (x0, a, b, xt, int32(x0.size), _image_size(x0)), noise)
    return xt, noise


def mse_loss(
    prediction: Any,
    x0: Any,
    sqrt_alpha_bar: Any,
    sqrt_one_minus: Any,
    noise: Any,
    target: str = "eps",
    weight: Any = None,
) -> Any:
    """The mean over elements of weight (prediction - target)^2, an array (), and its derivative L_prediction.

    target: "eps", the noise that q_sample drew with the same state and weights; "x0"; or "v" = sqrt_alpha_bar eps -
    sqrt_one_minus x0. prediction and x0 (N, ...) float32; weight (N,) or a number, or None for 1.
    NotImplemented for other dtypes, and for noise that is an array.
    """
    if target not in TARGETS:
        raise ValueError(f"mse_loss: target must be one of {', '.join(TARGETS)}, not {target!r}")
    if not isinstance(noise, tuple) or prediction.dtype != np.float32 or x0.dtype != np.float32:
        return NotImplemented
    if x0.shape != prediction.shape:
        raise ValueError(f"mse_loss: prediction {prediction.shape} and x0 {x0.shape} differ in shape")
    xp = array_module(prediction)
    P = xp.ascontiguousarray(prediction)
    n, a, b = P.size, None, None
    x0 = None if target == "eps" else xp.ascontiguousarray(x0)
    if target == "v":
        a, b = _per_image(sqrt_alpha_bar, P), _per_image(sqrt_one_minus, P)
    weight = None if weight is None else _per_image(weight, P)
    L_P, loss, sums = xp.empty_like(P), xp.empty((), np.float32), xp.empty(blocks(n), np.float32)
    numbers = np.int32(TARGETS.index(target)), int32(n), _image_size(P)
    args: tuple[Any, ...] = (P, x0, a, b, weight, L_P, sums, *numbers)
    launch_draw("mse_loss", n, args, noise)
    args = (sums, np.int32(len(sums)), np.float32(1 / max(n, 1)), loss)
    launch("noise.cu", "sum_blocks", (1, 1, 1), (THREADS, 1, 1), args)
    return loss, L_P


def reverse_step(output: Any, xt: Any, coefficients: Any, noise: Any, clip: bool = True, x0_before: Any = None) -> Any:
    """x_{t-1} = c[2] D + c[3] xt + sigma z and the predicted x0 = c[0] xt + c[1] output, clipped to [-1, 1] if asked for.

    xt (N, ..., C) float32; output like it, or with 2C channels of which the second half v gives
    sigma = c[4] exp((c[5] + c[6] (v + 1)) / 2); otherwise sigma = c[4]. Where c[4] is 0 no noise is drawn. D is x0, or
    x0 + c[7] (x0 - x0_before) where x0_before is given. coefficients: c (8,), float32 on the device, or anything that can
    be put there. NotImplemented for other dtypes, and for noise that is an array.
    """
    if not isinstance(noise, tuple) or output.dtype != np.float32 or xt.dtype != np.float32:
        return NotImplemented
    xp, channels = array_module(xt), xt.shape[-1]
    learned = output.shape == (*xt.shape[:-1], 2 * channels)
    if not learned and output.shape != xt.shape:
        raise ValueError(f"reverse_step: for images {xt.shape} the output has shape {output.shape}")
    c = xp.ascontiguousarray(xp.asarray(coefficients, np.float32))
    if c.shape != (8,):
        raise ValueError(f"reverse_step: 8 coefficients are needed, not {c.shape}")
    output, xt = xp.ascontiguousarray(output), xp.ascontiguousarray(xt)
    before = None if x0_before is None else xp.ascontiguousarray(x0_before)
    x_next, x0 = xp.empty_like(xt), xp.empty_like(xt)
    numbers = int32(xt.size), np.int32(channels), np.int32(learned), np.int32(clip)
    launch_draw("reverse_step", xt.size, (output, xt, before, c, x_next, x0, *numbers), noise)
    return x_next, x0


def _image_size(x: Any) -> np.int32:
    return np.int32(math.prod(x.shape[1:]))


def _per_image(weight: Any, x: Any) -> Any:
    """A number or (N,) as float32 (N,) on the device of x."""
    xp = array_module(x)
    return xp.ascontiguousarray(xp.broadcast_to(xp.asarray(weight, np.float32), x.shape[:1]))
