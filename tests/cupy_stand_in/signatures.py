"""Which calls CuPy takes: its signatures, the libraries that they need, and counts of what the GPU was given."""

import collections
import functools
import inspect
import json
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("api.json")
MISSING = set()  # of "nvrtc", "headers", "cublas"
PRODUCTS = ("matmul", "dot", "vdot", "inner", "tensordot", "einsum", "kron")  # what CuPy has cuBLAS compute
WITHOUT_KERNELS = ("empty", "empty_like", "zeros", "asarray", "array", "broadcast_to", "result_type", "reshape", "item")
COUNTS = (
    collections.Counter()
)  # what the GPU was given: "launches of kernels", "launches of CuPy", "allocations" and others


@cache
def api():
    return json.loads(FILE.read_text(encoding="utf-8"))


class DynamicLibNotFoundError(RuntimeError):
    """That of cuda.pathfinder, which CuPy asks for libraries."""


def needs_cublas(name):
    """Whether CuPy has cuBLAS, or one of the libraries like it, compute the function of that name."""
    return name in PRODUCTS or name.startswith("linalg.")


def load_libraries(name):
    """Fails as CuPy does where a function of that name needs a library that is MISSING."""
    if MISSING and name not in WITHOUT_KERNELS:
        if "nvrtc" in MISSING:
            raise DynamicLibNotFoundError(
                'Failure finding "libnvrtc.so.13": No such file: libnvrtc.so.13\n  listdir("/usr/lib"):'
            )
        if "headers" in MISSING:
            raise RuntimeError(
                "Failed to find CUDA headers. Please install CUDA toolkit headers (e.g., pip install cupy-cuda12x[ctk]) "
                "or specify CUDA_PATH environment variable."
            )
        if "cublas" in MISSING and needs_cublas(name):
            raise ImportError("libcublasLt.so.13: cannot open shared object file: No such file or directory")


@cache
def signature(text):
    """An inspect.Signature from text such as "(a, axis=None, *, out=None)"."""
    scope = {}
    exec(f"def f{text}: pass", scope)
    return inspect.signature(scope["f"])


def check(kind, name, *args, **kwargs):
    """Refuses a name that CuPy does not have, and arguments that it does not take."""
    known = api()[kind]
    if name not in known:
        raise AttributeError(f"CuPy has no {kind} {name!r}")
    try:
        signature(known[name]).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"cupy's {name}{known[name]}: {error}") from None


def of_cuda(name):
    """Holds a function, or a method that names its class ("Stream.record"), to its signature in `cupy.cuda`."""

    def decorate(function):
        @functools.wraps(function)
        def checked(*args, **kwargs):
            check("cuda", name, *args, **kwargs)
            return function(*args, **kwargs)

        return checked

    return decorate
