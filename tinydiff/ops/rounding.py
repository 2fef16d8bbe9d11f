"""Numbers of one floating point type as those of another."""

from __future__ import annotations

from typing import Any

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor
from tinydiff.dispatch import accelerated


class Cast(Function):
    """Y is X, rounded to another type. Rounding has slope 1 here, and the tape rounds a gradient to its input's type: L_X = L_Y."""

    gives_new = True

    def forward(self, X, dtype):
        return converted(X, dtype)

    def backward(self, L_Y):
        return L_Y


@accelerated
def converted(X: Any, dtype: Any) -> Any:
    """X in another dtype."""
    return X.astype(dtype)


def cast(x: Tensor, dtype: Any) -> Tensor:
    """x in another floating point type; x itself if it has that or None is given."""
    return x if dtype is None or x.dtype == dtype else Cast.apply(x, dtype=dtype)
