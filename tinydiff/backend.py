"""NumPy or CuPy: which array module an array belongs to, and the moves between them.

This is the only file that imports cupy, and it does so when a GPU is asked for: importing tinydiff stays cheap.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import re
import sys
import warnings
from types import ModuleType
from typing import Any

import numpy as np

from tinydiff.errors import InputError, RunFailed, named
from tinydiff.machine.terminal import say

DEVICES = ("cpu", "cuda")
_LIBRARIES = {
    "nvrtc": "NVRTC", "cublas": "cuBLAS", "cusolver": "cuSOLVER", "cusparse": "cuSPARSE", "curand": "cuRAND",
    "cufft": "cuFFT", "nvjitlink": "nvJitLink",
}  # fmt: skip


@functools.cache
def cupy() -> ModuleType | None:
    """The cupy module if it is installed and sees a GPU, else None.

    Without a GPU `import cupy` succeeds and only later calls fail, so `is_available` is what decides.
    """
    try:
        import cupy as module
    except ImportError:
        return None
    if not hasattr(module, "is_available"):  # a folder of that name, which Python takes for a package
        return None
    return module if module.is_available() else None


def no_cuda() -> str | None:
    """Why there is no device cuda on this machine and what to install or change, in one sentence; None if there is
    one."""
    instead = named("device", "cpu")
    if (found := cupy()) is not None:
        lacking = _lacking(found)
        return None if lacking is None else f"{lacking}; or use {instead}"
    driver = driver_version()
    if driver is None:
        return f"device cuda needs an NVIDIA GPU with its driver, and no driver is installed here; use {instead}"
    supports = f"the driver supports CUDA {driver[0]}.{driver[1]}"
    if driver[0] < 12:
        return f"device cuda needs a driver for CUDA 12 or later, and {supports}: update the driver, or use {instead}"
    package = _extra(driver[0])
    try:
        import cupy as module
    except ModuleNotFoundError as error:
        if error.name == "cupy":
            return f"device cuda needs CuPy, which is not installed: install {package} ({supports}), or use {instead}"
        return f"CuPy cannot be imported ({error}): install {package} again ({supports}), or use {instead}"
    except ImportError as error:
        return f"CuPy cannot be imported ({error}): install {package} again ({supports}), or use {instead}"
    built = module.cuda.runtime.runtimeGetVersion() // 1000
    if built > driver[0]:
        return (
            f"CuPy is built for CUDA {built}, and {supports}: "
            f"uninstall cupy-cuda{built}x and install {package}, update the driver, or use {instead}"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hint = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"
    return f"CuPy and the driver are installed and see no NVIDIA GPU{hint}; use {instead}"


@functools.cache
def _lacking(cupy: ModuleType) -> str | None:
    """What CuPy lacks to run any kernel, found by running one: the sentence of `missing_library`, or None."""
    try:
        cupy.ones(1)
    except Exception as error:  # other failures are reported where they happen, with what was tried
        return missing_library(error)
    return None


def missing_library(error: Exception) -> str | None:
    """What to install, in a sentence, if the error is CuPy's for a missing library of CUDA or for its missing headers,
    else None. CuPy looks for each when it first needs it, and its wheels bring none of them."""
    if "cupy" not in sys.modules:
        return None
    text = str(error).partition("\n")[0]
    if isinstance(error, RuntimeError) and "Failed to find CUDA headers" in text:
        missing, them = "the headers of CUDA", "them"
    elif isinstance(error, ImportError) or any(c.__name__ == "DynamicLibNotFoundError" for c in type(error).__mro__):
        match = re.search("|".join(_LIBRARIES), text.lower())
        if match is None:
            return None
        missing, them = f"{_LIBRARIES[match[0]]}, a library of CUDA", "it"
    else:
        return None
    extra = _extra(sys.modules["cupy"].cuda.runtime.runtimeGetVersion() // 1000)
    return f"CuPy does not find {missing}: install {extra}, which brings {them}"


def refuse_missing_library(error: Exception, what: str) -> None:
    """RunFailed, one sentence that says what to install, if `what` failed with an error that `missing_library`
    explains."""
    if (sentence := missing_library(error)) is not None:
        raise RunFailed(f"{what}: {sentence}") from None


def _extra(cuda: int) -> str:
    """The extra for a major version of CUDA."""
    return f"tinydiff[cuda{min(max(cuda, 12), 13)}]"


def driver_version() -> tuple[int, int] | None:
    """(major, minor) of the newest CUDA that the installed driver supports; None without a driver."""
    import ctypes

    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def resolve_device(device: str) -> str:
    """The device that a wish ("auto", "cpu" or "cuda") means on this machine: "cpu" or "cuda". InputError if it is not
    here.

    auto: the GPU that CuPy sees, else the CPU. Where CuPy sees a GPU but lacks libraries to use it, it is the CPU too,
    and a line on stderr says so.
    """
    if device == "auto":
        if cupy() is None:
            return "cpu"
        if (reason := no_cuda()) is None:
            return "cuda"
        _say_once(f"no GPU is used: {reason.partition(';')[0]}")
        return "cpu"
    if device not in DEVICES:
        raise InputError(f"device must be one of auto, cpu or cuda, not {device!r}")
    if device == "cuda":
        reason = no_cuda()
        if reason is not None:
            raise InputError(reason)
    return device


_say_once = functools.cache(say)


def host_threads(device: str, wish: int | None = None) -> int | None:
    """How many threads may launch work on a resolved device, at most `wish` (None: no limit): one for a GPU, else the
    wish. CuPy's current device and stream belong to a thread, so helpers would work on others."""
    return 1 if device == "cuda" else wish


