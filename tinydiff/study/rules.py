"""The rule behind a backward pass: its source, the lines that make each gradient, and the formula with shapes.

Formulas are found where the source has them: in the comment of the line, in the docstring of the class, of the definition
that the line calls, or at the head of the file. Where there is none, the code itself is the formula. They are in the
notation of `notation.py`. Two blanks end a formula, and what stands behind them in parentheses is a note; "(if silu)" and
"(if not w)" say that the formula counts only with that option or input.
"""

from __future__ import annotations

import ast
import functools
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tinydiff.autograd.function import Function
from tinydiff.gradcheck.source import OWN, short
from tinydiff.ops.broadcasting import Elementwise

_MOST_LETTERS = 8  # that are explained behind a formula
_EQUATION = re.compile(r"\((?:[A-Z] )?\d+(?:\.\d+)+(?:-[\d.]+)?\)")


@dataclass
class Block:
    """A function's source: its title, the file, and lines with their numbers there."""

    title: str
    file: str
    lines: list[tuple[int, str]]


@dataclass
class Gradient:
    """How one gradient is made. formula: the right side of "L_X = ...", equation: its number in the source; letters: what
    other letters in it are, the first ones first; note: what the source adds; lit: (block, line) of the lines that make it."""

    name: str
    formula: str = ""
    equation: str = ""
    letters: dict[str, str] = field(default_factory=dict)
    note: str = ""
    lit: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Rule:
    """The blocks of source behind the backward pass of a Function, and its gradients in the order of the inputs."""

    blocks: list[Block]
    gradients: list[Gradient]


class _Source:
    """A function with its syntax tree, whose line numbers are those of the file."""

    def __init__(self, function: Any) -> None:
        lines, start = inspect.getsourcelines(function)
        self.function, self.lines, self.start = function, [line.rstrip("\n") for line in lines], start
        text = textwrap.dedent("".join(lines))
        self.tree = ast.parse(text).body[0]
        ast.increment_lineno(self.tree, start - 1)
        self.file = inspect.getsourcefile(function) or ""

    @functools.cached_property
    def changed(self) -> set[str]:
        """Names that are changed in place."""
        nodes = [node.target for node in ast.walk(self.tree) if isinstance(node, ast.AugAssign)]
        return {n.id for target in nodes for n in ast.walk(target) if isinstance(n, ast.Name)}

    def block(self) -> Block:
        shown = os.path.join("tinydiff", self.file[len(OWN) :]) if self.file.startswith(OWN) else short(self.file)
        dedented = textwrap.dedent("\n".join(self.lines)).split("\n")
        kept = [(self.start + i, line) for i, line in enumerate(dedented)]
        while kept and kept[0][1].startswith("@"):
            kept.pop(0)
        return Block(self.function.__qualname__, shown, kept)

    def comment(self, line: int) -> str:
        text = self.lines[line - self.start] if 0 <= line - self.start < len(self.lines) else ""
        return text.partition("  # ")[2].strip()

    def called(self, node: ast.AST) -> Iterator[Any]:
        """Functions with a definition that the code calls."""
        for part in ast.walk(node):
            if isinstance(part, ast.Call) and isinstance(part.func, ast.Name):
                function = self.function.__globals__.get(part.func.id)
                if hasattr(function, "definition"):
                    yield function.definition

    def returns(self) -> list[ast.expr]:
        return [node.value for node in ast.walk(self.tree) if isinstance(node, ast.Return) and node.value is not None]

    def assignments(self, name: str) -> list[ast.Assign]:
        """Statements that give a name a value other than None, the last ones first."""
        found = [
            node
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Assign)
            and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
            and not (isinstance(node.value, ast.Constant) and node.value.value is None)
        ]
        return found[::-1]


@functools.lru_cache(256)
def rule_of(function: Any, names: tuple[str, ...], given: frozenset[str] = frozenset()) -> Rule:
    """The rule of a Function whose inputs have these names; without blocks where its source cannot be read. given: the names
    of the inputs and options that are not None, False or 0. With a "mask" among them, of several returns the one counts that
    does not hand on what a definition gives (attention)."""
    try:
        return _Reader(function, names, given).rule
    except (OSError, TypeError, SyntaxError, IndexError):
        return Rule([], [Gradient(f"L_{name}") for name in names])


