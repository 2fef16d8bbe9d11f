"""Whether an array is more than generic numbers, so that a gradient may rely on what other numbers would lack."""

from __future__ import annotations

import numpy as np


def is_structured(x: np.ndarray) -> bool:
    """Equal magnitudes, symmetry, sums or lengths that are all the same, ascending order."""
    if len(np.unique(np.abs(x))) < x.size:
        return True
    if x.ndim == 2 and x.shape[0] == x.shape[1] and _is_close(x, x.T, x):
        return True
    for axis, n in enumerate(x.shape):
        for y in (x, x * x):  # distributions, vectors of one length
            sums = y.sum(axis)
            if np.allclose(sums, 1) or (sums.size > 1 and _is_close(sums, sums.flat[0], y)):
                return True
        steps = np.diff(x, axis=axis)
        if n > 3 and (np.all(steps > 0) or np.all(steps < 0)):
            return True
    return False


def _is_close(a: np.ndarray, b: np.ndarray, x: np.ndarray) -> bool:
    """Whether numbers differ by little beside what the elements of x differ by: these may all be tiny, or near 1e7."""
    return not x.size or bool(np.max(np.abs(a - b)) <= 1e-5 * np.ptp(x) + 1e-12 * np.max(np.abs(a)))
