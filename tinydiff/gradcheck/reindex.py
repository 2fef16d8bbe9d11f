"""Changes of windows, indices and axes in a backward pass, and terms that it forgot: more of what people slip in.

Like `repairs.py`, which has the changes to a single expression. Here a change may concern several places of a statement at
once, or take what it needs from forward: its windows, and the terms that look alike but for a letter (q, k, v).
"""

from __future__ import annotations

import ast
import copy
import itertools
from collections.abc import Iterator, Sequence

from tinydiff.gradcheck.source import Definition

Change = tuple[str, int, ast.expr]  # the code of the diagnosis, the rank, the new expression
MOST_WINDOWS, MOST_FAMILY = 12, 6  # of forward that are tried; renamed terms for one expression
MOST_EXCHANGED, MOST_CONSTANTS = 6, 4  # names in an index, any two of which are exchanged; constants of forward


def windows(forward: ast.AST) -> list[ast.expr]:
    """The indices with slices that forward uses, such as [2 * i : 2 * i + k, j], each once."""
    found: dict[str, ast.expr] = {}
    for n in ast.walk(forward):
        if isinstance(n, ast.Subscript) and isinstance(n.slice, ast.Tuple | ast.Slice | ast.BinOp | ast.UnaryOp):
            found.setdefault(ast.unparse(n.slice), n.slice)
    return list(found.values())[:MOST_WINDOWS]


def constants(forward: ast.AST) -> list[str]:
    """What forward computes of numbers alone, such as np.sqrt(2 / np.pi): the largest such expressions."""
    found: list[str] = []
    queue: list[ast.AST] = [forward]
    while queue:
        n = queue.pop(0)
        if isinstance(n, ast.BinOp | ast.Call) and _names(n) <= {"np", "numpy", "math"}:
            if any(isinstance(c, ast.Constant) for c in ast.walk(n)):
                found.append(ast.unparse(n))
            continue
        queue += ast.iter_child_nodes(n)
    return list(dict.fromkeys(found))[:MOST_CONSTANTS]


def of_subscripts(e: ast.Subscript, known: Sequence[str], borrowed: Sequence[ast.expr]) -> Iterator[Change]:
    """Another window for a window, and a sum over axes for one index in each."""
    names = set(known)
    for window in borrowed:
        alike = type(window) is type(e.slice) and len(getattr(window, "elts", ())) == len(getattr(e.slice, "elts", ()))
        if alike and ast.unparse(window) != ast.unparse(e.slice) and _names(window) <= names:
            yield "misplaced", 1, ast.Subscript(e.value, window, e.ctx)
    inside = sorted(_names(e.slice) & names) if isinstance(e.slice, ast.Tuple) else []
    for a, b in itertools.combinations(inside, 2) if len(inside) <= MOST_EXCHANGED else ():
        yield "misplaced", 1, ast.Subscript(e.value, _Exchanged(a, b).visit(copy.deepcopy(e.slice)), e.ctx)
    if not isinstance(e.ctx, ast.Load):
        return
    parts = e.slice.elts if isinstance(e.slice, ast.Tuple) else [e.slice]
    if all((isinstance(p, ast.Slice) and not (p.lower or p.upper or p.step)) or _is_number(p) for p in parts):
        axes = [i for i, p in enumerate(parts) if _is_number(p)]
        if axes:
            yield "broadcast", 1, _method(e.value, "sum", [_numbers(axes)])


