"""How a planted bug is written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinydiff.autograd.function import Function

Inputs = Callable[[np.random.Generator], list[Any]]


@dataclass
class Planted:
    """A wrong Function, the inputs to check it at, the code of the right diagnosis and the slip in words.

    options: of gradcheck, where the bug shows only with them.
    """

    function: type[Function]
    inputs: Inputs
    expected: str
    slip: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.function.__name__


def normal(*shapes: tuple[int, ...]) -> Inputs:
    """Standard normal arrays."""
    return lambda rng: [rng.normal(size=shape) for shape in shapes]


def positive(*shapes: tuple[int, ...]) -> Inputs:
    """Uniform in 0.3..2."""
    return lambda rng: [rng.uniform(0.3, 2, size=shape) for shape in shapes]


def unbroadcast(L, shape):
    extra = L.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(extra + i for i, n in enumerate(shape) if n == 1 and L.shape[extra + i] != 1)
    return L.sum(axes, keepdims=True).reshape(shape)
