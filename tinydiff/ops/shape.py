"""Operations that move elements and compute nothing. Their backward passes move gradients back."""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module, widened
from tinydiff.dispatch import accelerated
from tinydiff.ops.arguments import as_array, as_tensor, normalize_axes, normalize_axis
from tinydiff.ops.broadcasting import unbroadcast


class Reshape(Function):
    """L_X = reshape(L_Y)    (to the shape of X)"""

    def forward(self, X, shape):
        return X.reshape(shape)

    def backward(self, L_Y):
        return L_Y.reshape(self.shapes[0])


class Transpose(Function):
    """L_X = transpose(L_Y)    (its axes back in the order of X)"""

    def forward(self, X, axes):
        self.axes = axes
        return X.transpose(axes)

    def backward(self, L_Y):
        return L_Y.transpose([self.axes.index(i) for i in range(len(self.axes))])


class BroadcastTo(Function):
    """L_X = sum(L_Y)    (over the axes along which X was repeated)"""

    def forward(self, X, shape):
        return array_module(X).broadcast_to(X, shape)

    def backward(self, L_Y):
        return unbroadcast(L_Y, self.shapes[0])


class Concatenate(Function):
    """L_Xs[i] = cut(L_Y)[i]    (the part of L_Y at the place of this input)"""

    def forward(self, *Xs, axis):
        self.axis = axis
        return join(Xs, axis)

    def backward(self, L_Y):
        ends = np.cumsum([shape[self.axis] for shape in self.shapes])
        return cut(L_Y, ends[:-1].tolist(), self.axis)


class Split(Function):
    """L_X = join(L_Ys)    (the gradients of all parts, one after another)"""

    def forward(self, X, ends, axis):
        self.axis = axis
        return cut(X, ends, axis)

    def backward(self, *L_Ys):
        return join(L_Ys, self.axis)


@accelerated
def join(Xs: Sequence[Any], axis: int) -> Any:
    """The arrays one after another along an axis."""
    return array_module(Xs[0]).concatenate(Xs, axis)


@accelerated
def cut(X: Any, ends: Sequence[int], axis: int) -> Any:
    """The parts of the array between these indices of an axis, the backward pass of `join`."""
    return tuple(array_module(X).split(X, ends, axis))


class GetItem(Function):
    """L_X = scatter(L_Y)    (each element added where it was picked, 0 elsewhere)"""

    def forward(self, X, index):
        self.index = index
        return X[index]

    def backward(self, L_Y):
        xp, L_Y = array_module(L_Y), widened(L_Y)  # half precision is added up in float32
        L_X = xp.zeros(self.shapes[0], L_Y.dtype)
        parts = self.index if isinstance(self.index, tuple) else (self.index,)
        if all(isinstance(part, int | np.integer | slice | type(None) | type(Ellipsis)) for part in parts):
            L_X[self.index] = L_Y
        else:
            xp.add.at(L_X, self.index, L_Y)  # an element may have been picked more than once
        return L_X


class Pad(Function):
    """Constant padding. Backward removes it, and the value gets the sum of what is removed.

    L_X = crop(L_Y)    (without the margin)
    L_value = sum(L_Y) - sum(crop(L_Y))
    """

    def forward(self, X, value, widths):
        self.inner = tuple(slice(before, before + n) for (before, _), n in zip(widths, X.shape, strict=True))
        Y = array_module(X).empty([a + n + b for (a, b), n in zip(widths, X.shape, strict=True)], X.dtype)
        Y[...] = value
        Y[self.inner] = X
        return Y

    def backward(self, L_Y):
        L_value = None
        if self.needs[1]:
            margin = widened(L_Y.copy())
            margin[self.inner] = 0
            L_value = margin.sum().reshape(self.shapes[1])
        return L_Y[self.inner], L_value


