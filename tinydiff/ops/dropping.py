"""Dropout."""

from __future__ import annotations

from typing import Any

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import device_of
from tinydiff.ops.arguments import as_tensor, check_number
from tinydiff.ops.broadcasting import masked
from tinydiff.random import Generator


class Dropout(Function):
    """Y = X * M, where M is 0 with probability p, else 1 / (1 - p), so that the expectation stays.

    L_X = L_Y * M,  M = kept / (1 - p)
    """

    widens_half = True

    def forward(self, X, p, generator):
        self.kept = generator.uniform(X.shape, device=device_of(X)) >= p
        self.factor = X.dtype.type(1 / (1 - p))
        return masked(self.kept, X * self.factor)

    def backward(self, L_Y):
        return masked(self.kept, L_Y * self.factor)


def dropout(x: Any, p: float, generator: Generator | None) -> Tensor:
    """x, of any shape, with elements set to 0 with probability p and the others divided by 1 - p (Srivastava et al.,
    2014).

    p: in [0, 1). generator: a `td.random.Generator`, which gives one number for each element; None only where p is 0.
    ValueError for another p and for a generator that is missing.
    """
    x = as_tensor(x)
    check_number("dropout", "p", p)
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p must be in [0, 1), not {p}")
    if p == 0:
        return x
    if generator is None:
        raise ValueError(f"dropout: p={p} needs a Generator; give one, or call the module's train(generator)")
    return Dropout.apply(x, p=p, generator=generator)
