"""The backward pass of broadcasting."""

from __future__ import annotations

from typing import Any

from tinydiff.autograd.function import Function
from tinydiff.backend import array_module, widened


def unbroadcast(L: Any, shape: tuple[int, ...]) -> Any:
    """The gradient of an array of the given shape, from the gradient L of what it was broadcast to.

    A repeated element gets the sum of the gradients of its copies. Half precision is summed in float32.
    """
    if L.shape == shape:
        return L
    L = widened(L)
    extra = L.ndim - len(shape)
    repeated = tuple(range(extra)) + tuple(extra + i for i, n in enumerate(shape) if n == 1 and L.shape[extra + i] != 1)
    return L.sum(repeated, keepdims=True).reshape(shape)


def masked(mask: Any, L: Any) -> Any:
    """L where the boolean mask holds, else 0. A product with the mask would make NaN of a masked infinity."""
    return array_module(L).where(mask, L, L.dtype.type(0))


class Elementwise(Function):
    """An operation that works element by element on arrays that broadcast.

    A subclass has `forward` and a method for each input, which gives the gradient in the broadcast shape: `L_A` for the
    first, `L_B` for the second.
    """

    widens_half = True

    def backward(self, L_Y: Any) -> tuple[Any, ...]:
        methods = (self.L_A, self.L_B)[: len(self.shapes)]
        return tuple(
            unbroadcast(L(L_Y), shape) if needed else None
            for L, shape, needed in zip(methods, self.shapes, self.needs, strict=True)
        )

    def L_A(self, L_Y: Any) -> Any:
        raise NotImplementedError

    def L_B(self, L_Y: Any) -> Any:
        raise NotImplementedError
