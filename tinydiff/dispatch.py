"""Which code computes a function of arrays: its definition, or a fast version on one of two shelves.

A definition in `ops/X.py` (or `random`, `optim`, `diffusion/noise`) says what is computed. It is decorated with
`@accelerated`. A call tries the function of the same name first: in `cpu/X.py` for NumPy's arrays, in `cuda/X.py` for
CuPy's. A fast version takes the same arguments. It may return NotImplemented; then the definition computes the result.

`by_definition()` computes everything by definition, and so does the environment variable TINYDIFF_PLAIN=1: to test, to
debug, to learn. TINYDIFF_KERNELS=0 does so for CuPy's arrays.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from tinydiff.backend import DEVICES, HALVES, device_of, is_array, widened

F = TypeVar("F", bound=Callable[..., Any])


class _Mode(threading.local):
    """Per thread, as the tape's modes are."""

    plain = os.environ.get("TINYDIFF_PLAIN", "0") not in ("", "0")
    on_host = False
    host_seed = 0


_mode = _Mode()


_ndarray, _float32 = np.ndarray, np.dtype(np.float32)
_WITHOUT_DTYPE = frozenset((type(None), bool, int, float, str))  # types of most arguments beside arrays


def _have_half(args: tuple[Any, ...]) -> bool:
    """Whether one of the arguments, or the first item of one, is an array of 16 bits; runs for every operation."""
    for arg in args:
        kind = type(arg)
        if kind in _WITHOUT_DTYPE or (kind is _ndarray and arg.dtype is _float32):
            continue
        first = arg[0] if kind in (tuple, list) and arg else arg
        if is_array(first) and first.dtype.char in HALVES:
            return True
    return False


def _widened(arg: Any) -> Any:
    return [widened(a) for a in arg] if isinstance(arg, tuple | list) and arg and is_array(arg[0]) else widened(arg)


class Accelerated(Protocol):
    """A decorated function; `definition` is the function itself."""

    definition: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


def accelerated(definition: F) -> F:
    """Decorates a definition: a fast version computes the function where there is one for the arrays.

    The fast version is found by the names of the function and of its file. Its shelf follows from the first argument
    that is an array, has one as its first item, or names a device.
    """
    return _accelerated(definition, widens=False)


def accelerated_in_float32(definition: F) -> F:
    """`accelerated`, for a definition with sums, which are float32. Arrays of 16 bits come as they are to fast versions for the
    GPU, and as float32 to what cannot take them: the definition, other fast versions, and those that return
    NotImplemented."""
    return _accelerated(definition, widens=True)


def _accelerated(definition: F, widens: bool) -> F:
    file, name = definition.__module__.rpartition(".")[2], definition.__name__
    files: dict[str, ModuleType | None] = {}  # of each shelf

    def fast(shelf: str, args: tuple[Any, ...], kwargs: dict[str, Any], otherwise: Any) -> Any:
        """What the fast version on a shelf returns; where there is none, what `otherwise` does."""
        if shelf not in files:
            files[shelf] = _file_on(shelf, file)
        function = getattr(files[shelf], name, None)
        if function is None:
            return otherwise(*args, **kwargs)
        if shelf == "cuda" and not _mode.on_host:
            with importlib.import_module("tinydiff.cuda.driver").explained(f"{file}.{name}"):
                return function(*args, **kwargs)
        return function(*args, **kwargs)

    @functools.wraps(definition)
    def dispatched(*args: Any, **kwargs: Any) -> Any:
        half = widens and _have_half((*args, *kwargs.values()))
        if not _mode.plain:
            shelf = "cpu"
            if _mode.on_host or "cupy" in sys.modules:
                shelf = _shelf((*args, *kwargs.values()))
            # A definition on 16 bits that has no fast version for the GPU leaves its sums to functions that have one.
            result = NotImplemented if half and shelf != "cuda" else fast(shelf, args, kwargs, definition)
            if result is not NotImplemented:
                return result
        if half:
            return dispatched(*map(_widened, args), **{key: _widened(value) for key, value in kwargs.items()})
        return definition(*args, **kwargs)

    cast(Accelerated, dispatched).definition = definition
    return cast(F, dispatched)


def _shelf(args: Iterable[Any]) -> str:
    """The shelf for these arguments: "cpu", "cuda", or "" for none."""
    for arg in args:
        first = arg[0] if isinstance(arg, tuple | list) and arg else arg
        if is_array(first) or (isinstance(first, str) and first in DEVICES):
            device = first if isinstance(first, str) else device_of(first)
            if not (_mode.on_host or device == "cuda"):
                return "cpu"
            return "cuda" if _kernels_are_on() else "" if device == "cuda" else "cpu"
    return ""


def _file_on(shelf: str, file: str) -> ModuleType | None:
    """The file of that name on the shelf, None if there is none."""
    if not shelf:
        return None
    name = f"tinydiff.{shelf}.{file}"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in (name, f"tinydiff.{shelf}"):  # a fast version that cannot be imported is an error
            raise
        return None


@contextmanager
def by_definition() -> Iterator[None]:
    """A block in which this thread computes everything by definition: slowly, by the formulas in `ops/`.

    The definitions work on NumPy's and CuPy's arrays. On a GPU their products of matrices are cuBLAS's.
    """
    before = _mode.plain
    _mode.plain = True
    try:
        yield
    finally:
        _mode.plain = before


@contextmanager
def on_host(seed: int = 0) -> Iterator[None]:
    """A block in which functions of NumPy arrays run their CUDA kernels on the CPU, by the stand-in for CUDA
    (kernels/host.h).

    It runs the same source, slowly and strictly, so that kernels are tested where there is no GPU. seed: of the random
    order in which threads and blocks take turns.
    """
    before = _mode.on_host, _mode.host_seed
    _mode.on_host, _mode.host_seed = True, seed
    try:
        yield
    finally:
        _mode.on_host, _mode.host_seed = before


def uses_kernels() -> bool:
    """Whether this thread computes functions of CuPy's arrays by kernels of our own."""
    return not _mode.plain and _kernels_are_on()


def is_on_host() -> bool:
    """Whether this thread is inside `on_host()`."""
    return _mode.on_host


def host_seed() -> int:
    """The seed of the present block of `on_host`."""
    return _mode.host_seed


def _kernels_are_on() -> bool:
    return os.environ.get("TINYDIFF_KERNELS") != "0"
