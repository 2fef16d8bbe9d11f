"""The CUDA kernels of kernels/*.cu, and where they run: CuPy's arrays on the GPU, NumPy's on the host.

On the host a stand-in of CUDA (kernels/host.h) runs the same source, slowly and strictly, so that every kernel is tested
where there is no GPU. It is for tests: operations take it only inside `on_host()`. The families of kernels, modules of this
package, are functions from arrays to arrays; operations reach them by `accelerated`.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np

from tinydiff.backend import device_of, is_array
from tinydiff.kernels import source
from tinydiff.kernels.source import KernelError, Parameter

__all__ = ["KernelError", "accelerated", "is_on_host", "launch", "on_host", "takes"]

F = TypeVar("F", bound=Callable[..., Any])


class _Host(threading.local):
    active = False
    seed = 0


_host = _Host()


@contextmanager
def on_host(seed: int = 0) -> Iterator[None]:
    """A block in which operations on NumPy arrays of float32 run their kernels, by the stand-in of CUDA.

    seed: of the random order in which threads and blocks take turns.
    """
    before = _host.active, _host.seed
    _host.active, _host.seed = True, seed
    try:
        yield
    finally:
        _host.active, _host.seed = before


def is_on_host() -> bool:
    """Whether this is inside `on_host()`."""
    return _host.active


def takes(x: Any) -> bool:
    """Whether the kernels compute with this array: one of CuPy, or inside `on_host()` one of NumPy.

    The environment variable TINYDIFF_KERNELS=0 turns them off; CuPy's own operations compute then.
    """
    return is_array(x) and (_host.active or device_of(x) == "cuda") and os.environ.get("TINYDIFF_KERNELS") != "0"


def accelerated(name: str) -> Callable[[F], F]:
    """Has a function of arrays computed by tinydiff.kernels.`name` ("convolution.convolve") where the kernels take its
    arrays, unless that returns NotImplemented: then, and elsewhere, the decorated function itself computes."""
    module, _, function = name.rpartition(".")

    def decorate(plain: F) -> F:
        @functools.wraps(plain)
        def either(*args: Any, **kwargs: Any) -> Any:
            if _host.active or "cupy" in sys.modules:
                first = _first_array((*args, *kwargs.values()))
                if first is not None and takes(first):
                    kernel = getattr(importlib.import_module(f"tinydiff.kernels.{module}"), function)
                    with _explained(name, first):
                        result = kernel(*args, **kwargs)
                    if result is not NotImplemented:
                        return result
            return plain(*args, **kwargs)

        return either  # type: ignore[return-value]

    return decorate


def _first_array(args: Sequence[Any]) -> Any:
    """The first array among arguments, or at the start of a tuple or list among them."""
    for arg in args:
        first = arg[0] if isinstance(arg, tuple | list) and arg else arg
        if is_array(first):
            return first
    return None


def _explained(what: str, x: Any) -> AbstractContextManager[None]:
    """Around work with arrays like x: on the GPU, failures of memory and driver become a KernelError that helps."""
    if device_of(x) == "cpu":
        return nullcontext()
    from tinydiff.kernels import cuda

    return cuda.explained(what)


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
        from tinydiff.kernels import cuda

        cuda.run(name, kernel, grid, block, args, shared, defines)
    else:
        from tinydiff.kernels import host

        host.run(name, text, kernel, parameters, grid, block, args, shared, defines, _host.seed)


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
