"""One launch of a CUDA kernel of kernels/*.cu, its arguments checked: CuPy's arrays on the GPU, NumPy's on the host."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinydiff.backend import device_of, is_array
from tinydiff.cuda import driver, host, source
from tinydiff.cuda.source import Parameter
from tinydiff.dispatch import host_seed


def launch(
    name: str,
    kernel: str,
    grid: Sequence[int],
    block: Sequence[int],
    args: Sequence[Any],
    shared: int = 0,
    defines: Mapping[str, Any] | None = None,
) -> None:
    """Runs `kernel` of the source kernels/`name` with blocks (x, y, z) of threads in a grid (x, y, z) of blocks.

    args: for each parameter in order a C-contiguous array of the right dtype, None for an absent array, or a NumPy scalar
    (int32, uint32, uint64, float32). Where the source names a type (Element, Result), the defines say what it is; an array of
    bf16 is of uint16 or of ml_dtypes' bfloat16. shared: bytes of dynamic shared memory. defines: macros for the compiler. NumPy
    arrays run on the host, CuPy's on the current GPU. An empty grid runs nothing. Raises TypeError or ValueError where
    arguments do not fit the kernel, KernelError where it cannot be compiled or run.
    """
    defines = defines or {}
    grid, block = _triple("grid", tuple(grid)), _triple("block", tuple(block))
    parameters = _parameters(name, kernel, source.types_of(defines))
    device = _check(kernel, parameters, args)
    if 0 in grid:
        return
    if device == "cuda" and _noting.found is not None:
        _noting.found.add((name, source.flags_of(tuple(defines.items()))))
    elif device == "cuda":
        driver.run(name, kernel, grid, block, args, shared, defines)
    else:
        host.run(
            name, source.load(name, host=True), kernel, parameters, grid, block, args, shared, defines, host_seed()
        )


class _Noting(threading.local):
    found: set[tuple[str, tuple[str, ...]]] | None = None


_noting = _Noting()


@contextmanager
def noting(found: set[tuple[str, tuple[str, ...]]]) -> Iterator[None]:
    """A block in which this thread's launches on the GPU are left out; the source and the flags of each go to `found`."""
    before, _noting.found = _noting.found, found
    try:
        yield
    finally:
        _noting.found = before


@functools.cache
def _parameters(name: str, kernel: str, types: tuple[str, ...]) -> tuple[Parameter, ...]:
    """The kernel's parameters. ValueError where the source has no such kernel."""
    found = source.kernels(source.load(name, host=True), types)
    if kernel not in found:
        raise ValueError(f"{name} has no kernel {kernel}; it has {', '.join(found) or 'none'}")
    return found[kernel]


@functools.lru_cache(4096)
def _triple(what: str, sizes: tuple[int, ...]) -> tuple[int, int, int]:
    most = (2**31 - 1, 65535, 65535) if what == "grid" else (1024, 1024, 64)
    least = 0 if what == "grid" else 1
    if len(sizes) != 3 or min(sizes) < least:
        raise ValueError(f"{what} must be three sizes (x, y, z), not {tuple(sizes)}")
    x, y, z = map(int, sizes)
    if x > most[0] or y > most[1] or z > most[2]:
        raise ValueError(f"{what} {x, y, z} is larger than CUDA's {most}")
    return x, y, z


def _check(kernel: str, parameters: Sequence[Parameter], args: Sequence[Any]) -> str:
    """The device of the arguments, if they fit the parameters."""
    if len(args) != len(parameters):
        raise TypeError(f"kernel {kernel} takes {len(parameters)} arguments, not {len(args)}")
    devices = set()
    for parameter, arg in zip(parameters, args, strict=True):
        _, _, dtype, wants_array, is_const = parameter
        if not wants_array:
            if type(arg) is not dtype.type:
                raise _misfit(kernel, parameter, arg)
        elif arg is not None:
            if not is_array(arg) or not (arg.dtype == dtype or _is_bf16(arg, dtype)):
                raise _misfit(kernel, parameter, arg)
            if not (flags := arg.flags).c_contiguous:
                raise _misfit(kernel, parameter, arg)
            if isinstance(arg, np.ndarray) and not (is_const or flags.writeable):
                raise _misfit(kernel, parameter, arg)
            devices.add(device_of(arg))
    if len(devices) > 1:
        arrays = [(p.name, a) for p, a in zip(parameters, args, strict=True) if p.is_array and a is not None]
        where = ", ".join(f"{name} on {device_of(a)}" for name, a in arrays)
        raise ValueError(f"kernel {kernel}: its arrays are on different devices, {where}")
    return devices.pop() if devices else "cpu"


def _is_bf16(array: Any, dtype: np.dtype) -> bool:
    """Whether the array is of ml_dtypes' bfloat16, whose bits a kernel takes for whole numbers."""
    return dtype == np.uint16 and array.dtype.name == "bfloat16"


def _misfit(kernel: str, parameter: Parameter, arg: Any) -> Exception:
    """What is wrong with an argument that does not fit its parameter."""
    what = f"kernel {kernel}, parameter {parameter}:"
    if not parameter.is_array:
        return TypeError(f"{what} a NumPy scalar of {parameter.dtype} is needed, not {type(arg).__name__} {arg!r}")
    if not is_array(arg):
        return TypeError(f"{what} an array or None is needed, not {type(arg).__name__}")
    if arg.dtype != parameter.dtype:
        return TypeError(f"{what} an array of {parameter.dtype} is needed, not of {arg.dtype}")
    if not arg.flags.c_contiguous:
        return ValueError(f"{what} the array of shape {arg.shape} and strides {arg.strides} is not C-contiguous")
    return ValueError(f"{what} the array of shape {arg.shape} is read-only")
