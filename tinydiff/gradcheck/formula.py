"""Which operation, and which line of its backward pass, a gradient comes from."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor
from tinydiff.gradcheck.report import Formula
from tinydiff.gradcheck.source import changed_by, source_of
from tinydiff.ops.broadcasting import Elementwise


@dataclass
class Call:
    """One application of a Function, as it happened."""

    function: type[Function]
    inputs: list[Any]
    options: dict[str, Any]
    leaves: list[int | None]


@contextmanager
def recorded(calls: list[Call]) -> Iterator[None]:
    """Notes every Function applied inside the block."""
    original = Function.__dict__["apply"]

    def apply(cls: type[Function], *inputs: Any, **options: Any) -> Any:
        arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
        calls.append(Call(cls, arrays, options, [id(x) if isinstance(x, Tensor) else None for x in inputs]))
        return original.__func__(cls, *inputs, **options)

    Function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Function.apply = original  # type: ignore[method-assign]


def operations(forward: Callable[..., Any], arrays: Sequence[Any]) -> list[Call]:
    """The Functions that a forward pass applies, in order."""
    calls: list[Call] = []
    with recorded(calls):
        forward(arrays)
    return calls


def formula_of(function: type[Function], i: int) -> Formula | None:
    """The line by which a Function computes the gradient of its input i; None where the source cannot be read."""
    method = getattr(function, ("L_A", "L_B")[i], None) if i < 2 and issubclass(function, Elementwise) else None
    if method is not None:
        return formula_in(method, 0, function)
    return formula_in(function.backward, i, function)


def formula_in(backward: Callable[..., Any], i: int, function: type[Function] | None = None) -> Formula | None:
    """The line of a backward function that computes its i-th gradient."""
    source = source_of(backward)
    if source is None:
        return None
    node = _origin(source.node, i)
    if function is not None and (method := _own_method(node, function)) is not None:
        return formula_in(method, 0, function)
    text = ast.unparse(node) if isinstance(node, ast.expr) else source.line(node.lineno)
    op = function.__name__ if function is not None else getattr(backward, "__name__", "backward")
    return Formula("backward" if op == "<lambda>" else op, text, source.shown, node.lineno)


def _origin(body: ast.FunctionDef | ast.Lambda, i: int) -> ast.stmt | ast.expr:
    """The last assignment to the name that is returned in place i, or the expression that is returned there."""
    if isinstance(body, ast.Lambda):
        value: Any = body.body
    else:
        returns = [n for n in ast.walk(body) if isinstance(n, ast.Return) and n.value is not None]
        if not returns:
            return body
        value = max(returns, key=lambda n: n.lineno).value
    if isinstance(value, ast.Tuple) and i < len(value.elts):
        value = value.elts[i]
    if isinstance(value, ast.IfExp):
        value = value.body
    if isinstance(value, ast.Name):
        assignments = [n for n in ast.walk(body) if isinstance(n, ast.stmt) and value.id in changed_by(n)]
        useful = [n for n in assignments if not _is_none(getattr(n, "value", None))]
        return max(useful, key=lambda n: n.lineno, default=value)
    return value


def _is_none(node: Any) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _own_method(node: ast.stmt | ast.expr, function: type[Function]) -> Callable[..., Any] | None:
    """The method that a call self.method(...) means."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        owner = node.func.value
        if isinstance(owner, ast.Name) and owner.id == "self":
            return getattr(function, node.func.attr, None)
    return None
