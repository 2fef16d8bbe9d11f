"""Arithmetic and elementary functions, element by element, each with its derivative.

Y is the result, L_Y the gradient that comes in, L_A and L_B those that go out. Arrays broadcast as in NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, is_array
from tinydiff.ops._erf import erf as _erf
from tinydiff.ops.arguments import as_real, as_tensor
from tinydiff.ops.broadcasting import Elementwise, masked, unbroadcast


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
    """L_A = L_Y * B * A^(B - 1)  (0 where B is 0), L_B = L_Y * Y * log(A)  (0 where A is 0 and B >= 0)"""

    def forward(self, A, B):
        Y = A**B
        self.save(A, B, Y)
        return Y

    def L_A(self, L_Y):
        A, B, Y = self.saved
        xp = array_module(Y)
        zero = xp.asarray(B) == 0
        B_1 = xp.where(zero, 0, B - 1).astype(Y.dtype, copy=False)
        return masked(~zero, L_Y * (B * A**B_1))

    def L_B(self, L_Y):
        A, B, Y = self.saved
        xp = array_module(Y)
        flat = (xp.asarray(A) == 0) & (xp.asarray(B) >= 0)
        return masked(~flat, L_Y * (Y * xp.log(xp.where(flat, 1, A).astype(Y.dtype, copy=False))))


class Maximum(Elementwise):
    """L_A = L_Y * (1 - (A < B) - (A == B) / 2), L_B = L_Y * (1 - (B < A) - (A == B) / 2): equal elements share."""

    def forward(self, A, B):
        self.save(A, B)
        return array_module(A if is_array(A) else B).maximum(A, B)

    def L_A(self, L_Y):
        A, B = self.saved
        return _share(L_Y, A < B, A == B)

    def L_B(self, L_Y):
        A, B = self.saved
        return _share(L_Y, B < A, A == B)


class Minimum(Elementwise):
    """L_A = L_Y * (1 - (A > B) - (A == B) / 2), L_B = L_Y * (1 - (B > A) - (A == B) / 2): equal elements share."""

    def forward(self, A, B):
        self.save(A, B)
        return array_module(A if is_array(A) else B).minimum(A, B)

    def L_A(self, L_Y):
        A, B = self.saved
        return _share(L_Y, A > B, A == B)

    def L_B(self, L_Y):
        A, B = self.saved
        return _share(L_Y, B > A, A == B)


def _share(L_Y: Any, lost: Any, equal: Any) -> Any:
    """0 where the other was taken, half of L_Y where they are equal, else L_Y: where one is NaN, for both."""
    return masked(~lost, array_module(L_Y).where(equal, L_Y / 2, L_Y))


class Where(Elementwise):
    """L_A = L_Y * condition, L_B = L_Y * (1 - condition)."""

    def forward(self, A, B, condition):
        xp = array_module(next((x for x in (A, B, condition) if is_array(x)), None))
        self.condition = condition
        return xp.where(condition, A, B)

    def L_A(self, L_Y):
        return array_module(L_Y).where(self.condition, L_Y, L_Y.dtype.type(0))

    def L_B(self, L_Y):
        return array_module(L_Y).where(self.condition, L_Y.dtype.type(0), L_Y)


class Clip(Elementwise):
    """Y = min(max(A, low), high). A limit of None is -inf or inf.

    L_A = L_Y * (low <= A <= high)
    L_low = L_Y * (A < low < high)
    L_high = L_Y * (A > high or low > high)
    """

    def forward(self, A, low, high):
        xp = array_module(A)
        Y = A if low is None else xp.maximum(A, low)
        Y = Y if high is None else xp.minimum(Y, high)
        self.save(A, low, high)
        return A.copy() if Y is A else Y

    def backward(self, L_Y):
        A, low, high = self.saved
        inside = A == A
        below = above = ~inside
        if low is not None:
            inside, below = inside & (low <= A), low > A
        if high is not None:
            inside, above = inside & (high >= A), high < A
        if low is not None and high is not None:
            below, above = below & (low < high), above | (high < low)
        return tuple(
            unbroadcast(masked(mask, L_Y), shape) if needed else None
            for mask, shape, needed in zip((inside, below, above), self.shapes, self.needs, strict=True)
        )


class Negative(Elementwise):
    def forward(self, A):
        return -A

    def L_A(self, L_Y):
        return -L_Y


class Positive(Elementwise):
    def forward(self, A):
        return +A

    def L_A(self, L_Y):
        return L_Y


class Abs(Elementwise):
    """L_A = L_Y * sign(A)    (slope 0 at 0 and at NaN)"""

    def forward(self, A):
        self.save(A)
        return abs(A)

    def L_A(self, L_Y):
        (A,) = self.saved
        return masked(A > 0, L_Y) - masked(A < 0, L_Y)


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
    """erf(a) is 2/sqrt(pi) times the integral of exp(-s^2) from 0 to a, so L_A = L_Y * 2 / sqrt(pi) * exp(-A^2)."""

    def forward(self, A):
        self.save(A)
        return _erf(A).astype(A.dtype, copy=False)

    def L_A(self, L_Y):
        A = self.saved[0].clip(-30, 30)  # where exp(-a^2) is 0; the square of larger numbers may overflow
        return L_Y * (2 / np.pi**0.5 * array_module(A).exp(-A * A))


def _binary(function: type[Elementwise], name: str, a: Any, b: Any) -> Tensor:
    shapes = [_shape(x) for x in (a, b)]
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(f"{name}: shapes {shapes[0]} and {shapes[1]} do not broadcast") from None
    return function.apply(a, b)


def _shape(x: Any) -> tuple[int, ...]:
    return x.shape if isinstance(x, Tensor) or is_array(x) else np.shape(x)


def add(a: Any, b: Any) -> Tensor:
    """a + b. Shapes broadcast; ValueError where they do not."""
    return _binary(Add, "add", a, b)


def subtract(a: Any, b: Any) -> Tensor:
    """a - b. Shapes broadcast; ValueError where they do not."""
    return _binary(Subtract, "subtract", a, b)


def multiply(a: Any, b: Any) -> Tensor:
    """a * b, element by element. Shapes broadcast; ValueError where they do not."""
    return _binary(Multiply, "multiply", a, b)


def divide(a: Any, b: Any) -> Tensor:
    """a / b, element by element. Shapes broadcast; ValueError where they do not."""
    return _binary(Divide, "divide", a, b)


def power(a: Any, b: Any) -> Tensor:
    """a ** b, with NumPy's values: 1 where b = 0 (also for a = inf and NaN), inf for 0 ** -1, NaN for negative a and a
    b that is not whole.

    The derivative by a is b a ** (b - 1), and 0 where b = 0; at a = 0 it is infinite for b < 1. The derivative by b is
    a ** b log(a), and 0 where a = 0 and b >= 0; it is -inf where a = 0 and b < 0, and NaN for negative a. ValueError
    where the shapes do not broadcast.
    """
    return _binary(Power, "power", a, b)


def maximum(a: Any, b: Any) -> Tensor:
    """The larger of a and b. Where they are equal, each gets half the gradient. Where one is NaN, the result is NaN and
    both get the gradient. ValueError where the shapes do not broadcast."""
    return _binary(Maximum, "maximum", a, b)


def minimum(a: Any, b: Any) -> Tensor:
    """The smaller of a and b. Where they are equal, each gets half the gradient. Where one is NaN, the result is NaN
    and both get the gradient. ValueError where the shapes do not broadcast."""
    return _binary(Minimum, "minimum", a, b)


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """a where the condition (a boolean array or tensor) holds, else b. The gradient goes to the one that was taken.

    An infinite slope in the branch that was not taken still gives NaN, because 0 times infinity is NaN: where(x > 0,
    sqrt(x), x) at x = 0. Take the root of a safe number there: where(x > 0, sqrt(where(x > 0, x, 1)), x). ValueError
    where the shapes do not broadcast.
    """
    condition = condition.data if isinstance(condition, Tensor) else condition
    shapes = [getattr(x, "shape", np.shape(x)) for x in (condition, a, b)]
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(f"where: shapes {shapes[0]}, {shapes[1]} and {shapes[2]} do not broadcast") from None
    return Where.apply(a, b, condition=condition)


def clip(x: Any, low: Any = None, high: Any = None) -> Tensor:
    """min(max(x, low), high). low and high: numbers, arrays or tensors that broadcast with x, or None for no limit.

    As in PyTorch's clamp, x gets the gradient where low <= x <= high, also at the limits. A limit that is a tensor gets
    it where x lies beyond: low where x < low < high, high where x > high or low > high (the result is high there). NaN
    stays NaN and gets no gradient. ValueError where the shapes do not broadcast.
    """
    shapes = [() if limit is None else _shape(limit) for limit in (x, low, high)]
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        raise ValueError(f"clip: x {shapes[0]}, low {shapes[1]} and high {shapes[2]} do not broadcast") from None
    return Clip.apply(as_tensor(x), low, high)


def negative(x: Any) -> Tensor:
    """-x for x of any shape."""
    return Negative.apply(x)


def positive(x: Any) -> Tensor:
    """A copy of x, of any shape."""
    return Positive.apply(x)


def abs_(x: Any) -> Tensor:
    """The absolute value of x, of any shape, with slope 0 at 0 and at NaN."""
    return Abs.apply(x)


def exp(x: Any) -> Tensor:
    """e ** x for x of any shape."""
    return Exp.apply(x)


def log(x: Any) -> Tensor:
    """The natural logarithm of x, of any shape: -inf at 0, NaN below, with NumPy's warning."""
    return Log.apply(x)


def sqrt(x: Any) -> Tensor:
    """The square root of x, of any shape. The slope at 0 is infinite, so a gradient of 0 becomes NaN there (see
    `where`)."""
    return Sqrt.apply(x)


def sin(x: Any) -> Tensor:
    """The sine of x, in radians and of any shape."""
    return Sin.apply(x)


def cos(x: Any) -> Tensor:
    """The cosine of x, in radians and of any shape."""
    return Cos.apply(x)


def erf(x: Any) -> Tensor:
    """The error function of x, of any shape: 2 / sqrt(pi) times the integral of exp(-s**2) from 0 to x (Cody, 1969).
    Integers become float64."""
    return Erf.apply(as_real(x))
