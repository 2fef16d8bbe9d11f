"""tinydiff/cuda/compiling.py, on the stand-in for CuPy: what will be launched is compiled before, and nothing is run."""

import sys

import numpy as np
import pytest

from tests import cupy_stand_in
from tinydiff import backend
from tinydiff.cuda import compiling, driver
from tinydiff.cuda.source import KernelError
from tinydiff.ops.fully_connected import linear


@pytest.fixture
def cupy(monkeypatch):
    module = cupy_stand_in.make()
    monkeypatch.setitem(sys.modules, "cupy", module)
    backend.cupy.cache_clear()
    driver._function.cache_clear()
    yield module
    backend.cupy.cache_clear()


@pytest.fixture
def prepared(monkeypatch):
    """The (source, flags) that were made ready."""
    found, prepare = [], driver.prepare
    monkeypatch.setattr(driver, "prepare", lambda *args: (found.append(args[:2]), prepare(*args)))
    return found


def product(n):
    a = backend.to_device(np.ones((n, n), np.float32), "cuda")
    return linear(a, a)


def test_what_works_launch_is_compiled_and_not_run(cupy, prepared, capsys):
    cupy_stand_in.COUNTS.clear()
    assert compiling.compile_for([lambda: product(8), lambda: product(7), lambda: product(8)], ["pixels"]) == 3
    assert [name for name, _ in sorted(prepared)] == ["batch.cu", "matrix.cu", "matrix.cu"]
    assert cupy_stand_in.COUNTS["launches of kernels"] == 0
    before = driver._function.cache_info().misses
    product(8)
    assert cupy_stand_in.COUNTS["launches of kernels"] == 1
    assert driver._module.cache_info().currsize and driver._function.cache_info().misses <= before + 1
    assert capsys.readouterr().err == ""


def test_it_says_so_where_it_takes_long(cupy, prepared, monkeypatch, capsys):
    monkeypatch.setattr(compiling, "UNNOTICED", 0)
    compiling.compile_for([lambda: product(8)], ["pixels"])
    assert capsys.readouterr().err == "compiling 2 variants of the kernels for this GPU, once\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    compiling.compile_for([lambda: product(8)], ["pixels"])
    assert "compiling kernels for this GPU, once: 100%" in capsys.readouterr().err


def test_a_work_that_is_too_large_and_a_source_that_does_not_compile(cupy, monkeypatch):
    def too_large(error):
        product(8)
        raise error

    assert compiling.compile_for([lambda: too_large(MemoryError()), lambda: too_large(KernelError("full"))]) == 1

    def refuse(*args):
        raise KernelError("it does not compile")

    monkeypatch.setattr(driver, "prepare", refuse)
    with pytest.raises(KernelError, match="does not compile"):
        compiling.compile_for([lambda: product(8)])
