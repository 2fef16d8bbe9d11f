"""Through which of forward's expressions a gradient is missing, or comes twice.

Where forward reads an input in several places, its gradient is a sum of shares, one for each place. A share is found by
differences, with the input moved in that place alone. A wrong gradient that is the sum without some of the shares, or
with one of them twice or negative, along a direction and for several L_Y, is that slip and nothing else.
"""

from __future__ import annotations

import ast
import copy
import itertools
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tinydiff.gradcheck import numeric, taps
from tinydiff.gradcheck.check import Check
from tinydiff.gradcheck.report import Diagnosis
from tinydiff.gradcheck.source import Definition, Source

MOST_PLACES, MOST_TEXT = 8, 40  # where a name is read; letters of an expression that is shown
PLAIN = ("shape", "ndim", "size", "dtype")  # what has no derivative
CLOSE = 1e-5
STEP = 1e-5


class Place(NamedTuple):
    """An expression of forward that reads an input."""

    text: str
    line: int


def places(node: Definition, name: str) -> list[Place]:
    """Where a definition reads one of its parameters, in the order of `_Marked`; none where it assigns it too."""
    found: list[Place] = []
    names = [n for n in ast.walk(node) if isinstance(n, ast.Name) and n.id == name]
    if any(not isinstance(n.ctx, ast.Load) for n in names):
        return []
    parents = {id(child): parent for parent in ast.walk(node) for child in ast.iter_child_nodes(parent)}
    reads = _Reads(name)
    reads.visit(node)
    for n in reads.found:
        shown: ast.AST = n
        while isinstance(parent := parents.get(id(shown)), ast.expr):
            wide = ast.unparse(parent)
            if len(wide) > MOST_TEXT or sum(isinstance(c, ast.Name) and c.id == name for c in ast.walk(parent)) > 1:
                break
            shown = parent
            if isinstance(shown, ast.BinOp | ast.Call):
                break
        found.append(Place(ast.unparse(shown), n.lineno))
    return found


class _Reads(ast.NodeVisitor):
    """The places of a name, in the order of `_Marked`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.found: list[ast.Name] = []

    def visit_Name(self, node: ast.Name) -> None:
        if node.id == self.name and isinstance(node.ctx, ast.Load):
            self.found.append(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr not in PLAIN:
            self.generic_visit(node)


class _Marked(ast.NodeTransformer):
    """Sends every value of a name that is read through a tap, with the number of the place."""

    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0

    def visit_Name(self, node: ast.Name) -> Any:
        if node.id != self.name or not isinstance(node.ctx, ast.Load):
            return node
        self.count += 1
        call = ast.Call(ast.Name(taps.TAP, ast.Load()), [ast.Constant(node.id), ast.Constant(self.count - 1), node], [])
        return ast.copy_location(call, node)

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        """x.shape has no derivative."""
        return node if node.attr in PLAIN else self.generic_visit(node)


def missing_share(
    check: Check, k: int, function: types.FunctionType, source: Source, draws: Sequence[Sequence[Any]], claimed: Any
) -> Diagnosis | None:
    """What is missing in the gradient of array k, or there twice. draws: cotangents; claimed: backward's gradient for each."""
    name = check.names[k]
    where = places(source.node, name)
    if not 2 <= len(where) <= MOST_PLACES:
        return None
    code = taps.compiled(function, ast.fix_missing_locations(_Marked(name).visit(copy.deepcopy(source.node))))
    if code is None:
        return None
    v = np.asarray(check.direction([k])[k])
    shares = np.array([_share(check, k, function, code, i, v, draws) for i in range(len(where))])  # (places, draws)
    got = np.array([np.vdot(g, v) for g in claimed])
    size = np.abs(shares).max(initial=0) + np.abs(got).max(initial=0)
    real = [i for i in range(len(where)) if np.abs(shares[i]).max() > 1e-3 * size]
    if len(real) < 2 or not np.isfinite(size):
        return None

    def fits(change: np.ndarray) -> bool:
        return bool(np.all(np.abs(got - shares.sum(0) - change) <= CLOSE * size))

    def shown(i: int) -> str:
        return f"{where[i].text} (line {where[i].line})"

    if fits(np.zeros(len(draws))):
        return None
    for i in real:
        if fits(-shares[i]):
            return Diagnosis("missing", f"what reaches the output through {shown(i)} in forward is missing")
        if fits(shares[i]):
            return Diagnosis("twice", f"what reaches the output through {shown(i)} in forward is counted twice")
        if fits(-2 * shares[i]):
            return Diagnosis("sign", f"what reaches the output through {shown(i)} in forward has the wrong sign")
    for count in range(2, len(real)):
        for some in itertools.combinations(real, count):
            if fits(-shares[list(some)].sum(0)):
                through = " and ".join(shown(i) for i in some)
                return Diagnosis("missing", f"what reaches the output through {through} in forward is missing")
    return None


def _share(
    check: Check,
    k: int,
    function: types.FunctionType,
    code: types.CodeType,
    place: int,
    v: np.ndarray,
    draws: Sequence[Sequence[Any]],
) -> list[float]:
    """<u, J v> for each of the draws, with array k moved in one place alone."""

    def values(by: float) -> list[Any]:
        def move(name: str, at: int, value: Any) -> Any:
            same = at == place and taps.is_floating(value) and np.shape(value) == v.shape
            return value + by * v if same else value

        with taps.exchanged({function: code}, move):
            return check.forward([x.copy() for x in check.point])

    near, far = ([values(s * h) for s in (1, -1)] for h in (STEP, 2 * STEP))
    slopes = []
    for (a, b), h in ((near, STEP), (far, 2 * STEP)):
        slopes.append([None if x is None else (x - y) / (2 * h) for x, y in zip(a, b, strict=True)])
    Jv = [None if x is None else (4 * x - y) / 3 for x, y in zip(*slopes, strict=True)]
    return [numeric.dot(U, Jv) for U in draws]
