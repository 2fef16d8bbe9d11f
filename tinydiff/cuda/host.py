"""Runs kernels on the host: compiles them with the system's C++ compiler against kernels/host.h and calls them.

Libraries are kept in the user's cache by a hash of source, flags and compiler. Floating point follows nvcc's default: a
product and a sum may be contracted to one fused operation, and nothing else is reordered (-ffp-contract=fast, no
-ffast-math). Processors without such an instruction (x86-64's common base) round twice.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.cuda import source
from tinydiff.cuda.source import KernelError, Parameter

FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-strict-aliasing")
KERNEL_FLAGS = (
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-fstack-clash-protection",
    "-DTD_HOST",
    "-w",
)
CHECKS = "-fsanitize=bounds,alignment,shift-exponent,integer-divide-by-zero,signed-integer-overflow"

_lock = threading.Lock()  # one launch at a time: the stand-in catches the process's signals during it


class _Argument(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("element_bytes", ctypes.c_size_t),
        ("kind", ctypes.c_int),
    )


class _Stacks(ctypes.Structure):
    _fields_ = (("first", ctypes.POINTER(ctypes.c_char_p)), ("count", ctypes.c_size_t))


class _Launch(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_char_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_size_t),
        ("seed", ctypes.c_uint64),
        ("count", ctypes.c_int),
        ("arguments", ctypes.POINTER(_Argument)),
        ("stacks", ctypes.POINTER(_Stacks)),
        ("error", ctypes.c_char_p),
        ("error_bytes", ctypes.c_size_t),
    )


_stacks = _Stacks()  # of a block's threads; all libraries use them, and the one that needs more adds them


def run(
    name: str,
    text: str,
    kernel: str,
    parameters: Sequence[Parameter],
    grid: Sequence[int],
    block: Sequence[int],
    args: Sequence[Any],
    shared: int,
    defines: Mapping[str, Any],
    seed: int = 0,
) -> None:
    """Runs a kernel of a source; KernelError if it breaks a rule of CUDA. `seed`: of the order of threads and
    blocks."""
    call = getattr(_library(name, text, source.flags(defines)), f"td_run_{kernel}")
    args = [arg if arg is None else np.asarray(arg) for arg in args]
    arguments = (_Argument * max(1, len(args)))()
    for slot, parameter, arg in zip(arguments, parameters, args, strict=True):
        slot.name = parameter.name.encode()
        slot.element_bytes = parameter.dtype.itemsize
        slot.kind = (1 if parameter.is_const else 2) if parameter.is_array else 0
        if arg is not None:
            slot.data, slot.bytes = arg.ctypes.data, arg.nbytes
    error = ctypes.create_string_buffer(4096)
    launch = _Launch(
        kernel.encode(), tuple(grid), tuple(block), shared, seed, len(args), arguments,
        ctypes.pointer(_stacks), ctypes.cast(error, ctypes.c_char_p), len(error),
    )  # fmt: skip
    with _lock:
        status = call(ctypes.byref(launch))
    if status:
        raise KernelError(f"{name}: {error.value.decode()}")


@functools.cache
def compiler() -> str | None:
    """The C++ compiler: $CXX, or the first of c++, g++ and clang++ that is installed; None if none is."""
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return shutil.which(name)
    return None


def missing() -> str | None:
    """Why kernels cannot run on the host, in a sentence, or None if they can."""
    if compiler() is None:
        return "running kernels on the host needs a C++ compiler: install g++ or clang++, or set CXX"
    return None


@functools.cache
def cache_folder() -> Path:
    """Where compiled kernels are kept: XDG_CACHE_HOME/tinydiff, ~/.cache/tinydiff, or a temporary folder."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = Path(home) / "tinydiff" / "kernels"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError:
        return Path(tempfile.mkdtemp(prefix="tinydiff-kernels-"))


@functools.cache
def _compiler_version() -> str:
    path = compiler()
    assert path is not None
    return subprocess.run([path, "--version"], capture_output=True, text=True).stdout + path


@functools.cache
def _library(name: str, text: str, defines: tuple[str, ...]) -> ctypes.CDLL:
    runs = [_entry(kernel, parameters) for kernel, parameters in source.kernels(text).items()]
    whole = text + '#line 1 "entries"\n' + "\n".join(runs) + "\n"
    object_ = _build(source.load("host/runtime.cpp", host=True), FLAGS, "runtime.o", ["-c"])
    # Linked separately: with CHECKS the compiler would link its own library for them; ours are in host/checks.h.
    kernels = _build(whole, (*FLAGS, *KERNEL_FLAGS, CHECKS, *defines), f"{Path(name).stem}.o", ["-c"])
    path = _build("", FLAGS, f"{Path(name).stem}.so", ["-shared", str(kernels), str(object_)])
    return ctypes.CDLL(str(path))


def _entry(kernel: str, parameters: Sequence[Parameter]) -> str:
    values = [f"*({p.type}{'*' * p.is_array}*)v[{i}]" for i, p in enumerate(parameters)]
    return (
        f"static void td_call_{kernel}(void* const* v) {{ {kernel}({', '.join(values)}); }}\n"
        f'extern "C" __attribute__((visibility("default"))) int td_run_{kernel}(const td::Launch* launch) '
        f"{{ return td::run(launch, {kernel}_threads, td_call_{kernel}); }}"
    )


def _build(text: str, flags: Sequence[str], name: str, inputs: Sequence[str]) -> Path:
    """The compiled text, from the cache or put there: a finished file appears at once, so processes may compete."""
    reason = missing()
    if reason:
        raise KernelError(reason)
    key = hashlib.sha256("\0".join([_compiler_version(), *flags, *inputs, text]).encode()).hexdigest()[:24]
    path = cache_folder() / f"{key}-{name}"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        result = os.path.join(work, name)
        command = [str(compiler()), *flags, "-x", "c++", "-", "-x", "none", *inputs, "-o", result]
        done = subprocess.run(command, input=text, capture_output=True, text=True)
        if done.returncode:
            raise KernelError(f"{name} does not compile on the host:\n{done.stderr}")
        os.replace(result, path)
    return path
