"""One launch of a CUDA kernel of kernels/*.cu, its arguments checked: CuPy's arrays on the GPU, NumPy's on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    (int32, uint32, uint64, float32). shared: bytes of dynamic shared memory. defines: macros for the compiler. NumPy
    arrays run on the host, CuPy's on the current GPU. An empty grid runs nothing. Raises TypeError or ValueError where
    arguments do not fit the kernel, KernelError where it cannot be compiled or run.
    """
    defines = defines or {}
    grid, block = _triple("grid", grid), _triple("block", block)
    text = source.load(name, host=True)
    parameters = source.kernels(text).get(kernel)
    if parameters is None:
        raise ValueError(f"{name} has no kernel {kernel}; it has {', '.join(source.kernels(text)) or 'none'}")
    device = _check(kernel, parameters, args)
    if 0 in grid:
        return
    if device == "cuda":
        driver.run(name, kernel, grid, block, args, shared, defines)
    else:
        host.run(name, text, kernel, parameters, grid, block, args, shared, defines, host_seed())


def _triple(what: str, sizes: Sequence[int]) -> tuple[int, int, int]:
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
        if not parameter.is_array:
            if type(arg) is not parameter.dtype.type:
                raise _misfit(kernel, parameter, arg)
        elif arg is not None:
            fits = is_array(arg) and arg.dtype == parameter.dtype and arg.flags.c_contiguous
            if not fits or (isinstance(arg, np.ndarray) and not (parameter.is_const or arg.flags.writeable)):
                raise _misfit(kernel, parameter, arg)
            devices.add(device_of(arg))
    if len(devices) > 1:
        arrays = [(p.name, a) for p, a in zip(parameters, args, strict=True) if p.is_array and a is not None]
        where = ", ".join(f"{name} on {device_of(a)}" for name, a in arrays)
        raise ValueError(f"kernel {kernel}: its arrays are on different devices, {where}")
    return devices.pop() if devices else "cpu"


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
