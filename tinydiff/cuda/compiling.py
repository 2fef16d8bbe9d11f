"""Compiles ahead, on all cores, the kernels that some work will launch.

NVRTC takes seconds for a source with one set of defines, and a network needs a dozen. The first step would compile them one
after another, each when it is first launched. CuPy keeps the binaries on disk, so this is done once for each kind of GPU.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from typing import Any

from tinydiff import backend
from tinydiff.cuda import driver, source
from tinydiff.cuda.launch import noting
from tinydiff.cuda.source import KernelError
from tinydiff.machine import threads
from tinydiff.machine.terminal import say

UNNOTICED = 1.0  # seconds: what takes no longer, because it is on disk, is done without a word

Variant = tuple[str, tuple[str, ...]]  # a source and the compiler's flags for its defines


def compile_for(works: Iterable[Callable[[], Any]], families: Iterable[str] = ()) -> int:
    """Compiles what each of the works launches, and every variant of some families (files of this folder); returns how many
    variants that are. On a terminal a bar shows how far it is, otherwise a line says that it has begun.

    A work runs with its launches left out, so what it computes is arbitrary. One for which the GPU's memory does not
    suffice is left out, too. KernelError where a variant does not compile.
    """
    found: set[Variant] = set()
    for family in families:
        for name, defines, *_ in importlib.import_module(f"tinydiff.cuda.{family}").VARIANTS:
            found.add((name, source.flags(defines)))
    for work in works:
        with noting(found), suppress(MemoryError, KernelError):  # the latter is what `driver.explained` makes of it
            work()
    _compile(sorted(found))
    return len(found)


def _compile(variants: list[Variant]) -> None:
    cupy = backend.cupy()
    assert cupy is not None
    device, start, bar, told = cupy.cuda.Device().id, time.monotonic(), None, False
    with ThreadPoolExecutor(threads.available()) as pool:
        waiting = [pool.submit(driver.prepare, *variant, device) for variant in variants]
        try:
            for done, future in enumerate(as_completed(waiting), 1):
                future.result()
                if time.monotonic() - start < UNNOTICED or (done == len(variants) and not told):
                    continue
                if not told:
                    told, bar = True, _begin(len(variants))
                if bar is not None:
                    bar.update(done - bar.n)
        finally:
            pool.shutdown(cancel_futures=True)
            if bar is not None:
                bar.close()


def _begin(total: int) -> Any:
    """A bar on a terminal, else None and a line."""
    if sys.stderr is not None and sys.stderr.isatty():
        from tqdm import tqdm

        return tqdm(total=total, desc="compiling kernels for this GPU, once", unit="source", dynamic_ncols=True)
    say(f"compiling {total} variants of the kernels for this GPU, once")
    return None
