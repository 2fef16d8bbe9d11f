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
    t = None if t is None else as_steps(t, len(x0), diffusion.schedule.T)
    noise = given[0] if given else None
    with section("noise and times"):
        if generator is not None:
            t = _draw_times(diffusion, len(x0), generator) if t is None else t
            noise = generator.at(NOISE, generator.step).state if noise is None else noise
        if t is None or noise is None:
            raise ValueError("the loss needs a generator, or both t and eps")
        levels = diffusion.levels(t)
        xt, noise = q_sample(x0, *levels, noise)
    output = call(model, xt, diffusion.schedule.timesteps[t], labels)
    prediction, v = diffusion.split(output, xt)
    weight = None if diffusion.min_snr is None else min_snr_weight(diffusion, diffusion.min_snr, t)
    loss = _NoiseLoss.apply(prediction, target=(x0, *levels, noise, diffusion.predict, weight))
    if v is not None:
        loss = loss + variance_term(diffusion, prediction, v, x0, xt, t) * (diffusion.schedule.T / 1000)
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


def _draw_times(diffusion: Process, n: int, generator: Generator) -> np.ndarray:
    return generator.at(TIME, generator.step).integers(1, diffusion.schedule.T + 1, n)


def min_snr_weight(diffusion: Process, gamma: float, t: np.ndarray) -> np.ndarray:
    """The weight of the squared error that makes it min(snr, gamma) times that of x0 (Hang et al., 2023, section 3.4).

    snr is alpha_bar / (1 - alpha_bar), gamma is `diffusion.min_snr`. An error d in x0 is one of sqrt(snr) d in eps and
    of sqrt(snr + 1) d in v.
    """
    snr = diffusion.schedule.alpha_bar[t] / diffusion.schedule.one_minus_alpha_bar[t]
    return np.minimum(snr, gamma) / {"eps": snr, "x0": 1.0, "v": snr + 1}[diffusion.predict]


def variance_term(diffusion: Process, prediction: Any, v: Any, x0: Any, xt: Any, t: np.ndarray) -> Tensor:
    """The mean over all elements of L_t in bits, for learning the variance (Nichol & Dhariwal, 2021, section 3.1). t:
    int64, () or (N,).

    The prediction is detached, so only the variance channels v learn from this, and x0 is not clipped. Let b = exp(low)
    be the posterior's variance, b exp(-r) the model's with r = (low - log beta) (v + 1) / 2, and d the distance of the
    means. For t >= 2 the KL is ((1 + d^2 / b) exp(r) - 1 - r) / 2; for t = 1 the term is the decoder's.
    """
    t = np.broadcast_to(t, (len(x0),))
    predicted = diffusion.x0_from(prediction.data if isinstance(prediction, Tensor) else prediction, xt, t)
    xp = array_module(xt)
    total: Any = 0.0
    if np.any(t > 1):
        steps, rows = t[t > 1], xp.asarray(np.flatnonzero(t > 1))
        low, high = (per_image(table[steps], xt) for table in diffusion.log_variance_range())
        on_x0 = diffusion.posterior_weights(steps)[0]
        of_distance = per_image(on_x0**2 / diffusion.schedule.posterior_variance[steps], xt)
        r = ((low - high) / 2) * (v[rows] + 1)
        total = ops.sum((1 + of_distance * (x0[rows] - predicted[rows]) ** 2) * ops.exp(r) - 1 - r) / 2
    if np.any(t == 1):
        rows = xp.asarray(np.flatnonzero(t == 1))
        log_variance = diffusion.log_variance(v[rows], xt[rows], t[t == 1])
        total = total - ops.sum(bin_log_prob(predicted[rows], log_variance, x0[rows]))
    return total / (x0.size * math.log(2))
