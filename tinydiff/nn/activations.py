"""Activations, pooling and shapes as modules, for `Sequential` and for networks that name their layers.

Each calls the operation of the same name in `ops`, which says what it computes. None has weights.
"""

from __future__ import annotations

from typing import Any

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor
from tinydiff.nn.module import Module


class Identity(Module):
    """x as it is."""

    def forward(self, x: Any) -> Any:
        """x, of any shape -> x itself."""
        return x


class ReLU(Module):
    """max(x, 0), see `ops.relu`."""

    def forward(self, x: Any) -> Tensor:
        """x of any shape -> the same shape."""
        return ops.relu(x)


class SiLU(Module):
    """x sigmoid(x), see `ops.silu`."""

    def forward(self, x: Any) -> Tensor:
        """x of any shape -> the same shape."""
        return ops.silu(x)


class GELU(Module):
    """x times the normal distribution function of x, see `ops.gelu`. approximate: "none" or "tanh"; ValueError for others."""

    def __init__(self, approximate: str = "none") -> None:
        ops.gelu(0.0, approximate)  # refuses what it does not know
        self.approximate = approximate

    def forward(self, x: Any) -> Tensor:
        """x of any shape -> the same shape."""
        return ops.gelu(x, self.approximate)


class Tanh(Module):
    """The hyperbolic tangent, see `ops.tanh`."""

    def forward(self, x: Any) -> Tensor:
        """x of any shape -> the same shape."""
        return ops.tanh(x)


class Sigmoid(Module):
    """1 / (1 + exp(-x)), see `ops.sigmoid`."""

    def forward(self, x: Any) -> Tensor:
        """x of any shape -> the same shape."""
        return ops.sigmoid(x)


class Softplus(Module):
    """log(1 + exp(x)), see `ops.softplus`."""

    def forward(self, x: Any) -> Tensor:
        """x of any shape -> the same shape."""
        return ops.softplus(x)


class Softmax(Module):
    """exp(x) divided by its sum along an axis, see `ops.softmax`. axis: an int; the channels if -1."""

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    def forward(self, x: Any) -> Tensor:
        """x of any shape -> the same shape."""
        return ops.softmax(x, self.axis)


class LogSoftmax(Module):
    """The logarithm of the softmax along an axis, see `ops.log_softmax`. axis: an int; the channels if -1."""

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    def forward(self, x: Any) -> Tensor:
        """x of any shape -> the same shape."""
        return ops.log_softmax(x, self.axis)


class Flatten(Module):
    """All axes from `start` on as one, see `ops.flatten`; images (N, H, W, C) become rows (N, H W C), channels last."""

    def __init__(self, start: int = 1) -> None:
        self.start = start

    def forward(self, x: Any) -> Tensor:
        """x (N, ...) -> (N, D)."""
        return ops.flatten(x, self.start)


class MaxPool2d(Module):
    """The maximum over windows of images. window, stride, padding: as for `ops.max_pool2d`."""

    def __init__(self, window: Any, stride: Any = None, padding: Any = 0) -> None:
        self.window, self.stride, self.padding = window, stride, padding

    def forward(self, x: Any) -> Tensor:
        """x (N, H, W, C) -> (N, Ho, Wo, C)."""
        return ops.max_pool2d(x, self.window, self.stride, self.padding)


class AvgPool2d(Module):
    """The mean over windows of images. window, stride, padding: as for `ops.avg_pool2d`."""

    def __init__(self, window: Any, stride: Any = None, padding: Any = 0) -> None:
        self.window, self.stride, self.padding = window, stride, padding

    def forward(self, x: Any) -> Tensor:
        """x (N, H, W, C) -> (N, Ho, Wo, C)."""
        return ops.avg_pool2d(x, self.window, self.stride, self.padding)
