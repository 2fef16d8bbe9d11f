"""tinydiff/backend.py. A stand-in for CuPy takes the GPU's place: these tests need none."""

import ast
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import tinydiff as td
from tests import cupy_stand_in
from tinydiff import backend, ops
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import driver_version
from tinydiff.errors import InputError, RunFailed

PACKAGE = Path(backend.__file__).parent


@pytest.fixture
def fake_cupy(monkeypatch):
    """A function that installs a module named cupy, with or without a GPU, and arrays that claim to be its own."""

    def install(available, built=12):
        module = types.ModuleType("cupy")
        module.is_available = lambda: available
        runtime = types.SimpleNamespace(runtimeGetVersion=lambda: 1000 * built)
        module.cuda = types.SimpleNamespace(runtime=runtime)
        module.ndarray = type("ndarray", (np.ndarray,), {"__module__": "cupy", "get": lambda a: np.array(a)})
        module.asarray = lambda a: np.asarray(a).view(module.ndarray)
        module.ones = lambda *a, **k: np.ones(*a, **k).view(module.ndarray)
        monkeypatch.setitem(sys.modules, "cupy", module)
        backend.cupy.cache_clear()
        return module

    yield install
    backend.cupy.cache_clear()


def test_array_module_is_found_by_type(fake_cupy):
    cupy = fake_cupy(True)
    assert backend.array_module(np.zeros(3)) is np
    assert backend.array_module(1.5) is np
    assert backend.array_module(cupy.asarray([1.0])) is cupy
    assert backend.is_array(np.zeros(()))
    assert backend.is_array(cupy.asarray([1.0]))
    assert not any(map(backend.is_array, (1.0, [1.0], np.float32(1), None, Tensor([1.0]))))
    assert backend.device_of(np.zeros(3)) == "cpu"
    assert backend.device_of(cupy.asarray([1.0])) == "cuda"


def test_auto_means_cuda_only_where_a_gpu_is_available(fake_cupy):
    fake_cupy(False)  # installed, importable, and no GPU: what a laptop with cupy looks like
    assert backend.resolve_device("auto") == "cpu"
    fake_cupy(True)
    assert backend.resolve_device("auto") == "cuda"
    assert backend.resolve_device("cpu") == "cpu"
    assert backend.resolve_device("cuda") == "cuda"


@pytest.fixture(scope="module")
def seen():
    """What a fixture of a wider scope than a test sees."""
    return backend.resolve_device("auto")


def test_no_test_sees_the_gpu_of_the_machine_by_chance(seen):
    """See `pytest_runtest_protocol` in conftest.py."""
    assert seen == backend.resolve_device("auto") == "cpu" and "no driver is installed" in backend.no_cuda()


def test_auto_without_cupy_is_the_cpu():
    assert backend.resolve_device("auto") == "cpu"
    assert backend.module_for("cpu") is np


@pytest.mark.parametrize("device", ["gpu", "cuda:0", "", "CPU"])
def test_unknown_devices_are_refused_by_name(device):
    with pytest.raises(InputError, match=f"(?s)auto.*cpu.*cuda.*{device!r}"):
        backend.resolve_device(device)


REASONS = {
    # driver's CUDA, CuPy (None: not installed; else the CUDA it is built for), what the sentence must say
    "no driver": (None, 12, "no driver is installed"),
    "no driver, no CuPy": (None, None, "no driver is installed"),
    "old driver": ((11, 8), 12, r"CUDA 11\.8: update the driver"),
    "no CuPy, driver 12": ((12, 4), None, r"not installed: install tinydiff\[cuda12\] .*CUDA 12\.4"),
    "no CuPy, driver 13": ((13, 0), None, r"not installed: install tinydiff\[cuda13\]"),
    "no CuPy, driver to come": ((14, 1), None, r"not installed: install tinydiff\[cuda13\]"),
    "CuPy too new": (
        (12, 4),
        13,
        r"built for CUDA 13.*CUDA 12\.4: uninstall cupy-cuda13x and install tinydiff\[cuda12\]",
    ),
    "no GPU": ((12, 4), 12, "see no NVIDIA GPU;"),
    "no GPU, newer driver": ((13, 0), 12, "see no NVIDIA GPU;"),
}


