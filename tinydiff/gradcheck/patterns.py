"""Errors that can be told by their looks. Each function takes the evidence and returns a diagnosis or None."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from tinydiff.backend import to_numpy
from tinydiff.gradcheck.evidence import Evidence, flat, largest
from tinydiff.gradcheck.report import Diagnosis


def small(e: Evidence) -> Diagnosis | None:
    error = largest(e.E[:, e.known]) / e.scale
    if not np.isfinite(e.A).all() or error > 2e-5:
        return None
    hint = "a constant or an intermediate result in float32" if error < 1e-6 else "an eps or a constant that differs from forward's"
    return Diagnosis("small", f"right but for a relative error of {error:.1g}: {hint}")


def not_finite(e: Evidence) -> Diagnosis | None:
    if np.isfinite(e.A[:, e.known]).all():
        return None
    return Diagnosis("not-finite", "backward makes infinities or NaN where the function has a finite slope")


def zero(e: Evidence) -> Diagnosis | None:
    if e.A.any():
        return None
    return Diagnosis("zero", "no gradient comes back: None or zeros were returned, or the tape was left on the way")


def upstream(e: Evidence) -> Diagnosis | None:
    """A does not follow the cotangent."""
    if e.is_close(e.A, np.broadcast_to(e.A[:1], e.A.shape)) and not e.is_close(e.B, np.broadcast_to(e.B[:1], e.B.shape)):
        return Diagnosis("ignores-upstream", "backward does not multiply by L_Y, the gradient that comes in")
    return None


def constant_ratio(e: Evidence) -> Diagnosis | None:
    c = _ratio(e.A[:, e.known], e.B[:, e.known])
    if c is None or not e.is_close(e.A, c * e.B):
        return None
    if abs(c + 1) < 1e-4:
        return Diagnosis("sign", "the sign is wrong")
    sign = " and its sign is wrong" if c < 0 else ""
    known = _name_number(abs(c), e)
    return Diagnosis("ratio", f"the gradient is {abs(c):.6g} times what it should be{known}{sign}")


def exchanged(e: Evidence) -> Diagnosis | None:
    """The gradient of another array was returned in this place."""
    check, names = e.check, e.check.names
    for j, y in enumerate(check.point):
        if j != e.k and y.shape == e.x.shape and _follows(e, e.A, j):
            return Diagnosis("exchanged", f"this is the gradient of {names[j]}: the gradients are returned in another order")
    return None


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
            return Diagnosis("transposed", "the elements are right but in transposed order: a reshape where a transpose belongs")
    for axes, rows in _transposed_rows(e):
        if e.is_close(e.A, e.of(rows)):
            return Diagnosis("transposed", text.format(f"L_Y (axes {axes})"))
    for j, y in enumerate(e.check.point):
        for axes in _orders(y.shape):
            if e.at(j, to_numpy(y).transpose(axes)):
                return Diagnosis("transposed", text.format(e.check.names[j]))
    return None


def turned(e: Evidence) -> Diagnosis | None:
    """Something runs backwards along an axis."""
    for axes in _subsets(e.x.shape):
        if e.complete and e.is_close(e.A, np.flip(e.B, [a + 1 for a in axes])):
            return Diagnosis("flipped", f"the gradient is flipped along {_axes(axes)}")
    for j, y in enumerate(e.check.point):
        if j == e.k:
            continue
        for axes in _subsets(y.shape):
            if e.at(j, np.flip(to_numpy(y), axes)):
                return Diagnosis("flipped", f"{e.check.names[j]} must be (or must not be) flipped along {_axes(axes)} in backward")
    return None


def shifted(e: Evidence) -> Diagnosis | None:
    """Right values at a neighbouring position, or for a neighbouring L_Y."""
    text = "off by one position: {} stands {} too far along {}"
    if e.complete:
        for steps in _steps(e.x.shape):
            if _is_shift(e, e.A, e.B, steps):
                return Diagnosis("shifted", text.format("the gradient", _step_names(steps), _axes(_moved(steps))))
    y = e.outputs[0]
    if len(e.outputs) == 1 and y.ndim:
        for steps in _steps(y.shape):
            rows = np.stack([_slid(u.reshape(y.shape), steps).reshape(-1) for u in e.rows])
            if e.is_close(e.A, e.of(rows)):
                return Diagnosis("shifted", text.format("L_Y", _step_names(steps), _axes(_moved(steps))))
    for j, z in enumerate(e.check.point):
        for steps in _steps(z.shape):
            at = tuple(a for a, s in enumerate(steps) if s)
            if j != e.k and len(at) <= 2 and e.at(j, np.roll(to_numpy(z), [steps[a] for a in at], at)):
                return Diagnosis("shifted", text.format(e.check.names[j], _step_names(steps), _axes(at)))
    return None


def operand(e: Evidence) -> Diagnosis | None:
    """Right if another array were 1, 0 or its negative."""
    for j, y in enumerate(e.check.point):
        name, y = e.check.names[j], to_numpy(y)
        if j == e.k:
            continue
        if e.at(j, np.ones_like(y)):
            return Diagnosis("operand", f"the gradient is right for {name} = 1: the factor {name} is missing")
        if e.at(j, np.zeros_like(y)):
            return Diagnosis("operand", f"the gradient is right for {name} = 0: a term with {name} is missing")
        if e.at(j, -y):
            return Diagnosis("operand", f"the gradient is right for -{name}: {name} enters with the wrong sign")
    return None


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
                return Diagnosis("broadcast", f"{which}: the sum over that axis, along which the input is repeated, is missing")
    return None


def borders(e: Evidence) -> Diagnosis | None:
    """Right inside, wrong at the edges."""
    if not e.complete or e.wrong.all() or not e.wrong.any():
        return None
    long = [a for a, n in enumerate(e.x.shape) if n >= 3]
    for count in range(1, len(long) + 1):
        for axes in itertools.combinations(long, count):
            for depth in (1, 2, 3):
                if any(2 * depth >= e.x.shape[a] for a in axes):
                    continue
                inner = tuple(slice(depth, -depth) if a in axes else slice(None) for a in range(e.x.ndim))
                if e.wrong[inner].any():
                    continue
                ends = {(a, side) for a in axes for side in (0, 1) if e.wrong[_end(a, side, depth, axes)].any()}
                if {a for a, _ in ends} != set(axes) or len(ends) < 2:
                    continue
                return Diagnosis("border", f"wrong only within {depth} of the borders of {_axes(axes)}: padding")
    return None


def branch(e: Evidence) -> Diagnosis | None:
    """Wrong exactly where the input is above, or below, some number."""
    wrong, right = e.x[e.wrong], e.x[e.known & ~e.wrong]
    if wrong.size < 3 or right.size < 3:
        return None
    for side, low, high in (("below", wrong, right), ("above", right, wrong)):
        if low.max() < high.min():
            between = [c for c in (0.0, 1.0, -1.0) if low.max() <= c <= high.min()]
            number = between[0] if between else (low.max() + high.min()) / 2
            name = e.check.names[e.k]
            return Diagnosis("branch", f"wrong exactly where {name} is {side} {number:.3g}: one branch of the derivative")
    return None


def leak(e: Evidence) -> Diagnosis | None:
    """Wrong only where it should be zero, or only where it is zero."""
    if e.wrong.all() or not e.wrong.any():
        return None
    tiny = e.tolerance * e.scale
    if np.all(np.abs(e.B[:, e.wrong]) <= tiny):
        return Diagnosis("leak", "a gradient where there should be none: a mask of forward is not applied in backward")
    if np.all(np.abs(e.A[:, e.wrong]) <= tiny):
        return Diagnosis("lost", "no gradient in some places where there should be one: masked, cut off or never written")
    return None


def accumulation(e: Evidence) -> Diagnosis | None:
    """The Jacobian says which contributions reach an element: some are missing."""
    if e.complete:
        claimed = e.claimed
        if claimed is None:
            return None
        tiny = e.tolerance * max(largest(e.J), largest(claimed))
        missing = (np.abs(claimed) <= tiny) & (np.abs(e.J) > tiny)
        if not missing.any() or np.any(np.abs(np.where(missing, 0, claimed - e.J)) > tiny):
            return None
        there = np.abs(e.J) > tiny
        kept, lost = (there & ~missing).sum(0), missing.sum(0)
        touched = lost > 0
        alone = there.sum(0)[~touched]
        if (kept[touched] > 0).all() and len(set(kept[touched])) == 1 and (not alone.size or alone.max() <= kept[touched][0]):
            return Diagnosis("overwritten", "of several contributions to an element only one arrives: overwritten, not added up")
        gone = np.flatnonzero(missing.any(1) & ~(there & ~missing).any(1))
        if gone.size and not (missing.any(1) & (there & ~missing).any(1)).any():
            return Diagnosis("missing", f"L_Y is not used at {gone.size} of {len(e.J)} places of the output")
        return Diagnosis("missing", "some of the contributions to an element are missing: a term, or a position, is skipped")
    return None


def extra(e: Evidence) -> Diagnosis | None:
    """Contributions from outputs that the input does not reach."""
    claimed = e.claimed
    if claimed is None:
        return None
    tiny = e.tolerance * max(largest(e.J), largest(claimed))
    surplus = (np.abs(e.J) <= tiny) & (np.abs(claimed) > tiny)
    if surplus.any() and not np.any(np.abs(np.where(surplus, 0, claimed - e.J)) > tiny):
        return Diagnosis("leak", "a gradient comes back from outputs that this input does not enter: a mask is not applied")
    return None


def own_factor(e: Evidence) -> Diagnosis | None:
    """Each element off by a factor that does not depend on L_Y: a local derivative is wrong."""
    big = e.known & np.all(np.abs(e.B) > 1e-3 * e.scale, axis=0)
    if big.sum() < 3 or not np.isfinite(e.A).all():
        return None
    r = np.where(big, e.A / np.where(big, e.B, 1), 0)
    if np.any(np.abs(r - r[0]) > 1e-4 * np.maximum(1, largest(r))):
        return None
    r = r[0][big]
    for name, z in _known_arrays(e):
        z = z[big]
        with np.errstate(all="ignore"):
            for text, f in ((f"{name}", z), (f"1/{name}", 1 / z), (f"{name}^2", z * z), (f"1/{name}^2", 1 / (z * z))):
                if np.all(np.isfinite(f)) and np.ptp(f) > 0 and np.allclose(np.abs(r), np.abs(f), rtol=1e-4):
                    word = "missing or divided by" if text.startswith("1/") else "too much"
                    return Diagnosis("factor", f"off by the factor {text}: {name} is {word}")
    text = "each element is off by a factor of its own, the same for every L_Y: the local derivative is wrong"
    return Diagnosis("local-derivative", text)


def missing_term(e: Evidence) -> Diagnosis | None:
    """The error is constant, or follows the input or the output, along the axes of a mean or a sum."""
    if not e.complete or not e.wrong.any():
        return None
    for axes in sorted(_subsets(e.x.shape, most=e.x.ndim), key=lambda s: -math.prod(e.x.shape[a] for a in s)):
        count = math.prod(e.x.shape[a] for a in axes)
        if count < 3:
            continue
        rows, A = _rows(e.E, axes), _rows(e.A, axes)
        if _explained(A, [np.ones_like(A)], e) or largest(rows) == 0:
            continue
        if _explained(rows, [np.ones_like(rows)], e):
            text = f"the error is constant along {_axes(axes)}: the term that comes through a mean or sum is missing or wrong"
            return Diagnosis("mean-term", text)
        x = _rows(np.broadcast_to(e.x, e.E.shape), axes)
        if count >= 4 and _explained(rows, [np.ones_like(rows), x], e):
            text = f"the error follows the input along {_axes(axes)}: the term that comes through a variance or norm is missing"
            return Diagnosis("variance-term", text)
        for y in e.outputs:
            if y.shape == e.x.shape:
                for values in (y, np.exp(np.minimum(y, 50))):
                    if _explained(rows, [_rows(np.broadcast_to(values, e.E.shape), axes)], e):
                        text = f"the error follows the output along {_axes(axes)}: the term that comes through its sum is missing"
                        return Diagnosis("mean-term", text)
    return None


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


PATTERNS: tuple[Callable[[Evidence], Diagnosis | None], ...] = (
    not_finite,
    zero,
    small,
    upstream,
    constant_ratio,
    exchanged,
    transposed,
    one_slice,
    turned,
    shifted,
    branch,
    borders,
    accumulation,
    operand,
    missing_term,
    leak,
    extra,
    own_factor,
    some_indices,
)


# What the patterns share


def _ratio(A: np.ndarray, B: np.ndarray) -> float | None:
    square = float(np.vdot(B, B))
    return float(np.vdot(A, B)) / square if square > 0 and np.isfinite(A).all() else None


def _name_number(c: float, e: Evidence) -> str:
    """ " = 1/12, with 12 = ...": the count, product of lengths or small number that a ratio is, if it is one."""
    lengths: dict[float, str] = {2.0: "2", 4.0: "4", math.sqrt(2): "sqrt(2)"}
    arrays = [*zip(e.check.names, e.check.point, strict=True), *((f"output {i}", y) for i, y in enumerate(e.outputs))]
    for name, a in arrays:
        for count in range(1, a.ndim + 1):
            for axes in itertools.combinations(range(a.ndim), count):
                n = math.prod(a.shape[i] for i in axes)
                if n > 1:
                    what = f"the size of {name}" if count == a.ndim else f"the length of {name} along {_axes(axes)}"
                    lengths.setdefault(float(n), f"{n}, {what}")
                    lengths.setdefault(math.sqrt(n), f"sqrt({n}), {what}")
    for n, what in lengths.items():
        if abs(c - n) < 1e-4 * n:
            return f" = {what}: a division is missing, or a multiplication is too many"
        if abs(c * n - 1) < 1e-4:
            return f", 1/{what}: a factor is missing, or a mean stands where a sum belongs"
    return ""


def _follows(e: Evidence, A: np.ndarray, j: int) -> bool:
    """Whether A is the right gradient of array j, tested along one direction."""
    from tinydiff.gradcheck import numeric

    v = e.check.direction([j])
    pair = [e.check.forward(numeric.shifted(e.check.point, v, s * numeric.STEP)) for s in (-1, 1)]
    right = e.rows @ ((flat(pair[1]) - flat(pair[0])) / (2 * numeric.STEP))
    claimed = np.array([np.vdot(a, to_numpy(v[j])) for a in A])
    return bool(np.all(np.abs(right - claimed) <= 1e-6 * max(largest(right), largest(claimed))))


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


def _subsets(shape: tuple[int, ...], most: int = 2) -> list[tuple[int, ...]]:
    long = [a for a, n in enumerate(shape) if n > 1]
    return [s for count in range(1, most + 1) for s in itertools.combinations(long, count)]


def _steps(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Shifts by one along one or two axes."""
    for axes in _subsets(shape):
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
    if any(s and n < 4 for s, n in zip(steps, A.shape[1:], strict=True)):
        return False
    to = (slice(None), *(slice(max(s, 0), n + min(s, 0)) for s, n in zip(steps, A.shape[1:], strict=True)))
    of = (slice(None), *(slice(max(-s, 0), n + min(-s, 0)) for s, n in zip(steps, A.shape[1:], strict=True)))
    a, b = A[to], B[of]
    return bool(np.all(np.abs(a - b) <= e.tolerance * e.scale)) and largest(b) > 1e-2 * e.scale


