"""The same check with longer axes: a length that is written into backward shows when the inputs are of another length.

All axes that share a length are made FACTOR times as long, together, so that those that belong together stay alike, even
lengths stay even, and nothing is broadcast that was not before. It counts as an error only where nothing but the length has
changed: the inputs are generic numbers (a longer one-hot or symmetric array would not be one any more), fn uses all of
them, its outputs have the shapes expected, and neither pass has taken the length from elsewhere. Longer sums can also drive
a function where it computes too coarsely: log(1 - p) near p = 1. So the error must show with smaller numbers, too.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import is_array, to_numpy
from tinydiff.gradcheck.check import Check
from tinydiff.gradcheck.diagnosis import explain
from tinydiff.gradcheck.report import Diagnosis
from tinydiff.gradcheck.slopes import settle
from tinydiff.gradcheck.structure import is_structured
from tinydiff.gradcheck.surroundings import surroundings

Axis = tuple[int, int]  # position among the inputs, axis

FACTOR = 3  # odd and not 1: halves stay halves, and nothing is repeated
MOST_ELEMENTS = 20_000  # of all scaled inputs together
SHARE = 0.3  # of the numbers there: so small are those that are added the second time, when sums stay about as large as before
CLEAR = 0.01  # of its size is how far a slope must be off: a length forgotten changes it by a factor


def lengths(check: Check) -> dict[int, list[Axis]]:
    """{length: the axes of all inputs that have it}, lengths above 1."""
    by_length: dict[int, list[Axis]] = {}
    for i, a in enumerate(check.subject.args):
        if is_array(a) or isinstance(a, Tensor):
            for axis, n in enumerate(a.shape):
                if n > 1:
                    by_length.setdefault(n, []).append((i, axis))
    return by_length


def scaled(check: Check, n: int, axes: list[Axis]) -> None:
    """Checks the gradient with all axes of length n made longer."""
    args = check.subject.args
    total = sum(a.size * FACTOR ** sum(i == k for i, _ in axes) for k, a in enumerate(args) if hasattr(a, "size"))
    if total > MOST_ELEMENTS or _is_fixed(check, n):
        return
    if not all(_is_generic(args[i], [axis for j, axis in axes if j == i]) for i, _ in axes):
        return
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        variant = _variant(check, n, axes, 1.0)
        if variant is None or not all(_is_far(variant) for _ in range(2)):
            return
        calmer = _variant(check, n, axes, SHARE)
        if calmer is None or _is_far(calmer):
            _tell(check, variant, n)


def _variant(check: Check, n: int, axes: list[Axis], share: float) -> Check | None:
    """The check at longer inputs; None where they tell nothing. share: how large the numbers are that are added."""
    rng = np.random.default_rng([check.report.seed, n])
    args = check.subject.args
    try:
        longer = [_longer(a, [axis for i, axis in axes if i == k], rng, share) for k, a in enumerate(args)]
        variant = check.variant(longer)
        if not _is_alike(check, variant, n) or not _uses_all(variant, n, axes):
            return None
        variant.gradients = variant.vjp(variant.U)
    except Exception:
        return None
    fits = all(g is None or g.shape == x.shape for g, x in zip(variant.gradients, variant.point, strict=True))
    return variant if fits else None


def _tell(check: Check, variant: Check, n: int) -> None:
    settle(variant, moves=0)
    explain(variant)
    for finding in variant.report.findings:
        if finding.probe == "slopes" and not any(d.code == "not-differentiable" for d in finding.diagnoses):
            text = (
                f"the gradient is right only at the given sizes: {n}, a length of the inputs, is written into backward, or "
                "longer inputs reach what these do not, such as an element that is used twice"
            )
            finding.probe, finding.message = "sizes", f"with length {FACTOR * n} instead of {n}, {finding.message}"
            finding.diagnoses.insert(0, Diagnosis("fixed-size", text))
            check.report.findings.append(finding)


def _is_far(variant: Check) -> bool:
    members = [k for k, x in enumerate(variant.point) if x.size]
    verdict, slope = variant.test(members)
    size = max(slope.size, abs(slope.value))
    return verdict is not None and not verdict.ok and bool(verdict.error > CLEAR * size)


def _is_generic(a: Any, axes: list[int]) -> bool:
    """Whether an array has nothing that its longer version would lack, such as rows that sum to 1."""
    x = to_numpy(a.data if isinstance(a, Tensor) else a)
    if x.dtype.kind == "f":
        return not is_structured(x)
    if x.dtype.kind == "b":
        return len(axes) < 2  # a triangular mask
    if x.dtype.kind not in "iu" or len(axes) > 1:
        return False
    ordered = x.ndim == 1 and x.size > 2 and bool(np.all(np.diff(x.astype(np.int64)) >= 0))
    distinct = bool(np.all(np.diff(np.sort(x, axes[0]), axis=axes[0]) != 0))  # indices that a longer array repeats
    return not ordered and not distinct


def _longer(a: Any, axes: list[int], rng: np.random.Generator, share: float) -> Any:
    """The array FACTOR times as long along some axes: itself, then copies of it with other numbers near `share` times the
    same."""
    if not axes:
        return a
    x = a.data if isinstance(a, Tensor) else a
    y = np.tile(to_numpy(x), [FACTOR if axis in axes else 1 for axis in range(x.ndim)])
    if y.dtype.kind == "f":
        part = tuple(slice(0, n) for n in x.shape)
        first = y[part].copy()
        y *= share * (1 + 0.1 * rng.uniform(-1, 1, y.shape))
        y[part] = first
    y = type(x)(y) if not isinstance(x, np.ndarray) else y
    return Tensor(y) if isinstance(a, Tensor) else y


def _is_alike(check: Check, variant: Check, n: int) -> bool:
    """Whether the outputs have the rank that they had and lengths that are the same or FACTOR times as long."""
    for y, z in zip(check.centre, variant.centre, strict=True):
        if (y is None) != (z is None) or (y is not None and y.ndim != z.ndim):
            return False
        if y is not None and not all(
            q == FACTOR * p or (q == p and p != n) for p, q in zip(y.shape, z.shape, strict=True)
        ):
            return False
    return all(f is None or bool(f.all()) for f in variant.finite)


def _uses_all(variant: Check, n: int, axes: list[Axis]) -> bool:
    """Whether fn depends on what was added to each of its inputs."""
    for k, i in enumerate(variant.subject.checked):
        for axis in (axis for j, axis in axes if j == i):
            for start in range(n, FACTOR * n, n):
                v = [0 * x for x in variant.point]
                part = (slice(None),) * axis + (slice(start, start + n),)
                v[k][part] = 1e-3 * (1 + abs(variant.point[k][part]))
                moved = variant.forward([x + d for x, d in zip(variant.point, v, strict=True)])
                if all(a is None or np.array_equal(a, c) for a, c in zip(moved, variant.centre, strict=True)):
                    return False
    return True


def _is_fixed(check: Check, n: int) -> bool:
    """Whether the length, or an array of that length, reaches a pass by another way than its arguments."""
    subject = check.subject
    passes = [subject.fn, getattr(subject, "backward", None)]
    reached = [*(a for a in subject.args if not is_array(a) and not isinstance(a, Tensor)), *surroundings(passes)]
    for value in reached:
        if _counts(value, n):
            return True
        if n in _shape(value):
            return True
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list | tuple) and (len(value) == n or any(n in _shape(v) or _counts(v, n) for v in value)):
            return True
    return False


def _counts(value: Any, n: int) -> bool:
    """Whether a value may be the length n, or a product of lengths with it."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    return bool(value > 0 and float(value) % n == 0)


def _shape(value: Any) -> tuple[int, ...]:
    shape = getattr(value, "shape", ())
    return tuple(shape) if isinstance(shape, tuple) else ()
