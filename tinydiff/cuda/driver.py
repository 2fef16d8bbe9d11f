"""Runs kernels on the GPU: compiles them with NVRTC through CuPy and launches them on the current stream.

CuPy keeps the binaries in its own cache (~/.cupy/kernel_cache). The cache's key does not cover included files, so
headers are put into the text first (source.load).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinydiff import backend, replay
from tinydiff.cuda import source
from tinydiff.cuda.source import KernelError, MemoryFull
from tinydiff.errors import named

OPTIONS = ("--std=c++17",)  # of the compiler; defines and what CuPy adds come on top
STATIC_LIMIT = 48 << 10  # bytes of dynamic shared memory that a kernel may have without asking for more


def run(
    name: str,
    kernel: str,
    grid: Sequence[int],
    block: Sequence[int],
    args: Sequence[Any],
    shared: int,
    defines: Mapping[str, Any],
) -> None:
    """Launches a kernel of kernels/`name` on the device of its arrays; does not wait for it."""
    cupy = backend.cupy()
    if cupy is None:
        raise KernelError(backend.no_cuda() or "CuPy is not available")
    array = cupy.ndarray
    devices = {arg.device.id for arg in args if isinstance(arg, array)}
    if len(devices) > 1:
        raise ValueError(f"kernel {kernel}: its arrays are on different GPUs, {sorted(devices)}")
    (device,) = devices
    # An absent array is a null pointer: eight bytes of zero.
    if (recording := replay.current()) is not None:
        recording.launches += 1
    values = tuple(np.uint64(0) if arg is None else arg for arg in args)
    with explained(f"{name}: kernel {kernel}"), cupy.cuda.Device(device):
        function = _function(
            name, kernel, source.flags_of(tuple(defines.items())), device, shared > STATIC_LIMIT and shared
        )
        function(tuple(grid), tuple(block), values, shared_mem=shared)


def prepare(name: str, flags: tuple[str, ...], device: int) -> None:
    """Compiles kernels/`name` with the compiler's flags, or reads the binary from CuPy's cache, and loads it to a GPU."""
    cupy = backend.cupy()
    assert cupy is not None
    with explained(f"{name} {' '.join(flags)}"), cupy.cuda.Device(device):
        _function(name, next(iter(source.kernels(source.load(name, host=True)))), flags, device, 0)


@functools.cache
def _module(name: str, flags: tuple[str, ...]) -> Any:
    cupy = backend.cupy()
    assert cupy is not None
    return cupy.RawModule(code=source.load(name), backend="nvrtc", options=(*OPTIONS, *flags))


@functools.cache
def _function(name: str, kernel: str, flags: tuple[str, ...], device: int, large: int) -> Any:
    """The compiled kernel. large: bytes of dynamic shared memory beyond what every kernel may use. That limit belongs
    to the function, which all calls share, so a smaller one must not replace it."""
    function = _module(name, flags).get_function(kernel)
    if large and large > function.max_dynamic_shared_size_bytes:
        function.max_dynamic_shared_size_bytes = large
    return function


@contextmanager
def explained(what: str) -> Iterator[None]:
    """A block in which a failure of compiler, driver or memory, or a missing library, becomes a KernelError: one
    sentence that says what helps."""
    cupy = backend.cupy()
    assert cupy is not None
    try:
        yield
    except KernelError:  # of a launch inside; it says what helps
        raise
    except cupy.cuda.compiler.CompileException as error:
        raise KernelError(f"{what} does not compile for this GPU:\n{error}") from None
    except MemoryError as error:  # CuPy's OutOfMemoryError is one
        raise MemoryFull(f"{what}: {_memory_is_full()} ({error})") from None
    except (cupy.cuda.driver.CUDADriverError, cupy.cuda.runtime.CUDARuntimeError) as error:
        raise KernelError(f"{what}: {_advice(str(error))} ({error})") from None
    except (ImportError, RuntimeError) as error:
        if (sentence := backend.missing_library(error)) is None:
            raise
        raise KernelError(f"{what}: {sentence}") from None


def _memory_is_full() -> str:
    """What helps where the GPU has no memory left."""
    return f"the GPU's memory is full; a smaller batch (with a larger {named('accumulate')} for the same total) helps"


def _advice(error: str) -> str:
    """What to do about an error of the driver or the runtime."""
    known = {
        "OUT_OF_MEMORY": _memory_is_full(),
        "MemoryAllocation": _memory_is_full(),
        "NO_BINARY_FOR_GPU": "this GPU is older than the kernels support (compute capability 7.5)",
        "UNSUPPORTED_PTX_VERSION": "the driver is older than the compiler of this CuPy; update the driver or install "
        "tinydiff[cuda12]",
        "InsufficientDriver": "the driver is older than this CuPy needs; update it or install tinydiff[cuda12]",
        "INVALID_VALUE": "this GPU does not have the shared memory or the sizes that the kernel asks for",
        "LAUNCH_OUT_OF_RESOURCES": "this GPU does not have the registers or the shared memory that the kernel asks for",
        "ILLEGAL_ADDRESS": "an earlier kernel left its arrays, and the process must end; "
        "the same call inside tinydiff.dispatch.on_host() names the kernel",
    }
    for key, advice in known.items():
        if key in error:
            return advice
    return "the GPU refused"
