"""The same check on other shapes: axes of length 0, of length 1, and squares made oblong.

Which axes belong together (the columns of X and the rows of W) is not declared, so it is tried: axes of one length form
a dimension if fn accepts them shortened together and not one by one. Shapes that fn itself refuses tell nothing. What
forward takes and backward does not, or gets wrong, may still be what nobody asked for: NumPy broadcasts an axis of length
1, and an empty axis has no first element. So it is a note, and an error only where the author asks for it (`strict`).
Longer axes, which do count, are in `scaling.py`.
"""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np

from tinydiff.autograd.tensor import Tensor
from tinydiff.gradcheck.check import Check, same_values
from tinydiff.gradcheck.diagnosis import explain
from tinydiff.gradcheck.report import Diagnosis
from tinydiff.gradcheck.scaling import Axis, lengths, scaled
from tinydiff.gradcheck.slopes import holds, settle

MOST_AXES = 6  # of one length: with more, only all together are shortened
MOST_VARIANTS = 16


def sizes(check: Check) -> None:
    by_length = lengths(check)
    for n, members in sorted(by_length.items()):
        scaled(check, n, members)
        if check.report.findings:
            return
    variants: list[tuple[tuple[Axis, ...], int]] = []
    coupled: list[tuple[tuple[Axis, ...], int]] = []
    for n, members in sorted(by_length.items()):
        dimensions, rest = _dimensions(check, members, n)
        if len(dimensions) > 1 and n > 2:
            variants = [*((d, n - 1) for d in dimensions), *variants]
        variants += [(d, length) for d in dimensions for length in (1, 0)]
        coupled += [((axis,), 1) for d in (*dimensions, rest) if len(d) > 1 or d == rest for axis in d]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for axes, length in (variants + coupled)[:MOST_VARIANTS]:
            variant = _variant(check, axes, length)
            is_coupled = (axes, length) in coupled
            if variant is None or (is_coupled and not _repeats(check, variant, axes)):
                continue
            if check.strict:
                _check(check, variant, axes, length, is_coupled)
                if check.report.findings:
                    return
            elif (what := _differs(variant, length)) is not None:
                when = _when(check, axes, length)
                check.report.notes.append(f"not counted as an error: {when}, {what}; sizes=True counts it")
                return


def _when(check: Check, axes: tuple[Axis, ...], length: int) -> str:
    names = check.subject.input_names
    return f"with length {length} along " + ", ".join(f"axis {axis} of {names[i]}" for i, axis in axes)


def _differs(variant: Check, length: int) -> str | None:
    """What backward does at other sizes that forward's derivatives do not say, in words."""
    try:
        gradients = variant.gradients = variant.vjp(variant.U)
    except Exception as error:
        return f"forward works and backward raises {type(error).__name__}: {error}"
    for k, (g, x) in enumerate(zip(gradients, variant.point, strict=True)):
        if g is not None and g.shape != x.shape:
            return f"the gradient of {variant.names[k]} has shape {g.shape}, the input {x.shape}"
    if length == 0 or holds(variant):
        return None
    return "backward does not give forward's derivative"


def _dimensions(check: Check, axes: list[Axis], n: int) -> tuple[list[tuple[Axis, ...]], tuple[Axis, ...]]:
    """The axes of one length in groups that fn lets be shortened: single ones, pairs, the rest together; and those that
    it does not let be shortened."""
    rest, groups = list(axes), []
    for count in (1, 2) if len(axes) <= MOST_AXES else ():
        for some in itertools.combinations(axes, count):
            if all(axis in rest for axis in some) and _accepts(check, some, n):
                groups.append(some)
                rest = [axis for axis in rest if axis not in some]
    if len(rest) > 2 and _accepts(check, tuple(rest), n):
        return [*groups, tuple(rest)], ()
    for single in [g for g in groups if len(g) == 1]:  # labels that NumPy lets be fewer than the rows they belong to
        if partner := next((axis for axis in rest if _accepts(check, (axis, *single), n)), None):
            groups[groups.index(single)] = (partner, *single)
            rest.remove(partner)
    return groups, tuple(rest)


def _accepts(check: Check, axes: tuple[Axis, ...], n: int) -> bool:
    return any(_variant(check, axes, length) is not None for length in ((0, n - 1) if n > 2 else (0,)))


def _variant(check: Check, axes: tuple[Axis, ...], length: int) -> Check | None:
    """The check at inputs cut to a length along some axes; None where fn refuses them or makes no finite values."""
    args = [_cut(a, [axis for i, axis in axes if i == k], length) for k, a in enumerate(check.subject.args)]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            variant = check.variant(args)
            if variant.ground is not variant.subject:  # what the reference takes, fn may refuse
                variant.subject.forward(variant.arrays())
        except Exception:
            return None
    return variant if length == 0 or all(f is None or f.all() for f in variant.finite) else None


def _repeats(check: Check, variant: Check, axes: tuple[Axis, ...]) -> bool:
    """Whether forward takes a single row along the axes as that row repeated: only then do the shapes mean something."""
    args = list(variant.subject.args)
    for i, axis in axes:
        n = check.subject.args[i].shape[axis]
        a = args[i]
        args[i] = Tensor(a.data.repeat(n, axis)) if isinstance(a, Tensor) else a.repeat(n, axis)
    try:
        whole = check.subject.moved(args)
        return same_values(variant, whole.forward(whole.point), variant.rtol)
    except Exception:
        return False


def _check(check: Check, variant: Check, axes: tuple[Axis, ...], length: int, coupled: bool) -> None:
    """coupled: axes that must have the same length as others were cut alone, which forward took as broadcasting."""
    when = _when(check, axes, length)
    try:
        if length == 0:
            _check_empty(check, variant, when)
            return
        if holds(variant):
            return
        raised = any(
            g is not None and g.shape != x.shape for g, x in zip(variant.gradients, variant.point, strict=True)
        )
    except Exception as error:
        if length == 0:
            check.raised("sizes", f"{when}, backward", error, empty=True)
            return
        raised = True
    if coupled and raised:
        text = "forward broadcasts and backward fails: one of them should do as the other does"
        if not any(text in note for note in check.report.notes):
            check.report.notes.append(f"{when}, {text}")
        return
    settle(variant, moves=0)
    explain(variant)
    for finding in variant.report.findings:
        if finding.probe not in ("slopes", "purity") or any(d.code == "not-differentiable" for d in finding.diagnoses):
            continue
        finding.probe, finding.message = "sizes", f"{when}, {finding.message}"
        if length > 1:
            text = "the gradient is right only for square shapes, where two lengths that differ here are equal"
            finding.diagnoses.insert(0, Diagnosis("square-only", text))
        check.report.findings.append(finding)


def _check_empty(check: Check, variant: Check, when: str) -> None:
    for k, (g, x) in enumerate(zip(variant.vjp(variant.U), variant.point, strict=True)):
        if g is not None and g.shape != x.shape:
            message = f"{when}, the gradient has shape {g.shape}, the input {x.shape}"
            check.found("sizes", k, message, Diagnosis("size-0", "backward gives no empty gradient for an empty input"))


def _cut(a: Any, axes: list[int], length: int) -> Any:
    if not axes:
        return a
    cut = tuple(slice(0, length) if axis in axes else slice(None) for axis in range(a.ndim))
    return Tensor(a.data[cut]) if isinstance(a, Tensor) else a[cut].copy()
