"""How a pair of passes written by hand is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Pair:
    """forward, backward, inputs for a random generator, further arguments of gradcheck."""

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    inputs: Callable[[np.random.Generator], list[Any]]
    options: dict[str, Any] = field(default_factory=dict)


def cached(name: str, forward: Any, backward: Any, inputs: Any, **options: Any) -> Pair:
    """A pair of forward(*inputs) -> (output, cache) and backward(dout, cache)."""
    return Pair(name, forward, backward, inputs, {"cache": True, **options})


def draw(*shapes: tuple[int, ...]) -> Callable[[np.random.Generator], list[Any]]:
    """Standard normal arrays."""
    return lambda rng: [rng.normal(size=shape) for shape in shapes]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)
