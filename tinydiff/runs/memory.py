"""How much memory a training step needs, found out on small batches.

What a step holds grows with the batch in a straight line, apart from what does not depend on it: weights, gradients,
optimiser, averages, workspaces. So the peaks of two small batches tell that of a large one. On the CPU Python's own
tracer counts the bytes of arrays, on a GPU CuPy's pool does. Against the resident memory of real runs of 200 to 1,000
MiB the figure was between 18 % too low and 15 % too high; what drawing loads later is not in it.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tinydiff import backend
from tinydiff.errors import InputError, named
from tinydiff.machine import limits

SMALL = 4  # images, to begin with; fewer take other paths through the convolutions
ENOUGH = 300 << 20  # bytes; batches are doubled up to about here, the larger the truer


@dataclass(frozen=True)
class Estimate:
    """Bytes of a training step: `weights`, their `average` (EMA), the `optimizer`'s arrays, what is held `fixed` in
    addition and for each image of a batch, and the `rest` of the process (interpreter, libraries, data). `saving` takes
    the place of a step's activations while a checkpoint is written: gradients, copies of Adam's arrays and of weights."""

    weights: int
    average: int
    optimizer: int
    fixed: float
    per_image: float
    rest: int = 0
    saving: int = 0

    def activations(self, batch_size: int) -> int:
        """Gradients, workspaces and whatever else a step holds at its peak, for a batch."""
        return round(self.fixed + self.per_image * batch_size)

    def total(self, batch_size: int) -> int:
        return self._always() + max(self.activations(batch_size), self.saving)

    def largest_batch(self, budget: int) -> int:
        """The most images whose step fits into so many bytes, 0 if none does."""
        room = budget - self._always()
        return 0 if room < self.saving else max(0, int((room - self.fixed) // max(self.per_image, 1)))

    def _always(self) -> int:
        return self.weights + self.average + self.optimizer + self.rest


def estimate(gradients: Callable[[int], None], weights: int, batch_size: int, device: str = "cpu") -> Estimate:
    """Measures `gradients(n)`, which computes the gradients for n images and drops them, for small n or, where that
    takes little memory, for the whole batch.

    weights: their bytes; Adam's arrays are twice that, the average as much again. `rest` is what the process holds now
    beside weights and average.
    """
    rest = max((limits.resident() or 0) - 2 * weights, 0) if device == "cpu" else 0
    with _pool() if device == "cuda" else _arrays() as peak_of:
        n = min(SMALL, max(batch_size // 2, 1))
        smaller, peak = 0, peak_of(gradients, n)
        while n < batch_size and (not smaller or 2 * peak < ENOUGH):
            smaller, before = n, peak
            n = min(2 * n, batch_size)
            peak = peak_of(gradients, n)
    per_image = max(
        0.0, (peak - before) / (n - smaller) if smaller else peak / n
    )  # tiny ones drown in what else changes
    saving = 4 * weights if device == "cpu" else 0  # of a GPU's arrays the copies lie in the machine's memory
    return Estimate(weights, weights, 2 * weights, peak - per_image * n, per_image, rest, saving)


def require_gpu(needed: Estimate, batch_size: int) -> None:
    """InputError if a step on a batch of this size needs more than the GPU has left; weights and average, which lie
    there already, count as free."""
    total, free = backend.gpu_memory()
    room = free + needed.weights + needed.average
    if needed.total(batch_size) > room:
        fitting = needed.largest_batch(room)
        advice = f"{named('batch_size', fitting)} fits" if fitting else "not even one image fits"
        raise InputError(
            f"a step on {batch_size} images needs about {show(needed.total(batch_size))} of GPU memory, and "
            f"{show(room)} of {show(total)} are free; {advice} ({named('accumulate')} keeps the images per step)"
        )


def require(needed: int, what: str) -> None:
    """InputError if `what`, in the plural, needs more bytes of memory than this machine has."""
    everything, _ = limits.memory()
    if everything is not None and needed > everything:
        raise InputError(f"{what} need about {show(needed)} of memory, and this machine has {show(everything)}")


Peak = Callable[[Callable[[int], None], int], int]


@contextmanager
def _arrays() -> Iterator[Peak]:
    """A function peak(gradients, n): the most bytes that Python and NumPy held meanwhile, above what they held before
    the first."""
    traced = tracemalloc.is_tracing()
    if not traced:
        tracemalloc.start(1)
    before = tracemalloc.get_traced_memory()[0]

    def peak(gradients: Callable[[int], None], n: int) -> int:
        tracemalloc.reset_peak()
        gradients(n)
        return tracemalloc.get_traced_memory()[1] - before

    try:
        yield peak
    finally:
        if not traced:
            tracemalloc.stop()


@contextmanager
def _pool() -> Iterator[Peak]:
    """The same for a GPU: the bytes that CuPy's pool had to take from it."""

    def peak(gradients: Callable[[int], None], n: int) -> int:
        before = backend.gpu_reserved(trim=True)
        gradients(n)
        return backend.gpu_reserved() - before

    yield peak


def show(count: float) -> str:
    """Bytes for people: 1536 -> "1.5 KiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if count >= 100 or unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError
