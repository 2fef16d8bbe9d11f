"""The sum of the gradients of several backward passes, on a GPU in one piece of memory.

The tape adds a gradient to `.grad` weight by weight, which is a launch for each. Here the gradients of a later pass are born
in a second flat array, and one launch adds that to the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinydiff import optim
from tinydiff.autograd import places
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module
from tinydiff.cuda import flat


class Sums:
    """Adds up gradients of the parameters: `before` each backward pass, then `after` it. Where the gradients are not one
    piece, on the CPU for one, neither does anything, and the tape adds."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._learned: list[Tensor] = []  # those that have a gradient
        self._total: Any = None  # flat, and its parts
        self._parts: list[Any] = []
        self._later: Any = None

    def before(self, first: bool) -> None:
        """Before a backward pass, the first of its step or another."""
        if first:
            self._total = None
        if self._total is None:
            return
        if self._later is None or self._later.size != self._total.size:
            self._later = array_module(self._total).zeros_like(self._total)
        for p, part in zip(self._learned, flat.part(self._later, self._parts), strict=True):
            p.grad = None
            places.keep(p, part)

    def after(self) -> None:
        """After a backward pass: `.grad` is the sum of all passes since the first."""
        if self._total is None:
            self._learned = [p for p in self._parameters if p.grad is not None]
            pieces, parts = optim.gathered([p.grad for p in self._learned]) if self._learned else ([], [])
            if len(pieces) == 1 and len(parts) > 1:
                places.keep_all(self._learned, parts)
                self._total, self._parts = pieces[0], parts
            return
        if all(p.grad is not None for p in self._learned):
            pieces, _ = optim.gathered([p.grad for p in self._learned])
            self._total += pieces[0]
        else:  # a weight that this pass did not use
            for p, total in zip(self._learned, self._parts, strict=True):
                if p.grad is not None:
                    total += p.grad
        for p, part in zip(self._learned, self._parts, strict=True):
            p.grad = part
            places.keep(p, part)