def _end(axis: int, side: int, depth: int, axes: tuple[int, ...]) -> tuple[slice, ...]:
    """One border of one axis, away from the borders of the other axes (so that each is judged by itself)."""
    index = [slice(depth, -depth) if a in axes else slice(None) for a in range(max(axes) + 1)]
    index[axis] = slice(-depth, None) if side else slice(0, depth)
    return tuple(index)


def _rows(a: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """(M, *shape) -> (rows, the elements along the axes)."""
    count = math.prod(a.shape[i + 1] for i in axes)
    last = np.moveaxis(a, [i + 1 for i in axes], range(-len(axes), 0))
    return last.reshape(-1, count)


def _explained(rows: np.ndarray, terms: list[np.ndarray], e: Evidence) -> bool:
    """Whether each row is a combination of the rows of the terms."""
    if not np.isfinite(rows).all():
        return False
    T = np.stack(terms, -1)
    try:
        coefficients = np.linalg.pinv(T) @ rows[..., None]
    except np.linalg.LinAlgError:
        return False
    rest = rows - (T @ coefficients)[..., 0]
    return bool(np.all(np.abs(rest) <= e.tolerance * e.scale))


def _known_arrays(e: Evidence) -> Iterator[tuple[str, np.ndarray]]:
    for j, y in enumerate(e.check.point):
        try:
            yield e.check.names[j], np.broadcast_to(to_numpy(y), e.x.shape)
        except ValueError:
            continue
    for y in e.outputs:
        if y.shape == e.x.shape:
            yield "the output", y


def _axes(axes: tuple[int, ...]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else "axes " + " and ".join(map(str, axes))
