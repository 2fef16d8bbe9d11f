"""Sums of products over shared axes: matmul and einsum."""

from __future__ import annotations

from typing import Any

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module
from tinydiff.dispatch import accelerated_in_float32
from tinydiff.ops.arguments import as_tensor
from tinydiff.ops.broadcasting import unbroadcast
from tinydiff.precision import rounds_factors


@rounds_factors
@accelerated_in_float32
def product(A: Any, B: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    """A B for A (..., M, K), B (..., K, N), whose leading axes broadcast -> (..., M, N).

    transpose_a: A is given as (..., K, M); transpose_b: B as (..., N, K).
    """
    return (A.swapaxes(-1, -2) if transpose_a else A) @ (B.swapaxes(-1, -2) if transpose_b else B)


class Matmul(Function):
    """Y = A B for stacks of matrices: L_A = L_Y B^T, L_B = A^T L_Y, summed where a stack was broadcast."""

    widens_half = True

    def forward(self, A, B):
        self.save(A, B)
        return product(A, B)

    def backward(self, L_Y):
        A, B = self.saved
        L_A = L_B = None
        if self.needs[0]:
            L_A = unbroadcast(product(L_Y, B, transpose_b=True), A.shape)
        if self.needs[1]:
            L_B = unbroadcast(product(A, L_Y, transpose_a=True), B.shape)
        return L_A, L_B


class Einsum(Function):
    """Each operand's gradient is again a sum of products: of L_Y with the other operands, over the letters it lacks."""

    widens_half = True

    def forward(self, *Xs, operands, output):
        self.operands, self.output = operands, output
        self.save(*Xs)
        return array_module(Xs[0]).einsum(f"{','.join(operands)}->{output}", *Xs)

    def backward(self, L_Y):
        Xs = self.saved
        return tuple(self._operand(i, Xs, L_Y) if needed else None for i, needed in enumerate(self.needs))

    def _operand(self, i: int, Xs: Any, L_Y: Any) -> Any:
        xp, letters, shape = array_module(L_Y), self.operands[i], self.shapes[i]
        others = [j for j in range(len(Xs)) if j != i]
        terms = [self.output, *(self.operands[j] for j in others)]
        distinct = "".join(dict.fromkeys(letters))
        # A letter in no other term was summed over alone: the gradient is constant along it.
        present = "".join(c for c in distinct if any(c in term for term in terms))
        L = xp.einsum(f"{','.join(terms)}->{present}", L_Y, *(Xs[j] for j in others))
        lengths = {c: n for c, n in zip(letters, shape, strict=True)}
        L = unbroadcast(L, tuple(lengths[c] for c in present))
        L = L.reshape([lengths[c] if c in present else 1 for c in distinct])
        L = xp.broadcast_to(L, [lengths[c] for c in distinct])
        if distinct == letters:
            return L
        L_X = xp.zeros(shape, L.dtype)  # a repeated letter takes a diagonal: the gradient lies on it, zero elsewhere
        xp.einsum(f"{letters}->{distinct}", L_X)[...] = L
        return L_X


def matmul(a: Any, b: Any) -> Tensor:
    """The matrix product of a (..., M, K) and b (..., K, N) -> (..., M, N); leading axes broadcast.

    A vector (K,) counts as a row on the left and as a column on the right, as in NumPy. ValueError where the shapes do
    not fit.
    """
    a, b = as_tensor(a), as_tensor(b)
    if not a.ndim or not b.ndim or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape} do not fit")
    row, column = a.ndim == 1, b.ndim == 1
    a = a.reshape(1, -1) if row else a
    b = b.reshape(-1, 1) if column else b
    try:
        y = Matmul.apply(a, b)
    except ValueError:
        raise ValueError(f"matmul: the leading axes of {a.shape} and {b.shape} do not broadcast") from None
    kept = y.shape[:-2] + (() if row else y.shape[-2:-1]) + (() if column else y.shape[-1:])
    return y.reshape(kept) if row or column else y


def einsum(subscripts: str, *xs: Any) -> Tensor:
    """Einstein summation over the tensors or arrays xs, as numpy.einsum.

    subscripts: one letter for each axis, such as "ij,jk->ik". Ellipses, repeated letters and an implicit output work.
    TypeError where the first argument is not a string, ValueError where the subscripts do not fit the shapes.
    """
    if not isinstance(subscripts, str):
        raise TypeError(f"einsum: the first argument must be the subscripts, such as 'ij,jk->ik', not {subscripts!r}")
    xs = tuple(as_tensor(x) for x in xs)
    operands, output = _subscripts(subscripts, [x.shape for x in xs])
    try:
        return Einsum.apply(*xs, operands=operands, output=output)
    except ValueError as error:
        shapes = ", ".join(str(x.shape) for x in xs)
        raise ValueError(f"einsum: {subscripts!r} does not fit shapes {shapes} ({error})") from None


def _subscripts(subscripts: str, shapes: list[tuple[int, ...]]) -> tuple[list[str], str]:
    """The letters of each operand and of the output, with ellipses spelt out and an implicit output made explicit."""
    inputs, arrow, output = subscripts.replace(" ", "").partition("->")
    operands = inputs.split(",")
    if len(operands) != len(shapes):
        raise ValueError(f"einsum: {subscripts!r} names {len(operands)} operands, {len(shapes)} were given")
    if not all(c.isalpha() for c in (inputs + output).replace("...", "").replace(",", "")):
        raise ValueError(f"einsum: {subscripts!r} may hold only letters, commas, ... and ->")
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" if c not in subscripts]
    widths = [len(s) - len(t.replace("...", "")) for t, s in zip(operands, shapes, strict=True)]
    if any(w < 0 or (w and "..." not in t) for w, t in zip(widths, operands, strict=True)):
        shown = ", ".join(map(str, shapes))
        raise ValueError(f"einsum: {subscripts!r} does not have one letter for each axis of shapes {shown}")
    most = max(widths)
    hidden = "".join(spare[:most])
    operands = [t.replace("...", hidden[most - w :]) for t, w in zip(operands, widths, strict=True)]
    if arrow:
        return operands, output.replace("...", hidden)
    letters = "".join(operands)
    once = sorted(c for c in set(letters) if letters.count(c) == 1 and c not in hidden)
    return operands, hidden + "".join(once)
