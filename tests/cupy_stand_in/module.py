"""Kernels, `cupy.cuda`, and the module that stands in CuPy's place."""

import contextlib
import sys
import types

import numpy as np

from tests.cupy_stand_in import nccl, streams
from tests.cupy_stand_in.arrays import Namespace, ndarray
from tests.cupy_stand_in.signatures import COUNTS, MISSING, api, load_libraries


class RawModule:
    """Kernels from the text that the GPU would get, run by the project's stand-in for CUDA."""

    def __init__(self, *, code, backend, options=()):
        from tinydiff.cuda import source

        assert backend == "nvrtc" and isinstance(options, tuple)
        files = [p.name for p in source.folder().glob("*.cu")]
        (self.name,) = [name for name in files if source.load(name) == code]
        defines = [option.removeprefix("-D").partition("=") for option in options if option.startswith("-D")]
        self.defines = {name: value for name, _, value in defines}
        self.text = source.load(self.name, host=True)
        self.kernels = source.kernels(self.text)

    def get_function(self, name):
        assert streams.capturing() is None, f"kernel {name} is compiled while the stream captures"
        load_libraries(name)
        return Kernel(self, name)


class Kernel:
    """A kernel of a RawModule."""

    max_dynamic_shared_size_bytes = 48 << 10

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __setattr__(self, name, value):
        assert streams.capturing() is None, f"{name} is set while the stream captures"
        super().__setattr__(name, value)

    def __call__(self, grid, block, args, *, shared_mem=0):
        from tinydiff.cuda import host

        assert shared_mem <= self.max_dynamic_shared_size_bytes
        module, parameters = self.module, self.module.kernels[self.name]
        values, written = [], []
        for parameter, value in zip(parameters, args, strict=True):
            if isinstance(value, ndarray):
                values.append(value._array)
                written += [] if parameter.is_const else [value._array]
            else:
                assert isinstance(value, np.generic), f"{self.name}: {type(value).__name__} gets to the GPU as 64 bits"
                assert not parameter.is_array or (value.dtype.itemsize == 8 and value == 0)
                values.append(None if parameter.is_array else value)
        COUNTS["launches of kernels"] += 1

        def run():
            host.run(module.name, module.text, self.name, parameters, grid, block, values, shared_mem, module.defines)

        graph = streams.capturing()
        if graph is None:
            run()
        else:
            graph.add(run, written)


def make_cuda():
    """cupy.cuda, as far as launching needs it."""
    streams.Stream.null = streams.Stream(null=True)
    failure = {name: type(name, (RuntimeError,), {}) for name in ("CompileException", "CUDADriverError")}
    return types.SimpleNamespace(
        Device=streams.Device,
        Stream=streams.Stream,
        Event=streams.Event,
        Graph=streams.Graph,
        MemoryPool=streams.MemoryPool,
        using_allocator=streams.using_allocator,
        get_current_stream=streams.get_current_stream,
        get_elapsed_time=streams.get_elapsed_time,
        alloc_pinned_memory=bytearray,
        compiler=types.SimpleNamespace(CompileException=failure["CompileException"]),
        driver=types.SimpleNamespace(CUDADriverError=failure["CUDADriverError"]),
        runtime=types.SimpleNamespace(
            CUDARuntimeError=streams.CUDARuntimeError,
            memGetInfo=lambda: (8 << 30, 16 << 30),
            runtimeGetVersion=lambda: 13000,
            getDeviceProperties=lambda device: {"name": b"NVIDIA H100 80GB HBM3"},
        ),
    )


def make():
    """The module, to be put into sys.modules as "cupy"."""
    cupy = Namespace("cupy", np)
    cupy.ndarray, cupy.is_available, cupy.__version__ = ndarray, lambda: True, api()["version"]
    cupy.RawModule, cupy.cuda = RawModule, make_cuda()
    pool = streams.MemoryPool()
    cupy.get_default_memory_pool = lambda: pool
    cupy.linalg = Namespace("cupy.linalg", np.linalg)
    cupy.lib = types.SimpleNamespace(stride_tricks=Namespace("cupy.lib.stride_tricks", np.lib.stride_tricks))
    return cupy


@contextlib.contextmanager
def put_in_place(monkeypatch, missing=("cublas",)):
    """A block in which the module, which it gives, stands in CuPy's place. missing: libraries that this machine lacks."""
    from tinydiff import backend

    module = make()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", nccl.make())
    MISSING.clear()
    MISSING.update(missing)
    COUNTS.clear()
    backend.cupy.cache_clear()
    try:
        yield module
    finally:
        MISSING.clear()
        backend.cupy.cache_clear()
