"""NumPy or CuPy: which array module an array belongs to, and the moves between them.

This is the one file that imports cupy, and it does so only when somebody asks for a GPU: importing tinydiff stays
cheap.
"""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any

import numpy as np

from tinydiff.errors import InputError

DEVICES = ("cpu", "cuda")


@functools.cache
def cupy() -> ModuleType | None:
    """The cupy module if it is installed and sees a GPU, else None.

    Without a GPU `import cupy` succeeds and only later calls fail, so `is_available` is what decides.
    """
    try:
        import cupy as module
    except ImportError:
        return None
    return module if module.is_available() else None


def resolve_device(device: str) -> str:
    """The device that a user's wish ("auto", "cpu" or "cuda") comes to on this machine; InputError if it is not
    here."""
    if device == "auto":
        return "cuda" if cupy() is not None else "cpu"
    if device not in DEVICES:
        raise InputError(f"device must be one of auto, cpu or cuda, not {device!r}")
    if device == "cuda" and cupy() is None:
        raise InputError(
            "device cuda needs an NVIDIA GPU and CuPy: install tinydiff[cuda12] or tinydiff[cuda13], "
            "whichever matches the driver's CUDA version, or use --device cpu"
        )
    return device


def is_array(x: Any) -> bool:
    """True for a NumPy or CuPy array."""
    return isinstance(x, np.ndarray) or _is_cupy(x)


def array_module(x: Any) -> ModuleType:
    """numpy or cupy, by the type of `x`; whatever is not an array belongs to numpy."""
    return sys.modules["cupy"] if _is_cupy(x) else np


def module_for(device: str) -> ModuleType:
    """The array module of a resolved device: numpy for "cpu", cupy for "cuda"."""
    module = np if resolve_device(device) == "cpu" else cupy()
    assert module is not None
    return module


def device_of(x: Any) -> str:
    """ "cpu" or "cuda"."""
    return "cuda" if _is_cupy(x) else "cpu"


def to_device(x: Any, device: str) -> Any:
    """The array on the given device: itself if it is there already, else a copy."""
    device = resolve_device(device)
    if device_of(x) == device:
        return x
    return to_numpy(x) if device == "cpu" else module_for("cuda").asarray(x)


def to_numpy(x: Any) -> np.ndarray:
    """The array in host memory; no copy if it is there already."""
    return x.get() if _is_cupy(x) else np.asarray(x)


def _is_cupy(x: Any) -> bool:
    return type(x).__module__.partition(".")[0] == "cupy"
