"""The notation of formulas, and their values.

    A B, A^T B       the product of matrices, or of a number with an array; 1^T A is the sum of A's rows
    A * B            element by element; so are / + - ^, comparisons (1 where they hold, else 0), `and` and `or`
    f(A), f^T(A)     a function, and its adjoint; there is no blank before the parenthesis
    A[0]             one of several

Products of matrices bind stronger than * and /.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import numpy as np

_TOKEN = re.compile(r'\s*(\d+\.?\d*|[A-Za-z][A-Za-z0-9_]*|"[^"]*"|<=|>=|==|[-+*/^()\[\],<>ᵀ])')
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal, "==": np.equal,
}  # fmt: skip
_ELEMENTWISE: dict[str, Callable[[Any, Any], Any]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "^": np.power, "or": np.fmax, "and": np.fmin,
}  # fmt: skip


class Term(NamedTuple):
    """A part of a formula. kind: "number", "name", "text", "call", "item", "T", "negative", "compare", "product" or the sign
    of an element by element operation. value: the number, the name, or the signs of comparisons. written: its text."""

    kind: str
    value: Any
    parts: tuple[Term, ...]
    written: str

    def names(self) -> Iterator[str]:
        """The letters in it, without functions."""
        if self.kind == "name":
            yield self.value
        for part in self.parts:
            yield from part.names()


@lru_cache(1024)
def parse(text: str) -> Term:
    """The formula as a tree. ValueError where it is not in the notation above."""
    parser = _Parser(text.replace("^T", "ᵀ"))
    term = parser.either()
    if parser.token:
        raise ValueError(f"{text!r} is not a formula: {parser.token!r} is left over")
    return term


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.at, self.end = text, 0, 0
        self.token, self.start = "", 0
        self.next()

    def next(self) -> str:
        """The token that was current; the one behind it becomes current, "" at the end."""
        token, self.end = self.token, self.at
        found = _TOKEN.match(self.text, self.at)
        if found is None and self.text[self.at :].strip():
            raise ValueError(f"{self.text!r} is not a formula")
        self.token = found.group(1) if found else ""
        self.start, self.at = found.span(1) if found else (len(self.text), len(self.text))
        return token

    def made(self, start: int, kind: str, value: Any, *parts: Term) -> Term:
        return Term(kind, value, parts, self.text[start : self.end].strip())

    def row(self, signs: tuple[str, ...], below: Callable[[], Term]) -> Term:
        start, term = self.start, below()
        while self.token in signs:
            sign = self.next()
            term = self.made(start, sign, None, term, below())
        return term

    def either(self) -> Term:
        return self.row(("or",), lambda: self.row(("and",), self.comparison))

    def comparison(self) -> Term:
        start, parts, signs = self.start, [self.sum()], []
        while self.token in _COMPARISONS:
            signs.append(self.next())
            parts.append(self.sum())
        return self.made(start, "compare", tuple(signs), *parts) if signs else parts[0]

    def sum(self) -> Term:
        return self.row(("+", "-"), self.signed)

    def signed(self) -> Term:
        start = self.start
        if self.token == "-":
            self.next()
            return self.made(start, "negative", None, self.signed())
        return self.row(("*", "/"), self.product)

    def product(self) -> Term:
        start, parts = self.start, [self.power()]
        while self.token and (self.token == "(" or self.token[0].isalnum()) and self.token not in ("or", "and"):
            parts.append(self.power())
        return self.made(start, "product", None, *parts) if len(parts) > 1 else parts[0]

    def power(self) -> Term:
        start, term = self.start, self.atom()
        while self.token in ("ᵀ", "["):
            if self.next() == "ᵀ":
                term = self.made(start, "T", None, term)
            else:
                index = self.either()
                self.expect("]")
                term = self.made(start, "item", None, term, index)
        if self.token == "^":
            self.next()
            term = self.made(start, "^", None, term, self.power())
        return term

    def atom(self) -> Term:
        start, token = self.start, self.next()
        if token == "(":
            inner = self.either()
            self.expect(")")
            return inner._replace(written=self.text[start : self.end].strip())
        if token[:1] == '"':
            return self.made(start, "text", token[1:-1])
        if token[:1].isdigit():
            return self.made(start, "number", float(token))
        if not token[:1].isalpha():
            raise ValueError(f"{self.text!r} is not a formula: {token or 'its end'!r} stands where a letter should")
        if self.text.startswith("ᵀ(", self.end) or self.text.startswith("(", self.end):
            name = token + (self.next() if self.token == "ᵀ" else "")
            self.next()
            parts = [self.either()]
            while self.token == ",":
                self.next()
                parts.append(self.either())
            self.expect(")")
            return self.made(start, "call", name, *parts)
        return self.made(start, "name", token)

    def expect(self, token: str) -> None:
        if self.next() != token:
            raise ValueError(f"{self.text!r} is not a formula: {token!r} is missing")


def evaluate(term: Term, letters: Callable[[str], Any], functions: dict[str, Callable[..., Any]]) -> Any:
    """The value of a formula. letters: gives the value of a name. KeyError where it or a function is not known."""
    if term.kind in ("number", "text"):
        return term.value
    if term.kind == "name":
        return letters(term.value)
    if term.kind == "T" and term.parts[0].value == 1:
        return _Ones
    values = [evaluate(part, letters, functions) for part in term.parts]
    if term.kind == "call":
        return functions[term.value](*values)
    if term.kind == "item":
        return values[0][int(values[1])]
    if term.kind == "T":
        return values[0].swapaxes(-1, -2)
    if term.kind == "negative":
        return -values[0]
    if term.kind == "compare":
        pairs = zip(term.value, values, values[1:], strict=False)
        return reduce(np.logical_and, [_COMPARISONS[sign](a, b) for sign, a, b in pairs]).astype(float)
    if term.kind == "product":
        return reduce(_product, values)
    return _ELEMENTWISE[term.kind](*values)


class _Ones:
    """1^T, a row of ones."""


def _product(a: Any, b: Any) -> Any:
    if a is _Ones:
        return b.sum(-2)
    return a * b if np.ndim(a) == 0 or np.ndim(b) == 0 else a @ b


def summands(term: Term) -> list[Term]:
    """The terms of the first sum of at least three in a formula, such as L_Z, mean(L_Z) and Z * mean(L_Z * Z) of group
    normalisation; none where there is no such sum."""
    if term.kind in ("+", "-"):
        found: list[Term] = []
        while term.kind in ("+", "-"):
            found.insert(0, term.parts[1])
            term = term.parts[0]
        found.insert(0, term)
        if len(found) > 2:
            return found
        return next((inner for part in found if (inner := summands(part))), [])
    return next((found for part in term.parts if (found := summands(part))), [])
