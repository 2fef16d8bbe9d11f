"""Activations, element by element."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module
from tinydiff.dispatch import accelerated
from tinydiff.ops._erf import erfc
from tinydiff.ops.arguments import as_real
from tinydiff.ops.broadcasting import Elementwise


def sigmoid_array(A: Any) -> Any:
    """1 / (1 + exp(-a)), from e = exp(-|a|), which cannot overflow: 1 / (1 + e) or e / (1 + e), by the sign of a."""
    xp = array_module(A)
    e = xp.exp(-abs(A))
    return xp.where(A >= 0, A.dtype.type(1), e) / (1 + e)


FLAT = 1000  # beyond it sigmoid, tanh and the normal distribution function are 0 or 1, also in float64


class Relu(Elementwise):
    """L_A = L_Y * (A > 0)    (slope 0 at 0; NaN passes and the gradient with it)"""

    def forward(self, A):
        self.closed = A <= 0
        return array_module(A).where(self.closed, A.dtype.type(0), A)

    def L_A(self, L_Y):
        return array_module(L_Y).where(self.closed, L_Y.dtype.type(0), L_Y)


class Silu(Elementwise):
    """y = a s(a) with s the logistic sigmoid; dy/da = s + y (1 - s)."""

    def forward(self, A):
        self.save(A)
        return silu_forward(A)

    def L_A(self, L_Y):
        (A,) = self.saved
        return silu_backward(L_Y, A)


@accelerated
def silu_forward(A: Any) -> Any:
    """Y = A s(A)."""
    return array_module(A).maximum(A, -FLAT) * sigmoid_array(A)  # -inf times 0 would be NaN


@accelerated
def silu_backward(L_Y: Any, A: Any) -> Any:
    """L_A = L_Y * (S + A * S * (1 - S)) with S = sigmoid(A)."""
    S = sigmoid_array(A)
    return L_Y * (S + A.clip(-FLAT, FLAT) * S * (1 - S))


class Sigmoid(Elementwise):
    """Y = 1 / (1 + exp(-A)), L_A = L_Y * Y * (1 - Y)."""

    def forward(self, A):
        Y = sigmoid_array(A)
        self.save(Y)
        return Y

    def L_A(self, L_Y):
        (Y,) = self.saved
        return L_Y * Y * (1 - Y)


class Tanh(Elementwise):
    """L_A = L_Y * (1 - Y^2)."""

    def forward(self, A):
        Y = array_module(A).tanh(A)
        self.save(Y)
        return Y

    def L_A(self, L_Y):
        (Y,) = self.saved
        return L_Y * (1 - Y * Y)


class Gelu(Elementwise):
    """Y = A * F with F the normal distribution function of A and f its density.

    L_A = L_Y * (F + A * f),  F = (1 + erf(A / sqrt(2))) / 2,  f = exp(-A^2 / 2) / sqrt(2 pi)
    """

    def forward(self, A):
        F = (erfc(A * -(0.5**0.5)) / 2).astype(A.dtype, copy=False)
        self.save(A, F)
        return array_module(A).maximum(A, -FLAT) * F

    def L_A(self, L_Y):
        A, F = self.saved
        A = A.clip(-FLAT, FLAT)
        density = array_module(A).exp(-A * A / 2) / (2 * np.pi) ** 0.5
        return L_Y * (F + A * density)


class GeluTanh(Elementwise):
    """Y = A * (1 + U) / 2 with U = tanh(k (A + c A^3)), k = sqrt(2 / pi), c = 0.044715.

    L_A = L_Y * ((1 + U) + A * (1 - U^2) * k (1 + 3 c A^2)) / 2
    """

    K, C = (2 / np.pi) ** 0.5, 0.044715

    def forward(self, A):
        B = A.clip(-FLAT, FLAT)
        U = array_module(A).tanh(self.K * (B + self.C * B * B * B))
        self.save(A, U)
        return array_module(A).maximum(A, -FLAT) * ((1 + U) / 2)

    def L_A(self, L_Y):
        A, U = self.saved
        A = A.clip(-FLAT, FLAT)
        return L_Y * ((1 + U) + A * (1 - U * U) * self.K * (1 + 3 * self.C * A * A)) / 2


class Softplus(Elementwise):
    """Y = log(1 + exp(A)), L_A = L_Y * sigmoid(A)."""

    def forward(self, A):
        self.save(A)
        return array_module(A).logaddexp(A, A.dtype.type(0))

    def L_A(self, L_Y):
        (A,) = self.saved
        return L_Y * sigmoid_array(A)


def relu(x: Any) -> Tensor:
    """max(x, 0) for x of any shape, with slope 0 at 0. NaN stays NaN and passes the gradient."""
    return Relu.apply(x)


def silu(x: Any) -> Tensor:
    """x * sigmoid(x) for x of any shape (Elfwing et al., 2018), also called swish. Integers become float64."""
    return Silu.apply(as_real(x))


def sigmoid(x: Any) -> Tensor:
    """1 / (1 + exp(-x)) for x of any shape, without overflow. Integers become float64."""
    return Sigmoid.apply(as_real(x))


def tanh(x: Any) -> Tensor:
    """The hyperbolic tangent of x, of any shape."""
    return Tanh.apply(x)


def gelu(x: Any, approximate: str = "none") -> Tensor:
    """x times the standard normal distribution function of x, of any shape (Hendrycks and Gimpel, 2016). Integers
    become float64.

    approximate: "none", or "tanh" for their formula x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2. ValueError for
    others.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f'gelu: approximate must be "none" or "tanh", not {approximate!r}')
    return (Gelu if approximate == "none" else GeluTanh).apply(as_real(x))


def softplus(x: Any) -> Tensor:
    """log(1 + exp(x)) for x of any shape, without overflow. Integers become float64."""
    return Softplus.apply(as_real(x))