class _Reader:
    def __init__(self, function: type[Any], names: tuple[str, ...], given: frozenset[str]) -> None:
        self.function, self.given = function, given
        self.sources: list[_Source] = []
        self.rule = Rule([], [Gradient(f"L_{name}") for name in names])
        elementwise = function.backward is Elementwise.backward
        if elementwise:
            self.block_of(_unwrapped(function.forward))
        for i, gradient in enumerate(self.rule.gradients):
            method = getattr(function, ("L_A", "L_B")[i]) if elementwise and i < 2 else function.backward
            source = self.block_of(_unwrapped(method))
            codes = self._find(source, 0 if elementwise else i, len(names), gradient)
            self._explain(gradient, codes)

    def block_of(self, function: Any) -> _Source:
        for source in self.sources:
            if source.function is function:
                return source
        source = _Source(function)
        self.sources.append(source)
        self.rule.blocks.append(source.block())
        return source

    def _find(self, source: _Source, i: int, count: int, gradient: Gradient, depth: int = 0) -> list[Any]:
        """Lights the lines that make output i of a function; returns (source, expression) of them."""
        for value in self._in_order(source.returns()):
            parts: list[Any] = value.elts if isinstance(value, ast.Tuple) else [value]
            starred = next((k for k, p in enumerate(parts) if isinstance(p, ast.Starred)), len(parts))
            part = parts[i] if (i < starred and len(parts) > 1) or count == 1 else parts[min(starred, len(parts) - 1)]
            if isinstance(part, ast.Constant):
                continue
            part = part.value if isinstance(part, ast.Starred) else part
            called = list(source.called(part)) if isinstance(part, ast.Call) else []
            if called and depth < 2 and (len(parts) == 1 or i >= starred):  # the definition gives several outputs
                self._light(gradient, source, part)
                return self._find(self.block_of(called[0]), i, count, gradient, depth + 1)
            names = [_gradient_name(part, gradient.name)]
            if not names[0]:
                names = [
                    n.id for n in ast.walk(part) if isinstance(n, ast.Name) and n.id.startswith("L_") and len(n.id) > 3
                ]
            statements: list[Any] = [s for name in names for s in source.assignments(name)] or [part]
            found: list[Any] = []
            for statement in statements:
                self._light(gradient, source, statement)
                code = statement.value if isinstance(statement, ast.Assign) else statement
                plain = not any(name in source.changed for name in names) and len(statements) == 1
                found.append((source, code if plain else None))
                for definition in source.called(code) if depth < 2 else ():
                    inner = self.block_of(definition)
                    for result in inner.returns()[-1:]:
                        self._light(gradient, inner, result)
                        found.append((inner, result))
            return found
        return []

    def _in_order(self, returns: list[ast.expr]) -> list[ast.expr]:
        """The returns that may count, the best first."""

        def hands_on(value: ast.expr) -> bool:
            return isinstance(value, ast.Tuple) and isinstance(value.elts[0], ast.Starred)

        mixed = len({hands_on(value) for value in returns}) > 1
        return [v for v in returns[::-1] if not mixed or hands_on(v) == ("mask" not in self.given)]

    def _light(self, gradient: Gradient, source: _Source, node: ast.AST) -> None:
        block = self.sources.index(source)
        first, last = getattr(node, "lineno", 0), getattr(node, "end_lineno", 0)
        gradient.lit += [(block, n) for n in range(first, last + 1) if (block, n) not in gradient.lit]

    def _explain(self, gradient: Gradient, codes: list[Any]) -> None:
        comments = [self.sources[block].comment(line) for block, line in gradient.lit]
        lit = [self.sources[block].function for block in dict.fromkeys(block for block, _ in gradient.lit)]
        told = [c for c in self.function.__mro__ if c.__doc__ and c not in (Function, Elementwise, object)]
        heads = [inspect.getdoc(told[0]) or "" if told else ""]
        heads += [inspect.getdoc(function) or "" for function in lit if function.__name__ != "backward"]
        heads.append(getattr(sys.modules.get(self.function.__module__), "__doc__", None) or "")
        gradient.equation = next((m.group() for text in [*comments, *heads[:-1]] if (m := _EQUATION.search(text))), "")
        formula = ""
        for comment in comments:
            plain = comment if "=" not in comment and not _EQUATION.fullmatch(comment) and "L_" in comment else ""
            formula = formula or self._meaning([comment], gradient.name)[0] or plain
        if not formula:
            formula, gradient.note = self._meaning(heads, gradient.name)
        if not formula and codes and codes[0][1] is not None:
            code = ast.unparse(codes[0][1])
            formula = code if len(code) < 90 and "zeros(" not in code else ""
        known = {g.name for g in self.rule.gradients} | {g.name[2:] for g in self.rule.gradients} | {"L_Y", "Y", "L"}
        same: dict[str, str] = {}  # letters that stand for another one
        waiting = [formula]
        while waiting and len(gradient.letters) < _MOST_LETTERS:
            for letter in re.findall(r"(?<![\w.])[A-Za-z]\w*\b(?!\()", waiting.pop(0)):
                if letter in known:
                    continue
                known.add(letter)
                meaning, note = self._meaning(heads, letter)
                if meaning and re.fullmatch(r"\w+", meaning) and not meaning.isdigit():
                    same[letter] = meaning
                elif meaning:
                    gradient.letters[letter] = meaning
                    gradient.note = gradient.note or note
                waiting.append(meaning)

        def pretty(text: str) -> str:
            for letter, other in same.items():
                text = re.sub(rf"\b{letter}\b", other, text)
            return _pretty(text)

        gradient.formula = pretty(formula)
        gradient.letters = {letter: pretty(meaning) for letter, meaning in gradient.letters.items()}

    def _meaning(self, texts: Sequence[str], name: str) -> tuple[str, str]:
        """The right side of "name = ..." in the first of some texts that has one, and the note behind it."""
        numbered = re.fullmatch(r"(.+?)(?:_(\d+)|\[(\d+)\])", name)  # W_2 stands as W_i, Xs[1] as Xs[i]
        for text in texts:
            found = _formula_in(text, name, self.given)
            if not found[0] and numbered:
                stem, after, inside = numbered.groups()
                formula, note = _formula_in(text, f"{stem}_i" if after else f"{stem}[i]", self.given)
                found = re.sub(r"_i\b", f"_{after}", formula).replace("[i]", f"[{inside}]"), note
            if found[0]:
                return found
        return "", ""


