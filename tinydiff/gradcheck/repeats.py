"""Integer inputs that hold a value twice: `dW[i] += d` adds only once to a row that is named twice.

Tests often name distinct rows. So the second row of such an index is made equal to the first, and the gradient is checked
again, at the given sizes. An index that is a permutation, or offsets, must not repeat: of those there is a note at most.
"""

from __future__ import annotations

import warnings

import numpy as np

from tinydiff.backend import is_array, to_numpy
from tinydiff.gradcheck.check import Check
from tinydiff.gradcheck.diagnosis import explain
from tinydiff.gradcheck.report import Diagnosis
from tinydiff.gradcheck.slopes import holds, settle

UNLIKELY = 0.05  # so seldom would columns of an index be without repetition by chance
DISTINCT = (
    "perm",
    "order",
    "offset",
    "ptr",
    "start",
    "bound",
    "len",
    "sort",
    "rank",
    "split",
)  # in names of such inputs


def repeats(check: Check) -> None:
    for i, a in enumerate(check.subject.args):
        axis = _free_axis(to_numpy(a)) if is_array(a) and a.dtype.kind in "iu" else None
        if axis is None:
            continue
        b, name = a.copy(), check.subject.input_names[i]
        part: tuple[slice | int, ...] = (slice(None),) * axis
        b[(*part, 1)] = b[(*part, 0)]
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                variant = check.variant([b if j == i else x for j, x in enumerate(check.subject.args)])
                if not _is_alike(check, variant) or holds(variant):
                    continue
                settle(variant, moves=0)
                explain(variant)
            except Exception:
                continue
        _tell(check, variant, name, _must_be_distinct(check, to_numpy(a), name))
        if check.report.findings:
            return


def _free_axis(a: np.ndarray) -> int | None:
    """The axis along which a row can be repeated: the first of an array of distinct values, or of one whose columns name
    nothing twice, d[a[:, j]] += ..."""
    axis = next((axis for axis, n in enumerate(a.shape) if n > 1), None)
    if axis is None or len(np.unique(a)) == a.size:
        return axis
    distinct = np.all(np.diff(np.sort(a, axis), axis=axis) != 0)
    return axis if axis == 0 and a.ndim > 1 and distinct else None


def _tell(check: Check, variant: Check, name: str, noted: bool) -> None:
    when = f"with a value of {name} that is there twice"
    for finding in variant.report.findings:
        got, right = finding.got, finding.expected
        if finding.probe != "slopes" or got is None or right is None:
            continue
        tiny = 1e-6 * max(float(np.abs(right[~np.isnan(right)]).max(initial=0)), 1e-300)
        if noted or np.any((np.abs(right) <= tiny) & (np.abs(got) > tiny)):  # forward itself keeps one of the two
            check.report.notes.append(f"not counted as an error: {when}, backward does not give forward's derivative")
            return
        text = (
            f"of the contributions to an element that {name} names twice only one arrives: d[{name}] += ... adds once, "
            f"np.add.at(d, {name}, ...) adds each"
        )
        finding.probe, finding.message = "repeats", f"{when}, {finding.message}"
        finding.diagnoses.insert(0, Diagnosis("overwritten", text))
        check.report.findings.append(finding)


def _is_alike(check: Check, variant: Check) -> bool:
    return all(
        (y is None) == (z is None) and (y is None or y.shape == z.shape)
        for y, z in zip(check.centre, variant.centre, strict=True)
    ) and all(f is None or bool(f.all()) for f in variant.finite)


def _must_be_distinct(check: Check, a: np.ndarray, name: str) -> bool:
    """Whether an index may be one that names every row once, or that must grow."""
    if any(word in name.lower() for word in DISTINCT):
        return True
    if len(np.unique(a)) < a.size:  # only within columns: by chance, or because each ranks something?
        values = int(a.max()) - int(a.min()) + 1
        chance = np.prod(1 - np.arange(len(a)) / values) ** (a.size / len(a))
        return bool(chance < UNLIKELY)
    lengths = {n for x in check.point for n in x.shape}
    return a.size in lengths and bool(np.array_equal(np.sort(a, None), np.arange(a.size)))
