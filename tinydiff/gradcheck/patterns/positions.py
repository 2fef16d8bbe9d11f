"""Where: errors that show in the places at which a gradient is wrong, or that its right values have gone to."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from tinydiff.backend import to_numpy
from tinydiff.gradcheck.evidence import Evidence, axes_text, subsets
from tinydiff.gradcheck.numeric import largest
from tinydiff.gradcheck.report import Diagnosis


def transposed(e: Evidence) -> Diagnosis | None:
    """The gradient, an operand or L_Y stands in another order of axes."""
    text = "{} is transposed: a .T is missing or too many"
    for axes in _orders(e.x.shape):
        if e.complete and e.is_close(e.A, e.B.transpose(0, *(a + 1 for a in axes))):
            return Diagnosis("transposed", text.format("the gradient"))
    if e.complete and e.x.ndim > 1:
        turned = np.stack([b.T.reshape(b.shape) for b in e.B])
        back = np.stack([b.reshape(b.shape[::-1]).T for b in e.B])
        if e.is_close(e.A, turned) or e.is_close(e.A, back):
            return Diagnosis(
                "transposed", "the elements are right but in transposed order: a reshape where a transpose belongs"
            )
    for axes, rows in _transposed_rows(e):
        if e.is_close(e.A, e.of(rows)):
            return Diagnosis("transposed", text.format(f"L_Y (axes {axes})"))
    if (
        e.J.shape[0] == e.J.shape[1]
        and e.claimed is not None
        and np.all(np.abs(e.claimed - e.J.T) <= e.tolerance * largest(e.J))
    ):
        return Diagnosis(
            "transposed", "the linear map is applied where its transpose belongs, from outputs back to inputs"
        )
    for j, y in enumerate(e.check.point):
        for axes in _orders(y.shape):
            if e.at(j, to_numpy(y).transpose(axes)):
                return Diagnosis("transposed", text.format(e.check.names[j]))
    return None


def turned(e: Evidence) -> Diagnosis | None:
    """Something runs backwards along an axis."""
    for axes in subsets(e.x.shape):
        if e.complete and e.is_close(e.A, np.flip(e.B, tuple(a + 1 for a in axes))):
            return Diagnosis("flipped", f"the gradient is flipped along {axes_text(axes)}")
    for j, y in enumerate(e.check.point):
        if j == e.k:
            continue
        for axes in subsets(y.shape):
            if e.at(j, np.flip(to_numpy(y), axes)):
                return Diagnosis(
                    "flipped",
                    f"{e.check.names[j]} must be (or must not be) flipped along {axes_text(axes)} in backward",
                )
    return None


def shifted(e: Evidence) -> Diagnosis | None:
    """Right values at a neighbouring position, or for a neighbouring L_Y."""
    text = "off by one position: {} stands {} too far along {}"
    if e.complete:
        for steps in _steps(e.x.shape):
            if _is_shift(e, e.A, e.B, steps):
                return Diagnosis("shifted", text.format("the gradient", _step_names(steps), axes_text(_moved(steps))))
        for steps in _steps(e.x.shape):
            if sum(map(abs, steps)) == 1 and _has_shifted_term(e, steps):
                text = (
                    f"off by one position: a term stands {_step_names(steps)} too far along {axes_text(_moved(steps))}"
                )
                return Diagnosis("shifted", text)
    y = e.outputs[0]
    if len(e.outputs) == 1 and y.ndim:
        for steps in _steps(y.shape):
            rows = np.stack([_slid(u.reshape(y.shape), steps).reshape(-1) for u in e.rows])
            if e.is_close(e.A, e.of(rows)):
                return Diagnosis("shifted", text.format("L_Y", _step_names(steps), axes_text(_moved(steps))))
    for j, z in enumerate(e.check.point):
        for steps in _steps(z.shape):
            at = tuple(a for a, s in enumerate(steps) if s)
            if j != e.k and len(at) <= 2 and e.at(j, np.roll(to_numpy(z), [steps[a] for a in at], at)):
                return Diagnosis("shifted", text.format(e.check.names[j], _step_names(steps), axes_text(at)))
    return None


def misplaced(e: Evidence) -> Diagnosis | None:
    """The right numbers in wrong places."""
    if not e.complete or not e.is_close(np.sort(e.A.reshape(len(e.A), -1)), np.sort(e.B.reshape(len(e.B), -1))):
        return None
    return Diagnosis(
        "misplaced", "the right numbers stand in the wrong places: an index, a stride or an order of elements"
    )


def borders(e: Evidence) -> Diagnosis | None:
    """Right inside, wrong at the edges."""
    if not e.complete or e.wrong.all() or not e.wrong.any():
        return None
    long = [a for a, n in enumerate(e.x.shape) if n >= 3]
    for count in range(1, len(long) + 1):
        for axes in itertools.combinations(long, count):
            for depth in (1, 2, 3):
                if any(e.x.shape[a] - 2 * depth < 3 for a in axes):
                    continue
                inner = tuple(slice(depth, -depth) if a in axes else slice(None) for a in range(e.x.ndim))
                if e.wrong[inner].any():
                    continue
                ends = {(a, side) for a in axes for side in (0, 1) if e.wrong[_end(a, side, depth, axes)].any()}
                if {a for a, _ in ends} != set(axes) or len(ends) < 2:
                    continue
                return Diagnosis("border", f"wrong only within {depth} of the borders of {axes_text(axes)}: padding")
    return None


def branch(e: Evidence) -> Diagnosis | None:
    """Wrong exactly where the input is above, or below, some number."""
    wrong, right = e.x[e.wrong], e.x[e.known & ~e.wrong]
    if wrong.size < 2 or right.size < 3:
        return None
    for side, low, high in (("below", wrong, right), ("above", right, wrong)):
        if low.max() < high.min():
            between = [c for c in (0.0, 1.0, -1.0) if low.max() <= c <= high.min()]
            number = between[0] if between else (low.max() + high.min()) / 2
            name = e.check.names[e.k]
            return Diagnosis(
                "branch", f"wrong exactly where {name} is {side} {number:.3g}: one branch of the derivative"
            )
    return None


def mask(e: Evidence) -> Diagnosis | None:
    """Wrong only where it should be zero, or where it is zero."""
    if e.wrong.all() or not e.wrong.any():
        return None
    tiny = e.tolerance * e.scale
    none_right, none_there = (np.abs(x[:, e.wrong]) <= tiny for x in (e.B, e.A))
    if none_right.all():
        text = "a gradient where there should be none: a mask or choice of forward is not applied in backward"
    elif none_there.all():
        text = "no gradient in some places where there should be one: masked, cut off or never written"
    elif np.all(none_right | none_there):
        text = "zero where it should not be and the reverse: forward and backward use different masks"
    else:
        return None
    return Diagnosis("mask", text)


def some_indices(e: Evidence) -> Diagnosis | None:
    """Wrong only at some indices along one axis."""
    if not e.complete:
        return None
    for axis, n in enumerate(e.x.shape):
        other = tuple(a for a in range(e.x.ndim) if a != axis)
        hit = np.flatnonzero(e.wrong.any(other))
        if 0 < len(hit) <= n // 2 and e.wrong.take(hit, axis).mean() > 0.5:
            where = f"index {hit[0]}" if len(hit) == 1 else f"indices {', '.join(map(str, hit[:6]))}"
            return Diagnosis("partial", f"wrong only at {where} of {n} along axis {axis}")
    return None


def some_elements(e: Evidence) -> Diagnosis | None:
    """Wrong in places that follow no other pattern, right in the others."""
    count, known = int(e.wrong.sum()), int(e.known.sum())
    if not 0 < count <= 0.6 * known:
        return None
    return Diagnosis("partial", f"wrong at {count} of {known} elements, right at the others: one case of several")


def _orders(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Orders of the axes, other than the given one, that keep the shape."""
    if len(shape) <= 4:
        for axes in itertools.permutations(range(len(shape))):
            moved = [a for i, a in enumerate(axes) if a != i]
            if moved and tuple(shape[a] for a in axes) == shape and any(shape[a] > 1 for a in moved):
                yield axes


