"""Checks run by the CUDA kernels, on the host's stand-in of CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def by_kernels(ran: set[str], seed: int) -> Iterator[None]:
    """A block in which operations on NumPy arrays of float32 run their kernels; notes the names of those that ran.

    seed: of the order in which threads and blocks take turns.
    """
    from tinydiff.cuda import host
    from tinydiff.dispatch import on_host

    run = host.run

    def noted(source: str, text: str, kernel: str, *rest: Any, **options: Any) -> None:
        ran.add(kernel)
        run(source, text, kernel, *rest, **options)

    host.run = noted  # type: ignore[assignment]
    try:
        with on_host(seed):
            yield
    finally:
        host.run = run
