"""The formulas of optimisers: functions that change lists of arrays in place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinydiff import replay
from tinydiff.backend import array_module, widened
from tinydiff.dispatch import accelerated

Arrays = list[Any]


@accelerated
def sgd(
    weights: Arrays, gradients: Arrays, velocities: Arrays | None, lr: float, momentum: float, weight_decay: float
) -> None:
    """One step of lists of weights: v = momentum v + g, p = p - lr v. g is a weight's array in gradients plus
    weight_decay p; v is its array in velocities, which is None without momentum."""
    replay.refuse("SGD's learning rate", "use Adam")
    for p, g, v in zip(weights, gradients, velocities or [None] * len(weights), strict=True):
        w, g = widened(p), widened(g)
        if weight_decay:
            g = g + weight_decay * w
        if v is not None:
            v[...] = momentum * v + g
            g = v
        p[...] = w - lr * g


@accelerated
def adam(
    weights: Arrays,
    gradients: Arrays,
    m: Arrays,
    v: Arrays,
    averages: Arrays | None,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
    average_decay: float,
) -> None:
    """Update number t = step of lists of weights (Kingma & Ba, 2015, algorithm 1), then of their averages unless None.

    gradients, m, v: an array for each weight. lr, betas, eps, weight_decay: see `Adam`. decoupled: weight decay as in
    `AdamW`. average_decay: d of `EMA`.
    """
    replay.refuse("Adam's learning rate", "its weights must all be float32, on the GPU and with a gradient")
    beta1, beta2 = betas
    for p, g, mean, square, average in zip(weights, gradients, m, v, averages or [None] * len(weights), strict=True):
        w, g = widened(p), widened(g)
        if weight_decay and decoupled:
            w = w - lr * weight_decay * w
        elif weight_decay:
            g = g + weight_decay * w
        mean[...] = beta1 * mean + (1 - beta1) * g
        square[...] = beta2 * square + (1 - beta2) * g**2
        m_hat, v_hat = mean / (1 - beta1**step), square / (1 - beta2**step)
        p[...] = w - lr * m_hat / (array_module(w).sqrt(v_hat) + eps)
        if average is not None:
            average += (1 - average_decay) * (p - average)


@accelerated
def clipped_adam(
    gradients: Arrays, losses: Arrays, max_norm: float, arguments: Any, prepared: Any = None
) -> tuple[list[float], float] | None:
    """`clip` of gradients to max_norm, then `adam` with its arguments, if the norm and all losses, arrays (), are finite.
    Returns the losses as numbers and the norm before clipping. prepared: for the GPU alone, see `Adam.clipped_step`."""
    numbers, norm = [float(loss) for loss in losses], clip(gradients, max_norm)
    if np.isfinite([*numbers, norm]).all():
        adam(*arguments)
    return numbers, norm


@accelerated
def move_averages(averages: Arrays, weights: Arrays, decay: float) -> None:
    """average = decay average + (1 - decay) weight, in place, for each of the averages and its weight in `weights`."""
    replay.refuse("the decay of an average", "give it to Adam's step(ema)")
    for average, p in zip(averages, weights, strict=True):
        average += (1 - decay) * (p - average)


@accelerated
def clip(gradients: Arrays, max_norm: float) -> float:
    """The norm of all gradients together. If it is finite and above max_norm, they are scaled to max_norm, in place."""
    norm = math.sqrt(float(sum((g.astype("float64") ** 2).sum() for g in gradients)))
    if max_norm < norm < math.inf:
        for g in gradients:
            g *= max_norm / norm
    return norm


@accelerated
def gathered(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """(pieces, parts): the pieces of memory that a pass goes over, and the arrays as parts of them, to be used from now.

    Here each array is a piece. On the GPU all become views of one: a launch costs more than the work on a small weight.
    """
    return arrays, arrays
