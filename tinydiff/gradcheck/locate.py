"""Where a gradient of many elements is wrong, found without the derivative by each of them.

The error E = L_X - (right gradient) is not known, but <E, v> is: <L_X, v> comes from backward and the rest from one
difference along v. With v restricted to one half of the elements this tells which half the error is in, and so on: the
element is found after log2(n) differences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.gradcheck import numeric

if TYPE_CHECKING:
    from tinydiff.gradcheck.check import Check

SEARCHES = 6  # elements that are looked for
FINER = 0.01  # times the usual step: what differs between the two is a kink, not an error


def sample(check: Check, k: int, draws: Sequence[Sequence[Any]], A: np.ndarray, count: int) -> np.ndarray:
    """Elements of array k, as positions in the flattened array: wrong ones first, then others drawn at random.

    draws: M lists of cotangents, one array per output. A (M, *shape): backward's gradients for them.
    """
    wrong = worst_elements(check, k, draws, A)
    shape = check.point[k].shape
    at = np.stack(np.unravel_index(wrong, shape), -1) if wrong else np.zeros((0, len(shape)), int)
    long = np.argsort([-n for n in shape], kind="stable")[:2]
    most = math.isqrt(count) if len(long) > 1 else count
    lines = [_some(check, shape[a], at[:, a], most) for a in long]
    middle = at[0] if len(at) else np.zeros(len(shape), int)
    grid = np.tile(middle, (math.prod(map(len, lines)), 1))
    for a, values in zip(long, np.meshgrid(*lines, indexing="ij"), strict=True):
        grid[:, a] = values.ravel()
    others = np.ravel_multi_index(tuple(grid.T), shape)
    return np.concatenate([np.asarray(wrong, int), others[~np.isin(others, wrong)]])


def worst_elements(check: Check, k: int, draws: Sequence[Sequence[Any]], A: np.ndarray) -> list[int]:
    """Up to SEARCHES elements whose gradients are wrong; with several wrong ones, rather those that are most so."""
    found: list[int] = []
    kinks: list[int] = []
    first = 0.0
    x = check.point[k]
    flat = A.reshape(len(A), -1)
    if not np.isfinite(flat).all():
        return [int(i) for i in np.flatnonzero(~np.isfinite(flat).all(0))[:SEARCHES]]
    for _ in range(2 * SEARCHES):
        v = check.random(x.shape).reshape(-1) * numeric.scale_of(x)
        v[found + kinks] = 0
        errors = _errors(check, k, draws, flat, v, 0, x.size)
        if not np.max(np.abs(errors)) > 1e-3 * first:
            break  # what is left is as small as the error of the differences
        first = first or float(np.max(np.abs(errors)))
        low, high = 0, x.size
        while high - low > 1:
            middle = (low + high) // 2
            left = _errors(check, k, draws, flat, v, low, middle)
            right = errors - left
            if np.sum(left**2) >= np.sum(right**2):
                high, errors = middle, left
            else:
                low, errors = middle, right
        if low in found or low in kinks:
            break
        coarse = _errors(check, k, draws, flat, v, low, high, 1.0)
        (found if np.all(np.abs(coarse - errors) <= 0.05 * np.max(np.abs(errors))) else kinks).append(low)
        if len(found) == SEARCHES:
            break
    return found


def _errors(
    check: Check,
    k: int,
    draws: Sequence[Sequence[Any]],
    A: np.ndarray,
    v: np.ndarray,
    low: int,
    high: int,
    finer: float = FINER,
) -> np.ndarray:
    """<E, v> for each of the cotangents, with v cut to the elements from low to high."""
    by = check.step * (finer if check.ground_dtype == np.float64 else 1.0)
    x = check.point[k]
    part = np.zeros(x.size)
    part[low:high] = v[low:high]
    step = array_module(x).asarray(part.reshape(x.shape) * by)
    with np.errstate(all="ignore"):
        above, below = (
            check.forward([p + s * step if i == k else p for i, p in enumerate(check.point)]) for s in (1, -1)
        )
        Jv = [None if a is None else (a - b) / (2 * by) for a, b in zip(above, below, strict=True)]
    right = np.array([numeric.dot(U, Jv) for U in draws])
    return np.nan_to_num(A[:, low:high] @ v[low:high] - right, posinf=np.inf)


def _some(check: Check, n: int, wanted: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` of 0..n-1, in order, those wanted among them."""
    if n <= count:
        return np.arange(n)
    chosen = np.unique(wanted)[:count]
    rest = np.setdiff1d(check.rng.choice(n, min(n, 2 * count), replace=False), chosen)
    return np.sort(np.concatenate([chosen, check.rng.permutation(rest)[: count - len(chosen)]]))
