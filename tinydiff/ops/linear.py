"""Products of matrices: the fully connected layer, matmul, einsum.

The fully connected layer (source A, 4.1) is Y = X W + 1 b, in elements y_nm = sum_d x_nd w_dm + b_m, with

    X (N, D)    W (D, M)    b (M,)    Y (N, M).

Let L be the loss and L_Y (N, M) its derivative with respect to Y. As y_nm depends on x_ij only where n = i, with slope
w_jm, the chain rule gives L_x_ij = sum_m L_y_im w_jm; likewise L_w_ij = sum_n x_ni L_y_nj and L_b_j = sum_n L_y_nj:

    L_X = L_Y W^T    (N, D) = (N, M) (M, D)    (4.1.8)
    L_W = X^T L_Y    (D, M) = (D, N) (N, M)    (4.1.11)
    L_b = 1^T L_Y    (1, M) = (1, N) (N, M)    (4.1.14)

The shapes alone leave no other way to write the products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tinydiff.backend import array_module, device_of
from tinydiff.function import Function
from tinydiff.kernels import accelerated, is_on_host
from tinydiff.ops.arguments import add_bias, as_tensor
from tinydiff.ops.broadcasting import unbroadcast
from tinydiff.ops.products import LIMIT, SHARED, add_row, multiply
from tinydiff.ops.tall_products import multiply_transposed
from tinydiff.tensor import Tensor
from tinydiff.workers import add_to, share_blocks, share_tasks, sum_shares

_FEW = 64  # rows for which threads should not all read the weights of several layers: each takes some of the layers


class Linear(Function):
    """Y = X W + 1 b (4.1.1), for X of any number of leading axes, which count as rows; b may be None.

    Rows are spread over the threads.
    """

    gives_new = True

    def forward(self, X, W, b):
        self.save(X, W)
        return _like(X, linear_forward(_rows(X), W, b))  # (4.1.1)

    def backward(self, L_Y):
        X, W = self.saved
        x, l_y = _rows(X), _rows(L_Y)
        L_X = L_W = L_b = None
        if self.needs[0]:
            L_X = _like(X, linear_input_gradient(l_y, W))  # (4.1.8)
        if self.needs[1]:
            L_W = linear_weight_gradient(x, l_y)  # (4.1.11)
        if self.needs[2]:
            L_b = sum_rows(l_y)  # (4.1.14)
        return L_X, L_W, L_b


class Linears(Function):
    """Y_i = X W_i + 1 b_i, several layers of one X, as the q, k and v of attention; inputs are X, W_1, b_1, W_2, b_2, ...

    As X reaches the loss through every Y_i, L_X = sum_i L_Y_i W_i^T. One call of the threads instead of one for each layer
    brings three products (256, 256) (256, 256) from 0.79 to 0.51 ms. With few rows the weights are most of what is read,
    so that each thread takes some of the layers: 8 rows with 22 layers (512, 128 or 256) take 1.3 instead of 1.6 ms.
    """

    gives_new = True

    def forward(self, X, *layers):
        self.save(X, *layers[::2])
        return tuple([_like(X, Y) for Y in linears_forward(_rows(X), layers[::2], layers[1::2])])

    def backward(self, *L_Ys):
        X, *Ws = self.saved
        x, l_ys, needs = _rows(X), [_rows(L_Y) for L_Y in L_Ys], self.needs
        L_X = None
        if needs[0]:
            L_X, *others = (linear_input_gradient(l_y, W) for l_y, W in zip(l_ys, Ws, strict=True))
            for other in others:
                add_to(L_X, other)
            L_X = _like(X, L_X)
        L_Ws = [linear_weight_gradient(x, l_y) if need else None for l_y, need in zip(l_ys, needs[1::2], strict=True)]
        L_bs = [sum_rows(l_y) if need else None for l_y, need in zip(l_ys, needs[2::2], strict=True)]
        return L_X, *(L for pair in zip(L_Ws, L_bs, strict=True) for L in pair)


@accelerated("matrix.linear_forward")
def linear_forward(X: Any, W: Any, b: Any) -> Any:
    """Y = X W + 1 b for X (N, D), W (D, M), b (M,) or None -> (N, M)."""
    return _in_one_thread(X, W, b) if X.size * W.shape[1] < SHARED else _spread_rows(X, [(W, b)])[0]


def linears_forward(X: Any, Ws: Sequence[Any], bs: Sequence[Any]) -> Sequence[Any]:
    """Y_i = X W_i + 1 b_i for all i."""
    layers = list(zip(Ws, bs, strict=True))
    if is_on_host() or device_of(X) == "cuda":
        return [linear_forward(X, W, b) for W, b in layers]
    if X.size * sum([W.shape[1] for W in Ws]) < SHARED:
        return [_in_one_thread(X, W, b) for W, b in layers]
    if len(X) <= _FEW:
        return share_tasks(lambda layer: _in_one_thread(X, *layer), layers)
    return _spread_rows(X, layers)


def _in_one_thread(X: Any, W: Any, b: Any) -> Any:
    """Y = X W + 1 b in the calling thread."""
    if X.size * W.shape[1] > LIMIT:
        return _write(X, W, b, out=_empty(X, W, b))
    Y = X.dot(W)  # has less to find out than X @ W: 0.7 instead of 1.3 us for (1, 128) (128, 64)
    return Y if b is None else add_bias(Y, b)


def _spread_rows(X: Any, layers: Sequence[tuple[Any, Any]]) -> Sequence[Any]:
    """Y_i = X W_i + 1 b_i for all i, the rows spread over the threads."""
    Ys = [_empty(X, W, b) for W, b in layers]

    def some(rows: slice) -> None:
        for Y, (W, b) in zip(Ys, layers, strict=True):
            _write(X[rows], W, b, out=Y[rows])

    share_blocks(some, X, small=0)
    return Ys


def _empty(X: Any, W: Any, b: Any) -> Any:
    """Room for Y, of the widest type among X, W and b."""
    xp = array_module(X)
    return xp.empty((len(X), W.shape[1]), xp.result_type(X, W) if b is None else xp.result_type(X, W, b))


def _write(X: Any, W: Any, b: Any, out: Any) -> Any:
    multiply(X, W, out=out)
    return out if b is None else add_row(out, b)


@accelerated("matrix.linear_input_gradient")
def linear_input_gradient(L_Y: Any, W: Any) -> Any:
    """L_X = L_Y W^T."""
    xp, D = array_module(L_Y), W.shape[0]
    L_X = xp.empty((len(L_Y), D), xp.result_type(L_Y, W))
    W_T = xp.ascontiguousarray(W.T) if len(L_Y) > 4 * D else W.T  # the copy lets `multiply` cut
    share_blocks(lambda rows: multiply(L_Y[rows], W_T, out=L_X[rows]), L_Y, small=SHARED // max(D, 1))
    return L_X


@accelerated("matrix.linear_weight_gradient")
def linear_weight_gradient(X: Any, L_Y: Any) -> Any:
    """L_W = X^T L_Y."""
    return sum_shares(lambda rows: multiply_transposed(X[rows], L_Y[rows]), L_Y, small=SHARED // max(X.shape[1], 1))


@accelerated("matrix.column_sum")
def sum_rows(L_Y: Any) -> Any:
    """L_b = 1^T L_Y."""
    return array_module(L_Y).ones(len(L_Y), L_Y.dtype) @ L_Y


class Matmul(Function):
    """Y = A B for stacks of matrices: L_A = L_Y B^T, L_B = A^T L_Y, summed where a stack was broadcast."""

    def forward(self, A, B):
        self.save(A, B)
        return A @ B

    def backward(self, L_Y):
        A, B = self.saved
        L_A = L_B = None
        if self.needs[0]:
            L_A = unbroadcast(L_Y @ B.swapaxes(-1, -2), A.shape)
        if self.needs[1]:
            L_B = unbroadcast(A.swapaxes(-1, -2) @ L_Y, B.shape)
        return L_A, L_B


class Einsum(Function):
    """Each operand's gradient is again a sum of products: of L_Y with the other operands, over the letters it lacks."""

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
        # A letter that stands in no other term was summed over alone: its gradient is constant along it.
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