def of_axes(e: ast.Call) -> Iterator[Change]:
    """Other orders of axes in reshape and transpose: one for the other, and two lengths exchanged."""
    if not isinstance(e.func, ast.Attribute):
        return
    lengths = _arguments(e)
    if e.func.attr == "transpose":
        order = [p.value for p in lengths if isinstance(p, ast.Constant) and isinstance(p.value, int)]
        inner = e.func.value
        if len(order) != len(lengths) or sorted(order) != list(range(len(order))) or not 2 <= len(order) <= 6:
            return
        if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute) and inner.func.attr == "reshape":
            sizes = _arguments(inner)
            if len(sizes) == len(order):  # the elements are taken in the order in which they lie
                yield "axis", 0, _method(inner.func.value, "reshape", [sizes[i] for i in order])
        for other in itertools.permutations(range(len(order))) if len(order) <= 4 else _exchanges(order):
            if list(other) != order:
                yield "axis", 2, _method(inner, "transpose", [ast.Constant(i) for i in other])
    if e.func.attr == "reshape" and 2 <= len(lengths) <= 5:
        places = list(range(len(lengths)))
        for i, j in itertools.combinations(places, 2):
            order = list(places)
            order[i], order[j] = places[j], places[i]
            sizes = [lengths[p] for p in order]
            swapped = _method(e.func.value, "reshape", sizes)
            yield "axis", 2, _method(swapped, "transpose", [ast.Constant(p) for p in order])
            yield "axis", 2, swapped


def _exchanges(order: Sequence[int]) -> Iterator[list[int]]:
    for i, j in itertools.combinations(range(len(order)), 2):
        other = list(order)
        other[i], other[j] = order[j], order[i]
        yield other


def of_order(e: ast.BinOp) -> Iterator[Change]:
    """Parentheses that are missing or too many: a * b - c for a * (b - c)."""
    if isinstance(e.op, ast.Add | ast.Sub):
        left, right = e.left, e.right
        if isinstance(left, ast.BinOp) and isinstance(left.op, ast.Mult | ast.Div):
            if isinstance(left.op, ast.Mult):
                yield "factor", 1, ast.BinOp(left.left, left.op, ast.BinOp(left.right, e.op, right))
            yield "factor", 1, ast.BinOp(ast.BinOp(left.left, e.op, right), left.op, left.right)
        if isinstance(right, ast.BinOp) and isinstance(right.op, ast.Mult | ast.Div):
            yield "factor", 1, ast.BinOp(ast.BinOp(left, e.op, right.left), right.op, right.right)
    elif isinstance(e.op, ast.Mult | ast.Div):
        if isinstance(e.op, ast.Mult) and isinstance(e.right, ast.BinOp) and isinstance(e.right.op, ast.Add | ast.Sub):
            inner = e.right
            yield "factor", 1, ast.BinOp(ast.BinOp(e.left, e.op, inner.left), inner.op, inner.right)
        if isinstance(e.left, ast.BinOp) and isinstance(e.left.op, ast.Add | ast.Sub):
            inner = e.left
            yield "factor", 1, ast.BinOp(inner.left, inner.op, ast.BinOp(inner.right, e.op, e.right))


def strides(statement: ast.stmt, loops: Sequence[str], factors: Sequence[str]) -> Iterator[tuple[str, int, ast.stmt]]:
    """All indices of loops in a statement times the same number: a stride that was forgotten."""
    used = {n.id for s in ast.walk(statement) if isinstance(s, ast.Subscript) for n in _index_names(s)} & set(loops)
    if not used:
        return
    for factor in ("2", "3", *factors):
        if factor in used:
            continue
        new = _Scaled(used, factor).visit(copy.deepcopy(statement))
        yield "misplaced", 2, new


def relatives(e: ast.expr, known: Sequence[str]) -> list[ast.expr]:
    """The expression with a letter exchanged in all of its names: dk @ Wk.T beside dq @ Wq.T."""
    names = sorted({n.id for n in ast.walk(e) if isinstance(n, ast.Name) and n.id in known})
    found: dict[str, ast.expr] = {}
    for name in names:
        for other in known:
            if (pair := _difference(name, other)) is None:
                continue
            new = _Renamed(*pair, set(known)).visit(copy.deepcopy(e))
            text = ast.unparse(new)
            if text != ast.unparse(e):
                found.setdefault(text, new)
    return list(found.values())[:MOST_FAMILY]


