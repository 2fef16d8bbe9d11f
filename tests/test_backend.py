"""tinydiff/backend.py. A stand-in for CuPy takes the GPU's place: these tests need none."""

import ast
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from tinydiff import backend, ops
from tinydiff.errors import InputError
from tinydiff.tensor import Tensor

PACKAGE = Path(backend.__file__).parent


@pytest.fixture
def fake_cupy(monkeypatch):
    """A function that installs a module named cupy, with or without a GPU, and arrays that claim to be its own."""

    def install(available):
        module = types.ModuleType("cupy")
        module.is_available = lambda: available
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


def test_auto_without_cupy_is_the_cpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # makes `import cupy` fail
    backend.cupy.cache_clear()
    assert backend.resolve_device("auto") == "cpu"
    assert backend.module_for("cpu") is np
    with pytest.raises(InputError, match=r"cuda.*tinydiff\[cuda12\]"):
        backend.resolve_device("cuda")
    backend.cupy.cache_clear()


@pytest.mark.parametrize("device", ["gpu", "cuda:0", "", "CPU"])
def test_unknown_devices_are_refused_by_name(device):
    with pytest.raises(InputError, match=f"(?s)auto.*cpu.*cuda.*{device!r}"):
        backend.resolve_device(device)


def test_cuda_without_a_gpu_says_what_is_missing(fake_cupy):
    fake_cupy(False)
    with pytest.raises(InputError, match="GPU"):
        backend.resolve_device("cuda")
    with pytest.raises(InputError, match="GPU"):
        Tensor([1.0]).to("cuda")


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


def test_mixing_devices_raises_instead_of_copying(fake_cupy):
    cupy = fake_cupy(True)
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
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=60, check=True
    )
    assert result.stdout.strip() == "[]"
