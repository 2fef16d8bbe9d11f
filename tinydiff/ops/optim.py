"""The formulas of optimisers: functions that change lists of arrays in place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinydiff import replay
from tinydiff.backend import array_module, to_numpy, widened
from tinydiff.dispatch import accelerated

Arrays = list[Any]

# The loss is multiplied by a scale before gradients go through maps of fp16, where numbers below 2^-24 are 0 and those above
# 65504 are infinite (Micikevicius et al., 2018, 3.2).
FIRST_SCALE = 2.0**15
LEAST_SCALE = 1.0  # where a step that is not finite with it is a failure
MOST_SCALE = 2.0**24  # beyond, nothing that float32 holds of a gradient is lost any more
GOOD_STEPS = 2000  # after so many in a row the scale is doubled


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
    gradients: Arrays, losses: Arrays, max_norm: float, arguments: Any, prepared: Any = None, loss_scale: Any = None
) -> tuple[list[float], float] | None:
    """`clip` of gradients to max_norm, then `adam` with its arguments, if the norm and all losses, arrays (), are finite.
    Returns the losses as numbers and the norm before clipping. prepared: for the GPU alone, see `Adam.clipped_step`.

    loss_scale: None, or its state, see `move_loss_scale`: gradients are divided by it first, and afterwards it is moved. The
    numbers then end with the scale that the step was made with."""
    losses = [*losses, *unscaled(gradients, loss_scale)]
    numbers, norm = [float(loss) for loss in losses], clip(gradients, max_norm)
    finite = bool(np.isfinite([*numbers, norm]).all())
    if finite:
        adam(*arguments)
    move_loss_scale(loss_scale, finite)
    return numbers, norm


def unscaled(gradients: Arrays, loss_scale: Any) -> Arrays:
    """Divides gradients, in place, by the scale that their loss was multiplied with. It is a power of 2, so only what overflows
    or underflows is rounded. loss_scale: the state, None for no scale. Returns the scale, an array (), in a list."""
    if loss_scale is None:
        return []
    scale = loss_scale[:1].reshape(()).copy()
    for g in gradients:
        g *= 1 / scale
    return [scale]


def move_loss_scale(state: Any, finite: bool) -> None:
    """After a step: its state, float32 (2,), holds the scale, and how many steps in a row were good with it.

    A step that is not finite halves the scale, down to `LEAST_SCALE`; `GOOD_STEPS` good ones double it, up to `MOST_SCALE`.
    state: None for no scale.
    """
    if state is None:
        return
    scale, good = to_numpy(state).tolist()
    if finite:
        good += 1
        scale, good = (min(2 * scale, MOST_SCALE), 0) if good >= GOOD_STEPS else (scale, good)
    else:
        scale, good = max(scale / 2, LEAST_SCALE), 0
    state[...] = array_module(state).asarray([scale, good], np.float32)


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


@accelerated
def gathered_halves(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """`gathered` for the numbers of 16 bits of weights that were gathered: pieces of the same layout."""
    return arrays, arrays
