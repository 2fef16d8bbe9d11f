"""Which statement of a backward pass must be wrong because everything that it reads is right."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Sequence

from tinydiff.gradcheck.source import Definition, changed_by, names_in

# Calls that hand on what forward has computed as it is.
PLAIN = {
    *("len", "copy", "reshape", "ravel", "astype", "asarray", "array", "zeros", "zeros_like", "empty", "empty_like"),
    *(
        "range",
        "ones",
        "ones_like",
        "arange",
        "transpose",
        "swapaxes",
        "float",
        "int",
        "list",
        "tuple",
        "items",
        "keys",
    ),
}

GRADIENT = re.compile(r"d[A-Za-z_]\w*$|grad\w*$|L_\w+$|\w+_grad$")


class Flow:
    """The simple statements of a definition: what each changes and reads, and whether it carries gradients."""

    def __init__(
        self,
        node: Definition,
        cotangents: Collection[str],
        helpers: Collection[str],
        shared: Collection[str] = (),
        unsure: Collection[str] = (),
    ) -> None:
        """cotangents: parameters that are gradients of outputs. helpers: functions of the user's own, which may be wrong
        themselves; shared: those that forward calls as well, which are not. unsure: variables taken out of a cache that
        are not known to hold what forward calls so."""
        self.node, self.shared, self.unsure = node, set(shared), set(unsure)
        self.helpers = set(helpers) - self.shared
        kinds = ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Expr | ast.Return
        found = [n for n in ast.walk(node) if isinstance(n, kinds)] if isinstance(node, ast.FunctionDef) else []
        self.statements = sorted(found, key=lambda n: n.lineno)
        self.loops = any(isinstance(n, ast.For | ast.While) for n in ast.walk(node))
        self.carrying = set(cotangents)
        for _ in range(2 if self.loops else 1):
            for s in self.statements:
                if self.reads(s) & self.carrying:
                    self.carrying |= changed_by(s)
        self.cotangents, self.cotangents_in_order = set(cotangents), list(cotangents)

    def reads(self, statement: ast.AST) -> set[str]:
        """Variables whose values a statement reads; those that it only adds to are not among them."""
        return {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}

    def writers(self, name: str) -> list[ast.stmt]:
        return [s for s in self.statements if name in changed_by(s)]

    def readers(self, name: str) -> list[ast.stmt]:
        return [s for s in self.statements if name in self.reads(s)]

    def copies(self, line: int) -> bool:
        """Whether the statement in a line only names what is given, or parts of it: x, w = cache; dh, dc = dout."""
        found = [s for s in self.statements if s.lineno == line]
        return bool(found) and all(isinstance(s, ast.Assign) and _is_copy(s.value) for s in found)

    def calls(self, statement: ast.AST) -> bool:
        return bool(self.helpers & {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)})

    def returned(self) -> list[ast.expr] | None:
        """The expressions that are returned; None if that is not one tuple or expression."""
        if isinstance(self.node, ast.Lambda):
            value: ast.expr | None = self.node.body
        else:
            returns = [s for s in self.statements if isinstance(s, ast.Return)]
            value = returns[0].value if len(returns) == 1 else None
        if value is None:
            return None
        return list(value.elts) if isinstance(value, ast.Tuple) else [value]


def suspects(flow: Flow, count: int, wrong: Sequence[int], right: Collection[str]) -> list[int] | None:
    """The lines one of which must be wrong, or None where that cannot be said.

    count: of the gradients that are returned. wrong: places of the wrong ones. right: variables with right values.
    """
    results = flow.returned()
    if results is None or len(results) != count or not wrong:
        return None
    good = set(right) | flow.cotangents
    for i, e in enumerate(results):  # what a right gradient was computed from is right
        if i not in wrong:
            good |= _sources(flow, e)
    found = [_suspects(flow, results[i], good, set()) for i in wrong]
    if any(f is None for f in found):
        return None
    common = set.intersection(*(set(f or ()) for f in found)) or {key for f in found for key in f or ()}
    nodes = {key: node for f in found for key, node in (f or {}).items()}
    return sorted({int(nodes[key].lineno) for key in common})  # type: ignore[attr-defined]


def _suspects(flow: Flow, e: ast.AST, good: set[str], seen: set[str]) -> dict[int, ast.AST] | None:
    """What may make an expression wrong, by identity: the statement that it stands in, and those that make the variables
    it reads, as far as they are not known to be right. None where something cannot be judged."""
    if flow.calls(e):
        return None
    found = {} if isinstance(e, ast.Name) else {id(e): e}
    for name in flow.reads(e):
        if name in good or name in seen or _is_given(flow, name):
            continue
        writers = [s for s in flow.writers(name) if not _is_empty(s)]
        if len(writers) != 1:
            return None
        inner = _suspects(flow, writers[0], good, seen | {name})
        if inner is None:
            return None
        found |= inner
    return found


def _is_given(flow: Flow, name: str) -> bool:
    """Whether a variable holds what forward kept, or a plain part of it, or is no variable of the function at all."""
    writers = flow.writers(name)
    if name in flow.carrying or name in flow.unsure or (writers and GRADIENT.match(name)):
        return False  # also a gradient that should carry L_Y and does not
    return all(_is_plain(s, flow.shared) for s in writers)


def _is_plain(statement: ast.stmt, shared: Collection[str]) -> bool:
    value = getattr(statement, "value", None)
    if value is None or not isinstance(statement, ast.Assign) or _writes_inside(statement):
        return False
    if isinstance(value, ast.Subscript) and any(isinstance(t, ast.Tuple | ast.List) for t in statement.targets):
        return False  # b, a = places[i, j]: nothing else would tell that they are exchanged
    for n in ast.walk(value):
        if isinstance(n, ast.BinOp | ast.UnaryOp | ast.Compare | ast.BoolOp):
            return isinstance(n, ast.UnaryOp) and isinstance(n.operand, ast.Constant)
        if isinstance(n, ast.Call):
            name = n.func.attr if isinstance(n.func, ast.Attribute) else getattr(n.func, "id", "")
            if name == "divmod" or (name not in PLAIN and name not in shared):
                return False
    return True


def _is_copy(e: ast.AST) -> bool:
    """A name, an attribute, an item of one, or several of them."""
    if isinstance(e, ast.Tuple | ast.List):
        return all(map(_is_copy, e.elts))
    while isinstance(e, ast.Attribute | ast.Subscript):
        if isinstance(e, ast.Subscript) and not isinstance(e.slice, ast.Constant):
            return False
        e = e.value
    return isinstance(e, ast.Name)


def _writes_inside(statement: ast.Assign) -> bool:
    """x[i] = ..."""
    return any(isinstance(n, ast.Subscript) for t in statement.targets for n in ast.walk(t))


def _is_empty(statement: ast.stmt) -> bool:
    """d = np.zeros_like(x), which a loop fills later."""
    value = getattr(statement, "value", None)
    if not isinstance(statement, ast.Assign) or _writes_inside(statement):
        return False
    return isinstance(value, ast.Constant) or (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Attribute)
        and value.func.attr in ("zeros", "zeros_like", "empty", "empty_like")
    )


def _sources(flow: Flow, e: ast.AST) -> set[str]:
    """Variables that an expression is computed from, at any distance, as far as each has one writer."""
    found: set[str] = set()
    queue = list(flow.reads(e))
    while queue:
        name = queue.pop()
        if name in found:
            continue
        found.add(name)
        writers = [s for s in flow.writers(name) if not _is_empty(s)]
        if len(writers) == 1:
            queue += flow.reads(writers[0])
    return found


def lines_of_loss(node: Definition) -> set[int]:
    """Lines of a function that returns (loss, gradients) on which the loss depends, as far as names tell: a slip in its
    gradients is rather elsewhere."""
    assignments = [n for n in ast.walk(node) if isinstance(n, ast.Assign | ast.AugAssign)]
    queue: list[ast.AST] = [
        n.value.elts[0] for n in ast.walk(node) if isinstance(n, ast.Return) and isinstance(n.value, ast.Tuple)
    ]
    lines: set[int] = set()
    while queue:
        read = {n.id for n in ast.walk(queue.pop()) if isinstance(n, ast.Name)}
        for a in assignments:
            targets = a.targets if isinstance(a, ast.Assign) else [a.target]
            if a.lineno not in lines and read & {name for t in targets for name in names_in(t)}:
                lines.add(a.lineno)
                queue.append(a)
    return lines