_ndarray = np.ndarray  # found faster than as an attribute, which counts where it is asked thousands of times a step


def is_array(x: Any) -> bool:
    """Whether x is a NumPy or CuPy array."""
    kind: Any = type(x)
    return isinstance(x, _ndarray) or _is_cupys(kind)


def array_module(x: Any) -> ModuleType:
    """numpy or cupy, by the type of `x`; numpy for everything that is not an array."""
    return sys.modules["cupy"] if _is_cupy(x) else np


HALVES = "eE"  # NumPy's character for float16, and that of ml_dtypes for bfloat16


def is_float(dtype: Any, or_complex: bool = False) -> bool:
    """Whether numbers of a dtype are floating point, so that they may have gradients and be NaN. bfloat16, which is not
    NumPy's own but that of the package ml_dtypes, is; NumPy calls it a "void". or_complex: whether complex numbers count."""
    return dtype.kind == "f" or (or_complex and dtype.kind == "c") or dtype.name == "bfloat16"


def widened(x: Any) -> Any:
    """x in float32 if it is an array of 16-bit floating point numbers, else x itself: counts, squares and sums soon leave
    half's range (65504) or its 11 bits, or the 8 bits of bfloat16."""
    return x.astype("float32") if is_array(x) and x.dtype.char in HALVES else x


def widened_dtype(dtype: Any) -> Any:
    """float32 for 16-bit floating point numbers, else the dtype itself."""
    return np.result_type(dtype, np.float32)


def module_for(device: str) -> ModuleType:
    """The array module of a resolved device: numpy for "cpu", cupy for "cuda"."""
    module = np if resolve_device(device) == "cpu" else cupy()
    assert module is not None
    return module


def device_of(x: Any) -> str:
    """The device of x: "cuda" for a CuPy array, "cpu" for everything else."""
    kind: Any = type(x)
    return "cuda" if _is_cupys(kind) else "cpu"


def to_device(x: Any, device: str) -> Any:
    """The array x on a device, "auto", "cpu" or "cuda": itself if it is there already, else a copy. InputError where
    there is no such device."""
    device = resolve_device(device)
    if device_of(x) == device:
        return x
    return to_numpy(x) if device == "cpu" else module_for("cuda").asarray(x)


def to_numpy(x: Any, read_note: bool = True) -> np.ndarray:
    """The array x in host memory; no copy if it is there already. IndexError where a kernel noted a wrong index before;
    without `read_note` that is not asked."""
    if not _is_cupy(x):
        return np.asarray(x)
    values = x.get()
    if read_note and _noting and (note := pending_note()) is not None:
        settle_note(note, bool(note.get()[0]))
    return values


