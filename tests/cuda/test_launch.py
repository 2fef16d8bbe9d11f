"""tinydiff/cuda/launch.py and driver.py: launch() checks what it is given, and the way to the GPU."""

import sys
import types
from contextlib import nullcontext

import numpy as np
import pytest

from tinydiff import backend, dispatch
from tinydiff.cuda import driver, host, source
from tinydiff.cuda.launch import launch
from tinydiff.cuda.source import KernelError
from tinydiff.dispatch import accelerated, on_host

SOURCE = """
#include "tinydiff.cuh"
#ifndef FACTOR
#define FACTOR 2
#endif
KERNEL(scale, 64)(const float* X, float* Y, float a, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) Y[i] = FACTOR * a * X[i];
}
KERNEL(integers, 1)(int* a, unsigned* b, unsigned long long c, unsigned d) {}
"""
needs_compiler = pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "scale.cu"
    path.write_text(SOURCE)
    return str(path)


def arguments(**others):
    X = np.arange(100, dtype=np.float32)
    given = {"X": X, "Y": np.full(100, np.nan, np.float32), "a": np.float32(3), "n": np.int32(100)} | others
    return tuple(given.values())


@needs_compiler
def test_runs_with_defines(path):
    for defines, factor in ((None, 2), ({"FACTOR": 5}, 5), ({"FACTOR": 2}, 2)):
        args = arguments()
        launch(path, "scale", (2, 1, 1), (64, 1, 1), args, defines=defines)
        np.testing.assert_array_equal(args[1], factor * 3 * args[0])


@needs_compiler
def test_empty_arrays(path):
    empty = np.zeros(0, np.float32)
    launch(path, "scale", (1, 1, 1), (64, 1, 1), arguments(X=empty, Y=empty.copy(), n=np.int32(0)))


def test_bits_of_bf16_are_not_those_of_fp16(tmp_path, monkeypatch):
    path, ran = tmp_path / "halves.cu", []
    path.write_text('#include "tinydiff.cuh"\n#include "precision.cuh"\nKERNEL(copy, 1)(const Element* X) {}\n')
    monkeypatch.setattr(host, "run", lambda *args: ran.append(args))
    x, run = np.ones(3, np.float16), (str(path), "copy", (1, 1, 1), (1, 1, 1))
    launch(*run, (x.view(np.uint16),), defines={"PRECISION": "BF16"})
    assert ran
    for other in (x, x.view(np.int16), x.astype(np.float32)):
        with pytest.raises(TypeError, match="uint16"):
            launch(*run, (other,), defines={"PRECISION": "BF16"})


def test_an_empty_grid_runs_nothing_but_checks(path, monkeypatch):
    monkeypatch.setattr(host, "run", None)
    for grid in ((0, 1, 1), (1, 0, 1), (5, 1, 0)):
        launch(path, "scale", grid, (64, 1, 1), arguments())
    with pytest.raises(TypeError):
        launch(path, "scale", (0, 1, 1), (64, 1, 1), ())


