"""Compiles every kernel as CuPy will, with NVRTC, on any machine: no GPU and no driver are needed.

    python -m tinydiff.cuda.nvrtc [ARCHITECTURE ...]

prints each kernel's registers, shared memory and spills for the architectures (75 80 89 90 120 if none are named), and fails if
one does not compile or spills registers to memory. Needs the packages nvidia-cuda-nvrtc and cuda-bindings.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tinydiff.cuda import driver, source
from tinydiff.cuda.host import cache_folder
from tinydiff.cuda.source import KernelError
from tinydiff.machine import threads

ARCHITECTURES = (75, 80, 89, 90, 120)
FAMILIES = (
    "pixels", "products", "joint", "sums", "tensor", "convolution", "tensor_convolution", "tensor_attention", "doubling",
    "normalization", "softmax_rows", "draws", "updates", "resampling", "rounding",
)  # fmt: skip
# CuPy adds the last two: denormals (below 2^-126) are flushed to 0, and functions are the device's.
FLAGS = (*driver.OPTIONS, "-ftz=true", "--device-as-default-execution-space")


Variant = tuple[str, dict[str, Any], int]  # source, defines, the oldest architecture that it supports


class Usage(NamedTuple):
    """What one kernel takes on one architecture: registers per thread, static shared memory, stack and spills in bytes."""

    kernel: str
    architecture: int
    registers: int
    shared: int
    stack: int
    spills: int


def missing() -> str | None:
    """Why nothing can be compiled here, in a sentence, or None if it can."""
    try:
        _nvrtc()
    except KernelError as error:
        return str(error)
    return None


@functools.cache
def _nvrtc() -> Any:
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise KernelError(
            "compiling kernels without CuPy needs the packages nvidia-cuda-nvrtc and cuda-bindings "
            f"(pip install nvidia-cuda-nvrtc cuda-bindings): {error}"
        ) from None
    return nvrtc


def compile_source(name: str, defines: Mapping[str, Any], architecture: int) -> list[Usage]:
    """Compiles kernels/`name` for sm_`architecture`; KernelError with the compiler's messages if that fails.

    Results are kept in the user's cache, so nothing is compiled twice.
    """
    path = _kept(name, defines, architecture)
    if path.exists():
        return [Usage(*numbers) for numbers in json.loads(path.read_text())]
    return compile_binary(name, defines, architecture)[0]


def compile_binary(name: str, defines: Mapping[str, Any], architecture: int) -> tuple[list[Usage], bytes]:
    """The same with the binary (cubin), which is not kept."""
    usages, binary = compile_text(name, source.load(name), defines, architecture)
    path = _kept(name, defines, architecture)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(usages, file)
    os.replace(file.name, path)  # atomic, so several processes may write it
    return usages, binary


def _kept(name: str, defines: Mapping[str, Any], architecture: int) -> Path:
    """Where the usages of a source are kept."""
    parts = str(_nvrtc().nvrtcVersion()), *_options(defines, architecture), source.load(name)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return cache_folder() / f"{key[:24]}-usage.json"


def _options(defines: Mapping[str, Any], architecture: int) -> list[str]:
    return [*FLAGS, f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v", *source.flags(defines)]


def compile_text(name: str, text: str, defines: Mapping[str, Any], architecture: int) -> tuple[list[Usage], bytes]:
    """What the kernels of a text use, and the binary (cubin)."""
    nvrtc = _nvrtc()
    options = _options(defines, architecture)
    status, program = nvrtc.nvrtcCreateProgram(text.encode(), name.encode(), 0, [], [])
    _must(nvrtc, status)
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
        log = _take(nvrtc, program, "ProgramLog").decode(errors="replace")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise KernelError(
                f"{name} with {' '.join(source.flags(defines))} does not compile for sm_{architecture}:\n{log}"
            )
        return _usages(log, architecture), _take(nvrtc, program, "CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _must(nvrtc: Any, status: Any) -> None:
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise KernelError(f"NVRTC: {nvrtc.nvrtcGetErrorString(status)[1].decode()}")


def _take(nvrtc: Any, program: Any, what: str) -> bytes:
    status, size = getattr(nvrtc, f"nvrtcGet{what}Size")(program)
    _must(nvrtc, status)
    content = b"\0" * size
    _must(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, content)[0])
    return content.rstrip(b"\0") if what == "ProgramLog" else content


_FUNCTION = re.compile(r"Compiling entry function '(\w+)'.*?(?=Compiling entry function|\Z)", re.S)


def _usages(log: str, architecture: int) -> list[Usage]:
    """The usages in the output of `--ptxas-options=-v`."""

    def number(pattern: str, text: str) -> int:
        return sum(map(int, re.findall(pattern, text)))

    return [
        Usage(
            match[1],
            architecture,
            number(r"Used (\d+) registers", match[0]),
            number(r"(\d+) bytes smem", match[0]),
            number(r"(\d+) bytes stack frame", match[0]),
            number(r"(\d+) bytes spill (?:stores|loads)", match[0]),
        )
        for match in _FUNCTION.finditer(log)
    ]


def variants() -> Iterator[Variant]:
    """Every (source, defines, oldest architecture) that a family can launch; 75 where its VARIANTS give none."""
    for family in FAMILIES:
        for name, defines, *oldest in importlib.import_module(f"tinydiff.cuda.{family}").VARIANTS:
            yield name, defines, *(oldest or [75])


def compile_variants(
    architectures: Sequence[int], chosen: Iterable[Variant] | None = None
) -> Iterator[tuple[str, dict[str, Any], list[Usage] | KernelError]]:
    """Compiles the chosen variants (None: all) for those of the architectures that they support, on all cores. Gives
    what their kernels use, or why one does not compile."""

    def compiled(name: str, defines: dict[str, Any], oldest: int) -> list[Usage] | KernelError:
        try:
            return [u for a in architectures if a >= oldest for u in compile_source(name, defines, a)]
        except KernelError as error:
            return error

    every = list(variants() if chosen is None else chosen)
    with ThreadPoolExecutor(threads.available()) as pool:
        for (name, defines, _), result in zip(every, pool.map(lambda v: compiled(*v), every), strict=True):
            yield name, defines, result


def main(arguments: Sequence[str]) -> int:
    architectures = [int(a.removeprefix("sm_")) for a in arguments] or ARCHITECTURES
    if missing():
        print(missing(), file=sys.stderr)
        return 2
    failures = []
    for name, defines, result in compile_variants(architectures):
        flags = " ".join((name, *source.flags(defines)))
        print(f"{flags}\n{'kernel':>28} {'arch':>7} {'registers':>10} {'shared':>7} {'stack':>6} {'spills':>7}")
        if isinstance(result, KernelError):
            failures.append(str(result))
            continue
        for u in result:
            print(f"{u.kernel:>28} {u.architecture:>7} {u.registers:>10} {u.shared:>7} {u.stack:>6} {u.spills:>7}")
        failures += [f"{flags}: {u.kernel} spills {u.spills} bytes on sm_{u.architecture}" for u in result if u.spills]
    print("\n".join(failures) or "all compile, without spills")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