class PadByIndex(Function):
    """Padding that repeats elements along one axis: Y_j is element source(j) of X.

    L_X = scatter(L_Y)    (each element added where it was taken from)
    """

    def forward(self, X, axis, before, source):
        self.axis, self.before, self.source = axis, before, source
        return X.take(array_module(X).asarray(source), axis)

    def backward(self, L_Y):
        n, L_Y = self.shapes[0][self.axis], widened(L_Y)
        at = (slice(None),) * self.axis
        L_X = L_Y[(*at, slice(self.before, self.before + n))].copy()
        for j, i in enumerate(self.source):
            if not self.before <= j < self.before + n:
                L_X[(*at, i)] += L_Y[(*at, j)]
        return L_X


def reshape(x: Any, *shape: Any) -> Tensor:
    """The elements of x in another shape, given as a tuple or as numbers. One length may be -1: it follows from the
    others. ValueError where the shape does not hold as many elements."""
    x = as_tensor(x)
    shape = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    known = math.prod(n for n in shape if n != -1)
    fits = x.size == known if -1 not in shape else shape.count(-1) == 1 and known > 0 and x.size % known == 0
    if not fits or any(n < -1 for n in shape):
        raise ValueError(f"reshape: shape {x.shape} does not fit into {shape}")
    return Reshape.apply(x, shape=shape)


def flatten(x: Any, start: int = 0) -> Tensor:
    """x with its axes from `start` on joined into one: (N, H, W, C) with start=1 becomes (N, H W C). ValueError for an axis
    that x does not have."""
    x = as_tensor(x)
    start = normalize_axis("flatten", start, builtins.max(x.ndim, 1))
    return reshape(x, (*x.shape[:start], math.prod(x.shape[start:])))


def transpose(x: Any, axes: Any = None, *more: int) -> Tensor:
    """The axes of x in another order: axes is a tuple, or the first of several numbers, of which `more` are the others;
    None reverses the order. ValueError unless every axis is named once."""
    x = as_tensor(x)
    if isinstance(axes, int | np.integer):
        axes = (axes, *more)
    axes = tuple(range(x.ndim))[::-1] if axes is None else normalize_axes("transpose", tuple(axes), x.ndim)
    if len(axes) != x.ndim:
        raise ValueError(f"transpose: {len(axes)} axes for a tensor of shape {x.shape}")
    return Transpose.apply(x, axes=axes)


def expand_dims(x: Any, axis: Any) -> Tensor:
    """x with new axes of length 1. axis: an int or a tuple, the positions of the new axes in the result. ValueError for
    a position that the result does not have."""
    x = as_tensor(x)
    count = len(axis) if isinstance(axis, tuple | list) else 1
    axes = normalize_axes("expand_dims", axis, x.ndim + count)
    rest = iter(x.shape)
    return Reshape.apply(x, shape=tuple(1 if i in axes else next(rest) for i in range(x.ndim + count)))


def squeeze(x: Any, axis: Any = None) -> Tensor:
    """x without axes of length 1. axis: an int or a tuple, the axes to remove; None removes all of length 1. ValueError
    where a named axis is longer."""
    x = as_tensor(x)
    axes = [i for i, n in enumerate(x.shape) if n == 1] if axis is None else normalize_axes("squeeze", axis, x.ndim)
    if any(x.shape[i] != 1 for i in axes):
        raise ValueError(f"squeeze: axis {axis} of shape {x.shape} is not of length 1")
    return Reshape.apply(x, shape=tuple(n for i, n in enumerate(x.shape) if i not in axes))


def broadcast_to(x: Any, shape: Sequence[int]) -> Tensor:
    """x repeated to a shape, a sequence of ints, without a copy. ValueError where x does not broadcast to it."""
    x, shape = as_tensor(x), tuple(shape)
    try:
        fits = np.broadcast_shapes(x.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"broadcast_to: shape {x.shape} does not broadcast to {shape}")
    return BroadcastTo.apply(x, shape=shape)


def concatenate(xs: Sequence[Any], axis: int = 0) -> Tensor:
    """The tensors xs one after another along an axis. ValueError where there is none or they differ in another axis."""
    xs = [as_tensor(x) for x in xs]
    if not xs:
        raise ValueError("concatenate: needs at least one tensor")
    axis = normalize_axis("concatenate", axis, xs[0].ndim)
    shapes = [x.shape for x in xs]
    if len({(len(s), s[:axis], s[axis + 1 :]) for s in shapes}) != 1:
        raise ValueError(f"concatenate: shapes {', '.join(map(str, shapes))} differ in another axis than {axis}")
    return Concatenate.apply(*xs, axis=axis)