def _unwrapped(function: Any) -> Any:
    return inspect.unwrap(getattr(function, "__func__", function))


def _gradient_name(part: ast.AST, wanted: str) -> str:
    """The variable that a returned expression is made of: L_X of `L_X`, of `L_X.reshape(X.shape)` and of `_like(X, L_X)`."""
    names = [node.id for node in ast.walk(part) if isinstance(node, ast.Name)]
    if isinstance(part, ast.Name):
        return part.id
    return wanted if wanted in names else ""


def _formula_in(text: str, name: str, given: frozenset[str] = frozenset()) -> tuple[str, str]:
    """The right side of "L_X = ..." in a text, as far as its conditions hold, and the note behind it."""
    for found in re.finditer(rf"(?<![\w]){re.escape(name)} = (.+)", text):
        conditions = re.findall(r"\(if (not )?(\w+)\)", found.group(1))
        if any((word in given) == bool(no) for no, word in conditions):
            continue
        right = re.split(
            r"\s{2,}|;|,\s+(?:\w+ =|hence|so|of |in |one |where |summed)|\. |\.$| for | with |,? and |: ",
            found.group(1),
        )[0].strip()
        right = _EQUATION.sub("", right).strip(" ,")
        if right.count("(") == right.count(")"):
            note = re.search(r"\s{2,}\((?!if )([a-z0-9][^()]*[a-z]{2}[^()]*)\)", found.group(1))
            return right, note.group(1) if note else ""
    return "", ""


def _pretty(formula: str) -> str:
    formula = re.sub(r"\.T\b", "ᵀ", formula.replace("^T", "ᵀ")).replace(" @ ", " ").replace("self.", "")
    return re.sub(r"array_module\(\w+\)\.", "", formula).replace("**", "^")


_PRODUCT = re.compile(r"^(?:\w+ᵀ?\()?(?:scale )?(\w+)(ᵀ?) (\w+)(ᵀ?)\)?$", re.ASCII)


def shapes_of(formula: str, result: Sequence[int], known: dict[str, Sequence[int]], flat: bool) -> str:
    """The shapes in a formula that is a product of two matrices: "(4,3) = (4,5) (5,3)"; "" for others.

    known: shapes by name. flat: whether all axes but the last count as rows, as in layers on many rows.
    """
    match = _PRODUCT.match(formula)
    if match is None:
        return ""
    sizes = []
    for name, turned in (match.group(1, 2), match.group(3, 4)):
        shape = tuple(known.get(name, ()))
        if name != "1" and len(shape) < 2:
            return ""
        if flat and name != "1":
            rows = 1
            for n in shape[:-1]:
                rows *= n
            shape = (rows, shape[-1])
        sizes.append((*shape[:-2], shape[-1], shape[-2]) if turned and name != "1" else shape)
    if match.group(1) == "1":
        sizes[0] = (1, sizes[1][-2])
    left = (*sizes[0][:-1], sizes[1][-1]) if sizes[0] else ()
    if sizes[0][-1] != sizes[1][-2]:
        return ""
    return " ".join([_written(left), "=", *map(_written, sizes)])


def _written(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"
