"""Adam, the moving average and clipping for all weights at once, by the kernels of kernels/optimizer.cu.

A network has hundreds of weights, most of them small, and a launch for each would cost more than the work. So the weights are
put into one flat piece of memory, an arena, of which each weight then is a view; the same is done with their gradients,
moments and averages. Only where the kernels take the arrays (on the GPU); elsewhere `optim` goes from weight to weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import address, array_module
from tinydiff.dispatch import kernels_take

_STEP = (
    32  # elements; kernels read weights by 16 bytes where they start at a multiple of that, and 128 are a cache line
)


def adam_step(adam: Any, ema: Any) -> bool:
    """`adam.step(ema)` by one kernel. False, with nothing done, where not every weight has a gradient, the weights were
    updated unequally often, or the kernels do not take the arrays."""
    weights, count = adam.parameters, adam.steps[0]
    if any(p.grad is None for p in weights) or any(n != count for n in adam.steps):
        return False
    data, grads = [p.data for p in weights], [p.grad for p in weights]
    moments = list(zip(*adam.state, strict=True)) if count else []
    averages = [] if ema is None else [ema.averages_of(weights)]
    if not _fit([data, grads, *moments, *averages]):
        return False
    from tinydiff.cuda import optim as optimizer

    xp, (p, views) = array_module(data[0]), join(data)
    g, _ = join(grads)
    m, v = (
        (join(moment)[0] for moment in moments)
        if count
        else (xp.zeros(p.size, np.float32), xp.zeros(p.size, np.float32))
    )
    average = join(averages[0])[0] if averages else None
    decay = 0.0 if ema is None else ema.current_decay
    decoupled = 0.0 if adam.coupled else adam.weight_decay
    scalars = optimizer.adam_scalars(count + 1, adam.lr, adam.betas, adam.eps, decoupled, decay)
    coupled = adam.weight_decay if adam.coupled else 0.0
    optimizer.adam(p, g, m, v, average, xp.asarray(scalars), adam.betas, coupled)
    for weight, view in zip(weights, views, strict=True):
        weight.data = view
        weight._version.count += 1
    adam.steps = [count + 1] * len(weights)
    adam.state = [list(pair) for pair in zip(part(m, data), part(v, data), strict=True)]
    if ema is not None:
        ema.averages, ema.updates = part(average, data), ema.updates + 1
    return True


def clip_grad_norm(parameters: Sequence[Tensor], max_norm: float) -> float | None:
    """`optim.clip_grad_norm` by kernels; None, with nothing done, where they do not take the gradients."""
    parameters = [p for p in parameters if p.grad is not None]
    if not parameters or not _fit([[p.grad for p in parameters]]):
        return None
    from tinydiff.cuda import optim as optimizer

    g, views = join([p.grad for p in parameters])
    for p, view in zip(parameters, views, strict=True):
        p.grad = view
    norm = math.sqrt(float(optimizer.squared_norm(g)))  # the only time that the GPU is waited for
    if max_norm < norm < math.inf:
        g *= np.float32(max_norm / norm)
    return norm


def join(arrays: Sequence[Any]) -> tuple[Any, list[Any]]:
    """A flat array that holds the given arrays, of one dtype, one after another, and views of it that stand for them.

    Each starts at a multiple of `_STEP` elements, with zeros in the gaps. Arrays that lie so already are returned as they are;
    others are copied.
    """
    flat = _joined(arrays)
    if flat is not None:
        return flat, list(arrays)
    flat = array_module(arrays[0]).zeros(_starts(arrays)[-1], arrays[0].dtype)
    views = part(flat, arrays)
    for view, a in zip(views, arrays, strict=True):
        view[...] = a
    return flat, views


def part(flat: Any, arrays: Sequence[Any]) -> list[Any]:
    """The parts of a flat array that `join` gives to arrays of such shapes, as views."""
    starts = _starts(arrays)[:-1]
    return [flat[start : start + a.size].reshape(a.shape) for a, start in zip(arrays, starts, strict=True)]


def _starts(arrays: Sequence[Any]) -> list[int]:
    """Where each array starts in the flat one, and that one's size."""
    return np.cumsum([0, *(-(-a.size // _STEP) * _STEP for a in arrays)]).tolist()


def _joined(arrays: Sequence[Any]) -> Any:
    """The flat array that consists of the arrays in their order, or None."""
    flat = arrays[0].base
    starts = _starts(arrays)
    if flat is None or flat.ndim != 1 or flat.dtype != arrays[0].dtype or flat.size != starts[-1]:
        return None
    for a, start in zip(arrays, starts[:-1], strict=True):
        place = address(flat) + start * a.itemsize
        if a.base is not flat or not a.flags.c_contiguous or (a.size and address(a) != place):
            return None
    return flat


def _fit(lists: Sequence[Sequence[Any]]) -> bool:
    """Whether the kernels take all these arrays, and those of each list have the shapes of the first's."""
    shapes = [a.shape for a in lists[0]]
    return all(
        [a.shape for a in arrays] == shapes and all(a.dtype == np.float32 and kernels_take(a) for a in arrays)
        for arrays in lists
    )
