"""What training and sampling compute with noise: x_t, the loss, and a step back. Each is a formula on arrays.

`noise` says which noise: an array of the images' shape, or the state of a generator, (seed, stream, step, offset) and its
clock where it has one, for what `Generator(*state)` draws. The definitions draw an array from a state. A kernel makes the
noise of a state where it needs it, once for x_t and again for the loss, and never stores it. Nothing is checked here;
`Diffusion` and `sample` check.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, device_of
from tinydiff.dispatch import accelerated
from tinydiff.random import Generator


@accelerated
def q_sample(x0: Any, sqrt_alpha_bar: Any, sqrt_one_minus: Any, noise: Any) -> Any:
    """x_t = sqrt_alpha_bar x0 + sqrt_one_minus eps (source A, 5.2.18; Ho et al., 2020, eq. 4), and eps as `mse_loss` takes it.

    x0 (N, ...); the weights are numbers or (N,). The second result is eps, or the given state where nothing stored eps.
    """
    eps = _drawn(noise, x0)
    return per_image(sqrt_alpha_bar, x0) * x0 + per_image(sqrt_one_minus, x0) * eps, eps


@accelerated
def mse_loss(
    prediction: Any,
    x0: Any,
    sqrt_alpha_bar: Any,
    sqrt_one_minus: Any,
    noise: Any,
    target: str = "eps",
    weight: Any = None,
) -> Any:
    """The loss of a prediction for x_t = q_sample(x0, ...), an array (), and its derivative (Ho et al., 2020, eq. 14):

        L_prediction = 2 w / n d    loss = mean of w d^2 = sum of L_prediction d / 2    with d = prediction - target

    of n elements. noise: what q_sample returned. target: see `target_of`. weight: w, a number or (N,), or None for 1.
    float16 is summed in float32.
    """
    difference = prediction - target_of(target, x0, _drawn(noise, x0), sqrt_alpha_bar, sqrt_one_minus)
    d = difference.astype(np.promote_types(difference.dtype, np.float32), copy=False)
    L_prediction = d * ((1.0 if weight is None else per_image(weight, d)) * (2 / max(d.size, 1)))
    loss = array_module(d).asarray((L_prediction * d).sum() / 2, difference.dtype)
    return loss, L_prediction.astype(prediction.dtype, copy=False)


@accelerated
def reverse_step(output: Any, xt: Any, coefficients: Any, noise: Any, clip: bool = True, x0_before: Any = None) -> Any:
    """x_{t-1} and the predicted x0, the step of every sampler. With coefficients c and the model's output o,

        x0 = c[0] xt + c[1] o                     clipped to [-1, 1] if asked for
        D = x0 + c[7] (x0 - x0_before)            x0 where x0_before is None (Lu et al., 2022, algorithm 2)
        x_{t-1} = c[2] D + c[3] xt + sigma z      z from `noise`, which is not used where c[4] is 0

    xt (N, ..., C), output like it: then sigma = c[4]. Where it has 2C channels, the second half v gives the learned
    sigma = c[4] exp((c[5] + c[6] (v + 1)) / 2) (Nichol & Dhariwal, 2021, eq. 15).
    """
    x0_of_xt, x0_of_output, on_D, on_xt, sigma, low, slope, extrapolation = map(float, coefficients)
    channels = xt.shape[-1]
    x0 = x0_of_xt * xt + x0_of_output * output[..., :channels]
    x0 = x0.clip(-1, 1) if clip else x0
    D = x0 if x0_before is None else x0 + extrapolation * (x0 - x0_before)
    x = on_D * D + on_xt * xt
    if sigma == 0:
        return x, x0
    if output.shape[-1] > channels:
        sigma = sigma * array_module(xt).exp((low + slope * (output[..., channels:] + 1)) / 2)
    return x + sigma * _drawn(noise, xt), x0


def target_of(target: str, x0: Any, eps: Any, sqrt_alpha_bar: Any, sqrt_one_minus: Any) -> Any:
    """What a model is trained to return for x_t: "eps", "x0" or "v" = sqrt_alpha_bar eps - sqrt_one_minus x0
    (Salimans & Ho, 2022)."""
    if target == "v":
        return per_image(sqrt_alpha_bar, x0) * eps - per_image(sqrt_one_minus, x0) * x0
    return eps if target == "eps" else x0


def per_image(w: Any, x: Any) -> Any:
    """A weight, a number or (N,), as what x can be multiplied by: a number, or (N, 1, ...) of x's dtype and device."""
    if np.ndim(w) == 0:
        return float(w)
    xp = array_module(x.data if isinstance(x, Tensor) else x)
    return xp.asarray(w.astype(x.dtype, copy=False).reshape(-1, *[1] * (x.ndim - 1)))


def next_noise(generator: Generator, like: Any) -> Any:
    """A generator's next noise for images: its state, or an array if the generator is of a class that replaces
    `normal`."""
    if getattr(generator.normal, "__func__", None) is Generator.normal:
        return generator.advance(like.size)
    return generator.normal(like.shape, like.dtype, device_of(like))


def _drawn(noise: Any, like: Any) -> Any:
    """The noise as an array, drawn like an array of images if it is a state."""
    return Generator(*noise).normal(like.shape, like.dtype, device_of(like)) if isinstance(noise, tuple) else noise
