"""In which precision a run is computed: what was asked for, held against what the device offers.

Weights, gradients, averages and checkpoints are float32 in every precision (see `tinydiff.precision`). So a run may go on where
its precision is not to be had: in float32, and a line says so. A new run is refused there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tinydiff.backend import compute_capability
from tinydiff.cuda import tensor
from tinydiff.dispatch import uses_kernels
from tinydiff.errors import InputError, named
from tinydiff.machine.terminal import say
from tinydiff.precision import half, mixed

OFFERED = ("float32", "tf32", "fp16", "bf16", "auto")


def lacking(device: str, precision: str = "tf32") -> str | None:
    """What a resolved device, or this machine, lacks for a precision, None if nothing."""
    if precision == "float32":
        return None
    if device == "cpu":
        return "the CPU has no tensor cores"
    if not uses_kernels():
        return "without tinydiff's own kernels (TINYDIFF_KERNELS=0, TINYDIFF_PLAIN=1) there are no tensor cores"
    found, oldest = compute_capability(), tensor.OLDEST
    if found < oldest:
        return f"this GPU has compute capability {found / 10}, and that needs {oldest / 10}"
    try:
        half(precision)
    except ImportError:
        return f"{precision} needs the package ml_dtypes, which is not installed"
    return None


def best(device: str) -> str:
    """The precision that "auto" means on a resolved device: the fastest that it offers. Of those in 16 bits that is bf16, which
    has the range of float32 and needs no loss scale."""
    return next(precision for precision in ("bf16", "tf32", "float32") if lacking(device, precision) is None)


def used(precision: str, device: str) -> str:
    """The precision in which a resolved device computes what was asked for, float32 where it does not offer that."""
    if precision == "auto":
        return best(device)
    return "float32" if lacking(device, precision) else precision


def require(precision: str, device: str) -> str:
    """The precision that a wish means on a resolved device: itself, or what "auto" is there. InputError for one that is not
    offered."""
    if precision not in OFFERED:
        raise InputError(f"{named('precision')} must be one of {', '.join(OFFERED)}, not {precision}")
    if precision == "auto":
        return best(device)
    if (reason := lacking(device, precision)) is not None:
        needs = "needs a GPU with tensor cores: " if "ml_dtypes" not in reason else "is not possible here: "
        raise InputError(
            f"{named('precision', precision)} {needs}{reason}; use {named('precision', 'float32')}, "
            f"or {named('precision', 'auto')}, which is {best(device)} here"
        )
    return precision


def tell(precision: str, device: str) -> None:
    """Says so where a run of this precision goes on in float32 on a resolved device."""
    if used(precision, device) != precision:
        say(f"the run was made in {precision}, and {lacking(device, precision)}: it goes on in float32 here")


@contextmanager
def computing(precision: str, device: str) -> Iterator[None]:
    """A block in which this thread computes in a precision, or in float32 where the resolved device does not offer it."""
    precision = used(precision, device)
    with tensor.precision("tf32" if precision == "tf32" else "float32"), mixed(precision):
        yield