@pytest.mark.parametrize("case", REASONS)
def test_cuda_that_is_not_there_says_what_is_missing(fake_cupy, monkeypatch, case):
    driver, built, sentence = REASONS[case]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(backend, "driver_version", lambda: driver)
    if built is None:
        monkeypatch.setitem(sys.modules, "cupy", None)
        backend.cupy.cache_clear()
    else:
        fake_cupy(False, built)
    with pytest.raises(InputError, match=sentence):
        backend.resolve_device("cuda")
    with pytest.raises(InputError, match=r'use device="cpu"$'):
        Tensor([1.0]).to("cuda")
    assert backend.resolve_device("auto") == "cpu"


def test_hidden_gpus_are_named(fake_cupy, monkeypatch):
    monkeypatch.setattr(backend, "driver_version", lambda: (12, 4))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    fake_cupy(False)
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES is '-1'"):
        backend.resolve_device("cuda")


def test_a_cupy_that_cannot_be_imported_is_told_apart(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('libnvrtc.so.12 is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(backend, "driver_version", lambda: (13, 0))
    backend.cupy.cache_clear()
    with pytest.raises(
        InputError, match=r"cannot be imported \(libnvrtc.so.12 is missing\): install tinydiff\[cuda13\]"
    ):
        backend.resolve_device("cuda")
    backend.cupy.cache_clear()


DynamicLibNotFoundError = type("DynamicLibNotFoundError", (RuntimeError,), {})
LISTING = '\n  listdir("nvidia/cu13/lib"):\n    libnvrtc-builtins.so.13.5'
LACKING = {
    "NVRTC": (DynamicLibNotFoundError('Failure finding "libnvrtc.so.13 or libnvrtc.so.12": No such file'), "NVRTC, a library"),
    "cuBLAS": (ImportError(f'Failure finding "libcublasLt.so.13": No such file{LISTING}'), "cuBLAS, a library"),
    "cuSOLVER": (ImportError("libcusolver.so.12: cannot open shared object file: No such file"), "cuSOLVER, a library"),
    "Windows": (ImportError("DLL load failed while importing curand: The specified module"), "cuRAND, a library"),
    "headers": (RuntimeError("Failed to find CUDA headers. Please install CUDA toolkit headers"), "the headers of CUDA"),
}  # fmt: skip


@pytest.mark.parametrize("case", LACKING)
@pytest.mark.parametrize("built", [11, 12, 13, 14])
def test_a_library_that_cupy_does_not_find_is_named_with_the_extra(fake_cupy, case, built):
    fake_cupy(True, built)
    error, what = LACKING[case]
    assert backend.missing_library(error) == (
        f"CuPy does not find {what}{' of CUDA' * ('library' in what)}: install "
        f"tinydiff[cuda{min(max(built, 12), 13)}], which brings {'them' if case == 'headers' else 'it'}"
    )


@pytest.mark.parametrize(
    "error",
    [
        ImportError("No module named 'scipy'"), RuntimeError("libnvrtc is mentioned"), ValueError("cublas"),
        DynamicLibNotFoundError(f'Failure finding "libcutensor.so.2": No such file{LISTING}'), RunFailed("cuBLAS"),
    ],
    ids=str,
)  # fmt: skip
def test_other_errors_are_not_taken_for_missing_libraries(fake_cupy, error):
    fake_cupy(True)
    assert backend.missing_library(error) is None
    backend.refuse_missing_library(error, "it")


def test_without_cupy_no_library_is_missing(monkeypatch):
    monkeypatch.delitem(sys.modules, "cupy")
    assert backend.missing_library(LACKING["cuBLAS"][0]) is None


@pytest.mark.parametrize("case", LACKING)
def test_a_gpu_without_libraries_is_refused_and_auto_says_why(fake_cupy, capsys, case):
    module, (error, what) = fake_cupy(True, 13), LACKING[case]

    def fail(*args):
        raise error

    module.ones = fail
    for ask in (
        lambda: backend.resolve_device("cuda"),
        lambda: backend.module_for("cuda"),
        lambda: Tensor([1.0]).to("cuda"),
    ):
        with pytest.raises(
            InputError, match=rf'^CuPy does not find {what}.*tinydiff\[cuda13\].*; or use device="cpu"$'
        ):
            ask()
    assert capsys.readouterr().err == ""
    backend._say_once.cache_clear()
    assert [backend.resolve_device("auto"), backend.resolve_device("auto")] == ["cpu", "cpu"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"no GPU is used: CuPy does not find {what}")


def test_a_gpu_that_fails_otherwise_is_not_hidden(fake_cupy):
    module = fake_cupy(True)

    def fail(*args):
        raise MemoryError("out of memory allocating 512 bytes")

    module.ones = fail
    assert backend.resolve_device("auto") == backend.resolve_device("cuda") == "cuda"


def test_the_drivers_version(monkeypatch):
    class Driver:
        status = 0

        def cuDriverGetVersion(self, version):
            version._obj.value = 12040
            return self.status

    monkeypatch.setattr("ctypes.CDLL", lambda name: Driver())
    assert driver_version() == (12, 4)
    Driver.status = 3
    assert driver_version() is None

    def absent(name):
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", absent)
    assert driver_version() is None


def test_no_copy_to_the_device_where_the_array_is():
    a = np.zeros(3)
    assert backend.to_device(a, "cpu") is a
    assert backend.to_numpy(a) is a


def test_moves_between_devices(fake_cupy):
    cupy = fake_cupy(True)
    a = np.arange(3.0)
    on_gpu = backend.to_device(a, "cuda")
    assert type(on_gpu) is cupy.ndarray
    assert type(backend.to_device(on_gpu, "cpu")) is np.ndarray
    np.testing.assert_array_equal(backend.to_numpy(on_gpu), a)


def test_mixing_devices_raises_instead_of_copying(monkeypatch):
    cupy = cupy_stand_in.make()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    on_cpu, on_gpu = Tensor(np.ones(3), requires_grad=True), Tensor(cupy.asarray(np.ones(3)))
    assert (on_cpu.device, on_gpu.device) == ("cpu", "cuda")
    for mix in (lambda: on_cpu + on_gpu, lambda: on_gpu * on_cpu, lambda: ops.concatenate([on_cpu, on_gpu])):
        with pytest.raises(ValueError, match=r"devices.*cpu.*cuda"):
            mix()
    with pytest.raises(ValueError, match=r"(?s)cuda.*cpu"):
        (on_cpu * 2).backward(on_gpu.data)


def test_only_backend_imports_cupy():
    importers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.partition(".")[0] == "cupy" for name in names):
                importers.add(path.relative_to(PACKAGE).as_posix())
    assert importers == {"backend.py"}


def test_importing_tinydiff_loads_neither_cupy_nor_other_heavy_modules():
    heavy = ["cupy", "torch", "scipy", "matplotlib", "PIL", "tqdm", "safetensors"]
    code = f"import sys, tinydiff, tinydiff.ops; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert result.stdout.strip() == "[]"


def test_which_numbers_are_floating_point():
    expected = {
        "float16": (1, 1),
        "float64": (1, 1),
        "complex64": (0, 1),
        "int32": (0, 0),
        "bool": (0, 0),
        "V2": (0, 0),
    }
    for name, (real, either) in expected.items():
        dtype = np.dtype(name)
        assert (backend.is_float(dtype), backend.is_float(dtype, or_complex=True)) == (real, either)


def test_bfloat16_has_gradients_and_is_checked():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x = td.Tensor(np.array([1, 2, 3], bfloat16), requires_grad=True)
    (x * x).backward(np.array([1, 1, 2], bfloat16))
    assert x.grad.dtype == bfloat16
    np.testing.assert_array_equal(x.grad.astype(np.float32), [2, 4, 12])
    with td.check_finite(), np.errstate(all="ignore"), pytest.raises(td.autograd.tape.NonFiniteError):
        x * np.array(np.inf, bfloat16)


def test_bfloat16_in_layers_and_traces():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    layer = td.nn.Linear(3, 2, generator=td.random.Generator(1)).astype(bfloat16)
    assert layer.weight.dtype == bfloat16
    layer.load_state_dict({"weight": np.full((3, 2), 1.5, bfloat16), "bias": np.zeros(2, bfloat16)})
    assert layer.astype(np.float32).weight.dtype == np.float32 and (layer.weight.data == 1.5).all()
    x = td.Tensor(np.array([3, 4], bfloat16), requires_grad=True)
    with td.trace() as trace:
        (x * x).backward(np.ones(2, bfloat16))
    assert "|10|" in str(trace), trace  # of the gradient (6, 8)
    assert td.ops.mean(td.Tensor(np.full(1000, 3, bfloat16))).data == 3
