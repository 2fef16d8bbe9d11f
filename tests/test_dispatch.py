"""tinydiff/dispatch.py: which code computes a function of arrays."""

import subprocess
import sys
import threading
import types

import numpy as np
import pytest

from tinydiff import backend, dispatch
from tinydiff.dispatch import accelerated, by_definition, is_on_host, on_host


@pytest.fixture
def shelves(monkeypatch):
    """(calls, cpu, cuda): a list of who computed, and files `family` on both shelves."""
    calls = []
    files = []
    for shelf in ("cpu", "cuda"):
        file = types.ModuleType(f"tinydiff.{shelf}.family")
        monkeypatch.setitem(sys.modules, file.__name__, file)
        files.append(file)
    return calls, *files


def defined(calls):
    """A decorated definition, as it would be in tinydiff/ops/family.py."""

    def twice(x, b=None):
        """Doubles."""
        calls.append("definition")
        return x + x

    twice.__module__ = "tinydiff.ops.family"
    return accelerated(twice)


def version(calls, name):
    return lambda x, b=None: NotImplemented if x.dtype != np.float32 else calls.append(name) or 2 * x


def test_the_definition_computes_where_nothing_else_does(shelves):
    calls, _, _ = shelves
    twice = defined(calls)
    assert twice.__name__ == "twice" and twice.__doc__ == "Doubles."
    assert twice(np.ones(3)).sum() == 6 and twice(1.5) == 3 and calls == ["definition"] * 2


def test_the_shelf_follows_the_array(shelves):
    calls, cpu, cuda = shelves
    twice = defined(calls)
    cpu.twice, cuda.twice = version(calls, "cpu"), version(calls, "cuda")
    x = np.ones(3, np.float32)
    for make in (lambda: twice(x), lambda: twice(x=x), lambda: twice(x, b=None)):
        assert make().sum() == 6 and calls.pop() == "cpu"
        with on_host():
            assert make().sum() == 6 and calls.pop() == "cuda"


def test_what_a_fast_version_leaves_is_computed_by_definition(shelves):
    calls, cpu, cuda = shelves
    twice = defined(calls)
    cpu.twice, cuda.twice = version(calls, "cpu"), version(calls, "cuda")
    assert twice(np.ones(3)).sum() == 6 and calls == ["definition"]
    with on_host():
        assert twice(np.ones(3)).sum() == 6 and twice(1.5) == 3 and calls == ["definition"] * 3


def test_lists_of_arrays_and_names_of_devices_choose_too(shelves):
    calls, _, cuda = shelves
    twice = defined(calls)
    cuda.twice = lambda x, b=None: calls.append("cuda")
    with on_host():
        twice([np.ones(3)])
        twice(7, "cpu")
    assert calls == ["cuda", "cuda"]


def test_by_definition(shelves):
    calls, cpu, cuda = shelves
    twice = defined(calls)
    cpu.twice, cuda.twice = version(calls, "cpu"), version(calls, "cuda")
    x = np.ones(3, np.float32)
    with by_definition():
        assert twice(x).sum() == 6
        with on_host():
            assert twice(x).sum() == 6
    assert calls == ["definition"] * 2
    assert twice.definition(x).sum() == 6 and calls == ["definition"] * 3
    twice(x)
    assert calls.pop() == "cpu"


def test_by_definition_ends_with_its_block_also_after_an_error(shelves):
    calls, cpu, _ = shelves
    twice = defined(calls)
    cpu.twice = version(calls, "cpu")
    with pytest.raises(KeyError), by_definition():
        raise KeyError
    twice(np.ones(3, np.float32))
    assert calls == ["cpu"]


def test_kernels_can_be_turned_off(shelves, monkeypatch):
    calls, cpu, cuda = shelves
    twice = defined(calls)
    cpu.twice, cuda.twice = version(calls, "cpu"), version(calls, "cuda")
    monkeypatch.setenv("TINYDIFF_KERNELS", "0")
    x = np.ones(3, np.float32)
    with on_host():
        assert twice(x).sum() == 6 and calls == ["cpu"]


def test_a_fast_file_that_cannot_be_imported_does_not_hide(monkeypatch):
    """Only a file that is not there means that there is no fast version."""

    def broken(x):
        return x

    broken.__module__ = "tinydiff.ops.broken"
    real = dispatch.importlib.import_module

    def missing_package(name):
        if name == "tinydiff.cpu.broken":
            raise ModuleNotFoundError("No module named 'scipy'", name="scipy")
        return real(name)

    monkeypatch.setattr(dispatch.importlib, "import_module", missing_package)
    with pytest.raises(ModuleNotFoundError, match="scipy"):
        accelerated(broken)(np.ones(3))


def test_only_arrays_inside_on_host_go_to_kernels(shelves):
    calls, cpu, cuda = shelves
    twice = defined(calls)
    cpu.twice, cuda.twice = version(calls, "cpu"), version(calls, "cuda")
    x = np.zeros(3, np.float32)
    assert not is_on_host()
    twice(x)
    with on_host():
        twice(x)
        with on_host(seed=3):
            assert is_on_host() and dispatch.host_seed() == 3
            twice(x)
            for other in (1.0, (1.0,), np.float32(1)):
                twice(other)
        assert is_on_host() and dispatch.host_seed() == 0
    assert not is_on_host()
    twice(x)
    assert calls == ["cpu", "cuda", "cuda", *["definition"] * 3, "cpu"]


def test_threads_do_not_share_the_modes():
    seen = []
    with on_host(), by_definition():
        thread = threading.Thread(target=lambda: seen.append((is_on_host(), dispatch._mode.plain)))
        thread.start()
        thread.join()
    assert seen == [(False, dispatch._Mode.plain)]


@pytest.mark.parametrize("value, plain", [("1", True), ("0", False), ("", False)])
def test_the_environment_variable(value, plain):
    code = "from tinydiff import dispatch; print(dispatch._mode.plain)"
    environment = {**__import__("os").environ, "TINYDIFF_PLAIN": value}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == str(plain), done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(backend.cupy() is None, reason="needs an NVIDIA GPU and CuPy")
def test_on_a_gpu(shelves):
    calls, cpu, cuda = shelves
    twice = defined(calls)
    cpu.twice, cuda.twice = version(calls, "cpu"), version(calls, "cuda")
    twice(backend.cupy().ones(3, "float32"))
    assert calls == ["cuda"]
