"""How much: errors that show in the size of a gradient."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from tinydiff.backend import to_numpy
from tinydiff.gradcheck.evidence import Evidence, axes_text, flat, subsets
from tinydiff.gradcheck.numeric import largest
from tinydiff.gradcheck.numeric import shifted as shifted_along
from tinydiff.gradcheck.report import Diagnosis


def not_finite(e: Evidence) -> Diagnosis | None:
    if np.isfinite(e.A[:, e.known]).all():
        return None
    return Diagnosis("not-finite", "backward makes infinities or NaN where the function has a finite slope")


def zero(e: Evidence) -> Diagnosis | None:
    if e.A.any():
        return None
    return Diagnosis("zero", "no gradient comes back: None or zeros were returned, or the tape was left on the way")


def small(e: Evidence) -> Diagnosis | None:
    error = largest(e.E[:, e.known]) / e.scale
    if not np.isfinite(e.A).all() or error > 1e-4:
        return None
    hint = (
        "a constant or an intermediate result in float32"
        if error < 1e-6
        else "an eps or a constant that differs from forward's"
    )
    return Diagnosis("small", f"right but for a relative error of {error:.1g}: {hint}")


def upstream(e: Evidence) -> Diagnosis | None:
    """A does not follow the cotangent."""
    if e.is_close(e.A, np.broadcast_to(e.A[:1], e.A.shape)) and not e.is_close(
        e.B, np.broadcast_to(e.B[:1], e.B.shape)
    ):
        return Diagnosis("ignores-upstream", "backward does not multiply by L_Y, the gradient that comes in")
    return None


def nonlinear(e: Evidence) -> Diagnosis | None:
    """Backward is a linear map of the cotangent, whatever forward is: twice L_Y must give twice L_X."""
    twice = np.stack([e.gradient(2 * row) for row in e.rows])
    if not np.isfinite(e.A).all() or np.all(np.abs(twice - 2 * e.A) <= e.tolerance * e.scale):
        return None
    if e.is_close(e.E, np.broadcast_to(e.E[:1], e.E.shape)):
        return Diagnosis("ignores-upstream", "backward adds something that does not depend on L_Y")
    text = "backward is not linear in L_Y: twice L_Y does not give twice the gradient, L_Y is divided by or squared"
    return Diagnosis("nonlinear", text)


def constant_ratio(e: Evidence) -> Diagnosis | None:
    c = _ratio(e.A[:, e.known], e.B[:, e.known])
    if c is None or abs(c - 1) < 1e-6 or not e.is_close(e.A, c * e.B):
        return None
    if abs(c + 1) < 1e-4:
        return Diagnosis("sign", "the sign is wrong")
    sign = ", and its sign is wrong" if c < 0 else ""
    known = _name_number(abs(c), e)
    if e.x.size == 1 and not known:
        return None  # of one element, every error is a ratio
    return Diagnosis("ratio", f"the gradient is {known or f'{abs(c):.6g} times what it should be'}{sign}")


def exchanged(e: Evidence) -> Diagnosis | None:
    """The gradient of another array was returned in this place."""
    check, names = e.check, e.check.names
    for j, y in enumerate(check.point):
        if j != e.k and y.shape == e.x.shape and _follows(e, e.A, j):
            return Diagnosis(
                "exchanged", f"this is the gradient of {names[j]}: the gradients are returned in another order"
            )
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


def own_factor(e: Evidence) -> Diagnosis | None:
    """Each element off by a factor that does not depend on L_Y: a local derivative is wrong."""
    big = e.known & np.all(np.abs(e.B) > 1e-3 * e.scale, axis=0)
    if big.sum() < 3 or not np.isfinite(e.A).all() or not (e.wrong & big).any() or (e.wrong & ~big).any():
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
    if len(e.J) == 1:
        return None  # with a single output, every error looks like this
    text = "each element is off by a factor of its own, the same for every L_Y: the local derivative is wrong"
    return Diagnosis("local-derivative", text)


def missing_term(e: Evidence) -> Diagnosis | None:
    """The error is constant, or follows the input or the output, along the axes of a mean or a sum."""
    if not e.complete or not e.wrong.any():
        return None
    for axes in sorted(subsets(e.x.shape, most=e.x.ndim), key=lambda s: -math.prod(e.x.shape[a] for a in s)):
        count, along = math.prod(e.x.shape[a] for a in axes), axes_text(axes)
        error, ones = _rows(e.E, axes), np.ones((1, count))
        if count < 3 or _explained(_rows(e.A, axes), [ones], e):
            continue
        if _explained(error, [ones], e):
            text = f"the error is constant along {along}: the term that comes through a mean or sum is missing or wrong"
            return Diagnosis("mean-term", text)
        if count >= 4 and _explained(error, [ones, _rows(e.x[None], axes)], e):
            text = f"the error follows the input along {along}: the term through a variance or norm is missing or wrong"
            return Diagnosis("variance-term", text)
        alike = len(e.outputs) == 1 and e.outputs[0].shape == e.x.shape
        if alike and _explained(error, [_rows(e.rows.reshape(e.E.shape), axes)], e):
            text = f"the error follows L_Y along {along}: the factor of the term in which L_Y enters directly is wrong"
            return Diagnosis("direct-term", text)
        outputs = [values for y in e.outputs if y.shape == e.x.shape for values in (y, np.exp(np.minimum(y, 50)))]
        if any(_explained(error, [_rows(values[None], axes)], e) for values in outputs):
            text = (
                f"the error follows the output along {along}: the term that comes through its sum is missing or wrong"
            )
            return Diagnosis("mean-term", text)
    return _other_axis(e)


def _other_axis(e: Evidence) -> Diagnosis | None:
    """The error, over the output or as it is, is a term constant along one axis plus a term constant along another."""
    outputs = [values for y in e.outputs if y.shape == e.x.shape for values in (y, np.exp(np.minimum(y, 50)))]
    for axes in subsets(e.x.shape):
        if len(axes) < 2 or min(e.x.shape[a] for a in axes) < 3:
            continue
        for z in (np.ones_like(e.x), *outputs):
            r = e.E / z
            for a in axes:
                r = r - r.mean(a + 1, keepdims=True)
            if np.all(np.abs(r * z) <= e.tolerance * e.scale):
                return Diagnosis(
                    "mean-term", f"a mean or sum runs along another axis than in forward ({axes_text(axes)})"
                )
    return None


def _ratio(A: np.ndarray, B: np.ndarray) -> float | None:
    square = float(np.vdot(B, B))
    return float(np.vdot(A, B)) / square if square > 0 and np.isfinite(A).all() else None


def _name_number(c: float, e: Evidence) -> str:
    """ "1/12 of what it should be (12: the size of X)": the length, product of lengths or small number behind a ratio,
    with what makes such a ratio; "" where it is none of them."""
    lengths: dict[int, str] = {}
    arrays = [*zip(e.check.names, e.check.point, strict=True), *((f"output {i}", y) for i, y in enumerate(e.outputs))]
    for name, a in arrays:
        for count in range(1, a.ndim + 1):
            for axes in itertools.combinations(range(a.ndim), count):
                n = math.prod(a.shape[i] for i in axes)
                what = f"the size of {name}" if count == a.ndim else f"the length of {name} along {axes_text(axes)}"
                if n > 1:
                    lengths.setdefault(n, f" ({n}: {what})")
    numbers = {2.0: ("2", ""), math.sqrt(2): ("sqrt(2)", "")}
    for n, what in lengths.items():
        numbers.setdefault(float(n), (f"{n}", what))
    numbers.setdefault(4.0, ("4", ""))
    for n, what in lengths.items():
        numbers.setdefault(math.sqrt(n), (f"sqrt({n})", what))
    for number, (shown, what) in numbers.items():
        if abs(c - number) < 1e-4 * number:
            slip = f"a division by {shown} is missing" + (", as in a mean," if what else "")
            return f"{shown} times what it should be{what}: {slip} or a multiplication is too many"
        if abs(c * number - 1) < 1e-4:
            slip = "or a mean stands where a sum belongs" if what else "or a division is too many"
            return f"1/{shown} of what it should be{what}: a factor {shown} is missing, {slip}"
    return ""


def _follows(e: Evidence, A: np.ndarray, j: int) -> bool:
    """Whether A is the right gradient of array j, tested along one direction."""
    v, step = e.check.direction([j]), e.check.step
    pair = [e.check.forward(shifted_along(e.check.point, v, s * step)) for s in (-1, 1)]
    right = e.rows @ ((flat(pair[1]) - flat(pair[0])) / (2 * step))
    claimed = np.array([np.vdot(a, to_numpy(v[j])) for a in A])
    return bool(np.all(np.abs(right - claimed) <= 0.1 * e.tolerance * max(largest(right), largest(claimed))))


def _rows(a: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """(M, *shape) -> (rows, the elements along the axes)."""
    count = math.prod(a.shape[i + 1] for i in axes)
    last = np.moveaxis(a, [i + 1 for i in axes], range(-len(axes), 0))
    return last.reshape(-1, count)


def _explained(rows: np.ndarray, terms: list[np.ndarray], e: Evidence) -> bool:
    """Whether each row is a combination of the terms' rows; terms have as many rows, or fewer that repeat."""
    if not np.isfinite(rows).all():
        return False
    T = np.stack([np.tile(t, (len(rows) // len(t), 1)) for t in terms], -1)
    try:
        rest = rows - (T @ (np.linalg.pinv(T) @ rows[..., None]))[..., 0]
    except np.linalg.LinAlgError:
        return False
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
