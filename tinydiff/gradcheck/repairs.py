"""Small changes to a backward pass that undo the slips people make: each a syntax tree with one expression changed."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from tinydiff.gradcheck.source import Definition, names_in

REDUCTIONS = {
    "sum": ("mean",),
    "mean": ("sum",),
    "argmax": ("argmin",),
    "argmin": ("argmax",),
    "max": ("min",),
    "min": ("max",),
}


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
Change = tuple[str, int, ast.expr | None]  # the code of the diagnosis, the rank, the new expression


def repairs(node: Definition, alike: Callable[[str, str], bool], names: Sequence[str]) -> Iterator[Repair]:
    """All changes to a definition.

    alike: whether two of its variables hold arrays of one shape. names: expressions that may be a missing factor or term.
    """
    for statement, place in _statements(node):
        for where, path, expression in _expressions(statement, place):
            for code, rank, new in _changes(expression, path, alike):
                if new is not None:
                    yield Repair(statement, *where, new, code, rank)
        yield from _whole(statement, place, names)


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
    """Every expression that is read in a statement, with its place and the fields on the way to it."""
    stack: list[tuple[Place, tuple[str, ...], ast.AST]] = [(place, (), statement)]
    while stack:
        where, path, node = stack.pop()
        if isinstance(node, ast.expr) and not isinstance(getattr(node, "ctx", None), ast.Store):
            yield where, path, node
        for field, value in ast.iter_fields(node):
            if isinstance(value, ast.AST):
                stack.append(((node, field, None), (*path, field), value))
            elif isinstance(value, list):
                stack += [((node, field, i), (*path, field), v) for i, v in enumerate(value) if isinstance(v, ast.AST)]


def _changes(e: ast.expr, path: tuple[str, ...], alike: Callable[[str, str], bool]) -> Iterator[Change]:
    inside_index = "slice" in path
    if isinstance(e, ast.Attribute) and e.attr == "T":
        yield "transposed", 0, e.value
    if isinstance(e, ast.BinOp):
        yield from _of_operators(e)
    if isinstance(e, ast.UnaryOp) and isinstance(e.op, ast.USub):
        yield "sign", 0, e.operand
    if isinstance(e, ast.Call):
        yield from _of_calls(e)
    if isinstance(e, ast.Constant) and isinstance(e.value, int | float) and not isinstance(e.value, bool):
        yield from _of_numbers(e, path)
    if isinstance(e, ast.Constant) and isinstance(e.value, bool):
        yield "unknown", 1, ast.Constant(not e.value)
    if isinstance(e, ast.Compare) and len(e.ops) == 1:
        for op in (ast.Gt, ast.GtE, ast.Lt, ast.LtE, ast.NotEq, ast.Eq):
            if not isinstance(e.ops[0], op):
                yield "mask", 1, ast.Compare(e.left, [op()], e.comparators)
    if isinstance(e, ast.Subscript) and isinstance(e.slice, ast.Slice):
        yield from _of_slices(e)
    if isinstance(e, ast.Subscript) and isinstance(e.value, ast.Attribute) and e.value.attr == "shape":
        for by in (-1, 1):
            yield "shifted", 1, ast.BinOp(e, ast.Add(), ast.Constant(by))
    if isinstance(e, ast.Tuple) and inside_index and len(e.elts) == 2 and isinstance(e.elts[0], ast.Slice):
        y = e.elts[1].id if isinstance(e.elts[1], ast.Name) else ""
        rows = ast.parse(f"np.arange(len({y}))", mode="eval").body  # d[:, y] for d[np.arange(len(y)), y]
        yield "misplaced", 0, ast.Tuple([rows, e.elts[1]], ast.Load()) if y else None
    if isinstance(e, ast.Name) and inside_index and isinstance(e.ctx, ast.Load):
        for other in _others(e.id, alike):
            yield "misplaced", 3, ast.BinOp(e, ast.Mult(), ast.Name(other, ast.Load()))
    if isinstance(e, ast.Tuple) and 2 <= len(e.elts) <= 6 and len(path) == 1:
        for i in range(len(e.elts)):
            for j in range(i):
                order = list(e.elts)
                order[i], order[j] = order[j], order[i]
                yield "exchanged", 1, ast.Tuple(order, ast.Load())
    if isinstance(e, ast.Name) and isinstance(e.ctx, ast.Load) and not inside_index:
        for other in _others(e.id, alike):
            yield "operand", 2, ast.Name(other, ast.Load())
            yield "factor", 3, ast.BinOp(e, ast.Mult(), ast.Name(other, ast.Load()))


def _others(name: str, alike: Callable[[str, str], bool]) -> list[str]:
    known = getattr(alike, "names", ())
    return [other for other in known if other != name and alike(name, other)]


def _of_operators(e: ast.BinOp) -> Iterator[Change]:
    if isinstance(e.op, ast.MatMult):
        yield "transposed", 0, ast.BinOp(e.left, e.op, _turned(e.right))
        yield "transposed", 0, ast.BinOp(_turned(e.left), e.op, e.right)
        yield "transposed", 0, ast.BinOp(_turned(e.right), e.op, _turned(e.left))
        yield "transposed", 1, ast.BinOp(_turned(e.left), e.op, _turned(e.right))
        yield "transposed", 1, ast.BinOp(e.right, e.op, e.left)
        for method in ("swapaxes(-1, -2)",):
            for left, right in ((True, False), (False, True)):
                parts = [_called(x, method) if turn else x for x, turn in ((e.left, left), (e.right, right))]
                yield "transposed", 1, ast.BinOp(parts[0], e.op, parts[1])
        return
    swaps: dict[type[ast.operator], tuple[ast.operator, str]] = {
        ast.Add: (ast.Sub(), "sign"), ast.Sub: (ast.Add(), "sign"),
        ast.Mult: (ast.Div(), "factor"), ast.Div: (ast.Mult(), "factor"),
    }  # fmt: skip
    if type(e.op) in swaps:
        op, code = swaps[type(e.op)]
        yield code, 0, ast.BinOp(e.left, op, e.right)
        kind = "factor" if isinstance(e.op, ast.Mult | ast.Div) else "missing"
        yield kind, 1, e.left
        if isinstance(e.op, ast.Mult | ast.Add | ast.Sub):
            yield kind, 1, e.right
    if isinstance(e.op, ast.Sub):
        yield "sign", 0, ast.BinOp(e.right, e.op, e.left)
        yield "missing", 1, ast.UnaryOp(ast.USub(), e.right)
    if isinstance(e.op, ast.Div):
        yield "factor", 1, ast.BinOp(e.right, e.op, e.left)
    if isinstance(e.op, ast.Mult) and isinstance(e.left, ast.Name) and isinstance(e.right, ast.Name):
        # through a softmax p: p * (dp - (p * dp).sum(-1)), and not p * dp
        minus, keep = ast.UnaryOp(ast.USub(), ast.Constant(1)), [ast.keyword("keepdims", ast.Constant(True))]
        total = ast.Call(ast.Attribute(e, "sum", ast.Load()), [minus], keep)
        for p, dp in ((e.left, e.right), (e.right, e.left)):
            yield "missing", 2, ast.BinOp(p, e.op, ast.BinOp(dp, ast.Sub(), total))
    if isinstance(e.op, ast.Pow):
        if isinstance(e.left, ast.BinOp) and isinstance(e.left.left, ast.Constant):
            inner = ast.BinOp(e.left.right, ast.Pow(), e.right)
            yield "local-derivative", 0, ast.BinOp(e.left.left, e.left.op, inner)
        yield "factor", 0, e.left
        yield "sign", 1, ast.BinOp(e.left, ast.Pow(), ast.UnaryOp(ast.USub(), e.right))
    elif isinstance(e.op, ast.Sub | ast.Add) and isinstance(e.left, ast.Constant):
        yield "local-derivative", 0, ast.BinOp(e.left, e.op, _squared(e.right))
        if isinstance(e.right, ast.BinOp) and isinstance(e.right.op, ast.Mult | ast.Pow):
            yield "local-derivative", 0, ast.BinOp(e.left, e.op, e.right.left)
        yield "local-derivative", 1, _squared(e)


def _of_calls(e: ast.Call) -> Iterator[Change]:
    if not isinstance(e.func, ast.Attribute):
        if isinstance(e.func, ast.Name) and e.func.id == "reversed" and e.args:
            yield "flipped", 0, e.args[0]
        elif isinstance(e.func, ast.Name) and e.func.id == "range":
            yield "flipped", 0, ast.Call(ast.Name("reversed", ast.Load()), [e], [])
        return
    for other in REDUCTIONS.get(e.func.attr, ()):
        yield "ratio", 0, ast.Call(ast.Attribute(e.func.value, other, ast.Load()), e.args, e.keywords)
    if e.func.attr in ("sum", "mean", "max", "var", "std", "cumsum", "argmax"):
        is_module = isinstance(e.func.value, ast.Name) and e.func.value.id in ("np", "numpy")
        at = 1 if is_module else 0
        axes = [ast.Constant(0), ast.Constant(1), ast.Constant(-1), ast.Constant(None), ast.Constant(2),
                ast.Tuple([ast.Constant(0), ast.Constant(1)], ast.Load()),
                ast.Tuple([ast.Constant(0), ast.Constant(2), ast.Constant(3)], ast.Load())]  # fmt: skip
        keep = [k for k in e.keywords if k.arg != "axis"]
        kept = [*(k for k in keep if k.arg != "keepdims"), ast.keyword("keepdims", ast.Constant(True))]
        bare = [k for k in keep if k.arg != "keepdims"]
        for axis in axes:
            for keywords in (keep, kept, bare):
                call = ast.Call(e.func, e.args[:at], [ast.keyword("axis", axis), *keywords])
                yield "axis", 1, call
        if not is_module:
            yield "missing", 1, e.func.value
        elif e.args:
            yield "missing", 1, e.args[0]
    if e.func.attr in ("dot", "matmul") and len(e.args) == 2:
        a, b = e.args
        for args in ([a, _turned(b)], [_turned(a), b], [_turned(a), _turned(b)], [b, a]):
            yield "transposed", 0, ast.Call(e.func, args, e.keywords)
    if e.func.attr == "dot" and len(e.args) == 1:
        yield "transposed", 0, ast.Call(e.func, [_turned(e.args[0])], [])
        yield "transposed", 0, ast.Call(ast.Attribute(_turned(e.func.value), "dot", ast.Load()), e.args, [])
    if e.func.attr in ("transpose", "swapaxes", "copy", "cumsum"):
        yield "transposed", 0, e.func.value
    if e.func.attr == "copy" and not e.args:
        positive = ast.Compare(e.func.value, [ast.Gt()], [ast.Constant(0)])
        yield "mask", 1, ast.BinOp(positive, ast.Mult(), ast.Constant(1.0))
    if e.func.attr == "outer" and len(e.args) == 2:
        yield "transposed", 0, ast.Call(e.func, [e.args[1], e.args[0]], [])
    if e.func.attr in ("where", "maximum") and len(e.args) == 3:
        yield "mask", 0, ast.Call(e.func, [e.args[0], e.args[2], e.args[1]], [])
    pairs = {"cos": "sin", "sin": "cos", "zeros_like": "ones_like", "tanh": "cosh", "log": "exp", "exp": "log"}
    if e.func.attr in pairs:
        yield (
            "local-derivative",
            1,
            ast.Call(ast.Attribute(e.func.value, pairs[e.func.attr], ast.Load()), e.args, e.keywords),
        )


def _of_numbers(e: ast.Constant, path: tuple[str, ...]) -> Iterator[Change]:
    c = e.value
    assert isinstance(c, int | float)
    is_index = "slice" in path
    is_power = bool(path) and path[-1] == "right"
    code = "shifted" if is_index else "factor" if is_power else "ratio"
    new = [c + 1, c - 1, -c] if is_index else [2 * c, c / 2, -c, c + 1, c - 1, 1 / c if c else 1]
    for value in dict.fromkeys(int(n) if float(n).is_integer() and isinstance(c, int) else n for n in new):
        if value != c and not (is_index and not isinstance(value, int)):
            yield code, 1, ast.Constant(value)


def _of_slices(e: ast.Subscript) -> Iterator[Change]:
    s = e.slice
    assert isinstance(s, ast.Slice)
    one = ast.Constant(1)
    if s.lower is None and isinstance(s.upper, ast.UnaryOp):
        yield "shifted", 0, ast.Subscript(e.value, ast.Slice(one, None, None), e.ctx)
    if s.lower is not None and s.upper is None:
        yield "shifted", 0, ast.Subscript(e.value, ast.Slice(None, ast.UnaryOp(ast.USub(), one), None), e.ctx)
    if s.step is not None:
        yield "flipped", 0, ast.Subscript(e.value, ast.Slice(s.lower, s.upper, None), e.ctx)


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
        yield Repair(statement, *where, _turned(e), "transposed", 1)
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


def _turned(e: ast.expr) -> ast.expr:
    return e.value if isinstance(e, ast.Attribute) and e.attr == "T" else ast.Attribute(e, "T", ast.Load())


def _squared(e: ast.expr) -> ast.expr:
    return ast.BinOp(e, ast.Pow(), ast.Constant(2))


def _called(e: ast.expr, method: str) -> ast.expr:
    if isinstance(e, ast.Call) and isinstance(e.func, ast.Attribute) and e.func.attr == "swapaxes":
        return e.func.value
    call = ast.parse(f"x.{method}").body[0]
    assert (
        isinstance(call, ast.Expr) and isinstance(call.value, ast.Call) and isinstance(call.value.func, ast.Attribute)
    )
    call.value.func.value = e
    return call.value


def _loaded(target: ast.expr) -> ast.expr:
    load = copy.deepcopy(target)
    load.ctx = ast.Load()  # type: ignore[attr-defined]
    return load
