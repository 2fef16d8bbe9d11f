"""Adam with a moving average of the weights, and clipping, by the kernels in kernels/optimizer.cu; all float32.

`gathered` puts the arrays of all weights into one flat piece of memory, so a step takes one launch. Arrays that were
not gathered take a launch each.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinydiff import backend, replay
from tinydiff.backend import array_module
from tinydiff.cuda import flat
from tinydiff.cuda.loss_scale import launch_move_loss_scale
from tinydiff.cuda.updates import MOST_ELEMENTS, adam_scalars, launch_adam, launch_squared_norm, read_report
from tinydiff.ops.optim import Arrays, move_loss_scale, unscaled


def gathered(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """([flat], views): a flat array that holds all arrays, and views of it that replace them; see `flat.join`.

    NotImplemented for other dtypes than float32, for arrays of several devices and for 2**31 elements in all.
    """
    if not _are_float32(arrays) or flat.size(arrays) > MOST_ELEMENTS:
        return NotImplemented
    whole, views = flat.join(arrays)
    return [whole], views


def gathered_halves(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """`gathered` for arrays of 16 bits. NotImplemented for arrays of several devices and for 2**31 elements in all."""
    if len({array_module(a) for a in arrays}) > 1 or flat.size(arrays) > MOST_ELEMENTS:
        return NotImplemented
    whole, views = flat.join(arrays)
    return [whole], views


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
    """See `tinydiff.ops.optim.adam`; a launch for each weight. NotImplemented for what `launch_adam` does not take."""
    if not _fit([*weights, *gradients, *m, *v, *(averages or [])]):
        return NotImplemented
    numbers = step, lr, betas, eps, weight_decay if decoupled else 0.0, average_decay
    scalars = replay.fed(array_module(weights[0]), adam_scalars, *numbers)
    coupled = 0.0 if decoupled else weight_decay
    for arrays in zip(weights, gradients, m, v, averages or [None] * len(weights), strict=True):
        p, g, first, second, average = (None if a is None else a.reshape(-1) for a in arrays)
        launch_adam(p, g, first, second, average, scalars, betas, coupled)
    return None


def clipped_adam(
    gradients: Arrays, losses: Arrays, max_norm: float, arguments: Any, prepared: Any = None, loss_scale: Any = None
) -> Any:
    """See `tinydiff.ops.optim.clipped_adam`: three launches, then one copy back, which is all that waits for the GPU. The
    device itself decides whether all is finite. While a step is recorded, losses and norm are arrays, and a third result is
    the function that reads them afterwards. NotImplemented for arrays that are not one piece each.

    prepared: None, or an `updates.Prepared`; then step, lr and the decay of the average are not used, nothing is copied in
    either direction, and the result is None. With a loss_scale its reports have the scale behind the losses.
    """
    weights, _, m, v, averages, step, lr, betas, eps, weight_decay, decoupled, average_decay = arguments
    arrays = [*weights, *gradients, *m, *v, *(averages or [])]
    if len(weights) != 1 or not _fit([*arrays, *losses]):
        return NotImplemented
    xp = array_module(weights[0])
    losses = [*losses, *unscaled(gradients, loss_scale)]
    if prepared is None:
        numbers = step, lr, betas, eps, weight_decay if decoupled else 0.0, average_decay
        scalars = replay.fed(xp, adam_scalars, *numbers)
    else:
        scalars = prepared.scalars
    all_losses = losses[0].reshape(1) if len(losses) == 1 else xp.stack(losses)
    note = None if xp is np else backend.pending_note()
    # With a loss scale it is not for the norm to say what a failure is.
    reported = prepared if prepared is None or loss_scale is None else prepared._replace(failed=None)
    report = launch_squared_norm(gradients[0].reshape(-1), max_norm, scalars[:1], all_losses, note, reported)
    if prepared is not None and loss_scale is not None:
        launch_move_loss_scale(loss_scale, scalars[:1], prepared.clock, prepared.failed)
    p, g, first, second = (a[0].reshape(-1) for a in (weights, gradients, m, v))
    average = averages[0].reshape(-1) if averages else None
    launch_adam(p, g, first, second, average, scalars, betas, 0.0 if decoupled else weight_decay)
    if prepared is not None:
        return None
    if replay.current() is not None:
        return list(report[2:]), xp.sqrt(report[0]), lambda: read_report(report, note)
    found = read_report(report, note)
    move_loss_scale(loss_scale, bool(np.isfinite([*found[0], found[1]]).all()))
    return found


def clip(gradients: Arrays, max_norm: float) -> float:
    """See `tinydiff.ops.optim.clip`; the norm is accumulated in float32. NotImplemented for other dtypes."""
    if not _fit(gradients):
        return NotImplemented
    squared = sum(launch_squared_norm(g.reshape(-1)) for g in gradients)
    norm = math.sqrt(float(squared))  # the only point that waits for the GPU
    if max_norm < norm < math.inf:
        for g in gradients:
            g *= np.float32(max_norm / norm)
    return norm


def _fit(arrays: Arrays) -> bool:
    """Whether the kernels take each of the arrays."""
    return _are_float32(arrays) and all(a.flags.c_contiguous and a.size <= MOST_ELEMENTS for a in arrays)


def _are_float32(arrays: Arrays) -> bool:
    """Whether all arrays are float32 and of one device."""
    return {a.dtype for a in arrays} == {np.dtype(np.float32)} and len({array_module(a) for a in arrays}) == 1
