"""Adam with a moving average of the weights, and clipping, by the kernels in kernels/optimizer.cu; all float32.

`gathered` puts the arrays of all weights into one flat piece of memory, so that a step takes one launch. Arrays that were not
gathered take a launch each.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.cuda import flat
from tinydiff.cuda.launch import launch
from tinydiff.optim import Arrays

VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (("optimizer.cu", {}),)

THREADS = 256  # of a block; each has four elements at a time
MOST_SUMS = 1024  # blocks of the first stage of a sum
MOST_ELEMENTS = 2**31 - 4 * THREADS  # of an array, which the kernels count in an int


def gathered(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """([flat], views): a flat array that holds all arrays, and views of it that stand for them; see `flat.join`.

    NotImplemented for other dtypes than float32, for arrays of several devices and for 2**31 elements in all.
    """
    if not _are_float32(arrays) or flat.size(arrays) > MOST_ELEMENTS:
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
    """See `tinydiff.optim.adam`; a launch for each weight. NotImplemented for what `launch_adam` does not take."""
    if not _fit([*weights, *gradients, *m, *v, *(averages or [])]):
        return NotImplemented
    scalars = adam_scalars(step, lr, betas, eps, weight_decay if decoupled else 0.0, average_decay)
    scalars = array_module(weights[0]).asarray(scalars)
    coupled = 0.0 if decoupled else weight_decay
    for arrays in zip(weights, gradients, m, v, averages or [None] * len(weights), strict=True):
        p, g, first, second, average = (None if a is None else a.reshape(-1) for a in arrays)
        launch_adam(p, g, first, second, average, scalars, betas, coupled)
    return None


def clip(gradients: Arrays, max_norm: float) -> float:
    """See `tinydiff.optim.clip`; the norm is accumulated in float32. NotImplemented for other dtypes."""
    if not _fit(gradients):
        return NotImplemented
    squared = sum(launch_squared_norm(g.reshape(-1)) for g in gradients)
    norm = math.sqrt(float(squared))  # the only time that the GPU is waited for
    if max_norm < norm < math.inf:
        for g in gradients:
            g *= np.float32(max_norm / norm)
    return norm


def launch_adam(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    average: Any,
    scalars: Any,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> None:
    """One update of the weights p, the moments m and v and, unless None, the average, in place.

    All are float32 (n,) in one piece, as is the gradient g. scalars: float32 (5,) on the same device, see `adam_scalars`;
    where the first is NaN, nothing is changed. weight_decay: what is coupled to the gradient; decoupled decay is among the
    scalars. ValueError for arrays of unequal shapes.
    """
    arrays = [a for a in (p, g, m, v, average) if a is not None]
    if len({a.shape for a in arrays}) > 1 or p.ndim != 1 or scalars.shape != (5,):
        shapes = ", ".join(str(a.shape) for a in arrays)
        raise ValueError(f"adam: flat arrays of one length and 5 scalars are needed, not {shapes} and {scalars.shape}")
    numbers = betas[0], 1 - betas[0], betas[1], 1 - betas[1], weight_decay
    args = (p, g, m, v, average, scalars, _int32(p.size), *(np.float32(x) for x in numbers))
    launch("optimizer.cu", "adam", (-(-p.size // (4 * THREADS)), 1, 1), (THREADS, 1, 1), args)


def adam_scalars(
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    decoupled_decay: float = 0.0,
    average_decay: float = 0.0,
    scale: float = 1.0,
) -> np.ndarray:
    """What `launch_adam` reads for update number `step` (1, 2, ...), float32 (5,): the scale of clipping, lr c2 / c1, eps c2,
    1 - lr decoupled_decay and 1 - average_decay, where c1 = 1 - beta1^step and c2 = sqrt(1 - beta2^step)."""
    c1, c2 = 1 - betas[0] ** step, math.sqrt(1 - betas[1] ** step)
    return np.array([scale, lr * c2 / c1, eps * c2, 1 - lr * decoupled_decay, 1 - average_decay], np.float32)


def launch_squared_norm(g: Any, max_norm: float = math.inf, scale: Any = None) -> Any:
    """|g|^2 of a flat float32 array (n,), as an array (); summed in float32, in the same order each time.

    scale: an array (1,) for what g is to be multiplied with so that its norm is at most max_norm, such as `scalars[:1]` of
    `launch_adam`: 1 where it is already, NaN where the norm is not finite; then `launch_adam` changes nothing.
    """
    xp = array_module(g)
    n = g.size
    per_block = 4 * THREADS * max(4, -(-n // (4 * THREADS * MOST_SUMS)))
    sums, squared = xp.empty(-(-n // per_block), np.float32), xp.empty((), np.float32)
    args: tuple[Any, ...] = (g, _int32(n), np.int32(per_block), sums)
    launch("optimizer.cu", "squared_norm", (len(sums), 1, 1), (THREADS, 1, 1), args)
    args = (sums, np.int32(len(sums)), np.float32(max_norm), squared, scale)
    launch("optimizer.cu", "clip_scale", (1, 1, 1), (THREADS, 1, 1), args)
    return squared


def _fit(arrays: Arrays) -> bool:
    """Whether the kernels take each of the arrays."""
    return _are_float32(arrays) and all(a.flags.c_contiguous and a.size <= MOST_ELEMENTS for a in arrays)


def _are_float32(arrays: Arrays) -> bool:
    """Whether all arrays are float32 and of one device."""
    return {a.dtype for a in arrays} == {np.dtype(np.float32)} and len({array_module(a) for a in arrays}) == 1


def _int32(n: int) -> np.int32:
    if n > MOST_ELEMENTS:
        raise ValueError(f"the flat array must have fewer than 2**31 elements, not {n}")
    return np.int32(n)
