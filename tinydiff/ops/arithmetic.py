"""Arithmetic and elementary functions, element by element, each with its derivative.

Y is the result, L_Y the gradient that comes in, L_A and L_B those that go out. Arrays broadcast as in NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, is_array
from tinydiff.ops._erf import erf as _erf
from tinydiff.ops.arguments import as_real
from tinydiff.ops.broadcasting import Elementwise


class Add(Elementwise):
    def forward(self, A, B):
        return A + B

    def L_A(self, L_Y):
        return L_Y

    def L_B(self, L_Y):
        return L_Y


class Subtract(Elementwise):
    def forward(self, A, B):
        return A - B

    def L_A(self, L_Y):
        return L_Y

    def L_B(self, L_Y):
        return -L_Y


class Multiply(Elementwise):
    def forward(self, A, B):
        self.save(A, B)
        return A * B

    def L_A(self, L_Y):
        _, B = self.saved
        return L_Y * B

    def L_B(self, L_Y):
        A, _ = self.saved
        return L_Y * A


class Divide(Elementwise):
    def forward(self, A, B):
        self.save(A, B)
        return A / B

    def L_A(self, L_Y):
        _, B = self.saved
        return L_Y / B

    def L_B(self, L_Y):
        A, B = self.saved
        return -L_Y * (A / B) / B


class Power(Elementwise):
    """Y = A^B; where A = 0 the derivative by B is taken as 0, and where B = 0 so is that by A."""

    def forward(self, A, B):
        Y = A**B
        self.save(A, B, Y)
        return Y

    def L_A(self, L_Y):
        A, B, Y = self.saved
        xp = array_module(Y)
        B_1 = xp.where(xp.asarray(B) == 0, 1, B - 1).astype(Y.dtype, copy=False)
        return L_Y * (B * A**B_1)

    def L_B(self, L_Y):
        A, _, Y = self.saved
        xp = array_module(Y)
        return L_Y * Y * xp.log(xp.where(xp.asarray(A) == 0, 1, A).astype(Y.dtype, copy=False))


class Maximum(Elementwise):
    """Equal elements share the gradient equally."""

    def forward(self, A, B):
        self.save(A, B)
        return array_module(A if is_array(A) else B).maximum(A, B)

    def L_A(self, L_Y):
        A, B = self.saved
        return L_Y * _share(A, B, L_Y)

    def L_B(self, L_Y):
        A, B = self.saved
        return L_Y * _share(B, A, L_Y)


class Minimum(Elementwise):
    """Equal elements share the gradient equally."""

    def forward(self, A, B):
        self.save(A, B)
        return array_module(A if is_array(A) else B).minimum(A, B)

    def L_A(self, L_Y):
        A, B = self.saved
        return L_Y * _share(B, A, L_Y)

    def L_B(self, L_Y):
        A, B = self.saved
        return L_Y * _share(A, B, L_Y)


def _share(A: Any, B: Any, like: Any) -> Any:
    """1 where A > B, one half where they are equal, else 0."""
    xp = array_module(like)
    return (xp.greater(A, B).astype(like.dtype) + xp.greater_equal(A, B)) / 2


class Where(Elementwise):
    def forward(self, A, B, condition):
        xp = array_module(next((x for x in (A, B, condition) if is_array(x)), None))
        self.condition = condition
        return xp.where(condition, A, B)

    def L_A(self, L_Y):
        return array_module(L_Y).where(self.condition, L_Y, L_Y.dtype.type(0))

    def L_B(self, L_Y):
        return array_module(L_Y).where(self.condition, L_Y.dtype.type(0), L_Y)


class Clip(Elementwise):
    """Passes the gradient where low <= A <= high."""

    def forward(self, A, low, high):
        Y = array_module(A).clip(A, low, high)
        self.inside = Y == A
        return Y

    def L_A(self, L_Y):
        return L_Y * self.inside


class Negative(Elementwise):
    def forward(self, A):
        return -A

    def L_A(self, L_Y):
        return -L_Y


class Abs(Elementwise):
    """Slope 0 at 0."""

    def forward(self, A):
        self.save(A)
        return abs(A)

    def L_A(self, L_Y):
        (A,) = self.saved
        return L_Y * array_module(A).sign(A)


class Exp(Elementwise):
    def forward(self, A):
        Y = array_module(A).exp(A)
        self.save(Y)
        return Y

    def L_A(self, L_Y):
        (Y,) = self.saved
        return L_Y * Y


class Log(Elementwise):
    def forward(self, A):
        self.save(A)
        return array_module(A).log(A)

    def L_A(self, L_Y):
        (A,) = self.saved
        return L_Y / A


class Sqrt(Elementwise):
    def forward(self, A):
        Y = array_module(A).sqrt(A)
        self.save(Y)
        return Y

    def L_A(self, L_Y):
        (Y,) = self.saved
        return L_Y / (2 * Y)


class Sin(Elementwise):
    def forward(self, A):
        self.save(A)
        return array_module(A).sin(A)

    def L_A(self, L_Y):
        (A,) = self.saved
        return L_Y * array_module(A).cos(A)


class Cos(Elementwise):
    def forward(self, A):
        self.save(A)
        return array_module(A).cos(A)

    def L_A(self, L_Y):
        (A,) = self.saved
        return -L_Y * array_module(A).sin(A)


class Erf(Elementwise):
    """erf(a) = 2/sqrt(pi) times the integral of exp(-s^2) from 0 to a."""

    def forward(self, A):
        self.save(A)
        return _erf(A).astype(A.dtype, copy=False)

    def L_A(self, L_Y):
        (A,) = self.saved
        return L_Y * (2 / np.pi**0.5 * array_module(A).exp(-A * A))


def _binary(function: type[Elementwise], name: str, a: Any, b: Any) -> Tensor:
    shapes = [x.shape if isinstance(x, Tensor) or is_array(x) else np.shape(x) for x in (a, b)]
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(f"{name}: shapes {shapes[0]} and {shapes[1]} do not broadcast") from None
    return function.apply(a, b)


def add(a: Any, b: Any) -> Tensor:
    """a + b."""
    return _binary(Add, "add", a, b)


def subtract(a: Any, b: Any) -> Tensor:
    """a - b."""
    return _binary(Subtract, "subtract", a, b)


def multiply(a: Any, b: Any) -> Tensor:
    """a * b."""
    return _binary(Multiply, "multiply", a, b)


def divide(a: Any, b: Any) -> Tensor:
    """a / b."""
    return _binary(Divide, "divide", a, b)


def power(a: Any, b: Any) -> Tensor:
    """a ** b. Where a = 0, the derivative by b is taken as 0."""
    return _binary(Power, "power", a, b)


def maximum(a: Any, b: Any) -> Tensor:
    """The larger of a and b; where they are equal each gets half the gradient."""
    return _binary(Maximum, "maximum", a, b)


def minimum(a: Any, b: Any) -> Tensor:
    """The smaller of a and b; where they are equal each gets half the gradient."""
    return _binary(Minimum, "minimum", a, b)


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """a where the condition (a boolean array or tensor) holds, else b."""
    condition = condition.data if isinstance(condition, Tensor) else condition
    shapes = [getattr(x, "shape", np.shape(x)) for x in (condition, a, b)]
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(f"where: shapes {shapes[0]}, {shapes[1]} and {shapes[2]} do not broadcast") from None
    return Where.apply(a, b, condition=condition)


def clip(x: Any, low: Any = None, high: Any = None) -> Tensor:
    """x limited to low..high (None: no limit); the gradient passes inside and at the limits."""
    return Clip.apply(x, low=low, high=high)


def negative(x: Any) -> Tensor:
    """-x."""
    return Negative.apply(x)


def abs_(x: Any) -> Tensor:
    """The absolute value, with slope 0 at 0."""
    return Abs.apply(x)


def exp(x: Any) -> Tensor:
    """e ** x."""
    return Exp.apply(x)


def log(x: Any) -> Tensor:
    """The natural logarithm."""
    return Log.apply(x)


def sqrt(x: Any) -> Tensor:
    """The square root; its slope at 0 is infinite."""
    return Sqrt.apply(x)


def sin(x: Any) -> Tensor:
    """The sine of x in radians."""
    return Sin.apply(x)


def cos(x: Any) -> Tensor:
    """The cosine of x in radians."""
    return Cos.apply(x)


def erf(x: Any) -> Tensor:
    """The error function 2/sqrt(pi) * integral of exp(-s**2) from 0 to x."""
    return Erf.apply(as_real(x))
