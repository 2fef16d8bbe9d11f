"""How many small changes to tinydiff's own backward passes does the gradient checker notice?

    python tests/benchmarks/gradcheck_mutants.py --out tests/benchmarks/results/gradcheck_mutants.md

Every operator, sign, number, axis, transpose and comparison in every backward pass of tinydiff/ops is changed, one at a
time, and the operations of tests/gradcheck/right_operations.py that run through it are checked. Nobody chose these
mistakes, so they are a test of the checker and of how well the operations are covered. What survives is listed: most
of it changes nothing (a test that only saves work), the rest are holes.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import inspect
import pkgutil
import sys
import textwrap
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "gradcheck")]

from right_operations import cases  # noqa: E402

import tinydiff.ops  # noqa: E402
from tinydiff.autograd.function import Function  # noqa: E402
from tinydiff.gradcheck import GradientError, gradcheck  # noqa: E402
from tinydiff.gradcheck.formula import recorded  # noqa: E402

SWAPPED = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.Gt: ast.GtE, ast.GtE: ast.Lt, ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
}  # fmt: skip


def changes(node):
    """Descriptions of the changes to one node, each with a function that makes it in a copy of the node."""
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
        yield f"{ast.unparse(node)}: other operator", lambda n: setattr(n, "op", SWAPPED[type(n.op)]())
    if isinstance(node, ast.AugAssign) and type(node.op) in SWAPPED:
        yield f"{ast.unparse(node)}: other operator", lambda n: setattr(n, "op", SWAPPED[type(n.op)]())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield f"{ast.unparse(node)}: no minus", lambda n: setattr(n, "op", ast.UAdd())
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPPED:
        yield f"{ast.unparse(node)}: other comparison", lambda n: setattr(n, "ops", [SWAPPED[type(n.ops[0])]()])
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield f"{ast.unparse(node)}: plus 1", lambda n: setattr(n, "value", n.value + 1)
    if isinstance(node, ast.Attribute) and node.attr == "T":
        yield f"{ast.unparse(node)}: not transposed", lambda n: setattr(n, "attr", "real")
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("swapaxes", "sum"):
        yield (
            f"{ast.unparse(node)}: left out",
            lambda n: (setattr(n.func, "attr", "copy"), n.args.clear(), n.keywords.clear()),
        )


def methods(function):
    """The methods of an operation that its backward pass consists of."""
    for name, value in vars(function).items():
        if inspect.isfunction(value) and name not in ("forward", "__init__"):
            yield name, value


def functions():
    """All operations of tinydiff/ops."""
    for info in pkgutil.iter_modules(tinydiff.ops.__path__):
        module = importlib.import_module(f"tinydiff.ops.{info.name}")
        for value in list(vars(module).values()):
            if isinstance(value, type) and issubclass(value, Function) and value.__module__ == module.__name__:
                yield value


def mutants(method):
    """(description, the method compiled with one change)."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    body = tree.body[0]
    body.decorator_list, body.returns = [], None
    for argument in body.args.args:
        argument.annotation = None
    places = [i for i, node in enumerate(ast.walk(tree)) for _ in [0]]
    for i in places:
        node = next(n for j, n in enumerate(ast.walk(tree)) if j == i)
        for k, (text, _) in enumerate(changes(node)):
            changed = copy.deepcopy(tree)
            target = next(n for j, n in enumerate(ast.walk(changed)) if j == i)
            list(changes(target))[k][1](target)
            scope: dict = {}
            exec(compile(ast.fix_missing_locations(changed), "<mutant>", "exec"), method.__globals__, scope)
            yield f"line {method.__code__.co_firstlineno + getattr(node, 'lineno', 1) - 1}: {text}", scope[body.name]


def uses(seed):
    """{operation: the cases that run it}."""
    users: dict = {}
    for right in cases(seed):
        calls: list = []
        try:
            with recorded(calls), np.errstate(all="ignore"):
                gradcheck(right.fn, right.inputs, seed=seed, skip=["sizes"], **right.options)
        except (GradientError, TypeError):
            continue
        for function in {c.function for c in calls}:
            users.setdefault(function, []).append(right)
    return users


def noticed(rights, seed):
    """The code of the first diagnosis of the first failing check, None if all pass."""
    for right in rights:
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                gradcheck(right.fn, right.inputs, seed=seed, **right.options)
        except GradientError as error:
            return error.report.diagnosis
        except Exception as error:
            return type(error).__name__
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    users = uses(args.seed)
    survivors, codes, total, unused = [], Counter(), 0, []
    for function in functions():
        rights = sorted(users.get(function, []), key=lambda r: sum(np.size(a) for a in r.inputs))
        subclasses = [f for f in users if issubclass(f, function)]
        rights = rights or [r for f in subclasses for r in users[f]]
        if not rights:
            unused.append(function.__name__)
            continue
        for name, method in methods(function):
            for text, mutant in mutants(method):
                setattr(function, name, mutant)
                try:
                    code = noticed(rights, args.seed)
                finally:
                    setattr(function, name, method)
                total += 1
                codes[code] += 1
                if code is None:
                    survivors.append(f"{function.__module__.rpartition('.')[2]}.{function.__name__}.{name}, {text}")
    lines = [
        "# Changed backward passes",
        "",
        f"`python tests/benchmarks/gradcheck_mutants.py --seed {args.seed}`: {total} changes, {total - len(survivors)} noticed "
        f"({100 * (total - len(survivors)) / total:.1f} %).",
        "",
        "First diagnoses: " + ", ".join(f"{code} {n}" for code, n in codes.most_common() if code) + ".",
        "",
        "Not noticed:",
        "",
        *(f"- {text}" for text in survivors),
    ]
    if unused:
        lines += ["", "Operations that no check runs: " + ", ".join(unused) + "."]
    text = "\n".join(lines) + "\n"
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
