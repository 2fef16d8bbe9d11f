"""Small changes to one expression that undo the slips people make: a transpose, a sign, an axis, a number, another name."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from tinydiff.gradcheck import reindex

REDUCTIONS = {
    "sum": ("mean",),
    "mean": ("sum",),
    "argmax": ("argmin",),
    "argmin": ("argmax",),
    "max": ("min",),
    "min": ("max",),
}

Change = tuple[str, int, ast.expr | None]  # the code of the diagnosis, the rank, the new expression


def changes(e: ast.expr, path: tuple[str, ...], alike: Callable[[str, str], bool]) -> Iterator[Change]:
    inside_index = "slice" in path
    if isinstance(e, ast.Attribute) and e.attr == "T":
        yield "transposed", 0, e.value
    if isinstance(e, ast.BinOp):
        yield from _of_operators(e)
        yield from reindex.of_order(e)
    if isinstance(e, ast.UnaryOp) and isinstance(e.op, ast.USub):
        yield "sign", 0, e.operand
    if isinstance(e, ast.Call):
        yield from _of_calls(e)
        yield from reindex.of_axes(e)
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
    if isinstance(e, ast.Name) and path[-1:] == ("slice",) and isinstance(e.ctx, ast.Load):
        for near in (ast.Sub(), ast.Add()):  # the step before, or after
            yield "shifted", 1, ast.BinOp(e, near, ast.Constant(1))
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
        if path[-1:] != ("func",):
            yield "local-derivative", 3, ast.Call(ast.parse("np.exp", mode="eval").body, [e], [])


def _others(name: str, alike: Callable[[str, str], bool]) -> list[str]:
    known = getattr(alike, "names", ())
    return [other for other in known if other != name and alike(name, other)]


def _of_operators(e: ast.BinOp) -> Iterator[Change]:
    if isinstance(e.op, ast.MatMult):
        yield "transposed", 0, ast.BinOp(e.left, e.op, turned(e.right))
        yield "transposed", 0, ast.BinOp(turned(e.left), e.op, e.right)
        yield "transposed", 0, ast.BinOp(turned(e.right), e.op, turned(e.left))
        yield "transposed", 1, ast.BinOp(turned(e.left), e.op, turned(e.right))
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
    if isinstance(e.op, ast.Add | ast.Sub):
        for number in (2.0, 0.5):
            yield "ratio", 2, ast.BinOp(ast.BinOp(ast.Constant(number), ast.Mult(), e.left), e.op, e.right)
            yield "ratio", 2, ast.BinOp(e.left, e.op, ast.BinOp(ast.Constant(number), ast.Mult(), e.right))
    if isinstance(e.op, ast.Add):
        yield "sign", 0, ast.BinOp(e.right, ast.Sub(), e.left)
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
        if isinstance(e.right, ast.Constant) and isinstance(e.right.value, int):  # x^2 for 3 x^2
            yield "local-derivative", 1, ast.BinOp(ast.Constant(e.right.value + 1), ast.Mult(), e)
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
        for args in ([a, turned(b)], [turned(a), b], [turned(a), turned(b)], [b, a]):
            yield "transposed", 0, ast.Call(e.func, args, e.keywords)
    if e.func.attr == "dot" and len(e.args) == 1:
        yield "transposed", 0, ast.Call(e.func, [turned(e.args[0])], [])
        yield "transposed", 0, ast.Call(ast.Attribute(turned(e.func.value), "dot", ast.Load()), e.args, [])
    if e.func.attr in ("transpose", "swapaxes", "copy", "cumsum"):
        yield "transposed", 0, e.func.value
    if e.func.attr == "copy" and not e.args:
        positive = ast.Compare(e.func.value, [ast.Gt()], [ast.Constant(0)])
        yield "mask", 1, ast.BinOp(positive, ast.Mult(), ast.Constant(1.0))
    if e.func.attr == "outer" and len(e.args) == 2:
        yield "transposed", 0, ast.Call(e.func, [e.args[1], e.args[0]], [])
    if e.func.attr in ("where", "maximum") and len(e.args) == 3:
        yield "mask", 0, ast.Call(e.func, [e.args[0], e.args[2], e.args[1]], [])
    if e.func.attr in ("maximum", "minimum", "clip") and len(e.args) > 1:
        yield "missing", 0, e.args[0]
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


def turned(e: ast.expr) -> ast.expr:
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