def stack(xs: Sequence[Any], axis: int = 0) -> Tensor:
    """The tensors xs, of one shape, along a new axis. axis: its position in the result. ValueError where the shapes
    differ."""
    xs = [as_tensor(x) for x in xs]
    if len({x.shape for x in xs}) != 1:
        raise ValueError(f"stack: needs tensors of one shape, not {', '.join(str(x.shape) for x in xs) or 'none'}")
    axis = normalize_axis("stack", axis, xs[0].ndim + 1)
    return concatenate([expand_dims(x, axis) for x in xs], axis)


def split(x: Any, sections: int | Sequence[int], axis: int = 0) -> tuple[Tensor, ...]:
    """x cut along an axis into a tuple of tensors. sections: the number of equal parts, or the increasing indices at
    which to cut. ValueError where the axis does not divide or an index lies outside of it."""
    x = as_tensor(x)
    axis = normalize_axis("split", axis, x.ndim)
    n = x.shape[axis]
    if isinstance(sections, int | np.integer):
        if sections < 1 or n % sections:
            raise ValueError(f"split: axis {axis} of shape {x.shape} does not divide into {sections} equal sections")
        ends = [n // sections * i for i in range(1, sections)]
    else:
        ends = [int(i) for i in sections]
        if any(not 0 <= i <= n for i in ends) or ends != sorted(ends):
            raise ValueError(f"split: indices {ends} must increase within 0..{n}, the length of axis {axis}")
    return Split.apply(x, ends=ends, axis=axis)


def getitem(x: Any, index: Any) -> Tensor:
    """x[index]. index: ints, slices, None, Ellipsis, integer or boolean arrays (or tensors), or a tuple of these, as in
    NumPy. IndexError where x has no such element. An element picked more than once gets the sum of the gradients."""
    index = tuple(map(as_array, index)) if isinstance(index, tuple) else as_array(index)
    return GetItem.apply(as_tensor(x), index=index)


def pad(x: Any, widths: Any, mode: str = "constant", value: Any = 0) -> Tensor:
    """x with a margin. widths: in elements, an int for all sides, or for each axis an int or (before, after).

    mode: "constant" fills with `value`, "edge" repeats the last element, "reflect" mirrors at it.
    value: a number, or a tensor without axes, which gets a gradient.

    ValueError for negative widths, another mode, a value with axes, and an axis that is too short to mirror.
    """
    x = as_tensor(x)
    widths = _pad_widths(x.shape, widths)
    if mode == "constant":
        value = value if isinstance(value, int | float) else as_tensor(value)
        if np.shape(value) != ():
            raise ValueError(f"pad: value must be one number, not of shape {value.shape}")
        return Pad.apply(x, value, widths=widths)
    if mode not in ("reflect", "edge"):
        raise ValueError(f'pad: mode must be "constant", "reflect" or "edge", not {mode!r}')
    for axis, (before, after) in enumerate(widths):
        n = x.shape[axis]
        if before or after:
            if n < (2 if mode == "reflect" else 1):
                raise ValueError(f"pad: axis {axis} of shape {x.shape} is too short for mode {mode!r}")
            source = np.pad(np.arange(n), (before, after), mode=mode)  # type: ignore[call-overload]
            x = PadByIndex.apply(x, axis=axis, before=before, source=source)
    return x


def _pad_widths(shape: tuple[int, ...], widths: Any) -> list[tuple[int, int]]:
    if isinstance(widths, int | np.integer):
        widths = [(widths, widths)] * len(shape)
    pairs = [(w, w) if isinstance(w, int | np.integer) else tuple(w) for w in widths]
    if len(pairs) != len(shape) or any(len(p) != 2 or builtins.min(p) < 0 for p in pairs):
        raise ValueError(f"pad: needs (before, after) of at least 0 for each axis of shape {shape}, not {widths}")
    return [(int(before), int(after)) for before, after in pairs]
