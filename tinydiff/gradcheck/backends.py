"""Both shelves against the definitions: what `cpu/` and `cuda/` compute in float32, and `f.definition` in float64.

The CUDA kernels run on the host; `tinydiff gradcheck --kernels` prints a line for each and for each of their
variants. Definitions are checked by finite differences, through the operations that use them. What the functions are run on
is in `cases.py` and `kernel_cases.py`.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from tinydiff.cuda import host, products, source, tensor
from tinydiff.errors import RunFailed
from tinydiff.gradcheck import variants
from tinydiff.gradcheck.cases import Check
from tinydiff.gradcheck.kernel_cases import BY_SOURCE
from tinydiff.gradcheck.kernels import Launch, by_kernels

TOLERANCE = 1e-5  # of a result's largest entry


class Outcome(NamedTuple):
    """One check: the kernels that it ran, its largest error, what was wrong, if anything was, and its launches."""

    kernels: frozenset[str]
    error: float
    failure: str
    launches: frozenset[Launch] = frozenset()


def check_kernels(seed: int = 0, write: Callable[[str], Any] = print, every: bool = True) -> bool:
    """Checks every kernel and writes a line for each, and one for each of its variants; whether all are right. RunFailed
    without a C++ compiler.

    seed: of the numbers, and of the order in which threads and blocks take turns. every: run every variant; otherwise those
    that arrays as small as these would have.
    """
    if host.missing():
        raise RunFailed(str(host.missing()))
    start, right, ran, in_variants = time.perf_counter(), True, 0, 0
    for name, checks in BY_SOURCE.items():
        by = functools.partial(_by_every_plan, name) if every else run_check
        outcomes = {what: by(check, seed) for what, check in checks.items()}
        for kernel in source.kernels(source.load(f"{name}.cu", host=True)):
            by_check = {what: outcome for what, outcome in outcomes.items() if kernel in outcome.kernels}
            failures = [f"{what}: {outcome.failure}" for what, outcome in by_check.items() if outcome.failure]
            right &= bool(by_check) and not failures
            ran += 1
            if failures or not by_check:
                write(f"{name + '.cu':18} {kernel:24} WRONG  {'; '.join(failures) or 'nothing ran it'}")
            else:
                error = max(outcome.error for outcome in by_check.values())
                write(
                    f"{name + '.cu':18} {kernel:24} right  {error:7.1e} of the largest entry  ({', '.join(by_check)})"
                )
        for what, outcome in outcomes.items():
            if not outcome.kernels:
                right = False
                write(f"{name + '.cu':18} {'(' + what + ')':24} WRONG  {outcome.failure or 'it ran no kernel'}")
        if every:
            launches = [launch for outcome in outcomes.values() for launch in outcome.launches]
            for flags, what in variants_of(name, launches).items():
                right &= bool(what)
                in_variants += bool(what)
                macros = " ".join(flag.removeprefix("-D") for flag in flags) or "no macros"
                write(f"    {macros}: {what or 'WRONG  nothing ran it'}")
    told = (
        f"{ran} kernels{f' in {in_variants} variants' * every} {'agree' if right else 'do not all agree'} with float64"
    )
    write(f"{told}, {time.perf_counter() - start:.1f} s")
    return right


def variants_of(name: str, launches: Iterable[Launch]) -> dict[tuple[str, ...], str]:
    """{the compiler's flags of each variant of kernels/`name`.cu: its kernels that were launched, and in how many parts}."""
    found: dict[tuple[str, ...], dict[str, set[int]]] = {flags: {} for flags in variants.declared(name)}
    for launch in launches:
        if launch.source == f"{name}.cu":
            found.setdefault(launch.flags, {}).setdefault(launch.kernel, set()).add(launch.parts)
    return {flags: ", ".join(_told(*of) for of in sorted(kernels.items())) for flags, kernels in found.items()}


def _told(kernel: str, parts: set[int]) -> str:
    if kernel not in (*products.KERNELS, *tensor.KERNELS):
        return kernel
    return f"{kernel} in {' and '.join(map(str, sorted(parts)))} part{'s' * (max(parts) > 1)}"


def _by_every_plan(name: str, check: Check, seed: int) -> Outcome:
    """A check with every plan that its kernels can have, as one: the largest error and the first failure."""
    outcomes = []
    for plan, block in variants.plans(name):
        with block:
            outcome = run_check(check, seed)
        named = f"{outcome.failure} ({plan})" if plan and outcome.failure else outcome.failure
        outcomes.append(outcome._replace(failure=named))
    return Outcome(
        frozenset(kernel for outcome in outcomes for kernel in outcome.kernels),
        max(outcome.error for outcome in outcomes),
        next((outcome.failure for outcome in outcomes if outcome.failure), ""),
        frozenset(launch for outcome in outcomes for launch in outcome.launches),
    )


def run_check(check: Check, seed: int = 0) -> Outcome:
    """Runs one of the checks in `kernel_cases.BY_SOURCE` by kernels."""
    ran: set[str] = set()
    launches: set[Launch] = set()

    def run(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        with by_kernels(ran, seed, launches):
            return fast_version(function, "cuda")(*args, **options)

    try:
        worst, failure = compare(check, run, seed)
    except source.KernelError as error:
        if "does not compile" in str(error):
            raise RunFailed(f"the kernels cannot be checked: {error}") from None
        worst, failure = np.inf, str(error)
    return Outcome(frozenset(ran), worst, failure, frozenset(launches))


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
