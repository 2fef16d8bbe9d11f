"""How a wrong pair of passes and its label are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Wrong(NamedTuple):
    """forward(*arrays) -> (output, cache), backward(dout, cache) -> gradients, with one slip.

    The gradients are of the first arrays, in order, which are the ones of floats; labels, masks and numbers follow.
    line is the line of backward's source, without its indentation, at which a value first becomes wrong; where a line
    is missing, it is the one after which that should come. alternatives has the lines that may be said as well: those
    whose values lack the missing line, or the step that a loop leaves out. kind says in words what the slip is.
    """

    name: str
    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[[Any, Any], Any]
    inputs: Callable[[np.random.Generator], list[Any]]
    line: str
    alternatives: tuple[str, ...]
    kind: str


def draw(*shapes: tuple[int, ...]) -> Callable[[np.random.Generator], list[Any]]:
    """Standard normal arrays."""
    return lambda rng: [rng.normal(size=shape) for shape in shapes]


def labelled(n: int, classes: int) -> Callable[[np.random.Generator], list[Any]]:
    """Scores and the right class of each row."""
    return lambda rng: [rng.normal(size=(n, classes)), rng.integers(0, classes, n)]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
