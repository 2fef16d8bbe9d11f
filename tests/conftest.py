"""What all tests share: the repository on the import path, seeded random numbers, and one check of an operation's
values and gradients that every family of operations goes through."""

import gc
import os
import sys
from dataclasses import replace
from functools import lru_cache, wraps
from pathlib import Path

# Processes of pytest-xdist share the processors. NumPy's library reads this when it is loaded. Tests of threads choose their own.
if (processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Only tests marked `gpu` see the machine's GPU: all others, and their fixtures of any scope, run as on a machine
    without a driver and without CuPy, so that they mean the same everywhere. A test that needs a GPU's answers puts a
    module in CuPy's place."""
    from tinydiff import backend

    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("gpu") is None:
            patch.setitem(sys.modules, "cupy", None)  # makes `import cupy` fail
            patch.setattr(backend, "driver_version", lambda: None)
        backend.cupy.cache_clear()
        result = yield
    backend.cupy.cache_clear()
    return result


@pytest.fixture(scope="session", autouse=True)
def glyphs_drawn_once():
    """The built-in digits take a second to draw, and dozens of tests train on them. The pictures are drawn once in each size;
    nobody may write to them."""
    from tinydiff import data

    draw = data.draw_glyphs

    @lru_cache(4)
    def drawn(*arguments, **options):
        found = draw(*arguments, **options)
        found.images.flags.writeable = found.labels.flags.writeable = False
        return found

    @wraps(draw)
    def again(*arguments, **options):
        return replace(drawn(*arguments, **options), skipped=[], notes=[])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "draw_glyphs", again)
        yield


@pytest.fixture
def rng():
    """NumPy's generator with a fixed seed: independent of tinydiff's own random numbers."""
    return np.random.default_rng(20240607)


@pytest.fixture
def no_collector():
    """Without the cyclic collector: only reference counting frees anything."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def alive(no_collector):
    """A function that counts the tensors, nodes and functions that there are."""
    from tinydiff.autograd.function import Function
    from tinydiff.autograd.tape import Node
    from tinydiff.autograd.tensor import Tensor

    return lambda: sum(issubclass(type(o), Tensor | Node | Function) for o in gc.get_objects())


def arrange(a):
    """The values of an array in memory layouts that an operation must not tell apart; what lies in the gaps is NaN."""
    if a.ndim == 0:
        return {"fortran": a, "gaps": a, "backwards": a}
    gaps = np.full((*a.shape, 2), np.nan, a.dtype) if a.dtype.kind == "f" else np.full((*a.shape, 2), 99, a.dtype)
    gaps[..., 0] = a
    flip = (slice(None, None, -1),) * a.ndim
    layouts = {"fortran": np.asfortranarray(a), "gaps": gaps[..., 0], "backwards": a[flip].copy()[flip]}
    for layout in layouts.values():
        layout.flags.writeable = False  # operations do not write to their inputs
    return layouts


@pytest.fixture
def verify():
    """A function that checks an operation on tensors:

    its gradients by `gradcheck`; values against `expected` if given; the same values and gradients for inputs in other
    memory layouts; float32 inputs give float32 values and gradients that agree with those of float64.
    """
    from tinydiff.autograd.tensor import Tensor
    from tinydiff.gradcheck import gradcheck

    def is_float(a):
        return isinstance(a, np.ndarray) and a.dtype.kind == "f"

    def run(fn, arrays):
        """The outputs, and the gradients for fixed random cotangents."""
        xs = [Tensor(a, requires_grad=True) if is_float(a) else a for a in arrays]
        outputs = fn(*xs)
        outputs = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
        weights = np.random.default_rng(1)
        cotangents = [weights.normal(size=y.shape).astype(y.dtype) for y in outputs]
        if len(outputs) == 1:
            cotangents[0].flags.writeable = False
            outputs[0].backward(cotangents[0])
        else:
            sum((y * L_Y).sum() for y, L_Y in zip(outputs, cotangents, strict=True)).backward()
        return [y.data for y in outputs], [x.grad for x in xs if isinstance(x, Tensor)]

    def close(ours, exact, tolerance, what):
        for i, (a, b) in enumerate(zip(ours, exact, strict=True)):
            if b is None:
                assert a is None, f"{what} {i}"
                continue
            assert a.shape == b.shape, f"{what} {i}"
            scale = np.abs(b[np.isfinite(b)]).max(initial=0) if b.dtype.kind == "f" else 0
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * (scale + 1), err_msg=f"{what} {i}")

    def check(fn, *arrays, expected=None, single=2e-5, **options):
        arrays = [np.asarray(a) if isinstance(a, np.generic | float) else a for a in arrays]
        gradcheck(fn, arrays, **options)
        values, gradients = run(fn, arrays)
        if expected is not None:
            close(values, expected if isinstance(expected, tuple | list) else [np.asarray(expected)], 1e-13, "value")
        names = arrange(np.zeros(1))
        for name in names:
            laid = [arrange(a)[name] if isinstance(a, np.ndarray) else a for a in arrays]
            other_values, other_gradients = run(fn, laid)
            close(other_values, values, 1e-14, f"{name} inputs, value")
            close(other_gradients, gradients, 1e-13, f"{name} inputs, gradient")
        values32, gradients32 = run(fn, [a.astype(np.float32) if is_float(a) else a for a in arrays])
        for a, a64 in zip(values32, values, strict=True):
            assert a.dtype == (np.float32 if a64.dtype.kind == "f" else a64.dtype)
        assert all(g is None or g.dtype == np.float32 for g in gradients32)
        close(values32, values, single, "float32 value")
        close(gradients32, gradients, single, "float32 gradient")

    return check
