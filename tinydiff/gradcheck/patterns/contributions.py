"""From where: errors that show in which outputs an element's gradient comes from."""

from __future__ import annotations

import itertools

import numpy as np

from tinydiff.gradcheck.evidence import Evidence, axes_text
from tinydiff.gradcheck.numeric import largest
from tinydiff.gradcheck.report import Diagnosis


def one_slice(e: Evidence) -> Diagnosis | None:
    """Only one index along an axis of the output counts."""
    if len(e.outputs) != 1 or not e.outputs[0].ndim:
        return None
    y = e.outputs[0]
    for axis, n in enumerate(y.shape):
        for i in (n - 1, 0):
            if n < 2:
                continue
            keep = np.zeros(n)
            keep[i] = 1
            mask = np.broadcast_to(keep.reshape([-1 if a == axis else 1 for a in range(y.ndim)]), y.shape)
            if e.is_close(e.A, e.of(e.rows * mask.reshape(-1))):
                which = f"only index {i} of axis {axis} of L_Y contributes"
                if i:
                    return Diagnosis("overwritten", f"{which}: a loop overwrites the gradient instead of adding to it")
                return Diagnosis(
                    "broadcast", f"{which}: the sum over that axis, along which the input is repeated, is missing"
                )
    return None


def accumulation(e: Evidence) -> Diagnosis | None:
    """The Jacobian says which contributions reach an element: some are missing."""
    claimed = e.claimed
    if claimed is None:
        return None
    tiny = e.tolerance * max(largest(e.J), largest(claimed))
    there = np.abs(e.J) > tiny
    kept = np.abs(claimed) > tiny
    missing = there & ~kept
    if not missing.any() or np.any(np.abs(np.where(missing, 0, claimed - e.J)) > tiny):
        return None
    if _last_write_wins(there, kept):
        if _first_of_copies(e, there, kept, tiny):
            text = (
                "of the copies that forward makes of an element only the first gives its gradient back: sum over them"
            )
            return Diagnosis("broadcast", text)
        return Diagnosis(
            "overwritten", "of several contributions to an element only one arrives: overwritten, not added up"
        )
    whole = missing.any(1) & ~kept.any(1)
    if whole.any() and not (missing.any(1) & kept.any(1)).any():
        if len(e.outputs) == 1 and (axes := _border_of(whole.reshape(e.outputs[0].shape))):
            return Diagnosis("border", f"L_Y is not used at the borders along {axes_text(axes)}: padding")
        return Diagnosis("missing", f"L_Y is not used at {whole.sum()} of {len(e.J)} places of the output")
    return Diagnosis(
        "missing", "some of the contributions to an element are missing: a term, or a position, is skipped"
    )


def extra(e: Evidence) -> Diagnosis | None:
    """Contributions from outputs that the input does not reach."""
    claimed = e.claimed
    if claimed is None:
        return None
    tiny = e.tolerance * max(largest(e.J), largest(claimed))
    surplus = (np.abs(e.J) <= tiny) & (np.abs(claimed) > tiny)
    if surplus.any() and not np.any(np.abs(np.where(surplus, 0, claimed - e.J)) > tiny):
        return Diagnosis(
            "mask", "a gradient comes back from outputs that this input does not enter: a mask is not applied"
        )
    return None


def multiplicity(e: Evidence) -> Diagnosis | None:
    """Contributions that are counted -1, 0 or 2 times."""
    claimed = e.claimed
    if claimed is None:
        return None
    tiny = e.tolerance * max(largest(e.J), largest(claimed))
    there = np.abs(e.J) > tiny
    times = np.where(there, np.round(claimed / np.where(there, e.J, 1)), 0)
    if np.any(np.abs(claimed - times * e.J) > tiny) or not np.isin(times, (-1, 0, 1, 2)).all():
        return None
    if (times == -1).any():
        return Diagnosis("sign", "some of the contributions to an element have the wrong sign")
    if (times == 2).any():
        also = ", others missing" if (there & (times == 0)).any() else ""
        return Diagnosis("twice", f"some of the contributions to an element are counted twice{also}")
    return None


def rerouted(e: Evidence) -> Diagnosis | None:
    """The right contributions of each element, taken from other places of L_Y."""
    claimed = e.claimed
    if claimed is None or np.any(np.abs(np.sort(claimed, 0) - np.sort(e.J, 0)) > e.tolerance * largest(e.J)):
        return None
    text = "each element gets the right contributions from wrong places of L_Y: an index, a stride or an order of axes"
    return Diagnosis("misplaced", text)


def _first_of_copies(e: Evidence, there: np.ndarray, kept: np.ndarray, tiny: float) -> bool:
    """Whether outputs are copies of elements, and only the first copy of each counts."""
    copied = (there.sum(1) <= 1).all() and np.all(np.abs(e.J[there] - 1) <= tiny)
    return bool(copied and np.array_equal(kept, there & (np.cumsum(there, 0) == 1)))


def _last_write_wins(there: np.ndarray, kept: np.ndarray) -> bool:
    """Whether of the contributions to each element (a column) as many survive, everywhere the first or the last."""
    touched = (there & ~kept).any(0)
    counts = kept.sum(0)
    if (
        counts[touched].min() == 0
        or np.ptp(counts[touched])
        or there.sum(0)[~touched].max(initial=0) > counts[touched][0]
    ):
        return False
    rank = np.cumsum(there, 0)
    n, all_of = counts[touched][0], there.sum(0)
    first, last = there & (rank <= n), there & (rank > all_of - n)
    return any(np.array_equal(kept[:, touched], x[:, touched]) for x in (first, last))


def _border_of(places: np.ndarray) -> tuple[int, ...]:
    """The axes of which the places are the outermost elements, all of them and no others; none if they are not that."""
    long = [a for a, n in enumerate(places.shape) if n >= 3]
    for count in range(1, len(long) + 1):
        for axes in itertools.combinations(long, count):
            border = np.ones(places.shape, bool)
            border[tuple(slice(1, -1) if a in axes else slice(None) for a in range(places.ndim))] = False
            if np.array_equal(border, places):
                return axes
    return ()
