"""Small changes to a backward pass that undo the slips people make: each a syntax tree with one expression changed."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from tinydiff.gradcheck import reindex
from tinydiff.gradcheck.expressions import changes, turned
from tinydiff.gradcheck.source import Definition, names_in

STRIDES = ("stride", "strides", "s", "step", "size", "k", "pool", "factor", "scale")  # names of what an index is times
MOST_UNPACKED = 6


class Repair(NamedTuple):
    """A change to a definition, which is made in place and taken back.

    holder, field, i: where the expression or statement stands that is another one. rank: 0 for a change that says
    precisely what is wrong; higher where many changes of that kind are tried. code: of the diagnosis.
    """

    statement: ast.AST
    holder: ast.AST
    field: str
    i: int | None
    new: ast.AST
    code: str
    rank: int

    @property
    def line(self) -> int:
        return int(getattr(self.statement, "lineno", 0))

    @contextmanager
    def made(self) -> Iterator[None]:
        """A block in which the definition has the change."""
        values = getattr(self.holder, self.field)
        old = values if self.i is None else values[self.i]
        for node in ast.walk(self.new):
            if isinstance(node, ast.expr | ast.stmt | ast.keyword | ast.arg) and not hasattr(node, "lineno"):
                ast.copy_location(node, self.statement)
        try:
            if self.i is None:
                setattr(self.holder, self.field, self.new)
            else:
                values[self.i] = self.new
            yield
        finally:
            if self.i is None:
                setattr(self.holder, self.field, old)
            else:
                values[self.i] = old

    def texts(self) -> tuple[str, str]:
        """The statement as it is, and as it would be."""
        before = ast.unparse(self.statement)
        with self.made():
            values = getattr(self.holder, self.field)
            is_whole = (values if self.i is None else values[self.i]) is not self.statement and self.is_statement
            return before, ast.unparse(self.new if is_whole else self.statement)

    @property
    def is_statement(self) -> bool:
        """Whether the whole statement is another one."""
        values = getattr(self.holder, self.field)
        return (values if self.i is None else values[self.i]) is self.statement or isinstance(self.new, ast.stmt)


Place = tuple[ast.AST, str, int | None]  # a node, its field, and the place in it where that is a list


def repairs(
    node: Definition,
    alike: Callable[[str, str], bool],
    names: Sequence[str],
    windows: Sequence[ast.expr] = (),
) -> Iterator[Repair]:
    """All changes to a definition.

    alike: whether two of its variables hold arrays of one shape. names: expressions that may be a missing factor or term.
    windows: the indices that forward uses.
    """
    known = getattr(alike, "names", ())
    loops = [
        n.id for f in ast.walk(node) if isinstance(f, ast.For) for n in ast.walk(f.target) if isinstance(n, ast.Name)
    ]
    factors = [n for n in known if n in STRIDES]
    unused = [v for v in reindex.idle(node) if v in known]
    for statement, place in _statements(node):
        for where, path, expression in _expressions(statement, place):
            stored = isinstance(getattr(expression, "ctx", None), ast.Store)
            for code, rank, new in () if stored else changes(expression, path, alike):
                if new is not None:
                    yield Repair(statement, *where, new, code, rank)
            if isinstance(expression, ast.Subscript):
                for code, rank, new in reindex.of_subscripts(expression, known, windows):
                    yield Repair(statement, *where, new, code, rank)
        yield from _whole(statement, place, names)
        yield from _terms(statement, place, names, known, unused)
        if isinstance(statement, ast.stmt):
            for code, rank, whole in reindex.strides(statement, loops, factors):
                yield Repair(statement, *place, whole, code, rank)


def _statements(node: Definition) -> Iterator[tuple[ast.AST, Place]]:
    """Simple statements, heads of loops, or the body of a lambda, each with its place."""
    if isinstance(node, ast.Lambda):
        yield node.body, (node, "body", None)
        return
    kinds = ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Return | ast.Expr
    stack: list[ast.AST] = [node]
    while stack:
        holder = stack.pop(0)
        for field, value in ast.iter_fields(holder):
            for i, child in enumerate(value if isinstance(value, list) else ()):
                if isinstance(child, kinds) and not (
                    isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
                ):
                    yield child, (holder, field, i)
                elif isinstance(child, ast.stmt):
                    stack.append(child)
        if isinstance(holder, ast.For):
            yield holder.iter, (holder, "iter", None)


def _expressions(statement: ast.AST, place: Place) -> Iterator[tuple[Place, tuple[str, ...], ast.expr]]:
    """Every expression that is read in a statement, or stored into by an index, with its place and the fields on the way."""
    stack: list[tuple[Place, tuple[str, ...], ast.AST]] = [(place, (), statement)]
    while stack:
        where, path, node = stack.pop()
        if isinstance(node, ast.Subscript) or (
            isinstance(node, ast.expr) and not isinstance(getattr(node, "ctx", None), ast.Store)
        ):
            yield where, path, node
        for field, value in ast.iter_fields(node):
            if isinstance(value, ast.AST):
                stack.append(((node, field, None), (*path, field), value))
            elif isinstance(value, list):
                stack += [((node, field, i), (*path, field), v) for i, v in enumerate(value) if isinstance(v, ast.AST)]


def _whole(statement: ast.AST, place: Place, names: Sequence[str]) -> Iterator[Repair]:
    """Changes to a statement as a whole: what is assigned, = for +=, a factor or term that is missing."""
    if isinstance(statement, ast.AugAssign):
        load = _loaded(statement.target)
        if isinstance(statement.op, ast.Add | ast.Sub):
            other: ast.operator = ast.Sub() if isinstance(statement.op, ast.Add) else ast.Add()
            new: ast.stmt = ast.AugAssign(statement.target, other, statement.value)
            yield Repair(statement, *place, new, "sign", 0)
            yield Repair(statement, *place, ast.Assign([statement.target], statement.value), "twice", 0)
        if isinstance(statement.target, ast.Subscript) and isinstance(statement.op, ast.Add):
            assert isinstance(load, ast.Subscript)
            at = ast.parse("np.add.at", mode="eval").body
            call = ast.Call(at, [load.value, load.slice, statement.value], [])
            yield Repair(statement, *place, ast.Expr(call), "overwritten", 0)
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        if isinstance(target, ast.Subscript):
            yield Repair(statement, *place, ast.AugAssign(target, ast.Mult(), statement.value), "factor", 1)
        if isinstance(statement.value, ast.Name):
            exp = ast.Call(ast.parse("np.exp", mode="eval").body, [statement.value], [])
            yield Repair(statement, statement, "value", None, exp, "local-derivative", 1)
        if isinstance(target, ast.Subscript | ast.Name):
            new = ast.AugAssign(target, ast.Add(), statement.value)
            yield Repair(statement, *place, new, "overwritten", 0)
    value = getattr(statement, "value", statement)
    if isinstance(statement, ast.Expr) or not isinstance(value, ast.expr):
        return
    at_value: Place = (statement, "value", None) if value is not statement else place
    places = [(at_value, value)]
    if isinstance(value, ast.Tuple):
        places = [((value, "elts", i), e) for i, e in enumerate(value.elts)]
    targets = {n for t in getattr(statement, "targets", [getattr(statement, "target", None)]) if t for n in names_in(t)}
    for where, e in places:
        yield Repair(statement, *where, ast.UnaryOp(ast.USub(), e), "sign", 1)
        yield Repair(statement, *where, turned(e), "transposed", 1)
        for factor in (2.0, 0.5):
            yield Repair(statement, *where, ast.BinOp(ast.Constant(factor), ast.Mult(), e), "ratio", 2)
        for axis in (0, 1, -1, None):
            total = ast.Call(ast.Attribute(e, "sum", ast.Load()), [ast.Constant(axis)], [])
            yield Repair(statement, *where, total, "broadcast", 2)
        for name in names:
            if not any(t == name or f"({t}" in name for t in targets):
                for op, code, rank in ((ast.Mult(), "factor", 3), (ast.Div(), "factor", 3), (ast.Add(), "missing", 4)):
                    if rank < 4 or name.isidentifier():
                        n = ast.parse(name, mode="eval").body
                        yield Repair(statement, *where, ast.BinOp(e, op, n), code, rank)


def _terms(
    statement: ast.AST, place: Place, names: Sequence[str], known: Sequence[str], unused: Sequence[str]
) -> Iterator[Repair]:
    """Terms that are missing: like one that is there but for a letter, or with a variable that nothing uses."""
    if (
        isinstance(statement, ast.Assign)
        and len(statement.targets) == 1
        and isinstance(statement.targets[0], ast.Tuple)
    ):
        parts = statement.targets[0].elts
        for i in range(len(parts) if len(parts) <= MOST_UNPACKED else 0):
            for j in range(i):
                order = list(parts)
                order[i], order[j] = order[j], order[i]
                new = ast.Assign([ast.Tuple(order, ast.Store())], statement.value)
                yield Repair(statement, *place, new, "exchanged", 1)
        return
    e = getattr(statement, "value", None)
    if not isinstance(statement, ast.Assign | ast.AugAssign | ast.Return) or not isinstance(e, ast.expr):
        return
    if not isinstance(e, ast.Tuple):
        for other in reindex.relatives(e, known):
            yield Repair(statement, statement, "value", None, ast.BinOp(e, ast.Add(), other), "missing", 2)
            yield Repair(statement, statement, "value", None, other, "operand", 2)
    own = {n for t in getattr(statement, "targets", [getattr(statement, "target", None)]) if t for n in names_in(t)}
    places: list[tuple[Place, ast.expr]] = [((statement, "value", None), e)]
    if isinstance(e, ast.Tuple):
        places = [((e, "elts", i), part) for i, part in enumerate(e.elts)]
    slopes = [n for n in names if n.startswith("(") and not any(f"({v} " in n or f" {v})" in n for v in unused)]
    for v in unused:
        if v in own:
            continue
        for where, part in places:
            name = ast.Name(v, ast.Load())
            yield Repair(statement, *where, ast.BinOp(part, ast.Add(), name), "missing", 1)
            yield Repair(statement, *where, ast.BinOp(part, ast.Mult(), name), "factor", 2)
            for slope in slopes:
                term = ast.BinOp(name, ast.Mult(), ast.parse(slope, mode="eval").body)
                yield Repair(statement, *where, ast.BinOp(part, ast.Add(), term), "missing", 3)


def _loaded(target: ast.expr) -> ast.expr:
    load = copy.deepcopy(target)
    load.ctx = ast.Load()  # type: ignore[attr-defined]
    return load
