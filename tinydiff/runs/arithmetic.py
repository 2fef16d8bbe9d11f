"""In which precision a run is computed: what was asked for, held against what the device offers.

Weights, gradients, averages and checkpoints are float32 in every precision (see `tinydiff.precision`). So a run may go on where
its precision is not to be had: in float32, and a line says so. A new run is refused there.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from tinydiff.backend import compute_capability
from tinydiff.cuda import tensor
from tinydiff.dispatch import uses_kernels
from tinydiff.errors import InputError, named
from tinydiff.machine.terminal import say

OFFERED = ("float32", "tf32", "auto")


def lacking(device: str) -> str | None:
    """What a resolved device lacks for tensor cores, None if nothing."""
    if device == "cpu":
        return "the CPU has no tensor cores"
    if not uses_kernels():
        return "without tinydiff's own kernels (TINYDIFF_KERNELS=0, TINYDIFF_PLAIN=1) there are no tensor cores"
    found, oldest = compute_capability(), tensor.OLDEST
    if found < oldest:
        return f"this GPU has compute capability {found / 10}, and that needs {oldest / 10}"
    return None


def best(device: str) -> str:
    """The fastest precision that a resolved device offers: what "auto" means."""
    return "float32" if lacking(device) else "tf32"


def used(precision: str, device: str) -> str:
    """The precision in which a resolved device computes what was asked for, float32 where it does not offer that."""
    return best(device) if precision != "float32" else precision


def require(precision: str, device: str) -> str:
    """The precision that a wish means on a resolved device: itself, or what "auto" is there. InputError for one that is not
    offered."""
    if precision not in OFFERED:
        raise InputError(f"{named('precision')} must be one of {', '.join(OFFERED)}, not {precision}")
    if precision == "tf32" and (reason := lacking(device)) is not None:
        raise InputError(
            f"{named('precision', precision)} needs a GPU with tensor cores: {reason}; use {named('precision', 'float32')}, "
            f"or {named('precision', 'auto')}, which is float32 here"
        )
    return best(device) if precision == "auto" else precision


def tell(precision: str, device: str) -> None:
    """Says so where a run of this precision goes on in float32 on a resolved device."""
    if used(precision, device) != precision:
        say(f"the run was made in {precision}, and {lacking(device)}: it goes on in float32 here")


def computing(precision: str, device: str) -> AbstractContextManager[None]:
    """A block in which this thread computes in a precision, or in float32 where the resolved device does not offer it."""
    return tensor.precision(used(precision, device))
