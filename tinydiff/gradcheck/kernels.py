"""Checks run by the CUDA kernels, on the host's stand-in of CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Launch(NamedTuple):
    """What ran: the file of a kernel, the compiler's flags, its name, and in how many layers of blocks (parts of a product)."""

    source: str
    flags: tuple[str, ...]
    kernel: str
    parts: int


@contextmanager
def by_kernels(ran: set[str], seed: int, launches: set[Launch] | None = None) -> Iterator[None]:
    """A block in which operations on NumPy arrays of float32 run their kernels; notes the names of those that ran, and where
    that is asked for the launches.

    seed: of the order in which threads and blocks take turns.
    """
    from tinydiff.cuda import host, source
    from tinydiff.dispatch import on_host

    run = host.run

    def noted(
        name: str, text: str, kernel: str, parameters: Any, grid: Any, block: Any, args: Any, shared: int, defines: Any,
        seed: int = 0,
    ) -> None:  # fmt: skip
        ran.add(kernel)
        if launches is not None:
            launches.add(Launch(name, source.flags(defines), kernel, int(grid[2])))
        run(name, text, kernel, parameters, grid, block, args, shared, defines, seed)

    host.run = noted
    try:
        with on_host(seed):
            yield
    finally:
        host.run = run