WRONG = {
    "kind": (
        {"a": 3.0},
        TypeError,
        r"kernel scale, parameter float a: a NumPy scalar of float32 is needed, not float 3\.0",
    ),
    "wide scalar": ({"n": np.int64(3)}, TypeError, "parameter int n: a NumPy scalar of int32"),
    "array for a scalar": ({"n": np.zeros(1, np.int32)}, TypeError, "parameter int n: a NumPy scalar"),
    "absent scalar": ({"n": None}, TypeError, "parameter int n"),
    "scalar for an array": ({"X": np.float32(1)}, TypeError, r"parameter const float\* X: an array or None"),
    "list": ({"X": [1.0]}, TypeError, "an array or None is needed, not list"),
    "dtype": ({"X": np.zeros(100)}, TypeError, "an array of float32 is needed, not of float64"),
    "strides": (
        {"X": np.zeros((4, 200), "f4")[:, ::2]},
        ValueError,
        r"\(4, 100\) and strides \(800, 8\) is not C-cont",
    ),
    "fortran": ({"Y": np.zeros((4, 5), "f4", "F")}, ValueError, r"parameter float\* Y: .* is not C-contiguous"),
    "byte order": ({"X": np.zeros(100, ">f4")}, TypeError, "an array of float32 is needed, not of >f4"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arguments_that_do_not_fit(path, case):
    others, error, sentence = WRONG[case]
    with pytest.raises(error, match=sentence):
        launch(path, "scale", (2, 1, 1), (64, 1, 1), arguments(**others))


def test_other_mistakes_of_a_call(path):
    with pytest.raises(TypeError, match="kernel scale takes 4 arguments, not 3"):
        launch(path, "scale", (2, 1, 1), (64, 1, 1), arguments()[:3])
    with pytest.raises(ValueError, match="has no kernel scales; it has scale, integers"):
        launch(path, "scales", (2, 1, 1), (64, 1, 1), arguments())
    with pytest.raises(ValueError, match="grid must be three sizes"):
        launch(path, "scale", (2, 1), (64, 1, 1), arguments())
    with pytest.raises(ValueError, match=r"grid must be three sizes .*, not \(-1, 1, 1\)"):
        launch(path, "scale", (-1, 1, 1), (64, 1, 1), arguments())
    with pytest.raises(ValueError, match=r"grid .* is larger than CUDA's"):
        launch(path, "scale", (1, 65536, 1), (64, 1, 1), arguments())
    with pytest.raises(ValueError, match=r"block must be three sizes"):
        launch(path, "scale", (1, 1, 1), (64, 0, 1), arguments())
    with pytest.raises(ValueError, match=r"block .* is larger than CUDA's"):
        launch(path, "scale", (1, 1, 1), (1, 1, 65), arguments())
    with pytest.raises(KernelError, match=r"there is no kernel source .*nowhere\.cu"):
        launch("nowhere.cu", "scale", (1, 1, 1), (1, 1, 1), ())
    locked = np.zeros(100, np.float32)
    locked.flags.writeable = False
    with pytest.raises(ValueError, match=r"parameter float\* Y: .*read-only"):
        launch(path, "scale", (2, 1, 1), (64, 1, 1), arguments(Y=locked))


# --- The way to the GPU, with a stand-in for CuPy that records what it is asked for.


class FakeKernel:
    def __init__(self, log):
        self.log, self.max_dynamic_shared_size_bytes = log, 48 << 10

    def __call__(self, grid, block, args, shared_mem):
        self.log.append((grid, block, args, shared_mem, self.max_dynamic_shared_size_bytes))


@pytest.fixture
def fake_cupy(monkeypatch):
    module = types.ModuleType("cupy")
    module.is_available = lambda: True
    module.ndarray = type("ndarray", (np.ndarray,), {"__module__": "cupy", "device": types.SimpleNamespace(id=0)})
    module.asarray = lambda a: np.asarray(a).view(module.ndarray)
    module.log, module.modules = [], []
    errors = {
        name: type(name, (Exception,), {}) for name in ("CompileException", "CUDADriverError", "CUDARuntimeError")
    }
    module.OutOfMemoryError = type("OutOfMemoryError", (MemoryError,), {})
    module.cuda = types.SimpleNamespace(
        Device=lambda id: nullcontext(),
        compiler=types.SimpleNamespace(CompileException=errors["CompileException"]),
        driver=types.SimpleNamespace(CUDADriverError=errors["CUDADriverError"]),
        runtime=types.SimpleNamespace(CUDARuntimeError=errors["CUDARuntimeError"], runtimeGetVersion=lambda: 13000),
    )
    function = FakeKernel(module.log)

    def raw_module(**options):
        module.modules.append(options)
        return types.SimpleNamespace(get_function=lambda name: function)

    module.RawModule = raw_module
    monkeypatch.setitem(sys.modules, "cupy", module)
    caches = (backend.cupy, driver._module, driver._function)
    for cache in caches:
        cache.cache_clear()
    yield module
    for cache in caches:
        cache.cache_clear()


def test_cupys_arrays_go_to_the_gpu(path, fake_cupy):
    X, Y = fake_cupy.asarray(np.ones(3, np.float32)), fake_cupy.asarray(np.zeros(3, np.float32))
    n = np.int32(3)
    for shared in (0, 100_000, 60_000):
        launch(path, "scale", (2, 1, 1), (64, 1, 1), (None, Y, np.float32(3), n), shared=shared, defines={"FACTOR": 3})
    launch(path, "scale", (2, 1, 1), (64, 1, 1), (X, Y, np.float32(3), n))
    first, second, third, last = fake_cupy.log
    assert first[:2] == ((2, 1, 1), (64, 1, 1)) and first[3:] == (0, 48 << 10)
    null, out, a, count = first[2]
    assert (type(null), null) == (np.uint64, 0) and out is Y and count is n and type(a) is np.float32
    assert second[3:] == (100_000, 100_000) and third[3:] == (60_000, 100_000)
    assert last[2][0] is X
    options = fake_cupy.modules
    assert [o["options"] for o in options] == [("--std=c++17", "-DFACTOR=3"), ("--std=c++17",)]  # compiled once each
    assert all(o["backend"] == "nvrtc" and "KERNEL(scale" in o["code"] and "#include" not in o["code"] for o in options)
    with on_host():
        assert dispatch._shelf((X,)) == "cuda"


def test_arrays_of_two_devices_are_refused(path, fake_cupy):
    X = fake_cupy.asarray(np.ones(100, np.float32))
    with pytest.raises(ValueError, match="kernel scale: its arrays are on different devices, X on cuda, Y on cpu"):
        launch(path, "scale", (2, 1, 1), (64, 1, 1), arguments(X=X))


FAILURES = {
    "compiler": ("CompileException", "bad\nsource", r"(?s)does not compile for this GPU:.*bad"),
    "old driver": ("CUDADriverError", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION: x", "update the driver or install"),
    "shared memory": ("CUDADriverError", "CUDA_ERROR_INVALID_VALUE: x", "does not have the shared memory"),
    "memory": ("CUDARuntimeError", "cudaErrorMemoryAllocation: x", "smaller batch"),
    "other": ("CUDARuntimeError", "cudaErrorUnknown: x", r"the GPU refused \(cudaErrorUnknown: x\)"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures_of_the_gpu_become_a_sentence(path, fake_cupy, monkeypatch, case):
    kind, text, sentence = FAILURES[case]
    places = (fake_cupy.cuda.compiler, fake_cupy.cuda.driver, fake_cupy.cuda.runtime)
    error = next(getattr(place, kind) for place in places if hasattr(place, kind))

    def fail(*args, **kwargs):
        raise error(text)

    monkeypatch.setattr(FakeKernel, "__call__", fail)
    X, Y = (fake_cupy.asarray(np.ones(3, np.float32)) for _ in range(2))
    with pytest.raises(KernelError, match=sentence):
        launch(path, "scale", (2, 1, 1), (64, 1, 1), (X, Y, np.float32(3), np.int32(3)))


MISSING = {
    "library": (ImportError("libcublasLt.so.13: cannot open shared object file"), "cuBLAS, a library of CUDA"),
    "headers": (RuntimeError("Failed to find CUDA headers. Please install"), "the headers of CUDA"),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_missing_library_becomes_a_sentence(path, fake_cupy, monkeypatch, case):
    error, what = MISSING[case]

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(FakeKernel, "__call__", fail)
    X, Y = (fake_cupy.asarray(np.ones(3, np.float32)) for _ in range(2))
    with pytest.raises(KernelError, match=rf"kernel scale: CuPy does not find {what}: install tinydiff\[cuda13\]"):
        launch(path, "scale", (2, 1, 1), (64, 1, 1), (X, Y, np.float32(3), np.int32(3)))


@pytest.mark.parametrize("error", [RuntimeError("something else"), ImportError("no module named x")])
def test_other_errors_of_the_gpu_stay_what_they_are(path, fake_cupy, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(FakeKernel, "__call__", fail)
    X, Y = (fake_cupy.asarray(np.ones(3, np.float32)) for _ in range(2))
    with pytest.raises(type(error), match=str(error)):
        launch(path, "scale", (2, 1, 1), (64, 1, 1), (X, Y, np.float32(3), np.int32(3)))


def test_a_full_gpu_becomes_a_sentence(fake_cupy, monkeypatch):
    family = types.ModuleType("tinydiff.cuda.family")

    def full(x):
        raise fake_cupy.OutOfMemoryError("Out of memory allocating 512 bytes")

    def definition(x):
        return x

    family.full = full
    definition.__module__, definition.__name__ = "tinydiff.ops.family", "full"
    monkeypatch.setitem(sys.modules, family.__name__, family)
    with pytest.raises(KernelError, match=r"family\.full: the GPU's memory is full; a smaller batch .*512 bytes"):
        accelerated(definition)(fake_cupy.asarray(np.ones(3)))


@pytest.mark.gpu
@pytest.mark.skipif(backend.cupy() is None, reason="needs an NVIDIA GPU and CuPy")
def test_on_a_gpu(path):
    cupy = backend.cupy()
    X, Y = cupy.arange(100, dtype="float32"), cupy.zeros(100, "float32")
    launch(path, "scale", (2, 1, 1), (64, 1, 1), (X, Y, np.float32(3), np.int32(100)), defines={"FACTOR": 5})
    np.testing.assert_array_equal(Y.get(), 15 * np.arange(100))


def test_the_sources_are_read_once(path, monkeypatch):
    source.load(path, host=True)
    monkeypatch.setattr("pathlib.Path.read_text", None)
    source.load(path, host=True)
