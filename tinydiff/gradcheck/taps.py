"""Functions with other code for a while: every assignment passes through a tap, or one expression is another one.

The code object of a function is exchanged, and put back: so methods, closures and helpers keep their names, cells and
callers.
"""

from __future__ import annotations

import ast
import copy
import gc
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from tinydiff.gradcheck.source import Definition, Source, is_users, names_in, source_of

TAP = "__tinydiff_tap__"
Codes = Mapping[types.FunctionType, types.CodeType]
Tap = Callable[[str, int, Any], Any]  # of a name, a line and a value: the value to go on with


def compiled(function: types.FunctionType, node: Definition) -> types.CodeType | None:
    """The code of a changed definition, which takes the place of the function's; None where it cannot."""
    free = function.__code__.co_freevars
    first: list[ast.stmt] = [ast.Return(node.body)] if isinstance(node, ast.Lambda) else node.body
    if free:  # so that each stays a free variable, whether the changed code reads it or not
        reads: list[ast.stmt] = [ast.Expr(ast.Name(n, ast.Load())) for n in free]
        first = [ast.If(ast.Constant(False), reads, []), *first]
    a = node.args  # without defaults and annotations: the function keeps its own
    plain_args = ast.arguments(
        [ast.arg(x.arg) for x in a.posonlyargs], [ast.arg(x.arg) for x in a.args], a.vararg and ast.arg(a.vararg.arg),
        [ast.arg(x.arg) for x in a.kwonlyargs], [None] * len(a.kwonlyargs), a.kwarg and ast.arg(a.kwarg.arg), [],
    )  # fmt: skip
    name = function.__name__ if function.__name__.isidentifier() else "f"
    inner = ast.FunctionDef(name, plain_args, first, [])
    outer = ast.FunctionDef("outer", ast.arguments([], [ast.arg(n) for n in free], None, [], [], None, []), [inner], [])
    for new in (outer, inner, *first[: 1 if free or isinstance(node, ast.Lambda) else 0]):
        new.lineno, new.col_offset, new.end_lineno, new.end_col_offset = node.lineno, 0, node.lineno, 0
    for part in (*ast.walk(outer.args), *ast.walk(plain_args), *(n for s in first[:1] if free for n in ast.walk(s))):
        if isinstance(part, ast.arg | ast.expr | ast.stmt):
            part.lineno, part.col_offset, part.end_lineno, part.end_col_offset = node.lineno, 0, node.lineno, 0
    module = ast.Module([outer], [])
    code = next(
        c for c in compile(module, function.__code__.co_filename, "exec").co_consts if isinstance(c, types.CodeType)
    )
    code = next(c for c in code.co_consts if isinstance(c, types.CodeType))
    return code if code.co_freevars == free else None


@contextmanager
def exchanged(codes: Mapping[types.FunctionType, types.CodeType], tap: Tap | None = None) -> Iterator[None]:
    """A block in which functions have other code."""
    old = {f: f.__code__ for f in codes}
    try:
        for f, code in codes.items():
            f.__code__ = code
            if tap is not None:
                f.__globals__[TAP] = tap
        yield
    finally:
        for f, code in old.items():
            f.__code__ = code
            f.__globals__.pop(TAP, None)


class _Tapped(ast.NodeTransformer):
    """Adds name = tap("name", line, name) behind each assignment to a plain name."""

    def __init__(self) -> None:
        self.depth = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        if self.depth:
            return node
        self.depth += 1
        return self.generic_visit(node)

    def visit_Lambda(self, node: ast.Lambda) -> Any:
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        return node

    def _behind(self, node: ast.stmt, targets: list[ast.expr]) -> Any:
        names = dict.fromkeys(n for t in targets if not isinstance(t, ast.Subscript) for n in names_in(t))
        return [node, *(_tap(name, node) for name in names)]

    def visit_Assign(self, node: ast.Assign) -> Any:
        return self._behind(node, node.targets)

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        return self._behind(node, [node.target])

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        return self._behind(node, [node.target]) if node.value is not None else node


def _tap(name: str, where: ast.stmt) -> ast.stmt:
    call = ast.Call(
        ast.Name(TAP, ast.Load()), [ast.Constant(name), ast.Constant(where.lineno), ast.Name(name, ast.Load())], []
    )
    return ast.copy_location(ast.Assign([ast.Name(name, ast.Store())], call), where)


def tapped(function: types.FunctionType, node: Definition) -> types.CodeType | None:
    """The code of a function whose assignments pass through a tap."""
    if isinstance(node, ast.Lambda):
        return None
    return compiled(function, ast.fix_missing_locations(_Tapped().visit(copy.deepcopy(node))))


def plain(function: Any) -> types.FunctionType | None:
    """The Python function behind a function or method."""
    fn = getattr(function, "__func__", function)
    return fn if isinstance(fn, types.FunctionType) else None


def functions_run(call: Callable[[], Any]) -> list[types.FunctionType]:
    """The Python functions of the user that a call runs, in the order in which they begin."""
    codes: dict[types.CodeType, None] = {}

    def note(frame: types.FrameType, event: str, arg: Any) -> None:
        if event == "call":
            codes[frame.f_code] = None

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    users = [code for code in codes if is_users(code.co_filename)]
    referrers = gc.get_referrers(*users) if users else []
    owners = {f.__code__: f for f in reversed(referrers) if isinstance(f, types.FunctionType)}
    return [owners[code] for code in users if code in owners]


def sources(functions: list[types.FunctionType]) -> dict[types.FunctionType, Source]:
    """The functions whose source can be read."""
    return {f: source for f in functions if (source := source_of(f)) is not None}


def is_floating(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.floating | float) and np.asarray(value).dtype.kind == "f"


def is_complex(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "c"
