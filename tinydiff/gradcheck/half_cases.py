"""What the CUDA kernels are run on in 16 bits, compared with the definitions in float64 of the rounded arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tinydiff.autograd import waiting
from tinydiff.cuda.rounding import converted
from tinydiff.cuda.updates import adam_scalars, launch_adam
from tinydiff.gradcheck.cases import (
    STATE,
    Cases,
    Check,
    Pairs,
    Run,
    defined,
    double,
    images_of,
    normal,
    normalized,
    pairs,
    rows_of,
)
from tinydiff.ops.activation import silu_backward, silu_forward
from tinydiff.ops.convolution import sum_pixels_and_images
from tinydiff.ops.fully_connected import sum_rows, sums_of_rows
from tinydiff.ops.normalization import group_normalize, group_normalize_backward
from tinydiff.ops.pooling import repeat_pixels, sum_pixel_blocks
from tinydiff.ops.shape import cut, join
from tinydiff.ops.tables import pick_rows
from tinydiff.precision import from_memory, in_memory, rounded
from tinydiff.random import Generator

ROUNDED = {
    "float32": 0,
    "tf32": 0,
    "fp16": 2**-11,
    "bf16": 2**-8,
}  # off by rounding, relative to a result; that of TF32 is float32


def compared(ours: Any, truth: Any, precision: str) -> tuple[Any, Any]:
    """A result, and the number nearest to what it should be of those that are rounded to it."""
    ours = double(from_memory(ours))
    half = np.abs(ours) * ROUNDED[precision]
    return np.clip(truth, ours - half, ours + half), truth


def held_in(precision: str, function: Any, cases: Cases, places: Sequence[int]) -> Check:
    """A check that a kernel gives in 16 bits what the definition gives in float64 of the same numbers.

    cases: arguments in float32; places: of those that are in 16 bits. Results are as the kernel gives them, of 16 bits or not.
    """

    def check(rng: np.random.Generator, run: Run) -> Pairs:
        for args in cases(rng):
            short = [_each(in_memory, a, precision) if i in places else a for i, a in enumerate(args)]
            exact = [double(_each(rounded, a, precision)) if i in places else double(a) for i, a in enumerate(args)]
            for ours, truth in pairs(run(function, *short), defined(function, *exact)):
                yield (ours, truth) if ours.dtype == np.float32 else compared(ours, truth, precision)

    return check


def _each(change: Callable[..., Any], a: Any, precision: str) -> Any:
    return [change(x, precision) for x in a] if isinstance(a, list) else change(a, precision)


def _normalizations(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for X, _, w, b, groups, silu in normalized(rng):
        yield X, w, b, groups, 1e-5, silu


def _backward(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for X, L_Y, w, b, groups, silu in normalized(rng):
        _, u, r = defined(group_normalize, *map(double, (X, w, b)), groups, 1e-5, silu)
        if np.abs(u).max() < 50:  # else the rounding of X is all that there is
            yield L_Y, X, u.astype(np.float32), r.astype(np.float32), w, b, groups, silu


def _vectors(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for n in (1, 4099):
        yield normal(rng, n), 3 * normal(rng, n)


def _maps(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for N, H, W, C in ((2, 3, 5, 8), (2, 2, 1, 5)):
        yield normal(rng, N, H, W, C), normal(rng, N, 2 * H, 2 * W, C)


def _rows(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    for D in (8, 5):
        yield normal(rng, 9, D), rng.integers(0, 9, (2, 3))


def _with_dropout(rng: np.random.Generator, run: Run, precision: str) -> Pairs:
    """The gradient of M silu(Z w + b) is that of silu(Z w + b) for M L_Y."""
    for i, (L_Y, X, u, r, w, b, groups, silu) in enumerate(_backward(rng)):
        p = (0.2, 0.5, 0.1, 0.3, 0.4)[i]
        mask = (Generator(*STATE).uniform(X.shape) >= np.float32(p)) / (1 - p)
        x, l_y = (double(rounded(a, precision)) for a in (X, L_Y))
        known = double(u), double(r), double(w), double(b), groups, silu
        truth = defined(group_normalize_backward, l_y * mask, x, *known)
        short = in_memory(L_Y, precision), in_memory(X, precision)
        ours = run(group_normalize_backward, *short, u, r, w, b, groups, silu, dropout=(p, STATE))
        for a, e in pairs(ours, truth):
            yield (a, e) if a.dtype == np.float32 else compared(a, e, precision)


def onto_another(rng: np.random.Generator, run: Run, precision: str) -> Pairs:
    """L_X and what waits where it goes: their sum is rounded once."""
    for L_Y, X, *known in _backward(rng):
        arrays = L_Y, X, normal(rng, *X.shape)
        short = [in_memory(a, precision) for a in arrays]
        l_y, x, there = (double(rounded(a, precision)) for a in arrays)
        with waiting.offered(short[2]):
            L_X = run(group_normalize_backward, *short[:2], *known)[0]
        yield compared(L_X, defined(group_normalize_backward, l_y, x, *map(double, known))[0] + there, precision)


def _adam(rng: np.random.Generator, run: Run, precision: str) -> Pairs:
    """The weights in 16 bits are those in float32, rounded; not their average."""
    for n in (1, 1027):
        p, g, m, v, average = (normal(rng, n) ** power for power in (1, 1, 1, 2, 1))
        half = in_memory(np.zeros(n, np.float32), precision)
        run(launch_adam, p, g, m, v, average, adam_scalars(7, 0.02, average_decay=0.5), half=half)
        yield half, in_memory(p, precision)


def _converted(rng: np.random.Generator, run: Run, precision: str) -> Pairs:
    for n in (1, 5, 2051):
        x = normal(rng, n)
        half = in_memory(x, precision)
        yield run(converted, x, half.dtype), half
        yield run(converted, half, np.float32), rounded(x, precision)


def _of(precision: str) -> dict[str, dict[str, Check]]:
    held = functools.partial(held_in, precision)
    return {
        "normalization": {
            "group_normalize": held(group_normalize, _normalizations, [0]),
            "group_normalize_backward": held(group_normalize_backward, _backward, [0, 1]),
            "dropout": functools.partial(_with_dropout, precision=precision),
            "onto another": functools.partial(onto_another, precision=precision),
            "silu": held(silu_forward, lambda rng: ((x,) for _, x in _vectors(rng)), [0]),
            "silu_backward": held(silu_backward, _vectors, [0, 1]),
        },
        "resampling": {
            "repeat_pixels": held(repeat_pixels, lambda rng: ((X, (2, 2)) for X, _ in _maps(rng)), [0]),
            "sum_pixel_blocks": held(sum_pixel_blocks, lambda rng: ((L_Y, (2, 2)) for _, L_Y in _maps(rng)), [0]),
            "join": held(join, lambda rng: (([X, X], -1) for X, _ in _maps(rng)), [0]),
            "cut": held(cut, lambda rng: ((np.concatenate([X, X], -1), [X.shape[-1]], -1) for X, _ in _maps(rng)), [0]),
            "pick_rows": held(pick_rows, _rows, [0]),
        },
        "sums": {
            "sum_rows": held(sum_rows, rows_of, [0]),
            "sums_of_rows": held(sums_of_rows, lambda rng: (([L, L[:, :3].copy()],) for (L,) in rows_of(rng)), [0]),
            "sum_pixels_and_images": held(sum_pixels_and_images, images_of, [0]),
        },
        "conversion": {"converted": functools.partial(_converted, precision=precision)},
        "optimizer": {"launch_adam": functools.partial(_adam, precision=precision)},
    }


SOURCES_OF_HALVES = ("conversion",)  # those whose kernels have nothing to do with float32 alone


def in_16_bits(source: str) -> dict[str, Check]:
    """The checks of a source's kernels, named by function and precision."""
    return {f"{p} {name}": check for p in ("bf16", "fp16") for name, check in _of(p).get(source, {}).items()}
