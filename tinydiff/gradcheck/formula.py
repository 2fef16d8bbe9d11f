"""Which operation, and which line of its backward pass, a gradient comes from."""

from __future__ import annotations

import ast
import inspect
import os
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tinydiff.function import Function
from tinydiff.tensor import Tensor


@dataclass
class Formula:
    """A line of source that computes a gradient."""

    op: str
    text: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.op}: {self.text}    ({self.file}:{self.line})"


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


def formula_of(function: type[Function], i: int) -> Formula | None:
    """The line by which a Function computes the gradient of its input i; None where the source cannot be read."""
    method = getattr(function, ("L_A", "L_B")[i], None) if i < 2 else None
    if method is not None:
        return formula_in(method, 0, function.__name__)
    return formula_in(function.backward, i, function.__name__)


def formula_in(backward: Callable[..., Any], i: int, op: str | None = None) -> Formula | None:
    """The line of a backward function that computes its i-th gradient."""
    try:
        lines, first = inspect.getsourcelines(backward)
        tree = ast.parse(textwrap.dedent("".join(lines)))
        file = os.path.relpath(inspect.getsourcefile(backward) or "?")
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    body = next((n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)), None)
    if body is None:
        return None
    node = _origin(body, i)
    text = " ".join(lines[node.lineno - 1].split())
    return Formula(op or body.name, text, file, first + node.lineno - 1)


def _origin(body: ast.FunctionDef, i: int) -> ast.stmt | ast.expr:
    """The last assignment to the name that is returned in place i, or the return statement itself."""
    returns = [n for n in ast.walk(body) if isinstance(n, ast.Return) and n.value is not None]
    if not returns:
        return body
    last = max(returns, key=lambda n: n.lineno)
    value: Any = last.value
    if isinstance(value, ast.Tuple):
        value = value.elts[i] if i < len(value.elts) else value
    if isinstance(value, ast.IfExp):
        value = value.body
    if isinstance(value, ast.Name):
        assignments = [
            n for n in ast.walk(body) if isinstance(n, ast.Assign | ast.AugAssign) and value.id in _targets(n)
            and not (isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant))
        ]
        if assignments:
            return max(assignments, key=lambda n: n.lineno)
    return value if isinstance(value, ast.expr) else last


def _targets(node: ast.Assign | ast.AugAssign) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
