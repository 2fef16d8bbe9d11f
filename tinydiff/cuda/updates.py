"""Launches of the kernels in kernels/optimizer.cu, over one flat array of all weights.

What changes from step to step is read from the device, so that a captured graph can be replayed.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from tinydiff import backend
from tinydiff.backend import array_module
from tinydiff.cuda.launch import launch
from tinydiff.cuda.source import precision_of_elements
from tinydiff.ops.optim import GOOD_STEPS, LEAST_SCALE, MOST_SCALE

SOURCE = "optimizer.cu"
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    (SOURCE, {}),
    *((SOURCE, {"PRECISION": precision}) for precision in ("BF16", "FP16")),
)

THREADS = 256  # of a block; each has four elements at a time
MOST_SUMS = 1024  # blocks of the first stage of a sum
MOST_ELEMENTS = 2**31 - 4 * THREADS  # of an array, which the kernels count in an int


def launch_adam(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    average: Any,
    scalars: Any,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    half: Any = None,
) -> None:
    """One update of the weights p, the moments m and v and, unless None, the average, in place.

    All are float32 (n,) in one piece, as is the gradient g. scalars: float32 (5,) on the same device, see `adam_scalars`;
    where the first is NaN, nothing is changed. weight_decay: what is coupled to the gradient; decoupled decay is among the
    scalars. half: fp16 or bf16 (n,), which gets the new weights as well; None for none. ValueError for arrays of unequal
    shapes.
    """
    arrays = [a for a in (p, g, m, v, average, half) if a is not None]
    if len({a.shape for a in arrays}) > 1 or p.ndim != 1 or scalars.shape != (5,):
        shapes = ", ".join(str(a.shape) for a in arrays)
        raise ValueError(f"adam: flat arrays of one length and 5 scalars are needed, not {shapes} and {scalars.shape}")
    numbers = betas[0], 1 - betas[0], betas[1], 1 - betas[1], weight_decay
    args = (p, g, m, v, average, half, scalars, _int32(p.size), *(np.float32(x) for x in numbers))
    defines = {} if half is None else precision_of_elements(half)
    launch(SOURCE, "adam", (-(-p.size // (4 * THREADS)), 1, 1), (THREADS, 1, 1), args, defines=defines)


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


class Prepared(NamedTuple):
    """What an update finds and leaves on the device, so that the host need neither tell it anything nor wait for it.

    scalars: float32 (5,), see `adam_scalars`. clock: uint32 (2,), of which the first is the number of the step, from 1 on.
    report: float32 (rows, 2 + k), or (rows, 3 + k) with a loss scale, where step `clock[0]` writes row `clock[0] % rows`, see
        `launch_squared_norm`.
    failed: uint32 (1,), 0, which becomes the number of the first step whose losses or norm are not finite, unless that is an
        overflow under a loss scale; then nothing changes the weights any more.
    """

    scalars: Any
    clock: Any
    report: Any
    failed: Any


def launch_squared_norm(
    g: Any,
    max_norm: float = math.inf,
    scale: Any = None,
    losses: Any = None,
    note: Any = None,
    prepared: Prepared | None = None,
    loss_scale: Any = None,
) -> Any:
    """|g|^2 of a flat float32 array (n,), as an array (); summed in float32, in the same order each time.

    scale: an array (1,), such as `scalars[:1]` of `launch_adam`. It gets the factor that limits the norm of g to
    max_norm: 1 where no limit is needed, NaN where the norm is not finite; then `launch_adam` changes nothing.
    losses: an array (k,). The result is then (2 + k,): |g|^2, the note, the losses. Where a loss is not finite or the note
        is not 0, the scale is NaN, too. note: see `backend.note_of_wrong_indices`; None for 0.
    prepared: where the result goes instead, and where a failure is remembered; its scalars are not used.
    loss_scale: the state of one, see `ops.optim.move_loss_scale`; None for none. g is then the gradient times S, its first entry.
        |g|^2 and the factor are those of the gradient itself, so the factor has 1 / S in it. S is the last entry of the
        result, behind the losses. The state is moved for the next step.
    """
    xp = array_module(g)
    n = g.size
    per_block = 4 * THREADS * max(4, -(-n // (4 * THREADS * MOST_SUMS)))
    sums, count = xp.empty(-(-n // per_block), np.float32), 0 if losses is None else len(losses)
    args: tuple[Any, ...] = (g, _int32(n), np.int32(per_block), sums)
    launch(SOURCE, "squared_norm", (len(sums), 1, 1), (THREADS, 1, 1), args)
    length = 2 + count + (loss_scale is not None)
    if prepared is None:
        clock, failed = None, None
        report = xp.empty(() if losses is None and loss_scale is None else length, np.float32)
    else:
        _, clock, report, failed = prepared
        if report.shape[1:] != (length,):
            raise ValueError(f"{count} losses need a report of {length} numbers for a step, not {report.shape}")
    moving = np.float32(LEAST_SCALE), np.float32(MOST_SCALE), np.int32(GOOD_STEPS)
    rows = np.int32(1 if clock is None else len(report))
    args = (sums, np.int32(len(sums)), np.float32(max_norm), losses, np.int32(count), note, clock, rows, failed, report)
    launch(SOURCE, "clip_scale", (1, 1, 1), (THREADS, 1, 1), (*args, scale, loss_scale, *moving))
    return report


def read_report(report: Any, note: Any = None) -> tuple[list[float], float]:
    """The losses, with the loss scale behind them if there is one, and the norm that `launch_squared_norm` reported of a step.
    note: what it was given; an IndexError where that told of a wrong index."""
    squared, wrong, *numbers = backend.to_numpy(report, read_note=False).tolist()
    backend.settle_note(note, wrong != 0)
    return numbers, math.sqrt(squared) if squared >= 0 else math.nan


def _int32(n: int) -> np.int32:
    if n > MOST_ELEMENTS:
        raise ValueError(f"the flat array must have fewer than 2**31 elements, not {n}")
    return np.int32(n)