def _transposed_rows(e: Evidence) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    if len(e.outputs) == 1:
        shape = e.outputs[0].shape
        for axes in _orders(shape):
            yield axes, np.stack([u.reshape(shape).transpose(axes).reshape(-1) for u in e.rows])


def _steps(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Shifts by one along one or two axes."""
    for axes in subsets(shape):
        for signs in itertools.product((1, -1), repeat=len(axes)):
            steps = [0] * len(shape)
            for a, s in zip(axes, signs, strict=True):
                steps[a] = s
            yield tuple(steps)


def _moved(steps: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a for a, s in enumerate(steps) if s)


def _step_names(steps: tuple[int, ...]) -> str:
    return "/".join(f"{s:+d}" for s in steps if s)


def _slid(a: np.ndarray, steps: tuple[int, ...]) -> np.ndarray:
    """a shifted, with zeros moving in."""
    out = np.zeros_like(a)
    to = tuple(slice(max(s, 0), n + min(s, 0)) for s, n in zip(steps, a.shape, strict=True))
    of = tuple(slice(max(-s, 0), n + min(-s, 0)) for s, n in zip(steps, a.shape, strict=True))
    out[to] = a[of]
    return out


def _is_shift(e: Evidence, A: np.ndarray, B: np.ndarray, steps: tuple[int, ...]) -> bool:
    """Whether A is B moved, looked at where both have a counterpart (at least two positions along each axis)."""
    if any(s and n < 3 for s, n in zip(steps, A.shape[1:], strict=True)):
        return False
    to = (slice(None), *(slice(max(s, 0), n + min(s, 0)) for s, n in zip(steps, A.shape[1:], strict=True)))
    of = (slice(None), *(slice(max(-s, 0), n + min(-s, 0)) for s, n in zip(steps, A.shape[1:], strict=True)))
    a, b = A[to], B[of]
    return bool(np.all(np.abs(a - b) <= e.tolerance * e.scale)) and largest(b) > 1e-2 * e.scale


def _has_shifted_term(e: Evidence, steps: tuple[int, ...]) -> bool:
    """Whether the error is a sparse term minus the same term one position further."""
    if np.mean(e.wrong) > 0.7 or not e.wrong.any():
        return False
    tiny = e.tolerance * e.scale

    def moved(E: np.ndarray) -> bool:
        above, below = np.maximum(E, 0), np.maximum(-E, 0)
        return any(
            min(a.max(), b.max()) > tiny and np.all(np.abs(_slid(a, steps) - b) <= tiny)
            for a, b in ((above, below), (below, above))
        )

    return all(moved(E) for E in e.E)


def _end(axis: int, side: int, depth: int, axes: tuple[int, ...]) -> tuple[slice, ...]:
    """One border of one axis, away from the borders of the other axes (so that each is judged by itself)."""
    index = [slice(depth, -depth) if a in axes else slice(None) for a in range(max(axes) + 1)]
    index[axis] = slice(-depth, None) if side else slice(0, depth)
    return tuple(index)
