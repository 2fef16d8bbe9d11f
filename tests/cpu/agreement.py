"""A fast version held to its definition."""

import inspect
from importlib import import_module

import numpy as np

from tests.conftest import arrange
from tinydiff.machine.threads import threads


def fast_version(function):
    """The function of the same name in the file of the same name in tinydiff/cpu."""
    return getattr(import_module(f"tinydiff.cpu.{function.__module__.rpartition('.')[2]}"), function.__name__)


def check(function, *args, single=3e-6, double=1e-13, **options):
    """The fast version of an accelerated function has its signature and, for arguments in float64, gives what the definition
    gives: in float64, also of arrays in other memory layouts, in one thread and in several, and in float32 as far as that
    goes. single, double: the error of float32 and of float64, relative to the largest entry of a result or to 0.1.
    """
    fast, definition = fast_version(function), function.definition
    assert inspect.signature(fast) == inspect.signature(definition)
    exact = results(definition(*args, **options))
    near = [cast(a, np.float32) for a in args]
    exact32 = results(definition(*(cast(a, np.float64) for a in near), **options))
    for n in (1, 2, 3):
        with threads(n):
            close(fast(*args, **options), exact, double, np.float64)
            close(fast(*near, **options), exact32, single, np.float32)
    for name in arrange(np.zeros(1)):
        close(fast(*(laid(a, name) for a in args), **options), exact, double, np.float64)


def leaves(function, *args, **options):
    """Whether the fast version leaves these arguments to the definition, which then computes them."""
    left = fast_version(function)(*args, **options) is NotImplemented
    with np.errstate(all="raise"):
        function(*args, **options)
    return left


def results(given):
    return list(given) if isinstance(given, tuple | list) else [given]


def cast(a, dtype):
    """The arrays of floating-point numbers among the arguments, in any nesting of lists, in that type."""
    if isinstance(a, tuple | list):
        return [cast(x, dtype) for x in a]
    return a.astype(dtype) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a


def laid(a, name):
    if isinstance(a, tuple | list):
        return [laid(x, name) for x in a]
    return arrange(a)[name] if isinstance(a, np.ndarray) else a


def close(ours, exact, tolerance, dtype):
    ours = results(ours)
    assert len(ours) == len(exact)
    for i, (a, e) in enumerate(zip(ours, exact, strict=True)):
        if e is None:
            assert a is None, i
            continue
        assert a.shape == e.shape and a.dtype == dtype, i
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * np.abs(e).max(initial=0.1), err_msg=f"result {i}")
