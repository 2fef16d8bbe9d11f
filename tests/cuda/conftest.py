"""Where the kernels are tested: on the host by the stand-in of CUDA, and on a GPU where there is one."""

from contextlib import nullcontext

import numpy as np
import pytest

from tinydiff import backend
from tinydiff.cuda import host, split_k
from tinydiff.dispatch import on_host
from tinydiff.precision import from_memory, in_memory, rounded


class Device:
    """Puts arrays where the kernels run, and calls functions there."""

    def __init__(self, name):
        self.name = name
        self.xp = np if name == "host" else backend.cupy()
        self.place = "cpu" if name == "host" else "cuda"

    def array(self, a):
        """The array (any nesting of lists and None is passed through) on this device."""
        if isinstance(a, list | tuple):
            return type(a)(self.array(x) for x in a)
        return self.xp.asarray(a) if isinstance(a, np.ndarray) else a

    def numpy(self, a):
        """Back to NumPy, the same way."""
        if isinstance(a, list | tuple):
            return type(a)(self.numpy(x) for x in a)
        return backend.to_numpy(a) if backend.is_array(a) else a

    def run(self, function, *args, seed=0, **kwargs):
        """function(*args, **kwargs) with the arrays among the arguments on the device; the results as NumPy arrays.

        seed: of the order in which the host's stand-in lets threads take turns."""
        args = [self.array(a) for a in args]
        kwargs = {name: self.array(a) for name, a in kwargs.items()}
        with on_host(seed) if self.name == "host" else nullcontext():
            return self.numpy(function(*args, **kwargs))


_empty = np.empty


def nan_filled(*args, **kwargs):
    """np.empty as the worst case: floats are NaN, integers have all bits set."""
    a = _empty(*args, **kwargs)
    if a.dtype != object and a.size:
        memoryview(a.ravel("K").view(np.uint8))[:] = b"\xff" * a.nbytes
    return a


HALVES = ("bf16", "fp16")


def in_16_bits(precision, *arrays):
    """(as they lie in memory, as the float64 numbers that they are then) of float32 arrays."""
    return [in_memory(a, precision) for a in arrays], [rounded(a, precision).astype(np.float64) for a in arrays]


def assert_rounded(ours, truth, error=3e-6):
    """That numbers of 16 bits in memory are off by rounding the truth to them and by a share `error` of its largest one."""
    bits = 8 if ours.dtype == np.uint16 else 11
    numbers, truth = from_memory(ours).astype(np.float64), np.asarray(truth)
    assert numbers.shape == truth.shape
    exponents = np.frexp(np.maximum(np.abs(numbers), 2.0**-14 if bits == 11 else 0))[1]  # fp16 has no finer units below
    off = np.abs(numbers - truth) - np.ldexp(0.5, exponents - bits)
    worst = off.max(initial=-np.inf)
    assert worst <= error * np.abs(truth).max(initial=1e-30), f"{worst} beyond half a unit"


@pytest.fixture(params=["host", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """A `Device`. On the host, np.empty gives NaN, so that outputs which a kernel forgets show. Counters of parts are zero again
    after each test."""
    if request.param == "cuda":
        if backend.cupy() is None:
            pytest.skip("needs an NVIDIA GPU and CuPy")
    else:
        if host.missing():
            pytest.skip(host.missing())
        monkeypatch.setattr(np, "empty", nan_filled)
    monkeypatch.setattr(split_k, "_counters", {})
    yield Device(request.param)
    assert not any(counters.any() for counters in split_k._counters.values())
