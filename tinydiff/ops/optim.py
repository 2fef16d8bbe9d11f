"""The formulas of optimisers: functions that change lists of arrays in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    halves: Arrays | None = None,
) -> None:
    """Update number t = step of lists of weights (Kingma & Ba, 2015, algorithm 1), then of their averages unless None.

    gradients, m, v: an array for each weight. lr, betas, eps, weight_decay: see `Adam`. decoupled: weight decay as in
    `AdamW`. average_decay: d of `EMA`. halves: an array of 16 bits for each weight, which gets the new numbers as well; None
    for none.
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
    for half, p in zip(halves or [], weights, strict=halves is not None):
        half[...] = p


@accelerated
def clipped_adam(
    gradients: Arrays,
    losses: Arrays,
    max_norm: float,
    arguments: Any,
    prepared: Any = None,
    loss_scale: Any = None,
) -> Any:
    """`clip` of gradients to max_norm, then `adam` with its arguments, if the norm and all losses, arrays (), are finite.
    Returns the losses as numbers and the norm before clipping. prepared: for the GPU alone, see `Adam.clipped_step`.

    loss_scale: what `first_loss_scale` gives, or None. The gradients are then those of the losses times S = `loss_scale[0]`, and
    here they are divided by it. S is also returned, and moved for the next step, see `move_loss_scale`.
    """
    numbers = [float(loss) for loss in losses]
    if loss_scale is None:
        norm = clip(gradients, max_norm)
        if np.isfinite([*numbers, norm]).all():
            adam(*arguments)
        return numbers, norm
    S = float(loss_scale[0])
    for g in gradients:
        g *= 1 / S
    norm = clip(gradients, max_norm)
    move_loss_scale(loss_scale, numbers, norm)
    if np.isfinite([*numbers, norm]).all():
        adam(*arguments)
    return numbers, norm, S


# --------------------------------------------------------------------------------------------------------- loss scale
#
# Most gradients of feature maps are below the smallest number of fp16, 2^-24, and would round to 0. Multiplied by S, a power of
# two, they do not, and lose no digit (Micikevicius et al., 2018, section 3.2). S is as large as it can be without the largest
# gradient becoming infinite: it grows until one does, whose step is left out.

FIRST_SCALE, LARGEST_SCALE = 2.0**15, 2.0**40
GOOD_STEPS = 2000  # without an overflow, after which S is doubled


def first_loss_scale(xp: Any) -> Any:
    """A loss scale as a run begins with it, an array of the module xp, float32 (3,): S, the steps since it was changed, and how
    many steps were left out."""
    return xp.array([FIRST_SCALE, 0, 0], np.float32)


def overflowed(losses: Sequence[float], norm: float, S: float | None) -> bool:
    """Whether a step was left out since a gradient became too large for fp16: its norm is not finite, although the losses are,
    and S can still be made smaller. Otherwise a norm that is not finite is a failure."""
    return S is not None and S > 1 and not math.isfinite(norm) and all(map(math.isfinite, losses))


def move_loss_scale(loss_scale: Any, losses: Sequence[float], norm: float) -> None:
    """Halves S in place where a step of this norm `overflowed`, doubles it after `GOOD_STEPS` others in a row. After a failure it
    stays."""
    S, good, left_out = map(float, loss_scale)
    if overflowed(losses, norm, S):
        loss_scale[...] = np.array([S / 2, 0, left_out + 1], np.float32)
    elif np.isfinite([*losses, norm]).all():
        doubled = good + 1 == GOOD_STEPS
        S = min(2 * S, LARGEST_SCALE) if doubled else S
        loss_scale[...] = np.array([S, 0 if doubled else good + 1, left_out], np.float32)


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
