"""Derivatives as arrays: by evaluating a function only, and by the tape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tinydiff.autograd.tape import no_grad
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import is_array, to_numpy
from tinydiff.errors import InputError
from tinydiff.gradcheck.numeric import EPS

STEP = EPS**0.2  # where truncation, h^4 f^(5), and rounding, eps f / h, are about equal


def numerical_gradient(fn: Callable[[Any], Any], x: Any, step: float | None = None) -> np.ndarray:
    """The gradient of a function with one number as its value, by central differences: an array like x, float64.

    fn: a function of a Tensor where x is one, else of an array. x: (...), floating point; the function is evaluated in
    float64. step: h, the same for every element. None: h = eps^(1/5) max(|x_i|, s / 10000) for element i, where eps is
    2.2e-16 and s the largest |x_j|, or 1 if x is zero.

    Of (4 D(h) - D(2h)) / 3 with D(h) = (f(x + h) - f(x - h)) / 2h the truncation falls as h^4, and rounding grows as
    eps / h; both are about 1e-12, relative to f and its fifth derivative, at h = eps^(1/5) = 7e-4. A kink within 2h of x
    makes the result meaningless: `td.gradcheck` says so. InputError where fn returns more than one number.
    """
    x64, wrap = _prepared("numerical_gradient", x)
    value = _value(fn, wrap(x64))
    if value.size != 1:
        raise InputError(
            f"numerical_gradient is of functions with one number as their value, not {value.shape}: see numerical_jacobian"
        )
    columns = [column.reshape(()) for column in _columns(fn, x64, wrap, step)]
    return np.array(columns, np.float64).reshape(x64.shape)


def numerical_jacobian(fn: Callable[[Any], Any], x: Any, step: float | None = None) -> np.ndarray:
    """The derivative of every element of fn(x) by every element of x: (*shape of fn(x), *shape of x), float64.

    By central differences, four evaluations of fn for each element of x; fn may return an array. x, step and errors are
    those of `numerical_gradient`.
    """
    x64, wrap = _prepared("numerical_jacobian", x)
    shape = _value(fn, wrap(x64)).shape
    columns = list(_columns(fn, x64, wrap, step))
    return np.stack(columns, -1).reshape(*shape, *x64.shape) if columns else np.zeros((*shape, *x64.shape))


def jacobian(fn: Callable[[Any], Any], x: Any) -> np.ndarray:
    """The derivative of every element of fn(x) by every element of x, by the tape: (*shape of fn(x), *shape of x).

    fn: a function of a Tensor. x: a tensor or an array, floating point; it keeps its dtype. One forward pass, and one
    backward pass, with L_Y = 1 at one element and 0 at the others, for each element of fn(x). InputError where fn does
    not return a Tensor.
    """
    if not isinstance(x, Tensor):
        x = Tensor(x)
    if x.dtype.kind != "f":
        raise InputError(f"jacobian is by an array of floating point numbers, not of {x.dtype}")
    rows: list[np.ndarray] = []
    count = 1
    while len(rows) < count:  # a walk back frees the graph, so each has a forward pass of its own
        leaf = Tensor(x.data, requires_grad=True)
        y = fn(leaf)
        if not isinstance(y, Tensor):
            raise InputError(f"fn must return a Tensor, not {type(y).__name__}: see numerical_jacobian")
        count = y.size
        if not count:
            break
        if not y.requires_grad:
            return np.zeros((*y.shape, *x.shape), x.dtype)
        L_Y = np.zeros(count, y.dtype)
        L_Y[len(rows)] = 1
        y.backward(_like(y.data, L_Y.reshape(y.shape)))
        rows.append(np.zeros(x.shape, x.dtype) if leaf.grad is None else np.array(to_numpy(leaf.grad)))
    return np.array(rows, x.dtype).reshape(*y.shape, *x.shape)


def _like(a: Any, values: np.ndarray) -> Any:
    from tinydiff.backend import array_module

    return array_module(a).asarray(values)


def _prepared(name: str, x: Any) -> tuple[np.ndarray, Callable[[np.ndarray], Any]]:
    """x in float64, and what makes of such an array what fn takes."""
    is_tensor = isinstance(x, Tensor)
    a = np.asarray(to_numpy(x.data) if is_tensor else to_numpy(x) if is_array(x) else x)
    if a.dtype.kind != "f":
        raise InputError(f"{name} is by floating point numbers, not {a.dtype}: write 2.0, not 2")
    return a.astype(np.float64), (lambda b: Tensor(b)) if is_tensor else (lambda b: b)


def _value(fn: Callable[[Any], Any], x: Any) -> np.ndarray:
    with no_grad():
        y = fn(x)
    y = np.asarray(to_numpy(y.data) if isinstance(y, Tensor) else y)
    if y.dtype.kind not in "fiu":
        raise InputError(f"fn must return real numbers, not {y.dtype}")
    return y.astype(np.float64)


def _columns(
    fn: Callable[[Any], Any], x: np.ndarray, wrap: Callable[[np.ndarray], Any], step: float | None
) -> Iterator[np.ndarray]:
    if step is not None and not (isinstance(step, int | float | np.floating) and step > 0):
        raise InputError(f"step must be a number above 0, not {step!r}")
    largest = float(np.abs(x).max(initial=0)) or 1.0
    for j in np.ndindex(x.shape):
        h = float(step) if step is not None else STEP * max(abs(float(x[j])), largest / 10_000)
        values = []
        for k in (1, -1, 2, -2):
            moved = x.copy()
            moved[j] += k * h
            values.append(_value(fn, wrap(moved)))
        near, far = (values[0] - values[1]) / (2 * h), (values[2] - values[3]) / (4 * h)
        yield (4 * near - far) / 3
