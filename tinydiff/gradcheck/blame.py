"""Which line of a backward pass is wrong: the first wrong value among its variables, and the change that mends it.

Three questions are asked of a check that has failed, where the source can be read; what they do not settle stays unsaid.

- Forward's assignments are intermediates z. The derivative of the loss by each is found numerically, by moving z where it
  is assigned. Backward's variables are matched by name (dz, grad_z, z_grad, L_z ...), and are right or wrong by it. A
  variable is to blame only if, with the right value in its place, the gradients come out right.
- A line all of whose operands are right, and whose result is not, is wrong.
- Each expression of backward is changed in small ways, those in which people slip. A change after which all gradients are
  right, also for another L_Y, names the line.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import traceback
import types
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tinydiff.gradcheck import numeric, taps
from tinydiff.gradcheck.calling import cache_first
from tinydiff.gradcheck.check import Check
from tinydiff.gradcheck.flow import Flow, lines_of_loss, suspects
from tinydiff.gradcheck.pairs import PairSubject
from tinydiff.gradcheck.reindex import constants
from tinydiff.gradcheck.reindex import windows as of_forward
from tinydiff.gradcheck.repairs import Repair, repairs
from tinydiff.gradcheck.report import Blame
from tinydiff.gradcheck.rerun import CLOSE, Rerun, Truth, size_of
from tinydiff.gradcheck.source import Source, short
from tinydiff.gradcheck.taps import Codes
from tinydiff.gradcheck.trees import base_of

MOST_REPAIRS, MOST_WORK = 600, 2 * 10**7  # backward passes; numbers that they read
MOST_SUBSTITUTED = 256  # elements of an intermediate whose derivative is found one by one

Event = tuple[str, int, np.ndarray]  # a variable, the line that assigns it, its value


def blame(check: Check) -> Blame | None:
    """The line that is wrong, or None where that cannot be told. Never raises."""
    if check.dtype != np.float64 or check.ground is not check.subject or not check.point:
        return None
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return _Search(check).run()
    except Exception:
        return None


class _Search(Rerun):
    def __init__(self, check: Check) -> None:
        super().__init__(check)
        self.sources = taps.sources(self.functions())
        self.is_loss = isinstance(self.subject, PairSubject) and self.subject.loss  # one function makes all
        self.backward_events: list[Event] = []
        self.kept: dict[str, list[np.ndarray]] = {}  # values of forward's variables
        for name, x in zip(check.names, check.point, strict=True):
            self.kept.setdefault(name, []).append(x)
        self.right: dict[str, list[int]] = {}  # variables of backward with right values, and the lines that assign them
        self.wrong: list[tuple[str, int, str, int]] = []  # variable, line, intermediate, which of its assignments

    def run(self) -> Blame | None:
        if not self.sources or not self.truth.wrong(self.gradients({}), self.check.point):
            return None
        self._compare()
        proven = self._substitute()
        followed = self._follow()
        is_copy = proven is not None and self.flow is not None and self.flow.copies(proven[1])
        is_copy = is_copy and not self._copies_another(*(proven or ("", 0)))
        found = self._repair(None if is_copy else proven, followed)  # a line that only names what is given is not wrong
        if found is not None:
            source, repair, others = found
            before = self._right_before(repair.line)
            return Blame(short(source.file), repair.line, *repair.texts(), repair.code, before, sorted(others))
        if proven is not None:
            return self._first_wrong(*proven)
        if followed is not None and len(followed) == 1:
            return self._blame(followed[0])
        return self._raised()

    def _blame(self, line: int, variable: str | None = None, code: str = "unknown") -> Blame:
        source = next(s for s in self.sources.values() if s.node.lineno <= line <= (s.node.end_lineno or 0))
        return Blame(short(source.file), line, source.line(line), None, code, self._right_before(line), [], variable)

    def _copies_another(self, name: str, line: int) -> bool:
        """Whether a line gives a variable the right value of the gradient of something else: dhn = dan."""
        flow = self.flow
        found = [s for s in flow.statements if s.lineno == line] if flow is not None else []
        value = found[0].value if len(found) == 1 and isinstance(found[0], ast.Assign) else None
        return isinstance(value, ast.Name) and value.id in self.right and all(n != value.id for n, *_ in self.wrong)

    def _first_wrong(self, name: str, line: int) -> Blame | None:
        """Blames the line that makes a wrong value; where that only takes a part of L_Y, the one line that uses it."""
        flow = self.flow
        if flow is None or not flow.copies(line) or self._copies_another(name, line):
            return self._blame(line, name)
        if self.is_loss:
            return None  # what reads it in place may be missing just as well
        readers = [s for s in flow.readers(name) if s.lineno != line]
        if len(readers) != 1 or isinstance(readers[0], ast.Return):
            return None
        found = self._blame(readers[0].lineno, code="missing")
        base = next(base for other, at, base, _ in self.wrong if (other, at) == (name, line))
        found.why = (
            f"a term is missing here: {name} is a part of the gradient of {base}, the rest of it comes another way"
        )
        return found

    def _raised(self) -> Blame | None:
        """The line of backward that raises."""
        error = self.check.cause
        if error is None:
            return None
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            for source in self.sources.values():
                if frame.filename == source.file and source.node.lineno <= (frame.lineno or 0) <= (
                    source.node.end_lineno or 0
                ):
                    return self._blame(frame.lineno or 0, code="raises")
        return None

    @functools.cached_property
    def flow(self) -> Flow | None:
        """What each statement of backward reads and changes."""
        subject = self.subject
        owner: Any = subject if isinstance(subject, PairSubject) else subject.function
        function = self._forward_function() if self.is_loss else taps.plain(owner.backward)
        source = self.sources.get(function) if function is not None else None
        if source is None:
            return None
        parameters = [a.arg for a in source.node.args.args]
        parameters = parameters[1:] if parameters[:1] == ["self"] else parameters
        outputs = 0 if self.is_loss else sum(y is not None for y in self.check.centre)
        if isinstance(subject, PairSubject) and subject.cache and cache_first(subject.backward, subject.fn):
            parameters = parameters[1:]
        helpers = {f.__name__ for f in self.sources if f is not function}
        forward = self._forward_function()
        shared = (
            set() if forward is None else {*forward.__code__.co_names, *forward.__code__.co_freevars, forward.__name__}
        )
        flow = Flow(source.node, parameters[:outputs], helpers, shared)
        for name in {name for name, *_ in self.backward_events}:
            writers = flow.writers(name)
            if writers and all(flow.copies(s.lineno) for s in writers) and not self._is_forwards(name):
                flow.unsure.add(name)
        return flow

    def _is_forwards(self, name: str) -> bool:
        """Whether a variable of backward holds what forward calls by that name, and calls nothing else so."""
        kept = self.kept.get(name, ())
        values = [b for n, _, b in self.backward_events if n == name]
        return bool(kept) and all(a.shape == b.shape and np.array_equal(a, b) for a in kept for b in values)

    def _follow(self) -> list[int] | None:
        """The lines of backward one of which must be wrong: all other operands of what is wrong are right."""
        got, flow = self.gradients({}), self.flow
        if (
            flow is None
            or got is None
            or self.is_loss
            or (isinstance(self.subject, PairSubject) and self.subject.slots)
        ):
            return None
        wrong = self.truth.wrong(got, self.check.point)
        results = flow.returned()
        if results is None or len(results) != len(self.check.point):
            return None
        mistaken = {name for name, *_ in self.wrong}
        counts = Counter(name for name, *_ in self.backward_events)
        right = {n for n, lines in self.right.items() if n not in mistaken and len(lines) == counts[n]}
        return suspects(flow, len(results), sorted(wrong), right)

    # --- Forward's intermediates beside backward's variables.

    def _forward_function(self) -> types.FunctionType | None:
        subject = self.subject
        return taps.plain(
            subject.fn if isinstance(subject, PairSubject) else getattr(subject.function, "forward", None)
        )

    def _forward(self) -> tuple[types.FunctionType, types.CodeType] | None:
        fn = self._forward_function()
        if fn is None:
            return None
        source = taps.sources([fn]).get(fn)
        code = taps.tapped(fn, source.node) if source is not None else None
        return None if code is None else (fn, code)

    def _compare(self) -> None:
        """Fills `right` and `wrong`: backward's variables, by the derivatives of those of forward with their names."""
        codes = {f: c for f, s in self.sources.items() if (c := taps.tapped(f, s.node)) is not None}
        events = self.backward_events

        def note(name: str, line: int, value: Any) -> Any:
            if taps.is_floating(value) or taps.is_complex(value):
                events.append((name, line, np.array(value, np.complex128 if taps.is_complex(value) else np.float64)))
            return value

        self.gradients(codes, note)
        forward = self._forward()
        if forward is None or not events:
            return
        seen: list[tuple[str, tuple[int, ...], bool]] = []

        def list_them(name: str, line: int, value: Any) -> Any:
            if taps.is_floating(value) or taps.is_complex(value):
                seen.append((name, np.shape(value), taps.is_complex(value)))
                self.kept.setdefault(name, []).append(np.array(value))
            return value

        self.values({forward[0]: forward[1]}, list_them)
        known = {name for name, *_ in seen}
        self.forward_code = forward
        cache: dict[int, list[tuple[np.ndarray, float, float]]] = {}
        for name, line, value in events:
            base = self.check.given_names.get(name) or base_of(name, known.__contains__)
            if base is None or base == name:
                continue
            kind = taps.is_complex(value)
            places = [i for i, what in enumerate(seen) if what == (base, value.shape, kind)]
            if not places or len(places) > 8:
                continue
            for i in places:
                if i not in cache:
                    cache[i] = [self._slope(i, value.shape, kind) for _ in range(2)]
            matches = [
                all(abs(float(np.vdot(g, v).real) - s) <= a + CLOSE * size_of(g, v) for v, s, a in cache[i])
                for i in places
                for g in ((value, value.conj()) if kind else (value,))
            ]
            if any(matches):
                self.right.setdefault(name, []).append(line)
            elif len(places) == 1 and not kind:  # of complex numbers there are other conventions
                self.wrong.append((name, line, base, places[0]))

    def values(self, codes: Codes, tap: taps.Tap) -> list[Any]:
        with taps.exchanged(codes, tap):
            return self.check.forward([x.copy() for x in self.check.point])

    def _moved(self, place: int, by: np.ndarray) -> list[Any]:
        """Forward with the intermediate assigned in that place moved."""
        count = -1

        def move(name: str, line: int, value: Any) -> Any:
            nonlocal count
            if not (taps.is_floating(value) or taps.is_complex(value)):
                return value
            count += 1
            return value + by if count == place else value

        return self.values({self.forward_code[0]: self.forward_code[1]}, move)

    def _slope(self, place: int, shape: tuple[int, ...], is_complex: bool) -> tuple[np.ndarray, float, float]:
        """A direction in an intermediate, the loss's slope along it, and its error."""
        v = self.check.random(shape) + (1j * self.check.random(shape) if is_complex else 0)
        slopes = []
        for h in (1e-5, 2e-5):
            above, below = (self._moved(place, s * h * v) for s in (1, -1))
            Jv = [None if a is None else (a - b) / (2 * h) for a, b in zip(above, below, strict=True)]
            slopes.append(numeric.dot(self.check.U, Jv))
        natural = numeric.norm_of_products(self.check.U, self.check.centre)
        return v, (4 * slopes[0] - slopes[1]) / 3, abs(slopes[0] - slopes[1]) + 1e-9 * natural

    def _derivative(self, place: int, shape: tuple[int, ...]) -> np.ndarray:
        G = np.zeros(shape)
        for at in np.ndindex(shape):
            by = np.zeros(shape)
            by[at] = 1e-5
            above, below = self._moved(place, by), self._moved(place, -by)
            Jv = [None if a is None else (a - b) / 2e-5 for a, b in zip(above, below, strict=True)]
            G[at] = numeric.dot(self.check.U, Jv)
        return G

    def _substitute(self) -> tuple[str, int] | None:
        """The first variable with the right value in whose place all gradients are right."""
        codes = {f: c for f, s in self.sources.items() if (c := taps.tapped(f, s.node)) is not None}
        for name, line, _, place in self.wrong[:6]:
            uses = [e for e in self.backward_events if e[0] == name and e[1] == line]
            if len(uses) != 1 or uses[0][2].size > MOST_SUBSTITUTED:
                continue
            G = self._derivative(place, uses[0][2].shape)

            def put(other: str, at: int, value: Any, name: str = name, line: int = line, G: np.ndarray = G) -> Any:
                return G.copy() if (other, at) == (name, line) else value

            got = self.gradients(codes, put)
            if got is not None and not self._far(got):
                return name, line
        return None

    def _far(self, got: Sequence[Any]) -> bool:
        """Whether gradients are wrong beyond the error of an intermediate's derivative by differences."""
        for k, v, value, allowed in self.truth.tests:
            g = np.zeros(v.shape) if got[k] is None else got[k]
            if g.shape != v.shape or not abs(float(np.vdot(g, v)) - value) <= 100 * allowed + 1e-5 * min(
                size_of(g, v), 1e300
            ):
                return True
        return False

    # --- Changes.

    def _repair(
        self, proven: tuple[str, int] | None, lines: list[int] | None
    ) -> tuple[Source, Repair, set[int]] | None:
        """A change that makes all gradients right: its source, itself, and other lines where one would do as well."""
        right = {line for lines in self.right.values() for line in lines} - {line for _, line, _, _ in self.wrong}
        shapes = {name: value.shape for name, _, value in self.backward_events}
        tried: list[tuple[tuple[int, bool], int, types.FunctionType, Repair]] = []
        forward = self._forward_function()
        windows = [w for source in taps.sources([forward] if forward else []).values() for w in of_forward(source.node)]
        for f, source in self.sources.items():
            if any(isinstance(n, ast.While) for n in _walk(source)):
                continue
            alike, names = self._names(f, shapes)
            late = lines_of_loss(source.node) if self.is_loss and f is self._forward_function() else set()
            for i, repair in enumerate(repairs(source.node, alike, names, windows)):
                if lines is not None and repair.line not in lines:
                    continue
                if repair.line not in right and (proven is None or repair.line <= proven[1] or len(self.sources) > 1):
                    tried.append(((repair.rank, repair.line in late), i, f, repair))
        tried.sort(key=lambda t: t[:2])
        size = sum(x.size for x in self.check.point) + sum(y.size for y in self.check.centre if y is not None)
        most, rank = min(MOST_REPAIRS, MOST_WORK // max(size, 1)), (99, True)
        found: list[tuple[types.FunctionType, Repair]] = []
        for r, _, f, repair in tried[:most]:
            if found and r > rank:
                break
            code = None
            with contextlib.suppress(SyntaxError, ValueError, AttributeError, TypeError), repair.made():
                code = taps.compiled(f, self.sources[f].node)
            if code is None or self.truth.wrong(self.gradients({f: code}), self.check.point):
                continue
            if self._confirmed({f: code}):
                found.append((f, repair))
                rank = r
                if len(found) >= 4:
                    break
        if not found:
            return None
        best = next((t for t in found if proven is not None and t[1].line == proven[1]), found[0])
        return self.sources[best[0]], best[1], {t[1].line for t in found} - {best[1].line}

    def _confirmed(self, codes: Codes) -> bool:
        """Whether changed code is right for another L_Y too."""
        check = self.check
        U = [None if u is None else check.random(u.shape) * (u != 0) for u in check.U]
        truth = Truth(check, U, count=1)
        got = self.gradients(codes, U=U)
        return got is not None and not truth.wrong(got, check.point)

    def _names(self, f: types.FunctionType, shapes: dict[str, tuple[int, ...]]) -> tuple[Any, list[str]]:
        """Whether two variables are alike, and expressions that may be missing."""
        given: dict[str, tuple[int, ...]] = {}  # of L_Y
        if self.flow is not None and self.flow.node is self.sources[f].node:
            outputs = [u.shape for u in self.check.U if u is not None]
            given = dict(zip(self.flow.cotangents_in_order, outputs, strict=False))
        variables = [n for n in f.__code__.co_varnames if n not in ("self", "cache", "ctx", "_")]

        def alike(a: str, b: str) -> bool:
            known = given | shapes
            return known[a] == known[b] if a in known and b in known else a not in shapes and b not in shapes

        alike.names = variables  # type: ignore[attr-defined]
        parts = {ast.unparse(n) for n in _walk(self.sources[f]) if isinstance(n, ast.Subscript) and _is_read(n)}
        forms = ("{}", "len({})", "{}.shape[1]", "{}.size", "({} > 0)", "(1 - {} ** 2)", "({} * (1 - {}))", "{} ** 2")
        forward = self._forward_function()
        fixed = [c for source in taps.sources([forward] if forward else []).values() for c in constants(source.node)]
        return alike, [*(form.replace("{}", n) for form in forms for n in variables), *sorted(parts), *fixed]

    def _right_before(self, line: int) -> list[str]:
        return [name for name, lines in self.right.items() if max(lines) < line]


def _walk(source: Source) -> Iterator[ast.AST]:
    return ast.walk(source.node)


def _is_read(n: ast.Subscript) -> bool:
    return isinstance(n.ctx, ast.Load) and not (isinstance(n.value, ast.Attribute) and n.value.attr == "shape")
