"""Which operations round, and code of the user's in which each of them rounds at random.

Arrays of rounding.Rounded see only what NumPy computes of them. Numbers of Python, what math and statistics make of them,
and arrays that were copied into plain ones lose their kind. So the user's functions get other code for a while: each
result of an operator, and of a function that rounds, is moved by one last place up or down.
"""

from __future__ import annotations

import ast
import builtins
import copy
import functools
import math
import statistics
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from tinydiff.gradcheck.source import Definition
from tinydiff.gradcheck.taps import TAP, compiled

# These choose among numbers, or change a sign, and round nothing.
EXACT = {
    np.maximum, np.minimum, np.fmax, np.fmin, np.negative, np.positive, np.absolute, np.fabs, np.sign, np.copysign,
    np.floor, np.ceil, np.rint, np.trunc, np.conjugate, np.nextafter, np.spacing, np.ldexp,
}  # fmt: skip
# NumPy's functions that compute in C what no universal function does.
PRODUCTS = {np.dot, np.vdot, np.inner, np.einsum, np.convolve, np.correlate, np.interp, np.tensordot, np.trace}
SUMS = {np.mean, np.average, np.sum, np.std, np.var, np.prod, np.cumsum, np.cumprod}  # by functions that Rounded sees
METHODS = {"dot", "mean", "sum", "std", "var", "prod", "cumsum", "cumprod", "trace"}  # of arrays
CHOOSING = {"floor", "ceil", "trunc", "fabs", "copysign", "frexp", "ldexp", "modf", "gcd", "lcm", "isclose", "isnan",
            "isinf", "isfinite", "isqrt", "comb", "perm", "factorial", "median_low", "median_high", "mode"}  # fmt: skip
WHOLE = 2.0**20  # a whole number below may be a length or an index, and stays one

Keep = Callable[[Any, np.random.Generator], Any]


def rounds(function: Any) -> bool:
    """Whether a function rounds its result itself, rather than by functions that it calls."""
    if isinstance(function, np.ufunc):
        return function not in EXACT
    if isinstance(function, types.BuiltinFunctionType | types.FunctionType):
        if function in (builtins.sum, builtins.pow):
            return True
        module = function.__module__ or ""
        return module in (math.__name__, statistics.__name__) and function.__name__ not in CHOOSING
    return getattr(function, "__hash__", None) is not None and function in PRODUCTS


def is_of_matrices(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("numpy.linalg")


def moved(y: Any, rng: np.random.Generator, together: bool = False) -> Any:
    """Floating point numbers, each the next one above or below; zero stays zero. together: by the last place of the
    largest of them, as an algorithm is off that is stable for a matrix as a whole."""
    kind = getattr(getattr(y, "dtype", None), "kind", "")
    if kind == "c":
        y = np.array(y)
        y.real, y.imag = moved(y.real, rng, together), moved(y.imag, rng, together)
        return y
    if kind != "f":
        return y
    if y.dtype == np.float64 and np.ndim(y) == 0 and not together:  # loops over elements make many of these
        value = float(y)
        return np.float64(math.nextafter(value, math.inf if rng.random() < 0.5 else -math.inf)) if value else y
    with np.errstate(all="ignore"):
        if together and np.size(y):
            by = np.spacing(np.max(np.abs(y))) * rng.choice([-0.5, 0.5], np.shape(y))
            return np.where(y == 0, y, y + by).astype(y.dtype)
        up = rng.random(np.shape(y)) < 0.5
        return np.where(y == 0, y, np.nextafter(y, np.where(up, y.dtype.type(np.inf), y.dtype.type(-np.inf))))


class Roundings:
    """What changed code calls: `value` of each result of an operator, `called` of each function before it is called."""

    def __init__(self, rng: np.random.Generator, keep: Keep) -> None:
        """keep: makes an array one whose further results are moved without such code, or leaves it."""
        self.rng, self.keep = rng, keep

    def number(self, y: Any) -> Any:
        """Moves a number; an array stays."""
        if type(y) is float:
            whole = y.is_integer() and abs(y) < WHOLE
            return y if whole else math.nextafter(y, math.inf if self.rng.random() < 0.5 else -math.inf)
        if type(y) is complex:
            return complex(self.number(y.real), self.number(y.imag))
        if isinstance(y, np.floating):
            return y if float(y).is_integer() and abs(y) < WHOLE else y.dtype.type(moved(y, self.rng))
        return y

    def value(self, y: Any) -> Any:
        """Moves a number, or an array that has not been moved where it was computed."""
        if type(y) is np.ndarray and y.dtype.kind in "fc":
            return self.keep(moved(y, self.rng), self.rng)
        return self.number(y)

    def called(self, function: Any) -> Any:
        """The function, or one whose results are moved."""
        try:
            owner = getattr(function, "__self__", None)
            is_sum = getattr(function, "__name__", "") in METHODS if isinstance(owner, np.ndarray) else function in SUMS
            if not (is_sum or is_of_matrices(function) or rounds(function)):
                return function
        except Exception:
            return function

        def call(*args: Any, **options: Any) -> Any:
            if is_of_matrices(function):
                args = tuple(moved(a, self.rng, together=True) if type(a) is np.ndarray else a for a in args)
            y = function(*args, **options)
            if isinstance(y, tuple):
                parts = [self.value(part) for part in y]
                return type(y)(*parts) if hasattr(y, "_fields") else tuple(parts)
            if options.get("out") is not None:
                return y
            return self.value(y)

        return call if isinstance(function, np.ufunc) else functools.wraps(function)(call)


class _Rounding(ast.NodeTransformer):
    """a + b becomes value(a + b), f(x) becomes called(f)(x), and x += a is followed by x = number(x)."""

    operators = ast.Add | ast.Sub | ast.Mult | ast.Div | ast.Pow | ast.MatMult

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        self.generic_visit(node)
        return _call("value", node) if isinstance(node.op, self.operators) else node

    def visit_Call(self, node: ast.Call) -> Any:
        self.generic_visit(node)
        if not (isinstance(node.func, ast.Name) and node.func.id == "super"):
            node.func = _call("called", node.func)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        self.generic_visit(node)
        if not isinstance(node.target, ast.Name) or not isinstance(node.op, self.operators):
            return node
        again = ast.Assign(
            [ast.Name(node.target.id, ast.Store())], _call("number", ast.Name(node.target.id, ast.Load()))
        )
        return [node, ast.copy_location(again, node)]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        node.body = [s for old in node.body for s in _as_list(self.visit(old))]  # not its decorators and defaults
        return node


def _as_list(node: Any) -> list[Any]:
    return node if isinstance(node, list) else [node]


def _call(method: str, node: ast.expr) -> ast.expr:
    return ast.copy_location(ast.Call(ast.Attribute(ast.Name(TAP, ast.Load()), method, ast.Load()), [node], []), node)


def code_of(function: types.FunctionType, node: Definition) -> types.CodeType | None:
    """The code of a function all of whose operators round at random."""
    return compiled(function, ast.fix_missing_locations(_Rounding().visit(copy.deepcopy(node))))
