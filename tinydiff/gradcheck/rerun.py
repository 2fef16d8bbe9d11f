"""A failed check again: with other code in its backward pass, beside what its gradients must be."""

from __future__ import annotations

import contextlib
import copy
import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinydiff.gradcheck import numeric, taps
from tinydiff.gradcheck.check import Check
from tinydiff.gradcheck.pairs import PairSubject
from tinydiff.gradcheck.subject import TapeSubject
from tinydiff.gradcheck.taps import Codes

CLOSE = 1e-6


class Truth:
    """What the gradients must be along a few directions, for one draw of L_Y."""

    def __init__(self, check: Check, U: Sequence[Any], count: int = 2) -> None:
        self.U = U
        self.tests: list[tuple[int, np.ndarray, float, float]] = []
        for _ in range(count):
            for k, x in enumerate(check.point):
                if x.size:
                    v = check.direction([k])
                    slope = numeric.differences(check.forward, check.point, v, check.centre, list(U), check.step)
                    if np.isfinite(slope.value + slope.error):
                        self.tests.append((k, np.asarray(v[k]), slope.value, CLOSE * slope.size + slope.error))

    def wrong(self, gradients: Sequence[Any] | None, point: Sequence[Any]) -> set[int]:
        """Which arrays' gradients are not those of the differences."""
        if gradients is None:
            return {k for k, *_ in self.tests}
        wrong = set()
        for k, v, value, allowed in self.tests:
            g = gradients[k]
            g = np.zeros(point[k].shape) if g is None else g
            if g.shape != v.shape or not abs(float(np.vdot(g, v)) - value) <= allowed + CLOSE * min(
                size_of(g, v), 1e300
            ):
                wrong.add(k)
        return wrong


def size_of(g: np.ndarray, v: np.ndarray) -> float:
    return float(np.sum(np.abs(g * v) ** 2)) ** 0.5


class Rerun:
    """The passes of a check, whose backward pass may have other code."""

    def __init__(self, check: Check) -> None:
        self.check, self.passes = check, 0
        self.truth = Truth(check, check.U)
        subject = check.subject
        assert isinstance(subject, PairSubject | TapeSubject)
        self.subject = subject

    def gradients(self, codes: Codes, tap: taps.Tap | None = None, U: Sequence[Any] | None = None) -> list[Any] | None:
        """The gradients with other code in backward; None where it raises."""
        self.passes += 1

        def inside(call: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(call)
            def swapped(*args: Any, **options: Any) -> Any:
                with taps.exchanged(codes, tap):
                    return call(*args, **options)

            return swapped

        subject = self.around(inside)
        try:
            got = subject.vjp(self.check.arrays(), self.check.U if U is None else U)
            return [numeric.as_host(g) for g in got]
        except Exception:
            return None

    def around(self, inside: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Any:
        """The subject with something around its backward pass."""
        subject = copy.copy(self.subject)
        if isinstance(subject, PairSubject):
            made: Any = subject.fn if subject.loss else subject.backward
            wrapped: Any = inside(self.same_loss(made) if subject.loss else made)
            if hasattr(made, "__self__"):
                wrapped.__self__ = made.__self__
            setattr(subject, "fn" if subject.loss else "backward", wrapped)
        else:
            cls: Any = subject.function
            sub = type(cls.__name__, (cls,), {"backward": inside(cls.backward)})
            subject.fn = lambda *xs: sub.apply(*xs)  # type: ignore[attr-defined]
        return subject

    def same_loss(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """A function that returns its loss and gradients, and raises where the loss is another one: a change that moves it
        is not made in the part that computes gradients."""
        loss, stored = np.asarray(self.check.centre[0]), getattr(self.subject, "stored", False)

        @functools.wraps(fn)
        def call(*args: Any, **options: Any) -> Any:
            result = fn(*args, **options)
            value = np.asarray(numeric.as_host(result if stored else result[0]))
            if not np.allclose(value.ravel(), loss.ravel(), 1e-9, 0):  # sums may be rounded otherwise from call to call
                raise ValueError("the loss has changed")
            return result

        return call

    def functions(self) -> list[types.FunctionType]:
        """The functions of the user that backward runs, or the function that returns a loss and gradients."""
        subject = self.subject
        if isinstance(subject, TapeSubject) and subject.function is None:
            return []
        found: list[types.FunctionType] = []

        def noting(call: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(call)
            def noted(*args: Any) -> Any:
                result: list[Any] = []
                found.extend(taps.functions_run(lambda: result.append(caught(call, args))))
                if isinstance(result[0], Exception):
                    raise result[0]
                return result[0]

            return noted

        with contextlib.suppress(Exception):
            self.around(noting).vjp(self.check.arrays(), self.check.U)
        return list(dict.fromkeys(found))


def caught(call: Callable[..., Any], args: Sequence[Any]) -> Any:
    try:
        return call(*args)
    except Exception as error:
        return error
