"""Competitors measured in turns, and two ceilings: a matrix product and a copy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tinydiff import backend
from tinydiff.machine import threads

PAUSE = 0.003  # seconds before each run: PyTorch's threads spin for a while after its work


class Work(NamedTuple):
    """A forward pass, and a backward pass that gets what it returned; None where the work has only one part."""

    forward: Callable[[], Any]
    backward: Callable[[Any], None] | None = None


class Times(NamedTuple):
    """Seconds, medians; of both passes together in `total`."""

    forward: float
    backward: float
    total: float


def race(
    competitors: Mapping[str, Work], rounds: int, budget: float, wait: Callable[[], None] = backend.synchronize
) -> dict[str, Times]:
    """Medians over rounds. In each round every competitor has a turn, after one without measuring. There are fewer than
    `rounds`, but at least 3, where they would take longer than `budget` seconds. wait: a function that returns when
    the device has done its work."""
    for work in competitors.values():
        _turn(work, wait)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in competitors}
    begun = time.perf_counter()
    for i in range(rounds):
        if i >= 3 and time.perf_counter() - begun > budget:
            break
        for name, work in competitors.items():
            seconds[name].append(_turn(work, wait))
    return {
        name: Times(
            statistics.median(forward for forward, _ in runs),
            statistics.median(backward for _, backward in runs),
            statistics.median(forward + backward for forward, backward in runs),
        )
        for name, runs in seconds.items()
    }


def _turn(work: Work, wait: Callable[[], None]) -> tuple[float, float]:
    time.sleep(PAUSE)
    start = time.perf_counter()
    result = work.forward()
    wait()
    middle = time.perf_counter()
    if work.backward is None:
        return middle - start, 0.0
    work.backward(result)
    wait()
    return middle - start, time.perf_counter() - middle


class Ceiling(NamedTuple):
    """The most that the machine does with the threads it is given: FLOPs per second and bytes per second."""

    flops: float
    bytes: float

    def seconds(self, flops: float, bytes_: float) -> float:
        """The time in which so much work could be done."""
        return max(flops / self.flops, bytes_ / self.bytes)


def measure_ceiling(device: str, quick: bool = False) -> Ceiling:
    """The faster of one large float32 product and of many small ones, and a copy of 128 MiB, inside
    `threads.threads`."""
    xp = backend.module_for(device)
    n = 768 if quick else 1536
    A, B = (xp.ones((n, n), "float32") for _ in range(2))
    C = xp.empty_like(A)
    P, Q = xp.ones((512, 48, 96), "float32"), xp.ones((512, 96, 48), "float32")
    R = xp.empty((512, 48, 48), "float32")
    source = xp.ones(1 << (22 if quick else 24), "float32")
    target = xp.empty_like(source)

    def shared(rows: int, work: Callable[[slice], Any]) -> Work:
        if device == "cuda":
            return Work(lambda: work(slice(0, rows)))
        return Work(lambda: threads.share(lambda part: work(slice(part.start, part.stop)), range(rows)))

    def copy(part: slice) -> None:
        target[part] = source[part]

    contests = {
        "large": shared(n, lambda part: xp.matmul(A[part], B, out=C[part])),
        "small": shared(len(P), lambda part: xp.matmul(P[part], Q[part], out=R[part])),
        "copy": shared(source.size, copy),
    }
    times = race(contests, 15, 3.0)
    large, small = 2 * n**3 / times["large"].forward, 2 * P.size * 48 / times["small"].forward
    return Ceiling(max(large, small), 2 * source.nbytes / times["copy"].forward)
