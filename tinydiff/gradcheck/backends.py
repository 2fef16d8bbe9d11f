"""Both shelves against the definitions: what `cpu/` and `cuda/` compute in float32, and `f.definition` in float64.

The CUDA kernels run on the host; `tinydiff gradcheck --kernels` prints a line for each. Definitions are checked by finite
differences, through the operations that use them. What the functions are run on is in `cases.py` and
`kernel_cases.py`.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tinydiff.cuda import host, source
from tinydiff.errors import RunFailed
from tinydiff.gradcheck.cases import Check
from tinydiff.gradcheck.kernel_cases import BY_SOURCE
from tinydiff.gradcheck.kernels import by_kernels

TOLERANCE = 1e-5  # of a result's largest entry


class Outcome(NamedTuple):
    """One check: the kernels that it ran, its largest error, and what was wrong, if anything was."""

    kernels: frozenset[str]
    error: float
    failure: str


def check_kernels(seed: int = 0, write: Callable[[str], Any] = print) -> bool:
    """Checks every kernel and writes a line for each; whether all are right. RunFailed without a C++ compiler.

    seed: of the numbers, and of the order in which threads and blocks take turns.
    """
    if host.missing():
        raise RunFailed(str(host.missing()))
    start, right, ran = time.perf_counter(), True, 0
    for name, checks in BY_SOURCE.items():
        outcomes = {what: run_check(check, seed) for what, check in checks.items()}
        for kernel in source.kernels(source.load(f"{name}.cu", host=True)):
            by = {what: outcome for what, outcome in outcomes.items() if kernel in outcome.kernels}
            failures = [f"{what}: {outcome.failure}" for what, outcome in by.items() if outcome.failure]
            right &= bool(by) and not failures
            ran += 1
            if failures or not by:
                write(f"{name + '.cu':18} {kernel:24} WRONG  {'; '.join(failures) or 'nothing ran it'}")
            else:
                error = max(outcome.error for outcome in by.values())
                write(f"{name + '.cu':18} {kernel:24} right  {error:7.1e} of the largest entry  ({', '.join(by)})")
        for what, outcome in outcomes.items():
            if not outcome.kernels:
                right = False
                write(f"{name + '.cu':18} {'(' + what + ')':24} WRONG  {outcome.failure or 'it ran no kernel'}")
    write(f"{ran} kernels {'agree' if right else 'do not all agree'} with float64, {time.perf_counter() - start:.1f} s")
    return right


def run_check(check: Check, seed: int = 0) -> Outcome:
    """Runs one of the checks in `kernel_cases.BY_SOURCE` by kernels."""
    ran: set[str] = set()

    def run(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        with by_kernels(ran, seed):
            return fast_version(function, "cuda")(*args, **options)

    try:
        worst, failure = compare(check, run, seed)
    except source.KernelError as error:
        if "does not compile" in str(error):
            raise RunFailed(f"the kernels cannot be checked: {error}") from None
        worst, failure = np.inf, str(error)
    return Outcome(frozenset(ran), worst, failure)


def compare(check: Check, run: Callable[..., Any], seed: int = 0) -> tuple[float, str]:
    """The largest error of what a check compares, and the first failure in words, if there is one.

    run: calls a function with its arguments where they are to be computed.
    """
    worst, failure = 0.0, ""
    for ours, truth in check(np.random.default_rng(seed), run):
        error = distance(ours, truth)
        worst = max(worst, error)
        if not error <= TOLERANCE and not failure:
            failure = f"off by {error:.1e} of the largest entry, shape {np.shape(truth)}"
    return worst, failure


def fast_version(function: Callable[..., Any], shelf: str) -> Callable[..., Any]:
    """The version on a shelf of a function that has a definition, which unlike `dispatch` leaves nothing to the definition;
    the function itself where the shelf has none."""
    definition = getattr(function, "definition", function)
    file = f"tinydiff.{shelf}.{definition.__module__.rpartition('.')[2]}"
    if definition is function or importlib.util.find_spec(file) is None:
        return function
    return getattr(importlib.import_module(file), definition.__name__, function)


def distance(ours: Any, truth: Any) -> float:
    """The largest difference relative to the largest entry; infinite where shapes, integers or infinities differ."""
    if ours is NotImplemented or np.shape(ours) != np.shape(truth):
        return np.inf
    ours, truth = np.asarray(ours), np.asarray(truth)
    if truth.dtype.kind in "iu" or not truth.size:
        return 0.0 if np.array_equal(ours, truth) else np.inf
    finite = np.isfinite(truth)
    if not np.array_equal(ours[~finite], truth[~finite]):
        return np.inf
    with np.errstate(invalid="ignore"):  # whatever memory held that a wrong kernel did not write
        differences = np.abs(ours[finite] - truth[finite].astype(np.float64))
    error = differences.max(initial=0) / (np.abs(truth[finite]).max(initial=0) or 1)
    return float(error) if np.isfinite(error) else np.inf