_notes: dict[int, Any] = {}  # of each GPU: int32 (1,), where kernels note a wrong index
_noting: set[int] = set()  # GPUs whose note some kernel may have changed since it was read


def note_of_wrong_indices() -> Any:
    """An array (1,) on the current GPU, 0, where a kernel may note that an index is not in 0..V-1, as V: nothing waits for
    the GPU to check an argument. The next `to_numpy` raises the IndexError."""
    module = module_for("cuda")
    device = module.cuda.Device().id
    if device not in _notes:
        _notes[device] = module.zeros(1, np.int32)
    _noting.add(device)
    return _notes[device]


def pending_note() -> Any:
    """The note of the current GPU if it may have been changed since it was read, else None."""
    device = module_for("cuda").cuda.Device().id
    return _notes[device] if device in _noting else None


def settle_note(note: Any, changed: bool) -> None:
    """For who has read a note: clears it and raises the IndexError where it is `changed`. None: there was nothing to read."""
    if note is None:
        return
    _noting.discard(note.device.id)
    if changed:
        V = int(note.get()[0])
        note[...] = 0
        raise IndexError(wrong_index(V))


def wrong_index(V: int) -> str:
    """What is said of an index on the GPU that is not in 0..V-1."""
    return f"embedding: an index is not in 0..{V - 1}"


def nccl() -> ModuleType | None:
    """CuPy's module for NCCL, which carries arrays between GPUs; None where that library is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy's own of the missing library
        module = importlib.import_module("cupy.cuda.nccl")
    return module if module.available else None


def extra_of_nccl() -> str:
    """The package that brings NCCL."""
    return f"nvidia-nccl-cu{min(max(module_for('cuda').cuda.runtime.runtimeGetVersion() // 1000, 12), 13)}"


def synchronize() -> None:
    """Waits until the GPU, if one is in use, has done everything that it was given; for measuring time."""
    if "cupy" in sys.modules and (module := cupy()) is not None:
        module.cuda.get_current_stream().synchronize()


def compute_capability() -> int:
    """That of the current GPU, such as 90 for 9.0."""
    return int(module_for("cuda").cuda.Device().compute_capability)


def gpu_memory() -> tuple[int, int]:
    """(all, free) bytes of the GPU's memory. Free is what no program holds, and what CuPy's pool holds unused."""
    module = module_for("cuda")
    free, total = module.cuda.runtime.memGetInfo()
    pool = module.get_default_memory_pool()
    return total, free + pool.free_bytes()


def gpu_reserved(trim: bool = False) -> int:
    """Bytes that CuPy's pool holds of the GPU's memory. With `trim` it first gives back what it does not use."""
    pool = module_for("cuda").get_default_memory_pool()
    if trim:
        pool.free_all_blocks()
    return int(pool.total_bytes())


class PinnedArray:
    """An array on the host that the GPU copies from while both go on working. shape, dtype: its own."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self._cuda = module_for("cuda").cuda
        count, dtype = math.prod(shape), np.dtype(dtype)
        self._memory = self._cuda.alloc_pinned_memory(max(1, count * dtype.itemsize))
        self._array = np.frombuffer(self._memory, dtype, count).reshape(shape)
        self._copied: Any = None

    def writable(self) -> np.ndarray:
        """The array, once the last copy of it has been made."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._array

    def copy_to(self, x: Any) -> None:
        """Has the GPU copy it to its own array x, after all that the current stream was given before."""
        stream = self._cuda.get_current_stream()
        x.set(self._array, stream=stream)
        self._copied = self._copied or self._cuda.Event(disable_timing=True)
        self._copied.record(stream)


def address(x: Any) -> int:
    """Where the first element of the array x lies in its device's memory, in bytes."""
    return x.data.ptr if _is_cupy(x) else x.ctypes.data


def _is_cupy(x: Any) -> bool:
    kind: Any = type(x)
    return _is_cupys(kind)


@functools.cache
def _is_cupys(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "cupy"
