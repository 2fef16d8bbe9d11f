"""The training loss: the error of the model's prediction, and how well its variance fits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinydiff import ops
from tinydiff.autograd.function import Function
from tinydiff.autograd.profile import section
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, device_of
from tinydiff.diffusion.arguments import as_images, as_steps
from tinydiff.diffusion.decoder import bin_log_prob
from tinydiff.diffusion.model import call
from tinydiff.diffusion.noise import mse_loss, per_image, q_sample
from tinydiff.diffusion.process import Process
from tinydiff.diffusion.times import Times, times_of
from tinydiff.random import NOISE, TIME, Generator


def training_loss(
    diffusion: Process,
    model: Any,
    x0: Any,
    generator: Generator | None,
    labels: Any = None,
    t: Any = None,
    eps: Any = None,
) -> Tensor:
    """L_simple: the mean over all elements of (target - prediction)^2 at random t (Ho et al., 2020, eq. 14; source B).

    model: model(x, t, labels=None). x0: images (N, H, W, C), floating point in [-1, 1], where the model is.
    generator: its seed and step choose t and eps, see `draw`; its own state stays as it is. It may be None where t, a
        number or (N,), and eps, of x0's shape, are given. The loss passes no gradient to x0 and eps.

    With `min_snr`, each image's error is weighted. With learned variance, `variance_term` is added.
    Returns a scalar tensor. ValueError or TypeError for images, t or a model's output of the wrong shape or dtype.
    """
    images = as_images(x0=x0) if eps is None else as_images(x0=x0, eps=eps)
    x0, *given = (x.data if isinstance(x, Tensor) else x for x in images)
    t = None if t is None else as_steps(t, len(x0), diffusion.schedule.T, stay=True)
    noise = given[0] if given else None
    if generator is not None:
        with section("noise and times"):
            t = _draw_times(diffusion, len(x0), generator) if t is None else t
            noise = generator.at(NOISE, generator.step).state if noise is None else noise
    if t is None or noise is None:
        raise ValueError("the loss needs a generator, or both t and eps")
    return loss_at(diffusion, model, x0, times_of(diffusion, t), noise, labels)


def loss_at(diffusion: Process, model: Any, x0: Any, times: Times, noise: Any, labels: Any = None) -> Tensor:
    """`training_loss` for images at known times; noise: eps, or the state of its generator. Nothing is checked."""
    with section("noise and times"):
        xt, noise = q_sample(x0, times.signal, times.noise, noise)
    output = call(model, xt, times.t, labels)
    prediction, v = diffusion.split(output, xt)
    target = (x0, times.signal, times.noise, noise, diffusion.predict, times.weight)
    loss = _NoiseLoss.apply(prediction, target=target)
    if v is not None:
        loss = loss + variance_term(diffusion, prediction, v, x0, xt, times) * (diffusion.schedule.T / 1000)
    return loss


class _NoiseLoss(Function):
    """`noise.mse_loss`, which gives the loss and its gradient G together, because both need the noise. target: its other
    arguments.

        L_prediction = G * L_Y    (the gradient G of the loss was computed in forward)
    """

    def forward(self, prediction: Any, target: tuple[Any, ...]) -> Any:
        loss, self.G = mse_loss(prediction, *target)
        return loss

    def backward(self, L_Y: Any) -> Any:
        return self.G * L_Y


def draw(diffusion: Process, x0: Any, generator: Generator) -> tuple[np.ndarray, Any]:
    """t (N,), uniform on 1..T, and eps, like x0, of the training step `generator.step`.

    They come from the streams TIME and NOISE of the generator's seed at that step, so they are the same each time.
    """
    t = _draw_times(diffusion, len(x0), generator)
    return t, generator.at(NOISE, generator.step).normal(x0.shape, x0.dtype, device_of(x0))


def _draw_times(diffusion: Process, n: int, generator: Generator) -> Any:
    """On the host; with a clock on its device, since what is drawn on the host cannot follow it."""
    device = "cpu" if generator.clock is None else device_of(generator.clock)
    return generator.at(TIME, generator.step).integers(1, diffusion.schedule.T + 1, n, device)


def variance_term(diffusion: Process, prediction: Any, v: Any, x0: Any, xt: Any, times: Times) -> Tensor:
    """The mean over all elements of L_t in bits, for learning the variance (Nichol & Dhariwal, 2021, section 3.1).

    The prediction is detached, so only the variance channels v learn from this, and x0 is not clipped. For t >= 2 the term
    is a KL, for t = 1 it is the decoder's. On the host each is computed for its own images. On the GPU both are computed
    for all, and one is chosen: which images are where is not known there without waiting.
    """
    prediction = prediction.data if isinstance(prediction, Tensor) else prediction
    predicted = diffusion.x0_at(prediction, xt, times.signal, times.noise, times.inverse_signal)
    total: Any = 0.0
    if isinstance(xt, np.ndarray):
        first = np.broadcast_to(times.first, (len(x0),)) > 0
        for rows in (np.flatnonzero(~first), np.flatnonzero(first)):
            part = (predicted[rows], v[rows], x0[rows], times.rows(rows))
            if len(rows):
                total = total - ops.sum(_decoder(*part)) if first[rows[0]] else ops.sum(_twice_kl(*part)) / 2
    else:
        xp = array_module(xt)
        first = xp.broadcast_to(xp.asarray(per_image(times.first, xt)), xt.shape) > 0
        harmless = xp.where(first, predicted, x0)  # where it is not chosen, it shall not overflow either
        terms = ops.where(first, -_decoder(harmless, v, x0, times), _twice_kl(predicted, v, x0, times) / 2)
        total = ops.sum(terms)
    return total / (x0.size * math.log(2))


def _twice_kl(predicted: Any, v: Any, x0: Any, times: Times) -> Any:
    """Twice the KL of q(x_{t-1} | x_t, x_0) and the model's step, in nats, of each element.

    With b = exp(low) the posterior's variance, b exp(-r) the model's, r = (low - high) (v + 1) / 2, and d the distance of
    the means, it is (1 + d^2 / b) exp(r) - 1 - r.
    """
    low, high, of_distance = (per_image(column, x0) for column in (times.low, times.high, times.of_distance))
    r = ((low - high) / 2) * (v + 1)
    return (1 + of_distance * (x0 - predicted) ** 2) * ops.exp(r) - 1 - r


def _decoder(predicted: Any, v: Any, x0: Any, times: Times) -> Any:
    """log p(x_0 | x_1) in nats, of each element."""
    return bin_log_prob(predicted, per_image(times.half_range, x0) * (v + 1) + per_image(times.low, x0), x0)
