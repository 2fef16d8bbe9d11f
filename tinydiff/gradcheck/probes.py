"""What a backward pass with the right formula can still get wrong. Each probe compares gradients with gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tinydiff.backend import array_module
from tinydiff.gradcheck.check import Check, same_values
from tinydiff.gradcheck.numeric import as_host, resolution
from tinydiff.gradcheck.repeats import repeats
from tinydiff.gradcheck.report import Diagnosis
from tinydiff.gradcheck.sizes import sizes
from tinydiff.gradcheck.source import raised_at


def agree(check: Check, probe: str, when: str, got: list[Any], expected: list[Any], diagnosis: Diagnosis) -> bool:
    """Compares gradients up to rounding; expected None: not asked for. Reports at most one array."""
    for k, (a, b) in enumerate(zip(got, expected, strict=True)):
        if b is None:
            continue
        a = np.zeros(b.shape) if a is None else a
        if a.shape != b.shape:
            check.found(probe, k, f"{when}, the gradient has shape {a.shape} instead of {b.shape}", diagnosis)
            return False
        scale = float(np.max(np.abs(b), initial=0)) + float(np.max(np.abs(a), initial=0))
        # a sum of terms that cancel is as uncertain as the terms are large
        floor = (
            1e3 * check.eps * max((float(np.max(np.abs(u), initial=0)) for u in check.U if u is not None), default=0)
        )
        rtol = max(0.1 * check.rtol, 8 * max(resolution(a), resolution(b)))  # backward may compute in float32 itself
        if not np.max(np.abs(a - b), initial=0) <= rtol * scale + floor + check.atol:
            check.found(probe, k, f"{when}, the gradient is another one", diagnosis, got=a, expected=b)
            return False
    return True


def attempt(check: Check, probe: str, when: str, code: str, run: Callable[[], list[Any]]) -> list[Any] | None:
    """The gradients, or None after reporting what was raised instead."""
    try:
        return run()
    except Exception as error:
        at = f" ({place})" if (place := raised_at(error)) else ""
        text = f"{type(error).__name__}: {error}{at}"
        check.cause = check.cause or error
        if "read-only" in str(error):
            code, text = "in-place", f"backward writes into the gradient that it is given ({text})"
        check.found(probe, None, f"{when}, backward failed", Diagnosis(code, text))
        return None


def strides(check: Check) -> None:
    """Cotangents that lie in memory in other ways but hold the same numbers must give the same gradients."""
    for name, lay in LAYOUTS.items():
        U = [None if u is None or not u.ndim else lay(u) for u in check.U]
        if all(u is None for u in U):
            return
        U = [v if u is None else u for u, v in zip(U, check.U, strict=True)]
        plain = [None if u is None else array_module(u).array(u, order="C") for u in U]
        when = f"with {name} L_Y"
        got = attempt(check, "strides", when, "strides", partial(check.vjp, U))
        if got is None:
            return
        expected = check.vjp(plain) if name.startswith("broadcast") else check.gradients
        text = f"backward takes {name} L_Y for a contiguous array: it ignores strides"
        if not agree(check, "strides", when, got, expected, Diagnosis("strides", text)):
            return


def layouts(check: Check) -> None:
    """The same for the inputs."""
    for name, lay in LAYOUTS.items():
        if name.startswith("broadcast"):
            continue
        X = [lay(x) if x.ndim else x for x in check.arrays()]
        when = f"with {name} inputs"
        text = f"a pass takes {name} inputs for contiguous arrays: it ignores strides"
        if not same_values(check, check.subject.forward(X), check.rtol):
            check.found("layouts", None, f"{when}, forward gives other values", Diagnosis("strides", text))
            return
        got = attempt(check, "layouts", when, "strides", partial(check.subject.vjp, X, check.U))
        got = got and [as_host(g) for g in got]
        if got is None or not agree(check, "layouts", when, got, check.gradients, Diagnosis("strides", text)):
            return


def needs(check: Check) -> None:
    """A gradient must not depend on which other gradients are wanted."""
    n = len(check.point)
    if not check.subject.chooses_gradients or n < 2:
        return
    if n <= 4:
        subsets = [s for r in range(1, n) for s in itertools.combinations(range(n), r)]
    else:
        singles = [(int(k),) for k in check.rng.permutation(n)[:4]]
        others = [tuple(int(i) for i in range(n) if i != k) for (k,) in singles[:2]]
        drawn = [tuple(int(i) for i in np.flatnonzero(check.rng.random(n) < 0.5)) for _ in range(3)]
        subsets = [s for s in (*singles, *others, *drawn) if s]
    for s in subsets:
        wanted = [k in s for k in range(n)]
        when = (
            "when a gradient is wanted for "
            + ", ".join(check.names[k] for k in s[:4])
            + (" ..." if len(s) > 4 else " only")
        )
        got = attempt(check, "needs", when, "needs", partial(check.vjp, check.U, needs=wanted))
        text = "backward computes one gradient on the way to another, and skips it when only the other is wanted"
        expected = [g if w else None for g, w in zip(check.gradients, wanted, strict=True)]
        if got is None or not agree(check, "needs", when, got, expected, Diagnosis("needs", text)):
            return


def dropped(check: Check) -> None:
    """With only one of several outputs used, the gradients must add up to those with all of them used."""
    used = [i for i, u in enumerate(check.U) if u is not None]
    if len(used) < 2:
        return
    total = [np.zeros(x.shape) for x in check.point]
    for i in used:
        U = [u if j == i else None for j, u in enumerate(check.U)]
        got = attempt(check, "dropped", f"when only output {i} is used", "dropped-output", partial(check.vjp, U))
        if got is None:
            return
        total = [t if g is None else t + g for t, g in zip(total, got, strict=True)]
    text = "the gradient of an output that nothing was computed from is not taken as zero"
    agree(
        check,
        "dropped",
        "summed over outputs used one at a time",
        total,
        check.gradients,
        Diagnosis("dropped-output", text),
    )


def shared(check: Check) -> None:
    """One leaf given for two inputs gets the sum of their gradients."""
    inputs = range(len(check.subject.checked))
    pairs = [p for p in itertools.combinations(inputs, 2) if check.point[p[0]].shape == check.point[p[1]].shape]
    for i, j in pairs[:3]:
        point = [check.point[i] if k == j else x for k, x in enumerate(check.point)]
        try:
            with np.errstate(all="ignore"):
                apart = check.vjp(check.U, point)
        except Exception:
            continue  # fn may refuse equal inputs
        parts = [g for g in (apart[i], apart[j]) if g is not None]
        if not all(np.isfinite(g).all() for g in parts):
            continue  # fn may not be defined there, as a log(b) is not where b has the values of a
        expected: list[Any] = [None] * len(point)
        expected[i] = sum(parts) if parts else None
        when = f"when one array is given for both {check.names[i]} and {check.names[j]}"
        got = attempt(check, "shared", when, "repeated-leaf", partial(check.vjp, check.U, point, same=(i, j)))
        if got is None:
            return
        text = "the gradient is wrong only for repeated leaves: the two contributions are not added up as they should"
        if not agree(check, "shared", when, got, expected, Diagnosis("repeated-leaf", text)):
            return


def reuse(check: Check) -> None:
    """Two forward passes at different inputs, then both backward: nothing of the second may enter the first."""
    inputs = len(check.subject.checked)
    other = [array_module(x).array(1.05 * x if k < inputs else x) for k, x in enumerate(check.point)]
    try:
        with np.errstate(all="ignore"):
            second = check.vjp(check.U, other)
    except Exception:
        return  # fn may not be defined there
    expected = [a if b is None else b if a is None else a + b for a, b in zip(check.gradients, second, strict=True)]
    if not all(g is None or np.isfinite(g).all() for g in expected):
        return
    when = "when fn is called twice before its backward pass"
    run = partial(check.subject.vjp_of_two, check.arrays(), check.arrays(other), check.U)
    got = attempt(check, "reuse", when, "reused", run)
    if got:
        text = "what forward keeps for backward is shared between calls, and the second call overwrote it"
        agree(check, "reuse", when, [as_host(g) for g in got], expected, Diagnosis("reused", text))


def _fortran(u: Any) -> Any:
    return array_module(u).array(u, order="F")


def _reversed(u: Any) -> Any:
    flip = (slice(None, None, -1),) * u.ndim
    return array_module(u).array(u[flip], order="C")[flip]


def _sliced(u: Any) -> Any:
    wide = array_module(u).full([2 * n + 1 for n in u.shape], np.nan, u.dtype)
    view = wide[(slice(1, None, 2),) * u.ndim]
    view[...] = u
    return view


def _broadcast(u: Any) -> Any:
    return array_module(u).broadcast_to(u[(slice(0, 1),) * u.ndim], u.shape) if u.size else u


def _broadcast_rows(u: Any) -> Any:
    return array_module(u).broadcast_to(u[:1], u.shape)


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "Fortran-ordered": _fortran,
    "reversed": _reversed,
    "sliced": _sliced,
    "broadcast (stride 0)": _broadcast,
    "broadcast along axis 0": _broadcast_rows,
}

PROBES: dict[str, Callable[[Check], None]] = {
    "strides": strides,
    "layouts": layouts,
    "needs": needs,
    "dropped": dropped,
    "shared": shared,
    "reuse": reuse,
    "repeats": repeats,
    "sizes": sizes,
}
