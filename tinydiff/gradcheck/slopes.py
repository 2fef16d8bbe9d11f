"""The first questions to a check: do the passes repeat and keep to their own arrays, are the slopes those of differences?"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.backend import to_numpy
from tinydiff.errors import InputError
from tinydiff.gradcheck import numeric
from tinydiff.gradcheck.check import Check, WrongShape, WrongSlope, same_values
from tinydiff.gradcheck.kinks import at_kink
from tinydiff.gradcheck.report import Diagnosis

CALMER, AFTER = 4, 2  # other inputs that are tried where passes compute too coarsely: calmer ones, then some nearby
COARSE = "the passes compute too coarsely to be compared"
TOLD = Diagnosis("not-differentiable", "digits cancel, as in log(1 - p) with p close to 1: check at calmer inputs")
MOST_SEPARATE = 8  # more arrays than this are first checked together, along one direction in all of them


def settle(check: Check, moves: int = 4) -> bool:
    """Purity and slopes, at other inputs if fn has a kink at these. True if nothing wrong was found."""
    check.report.probes += ["repeat", "purity"]
    coarse = moved = attempt = 0
    calmer = iter(range(CALMER))
    asked: list[int] = []  # arrays whose gradients are not all zero at the given inputs
    while True:
        check.gradients = purity(check) or [None] * len(check.point)
        if check.report.findings:
            return False
        reached = [k for k, g in enumerate(check.gradients) if g is not None and g.any()]
        asked = asked if attempt else reached
        if not any(x.size for x in check.point) or not any(y.size for y in check.centre if y is not None):
            return True
        check.coarse = False
        last = attempt >= moves + AFTER * min(coarse, moves, 1)
        told = slopes(check, last)
        if told and (coarse or moved) and not {*asked} <= {*reached}:  # and wrong ones would vanish, too
            if last and not check.report.findings:
                check.found(
                    "slopes", min({*asked} - {*reached}), f"{COARSE}, and the gradients vanish at all others", TOLD
                )
            told = last
        if told or last:
            break
        attempt += 1
        if check.coarse or coarse:
            coarse += 1
            if any(check.calm(i) for i in calmer):  # the next one at which fn is finite
                continue
        else:
            at_kink(check)
            if check.report.findings:
                return False
        moved += 1
        check.move(0.02 * moved)
    nearby = f"inputs moved by up to {3 * moved}% were checked"
    if moved and not coarse:
        check.report.notes.append(f"fn has no slope at the given inputs (a kink?): {nearby}")
    elif coarse and not check.coarse:
        calm = "calmer ones were checked, of smaller or ordinary size"
        check.report.notes.append(f"{COARSE} at the given inputs: {nearby if moved else calm}")
    if "slopes" not in check.report.probes:
        check.report.probes.append("slopes")
    return not check.report.findings


def holds(check: Check) -> bool:
    """Settle in short: one backward pass, one direction in all arrays. True also where nothing can be said."""
    check.gradients = check.vjp(check.U)
    if not all(g is None or g.shape == x.shape for g, x in zip(check.gradients, check.point, strict=True)):
        return False
    verdict, _ = check.test([k for k, x in enumerate(check.point) if x.size], uphill=check.dtype != np.float64)
    return verdict is None or verdict.ok


def slopes(check: Check, last: bool) -> bool:
    """Tests <L_X, v> = <L_Y, J v> for every array. False if the differences tell nothing because of a kink here."""
    inputs = len(check.subject.checked)
    groups: list[list[int]] = []
    for part in (range(inputs), range(inputs, len(check.point))):
        groups += [[k] for k in part] if len(part) <= MOST_SEPARATE else [list(part)]
    verdicts, wrong = [], []
    for group in groups:
        tests = [group]
        while tests:
            members = [k for k in tests.pop() if check.point[k].size]
            if not members:
                continue
            verdict, slope = check.test(members)
            if verdict is not None and verdict.ok and check.dtype != np.float64:
                verdict, slope = check.test(members, uphill=True)
            if verdict is None:
                if last:
                    _inconclusive(check, members[0], slope)
                    continue
                return False
            if not verdict.ok and len(members) > 1:
                tests += [[k] for k in reversed(members)]
                continue
            verdicts.append(verdict)
            if not verdict.ok:
                wrong.append((members[0], verdict))
    check.report.verdicts = verdicts
    for k, v in wrong:
        message = (
            f"the gradient is wrong: along a random direction analytic {v.backward:.6g}, numerical {v.differences:.6g}"
        )
        check.seen("slopes", message, WrongSlope(k))
    return True


def _inconclusive(check: Check, k: int, slope: numeric.Slope) -> None:
    if check.coarse:
        check.found(
            "slopes",
            k,
            f"{COARSE} at these inputs: rounding alone explains what the gradients differ by",
            TOLD,
        )
        return
    check.found(
        "slopes",
        k,
        f"differences do not settle on a slope (best {slope.value:.4g} with an error of {slope.error:.1g})",
        Diagnosis("not-differentiable", "fn jumps, or computes too coarsely to be differentiated at these inputs"),
    )


def purity(check: Check) -> list[Any]:
    """Forward repeats its bits, inputs and cotangents keep theirs, backward repeats its bits. Returns the gradients."""
    again = check.ground.forward(check.grounded(check.point))
    for y, z, f in zip(check.centre, again, check.finite, strict=True):
        if y is not None and not np.array_equal(y[f], z.astype(np.float64)[f], equal_nan=True):
            text = "fn draws random numbers from somewhere: pass generator=, or it keeps state between calls"
            check.found("repeat", None, "two forward passes gave different outputs", Diagnosis("not-repeatable", text))
            return []
    if check.ground is not check.subject and not same_values(check, check.subject.forward(check.arrays()), check.rtol):
        text = "forward and the reference compute different functions, so their derivatives differ too"
        check.found("values", None, "forward gives other values than the reference", Diagnosis("forward", text))
        return []
    X, U = check.arrays(), [None if u is None else u.copy() for u in check.U]
    try:
        first = check.subject.vjp(X, U)
    except InputError:
        raise
    except Exception as error:
        check.raised("purity", "backward", error)
        return []
    in_place = Diagnosis("in-place", "an operation writes into an array that is not its own; make a copy first")
    for k, (x, x0) in enumerate(zip(X, check.arrays(), strict=True)):
        if not same_bits(x, x0):
            check.found("purity", k, "was changed in place by forward or backward", in_place)
    for i, (u, u0) in enumerate(zip(U, check.U, strict=True)):
        if u is not None and not same_bits(u, u0):
            check.found(
                "purity",
                None,
                f"backward changed the gradient of output {i} that it was given",
                Diagnosis(
                    "in-place",
                    f"{_returned(check, first)}, and whatever else uses that array, as a residual "
                    "connection does, gets the changed numbers: write dout = dout * mask for dout *= mask",
                ),
            )
    second = check.subject.vjp(check.arrays(), [None if u is None else u.copy() for u in check.U])
    for k, (a, b) in enumerate(zip(first, second, strict=True)):
        if a is not None and a.shape != check.point[k].shape:
            message = f"the gradient has shape {a.shape}, the input {check.point[k].shape}"
            check.seen("purity", message, WrongShape(k, a.shape))
        elif not same_bits(a, b):
            text = "backward draws random numbers, reads memory that it never wrote, or keeps state from an earlier run"
            check.found("repeat", k, "backward gave other bits when run again", Diagnosis("not-repeatable", text))
    return [numeric.as_host(g) for g in first]


def _returned(check: Check, gradients: list[Any]) -> str:
    """Whether the gradients of a backward that writes into L_Y are right themselves."""
    check.gradients = [numeric.as_host(g) for g in gradients]
    if not all(g is None or g.shape == x.shape for g, x in zip(check.gradients, check.point, strict=True)):
        return "the gradients that it returns have other shapes than the inputs"
    verdict, _ = check.test([k for k, x in enumerate(check.point) if x.size])
    if verdict is None:
        return "the gradients that it returns could not be checked"
    return f"the gradients that it returns are {'right' if verdict.ok else 'wrong'}"


def same_bits(a: Any, b: Any) -> bool:
    return a is b or (a is not None and b is not None and to_numpy(a).tobytes() == to_numpy(b).tobytes())
