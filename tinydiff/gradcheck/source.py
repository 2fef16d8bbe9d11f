"""The source of a function as a syntax tree, with the lines of its file; of several lambdas in a line, the right one."""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import os
import site
import sysconfig
import textwrap
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

OWN = str(Path(__file__).parents[1]) + os.sep  # the package's files, and not those of a checkout that is called like it
Definition = ast.FunctionDef | ast.Lambda
WRITERS = (
    "at",
    "put_along_axis",
    "fill_diagonal",
    "copyto",
    "put",
    "place",
    "putmask",
)  # NumPy's, into the first argument


class Source(NamedTuple):
    """A function's node, whose line numbers are those of the file, and the file's name."""

    node: Definition
    file: str

    def line(self, number: int) -> str:
        """A line of the file without the blanks around it."""
        return " ".join(linecache.getline(self.file, number).split())

    @property
    def shown(self) -> str:
        """The file's name as messages have it: relative where it lies below the working directory."""
        return short(self.file)


def short(file: str) -> str:
    inside = os.path.relpath(file) if os.path.exists(file) else file
    return file if inside.startswith("..") else inside


def source_of(function: Callable[..., Any]) -> Source | None:
    """The source of a Python function or method, or None where it cannot be read."""
    fn: Any = inspect.unwrap(function)
    while isinstance(fn, functools.partial):
        fn = fn.func
    fn = getattr(fn, "__func__", fn)
    if not isinstance(fn, types.FunctionType):
        return None
    try:
        file = inspect.getsourcefile(fn) or fn.__code__.co_filename
        lines, _ = inspect.findsource(fn)
        tree = _parsed(file, "".join(lines))
    except (OSError, TypeError, SyntaxError, IndexError):
        tree = None
    if tree is not None:
        best = _best(fn.__code__, tree)
        if best is not None:
            return Source(best, file)
    try:  # a cell of a notebook that is not Python as a whole
        lines, first = inspect.getsourcelines(fn)
        part = ast.parse(textwrap.dedent("".join(lines)))
        ast.increment_lineno(part, first - 1)
        node = next((n for n in ast.walk(part) if isinstance(n, Definition)), None)
        return None if node is None else Source(node, inspect.getsourcefile(fn) or "?")
    except (OSError, TypeError, SyntaxError, IndexError):
        return None


@functools.lru_cache(maxsize=8)
def _parsed(file: str, text: str) -> ast.Module:
    return ast.parse(text)


def _best(code: types.CodeType, tree: ast.AST) -> Definition | None:
    """The definition in the tree that a code object was compiled from."""
    spots = [p for p in code.co_positions() if p[0] is not None and p[2] is not None and p[2] != p[3]]
    found: list[Definition] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if first == code.co_firstlineno:
                found.append(node)
        elif isinstance(node, ast.Lambda) and code.co_name == "<lambda>" and node.lineno == code.co_firstlineno:
            body = node.body
            start, end = (body.lineno, body.col_offset), (body.end_lineno or 0, body.end_col_offset or 0)
            if all(start <= (a, c) and (b, d) <= end for a, b, c, d in spots):
                found.append(node)
    return max(found, key=lambda n: (n.lineno, n.col_offset), default=None)


def names_in(target: ast.expr) -> Iterator[str]:
    """Names that an assignment to this target binds or changes: x, (x, y), x[i], *x."""
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, ast.Tuple | ast.List):
        for part in target.elts:
            yield from names_in(part)
    elif isinstance(target, ast.Subscript | ast.Starred):
        yield from names_in(target.value)


def changed_by(node: ast.stmt) -> set[str]:
    """Names that a statement assigns, or changes in place: d = ..., d[i] += ..., np.add.at(d, ...)."""
    if isinstance(node, ast.Assign):
        return {name for target in node.targets for name in names_in(target)}
    if isinstance(node, ast.AugAssign | ast.AnnAssign):
        return set(names_in(node.target))
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        call = node.value
        if isinstance(call.func, ast.Attribute) and call.func.attr in WRITERS and call.args:
            return set(names_in(call.args[0]))
    return set()


def is_users(file: str) -> bool:
    """Whether code is the user's own: no installed package's, nor Python's, nor this package's.

    Folders are compared with those in use, because a project may lie below a folder of such a name. A notebook's cells
    are no files, but their lines are known.
    """
    if file.startswith("<"):
        return bool(linecache.getlines(file))
    return not file.startswith(_package_folders())


@functools.cache
def _package_folders() -> tuple[str, ...]:
    places = sysconfig.get_paths()
    folders = {places[key] for key in ("purelib", "platlib", "stdlib", "platstdlib")}
    folders |= {*site.getsitepackages(), site.getusersitepackages(), str(Path(np.__file__).parents[1])}
    return (OWN, *(str(Path(folder)) + os.sep for folder in folders))


def raised_at(error: BaseException) -> str:
    """ "file:line" of the last frame of the user's own code that an exception passed through; "" where there is none."""
    ours = str(Path(__file__).parent) + os.sep
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    own = [f for f in frames if is_users(f.filename)]
    if not (own or frames):
        return ""
    last = (own or frames)[-1]
    return f"{short(last.filename)}:{last.lineno}"