def idle(node: Definition) -> dict[str, int]:
    """{variable: line} of what a function computes and does not use: never, or not in the loop that hands it on."""
    found: dict[str, int] = {}
    if not isinstance(node, ast.FunctionDef):
        return found
    stores: dict[str, list[ast.Name]] = {}
    for n in ast.walk(node):
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store):
            stores.setdefault(n.id, []).append(n)
    reads = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    plain = {id(n) for s in ast.walk(node) if isinstance(s, ast.Assign | ast.For) for n in _unpacked(s)}
    for name, places in stores.items():
        if name not in reads and name != "_" and not all(id(p) in plain for p in places):
            found[name] = places[-1].lineno
    for loop in (n for n in ast.walk(node) if isinstance(n, ast.For)):
        inside = [n for s in loop.body for n in ast.walk(s) if isinstance(n, ast.Name)]
        read = {n.id for n in inside if isinstance(n.ctx, ast.Load)}
        for n in inside:
            before = any(p.lineno < loop.lineno for p in stores.get(n.id, ()))
            if isinstance(n.ctx, ast.Store) and before and n.id not in read:
                found[n.id] = n.lineno
    return found


class _Scaled(ast.NodeTransformer):
    """Index variables times a factor, inside of subscripts."""

    def __init__(self, names: set[str], factor: str) -> None:
        self.names, self.factor, self.inside = names, factor, False

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        node.value = self.visit(node.value)
        before, self.inside = self.inside, True
        node.slice = self.visit(node.slice)
        self.inside = before
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if not self.inside or node.id not in self.names:
            return node
        return ast.BinOp(ast.parse(self.factor, mode="eval").body, ast.Mult(), node)


class _Exchanged(ast.NodeTransformer):
    def __init__(self, a: str, b: str) -> None:
        self.other = {a: b, b: a}

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self.other.get(node.id, node.id), node.ctx)


class _Renamed(ast.NodeTransformer):
    def __init__(self, old: str, new: str, known: set[str]) -> None:
        self.old, self.new, self.known = old, new, known

    def visit_Name(self, node: ast.Name) -> ast.AST:
        for at in range(len(node.id)):
            if node.id.startswith(self.old, at):
                other = node.id[:at] + self.new + node.id[at + len(self.old) :]
                if other in self.known:
                    return ast.Name(other, node.ctx)
        return node


def _difference(a: str, b: str) -> tuple[str, str] | None:
    """The letters in which two names of one length differ, if that is one run of at most two letters and not all."""
    if a == b or len(a) != len(b) or len(a) < 2:
        return None
    places = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    low, high = places[0], places[-1] + 1
    return (a[low:high], b[low:high]) if high - low <= 2 and high - low < len(a) else None


def _unpacked(s: ast.stmt) -> Iterator[ast.Name]:
    """Names that a statement binds by unpacking, or that a loop counts with: of these some are always left over."""
    for target in s.targets if isinstance(s, ast.Assign) else [s.target]:  # type: ignore[attr-defined]
        if isinstance(target, ast.Tuple | ast.List) or isinstance(s, ast.For):
            yield from (n for n in ast.walk(target) if isinstance(n, ast.Name))


def _index_names(s: ast.Subscript) -> Iterator[ast.Name]:
    return (n for n in ast.walk(s.slice) if isinstance(n, ast.Name))


def _names(e: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(e) if isinstance(n, ast.Name)}


def _is_number(e: ast.AST) -> bool:
    if isinstance(e, ast.UnaryOp) and isinstance(e.op, ast.USub):
        e = e.operand
    return isinstance(e, ast.Constant) and type(e.value) is int


def _numbers(values: Sequence[int]) -> ast.expr:
    numbers = [ast.Constant(v) for v in values]
    return numbers[0] if len(numbers) == 1 else ast.Tuple(list(numbers), ast.Load())


def _arguments(call: ast.Call) -> list[ast.expr]:
    """Those of reshape and transpose, given one by one or as a tuple."""
    return list(call.args[0].elts) if len(call.args) == 1 and isinstance(call.args[0], ast.Tuple) else list(call.args)


def _method(value: ast.expr, name: str, args: Sequence[ast.expr]) -> ast.Call:
    return ast.Call(ast.Attribute(value, name, ast.Load()), list(args), [])