def _rows(X: Any) -> Any:
    """(..., D) as (N, D)."""
    return X if X.ndim == 2 else X.reshape(math.prod(X.shape[:-1]), X.shape[-1])


def _like(X: Any, Y: Any) -> Any:
    """Y (N, M), made of X (..., D) as rows, as (..., M)."""
    return Y if X.ndim == 2 else Y.reshape(*X.shape[:-1], Y.shape[1])


def linear(x: Any, w: Any, b: Any = None) -> Tensor:
    """The fully connected layer x w + b (source A, 4.1.1): x (..., D), w (D, M), b (M,) or None -> (..., M).

    The derivation of its backward pass stands at the head of this file. ValueError where the shapes do not fit.
    """
    x, w = as_tensor(x), as_tensor(w)
    _check(x, w, b)
    return Linear.apply(x, w, b)


def linears(x: Any, layers: Sequence[tuple[Any, Any]]) -> tuple[Tensor, ...]:
    """x w + b for each (w, b) of `layers` in one operation; shapes as for `linear`, which computes the same."""
    x = as_tensor(x)
    for w, b in layers:
        _check(x, as_tensor(w), b)
    return Linears.apply(x, *[term for layer in layers for term in layer])


def _check(x: Tensor, w: Tensor, b: Any) -> None:
    given, needed = x.shape, w.shape
    if not given or len(needed) != 2 or given[-1] != needed[0]:
        raise ValueError(f"linear: x {given} does not fit w {needed}; needed are (..., D) and (D, M)")
    if b is not None and as_tensor(b).shape != needed[1:]:
        raise ValueError(f"linear: b {as_tensor(b).shape} does not fit w {needed}; needed is {needed[1:]}")


def matmul(a: Any, b: Any) -> Tensor:
    """The matrix product over the last two axes, broadcast over the others; a vector counts as a row on the left, as a
    column on the right, as in NumPy. ValueError where the shapes do not fit."""
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
    """Einstein summation, as numpy.einsum: "ij,jk->ik". Ellipses and repeated letters work. ValueError where the
    subscripts do not fit the shapes."""
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
        raise ValueError(f"einsum: {subscripts!r} has something else than letters, commas, ... and ->")
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
