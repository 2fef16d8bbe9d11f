"""tinydiff/ops/fully_connected.py against NumPy and loops, gradients by gradcheck and as the sources have them."""

import itertools

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor
from tinydiff.cuda import fully_connected as kernels
from tinydiff.dispatch import on_host
from tinydiff.machine.threads import threads
from tinydiff.ops.fully_connected import linears, linears_forward


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (3,), (2, 4, 3), (1, 3), (0, 3), (2, 1, 2, 3)], ids=str)
def test_linear(shape, bias, rng, verify):
    x, w, b = rng.normal(size=shape), rng.normal(size=(3, 4)), rng.normal(size=4)
    if bias:
        verify(ops.linear, x, w, b, expected=x @ w + b)
    else:
        verify(ops.linear, x, w, expected=x @ w)


@pytest.mark.parametrize(("D", "M"), [(1, 1), (1, 4), (3, 1), (0, 2), (3, 0)])
def test_linear_of_unusual_widths(D, M, rng, verify):
    x, w, b = rng.normal(size=(2, D)), rng.normal(size=(D, M)), rng.normal(size=M)
    verify(ops.linear, x, w, b, expected=x @ w + b)


def test_linear_elementwise_as_in_the_source(rng):
    """L_x_ij = sum_m L_y_im w_jm, L_w_ij = sum_n x_ni L_y_nj, L_b_j = sum_n L_y_nj (A 4.1.7-4.1.13, corrected)."""
    N, D, M = 4, 3, 2
    X, W, b, L_Y = rng.normal(size=(N, D)), rng.normal(size=(D, M)), rng.normal(size=M), rng.normal(size=(N, M))
    x, w, bias = leaf(X), leaf(W), leaf(b)
    ops.linear(x, w, bias).backward(L_Y)
    for i, j in itertools.product(range(N), range(D)):
        assert abs(x.grad[i, j] - sum(L_Y[i, m] * W[j, m] for m in range(M))) < 1e-13
    for i, j in itertools.product(range(D), range(M)):
        assert abs(w.grad[i, j] - sum(X[n, i] * L_Y[n, j] for n in range(N))) < 1e-13
    np.testing.assert_allclose(bias.grad, [sum(L_Y[n, j] for n in range(N)) for j in range(M)], rtol=1e-13)


def start_of(shape):
    """The shape as a pattern, up to its last number."""
    return r"\(" + str(shape)[1:].rstrip(")")


@pytest.mark.parametrize(
    ("x", "w", "b"),
    [((5, 3), (4, 2), (2,)), ((5, 3), (3,), None), ((5, 3), (1, 3, 2), None), ((3,), (2, 3), None), ((), (3, 2), None)],
    ids=str,
)
def test_linear_names_the_shapes_that_do_not_fit(x, w, b):
    with pytest.raises(ValueError, match=rf"linear.*{start_of(x)}.*{start_of(w)}"):
        ops.linear(leaf(np.ones(x)), leaf(np.ones(w)), None if b is None else leaf(np.ones(b)))


@pytest.mark.parametrize("b", [(3,), (1,), (1, 4), (5, 4), ()], ids=str)
def test_linear_names_a_bias_that_does_not_fit(b):
    with pytest.raises(ValueError, match=r"linear.*(\(4,\)|\(3, 4\)|4)"):
        ops.linear(leaf(np.ones((5, 3))), leaf(np.ones((3, 4))), leaf(np.ones(b)))


# several layers of one x in one operation


@pytest.mark.parametrize("shape", [(5, 3), (3,), (2, 4, 3), (0, 3)], ids=str)
def test_linears(shape, rng, verify):
    x, w1, b1, w2, w3, b3 = (rng.normal(size=s) for s in (shape, (3, 4), (4,), (3, 1), (3, 2), (2,)))

    def apart(x, w1, b1, w2, w3, b3):
        return linears(x, [(w1, b1), (w2, None), (w3, b3)])

    verify(apart, x, w1, b1, w2, w3, b3, expected=(x @ w1 + b1, x @ w2, x @ w3 + b3))


def test_linears_gives_the_gradients_that_are_needed(rng):
    X, W = rng.normal(size=(5, 3)), rng.normal(size=(3, 3, 2))
    x, w = leaf(X), [W[0], leaf(W[1]), leaf(W[2])]
    b = leaf(np.zeros(2))
    ys = linears(x, [(w[0], None), (w[1], b), (w[2], np.zeros(2))])
    (ys[0].sum() + 3 * ys[1].sum()).backward()  # the third is not used
    ones = np.ones((5, 2))
    np.testing.assert_allclose(x.grad, ones @ (W[0] + 3 * W[1]).T, rtol=1e-12)
    np.testing.assert_allclose(w[1].grad, 3 * X.T @ ones, rtol=1e-12)
    np.testing.assert_array_equal(w[2].grad, 0)
    np.testing.assert_array_equal(b.grad, [15, 15])
    (y,) = linears(X, [(w[1], None)])
    y.sum().backward()
    np.testing.assert_allclose(w[1].grad, 4 * X.T @ ones, rtol=1e-12)


def test_no_layers_make_no_outputs():
    assert linears(leaf(np.ones((2, 3))), []) == ()


def test_linears_run_on_kernels_where_these_take_the_arrays(rng, monkeypatch):
    ran = []

    def kernel(X, W, b):
        ran.append(W.shape)
        return X @ W + b

    monkeypatch.setattr(kernels, "linear_forward", kernel)
    X, W, b = rng.normal(size=(5, 3)), rng.normal(size=(2, 3, 4)), np.ones(4)
    with on_host():
        Ys = linears_forward(X, W, [b, b])
    assert ran == [(3, 4), (3, 4)]
    np.testing.assert_array_equal(Ys, X @ W + 1)


def test_linears_names_the_shapes_that_do_not_fit():
    x, w = np.ones((5, 3)), np.ones((3, 4))
    with pytest.raises(ValueError, match=r"linear: x \(5, 3\) does not fit w \(2, 4\)"):
        linears(x, [(w, None), (np.ones((2, 4)), None)])
    with pytest.raises(ValueError, match=r"linear: b \(3,\) does not fit w \(3, 4\)"):
        linears(x, [(w, np.ones(3))])


@pytest.mark.parametrize("rows", [1, 300, 3000])  # a small product, a larger one, one for several threads
def test_a_bias_of_the_wider_type_widens_the_result(rows):
    x, w, b = np.ones((rows, 64), np.float32), np.ones((64, 64), np.float32), np.full(64, 1 + 2.0**-40)
    with threads(2):
        y, (several, narrow) = ops.linear(x, w, b), linears(x, [(w, b), (w, None)])
    assert y.dtype == several.dtype == np.float64 and narrow.dtype == np.float32
    assert (y.data == 65 + 2.0**-40).all() and (several.data == y.data).all() and (narrow.data == 64).all()


MATMUL = [
    ((2, 3), (3, 4)), ((3,), (3, 4)), ((2, 3), (3,)), ((3,), (3,)), ((5, 2, 3), (5, 3, 4)), ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)), ((3,), (5, 3, 4)), ((5, 2, 3), (3,)), ((2, 1, 2, 3), (4, 3, 2)), ((1, 2, 3), (5, 3, 4)),
    ((0, 3), (3, 4)), ((2, 0), (0, 4)), ((0, 2, 3), (0, 3, 4)), ((1, 1), (1, 1)), ((4, 1, 3), (1, 3, 1)),
]  # fmt: skip


@pytest.mark.parametrize("shapes", MATMUL, ids=str)
def test_matmul(shapes, rng, verify):
    a, b = (rng.normal(size=shape) for shape in shapes)
    verify(ops.matmul, a, b, expected=a @ b)


@pytest.mark.parametrize(
    "shapes",
    [((2, 3), (2, 3)), ((3,), (4,)), ((2, 3), (4,)), ((3, 2, 3), (2, 3, 4)), ((), (3,)), ((3, 3), ())],
    ids=str,
)
def test_matmul_names_both_shapes(shapes):
    patterns = [str(shape).replace("(", r"\(").replace(")", r"\)") for shape in shapes]
    with pytest.raises(ValueError, match=rf"matmul.*{patterns[0]}.*{patterns[1]}"):
        ops.matmul(leaf(np.ones(shapes[0])), leaf(np.ones(shapes[1])))


EINSUM = [
    ("ij,jk->ik", (2, 3), (3, 4)),
    ("ij,jk", (2, 3), (3, 4)),  # implicit: ik
    ("ba", (2, 3)),  # implicit output in alphabetical order: the transpose
    ("ij->ji", (2, 3)),
    ("ij->", (2, 3)),
    ("ij->j", (2, 3)),
    ("ii", (3, 3)),  # implicit: the trace
    ("ii->i", (3, 3)),
    ("ii->", (3, 3)),
    ("iij->j", (3, 3, 2)),
    ("iji->ij", (3, 2, 3)),
    ("iii->i", (3, 3, 3)),
    ("i,i->i", (3,), (3,)),
    ("i,j->ij", (3,), (2,)),
    ("i,j->ji", (3,), (2,)),
    ("i,j->", (3,), (2,)),  # each letter summed out in one operand only
    ("ij,k->ik", (2, 3), (4,)),
    ("ij,jk,kl->il", (2, 3), (3, 4), (4, 2)),
    ("ij,jk,ki->", (2, 3), (3, 4), (4, 2)),
    ("bhqd,bhkd->bhqk", (2, 1, 3, 2), (2, 1, 4, 2)),
    ("...ij,...jk->...ik", (5, 2, 3), (5, 3, 4)),
    ("...ij,jk->...ik", (2, 5, 2, 3), (3, 4)),
    ("...ij,...jk->...ik", (4, 1, 2, 3), (5, 3, 4)),
    ("...i->...", (2, 3, 4)),
    ("...i", (2, 3)),
    ("i...->...", (2, 3, 4)),
    ("i...j->j...i", (2, 3, 4, 5)),
    ("...->...", (2, 3)),
    ("...,...->...", (2, 3), (3,)),
    ("...ii->...i", (2, 3, 3)),
    ("ij,...j->i...", (2, 3), (4, 3)),
    ("ij,ij->", (2, 3), (2, 3)),
    ("ij , jk -> ik", (2, 3), (3, 4)),
    ("ij,j->ij", (2, 3), (1,)),
    ("ij,ij->ij", (2, 3), (1, 3)),
    ("ij,jk->ik", (1, 1), (1, 4)),
    ("ij,jk->ik", (0, 3), (3, 2)),
    ("ij,jk->ik", (2, 0), (0, 3)),
    (",i->i", (), (3,)),
    ("->", ()),
    ("Ab,bA->", (2, 3), (3, 2)),
]


@pytest.mark.parametrize("case", EINSUM, ids=str)
def test_einsum(case, rng, verify):
    subscripts, *shapes = case
    arrays = [rng.normal(size=shape) for shape in shapes]
    verify(lambda *xs: ops.einsum(subscripts, *xs), *arrays, expected=np.einsum(subscripts, *arrays))


def test_einsum_with_the_same_tensor_twice(rng):
    a = rng.normal(size=(3, 3))
    x = leaf(a)
    ops.einsum("ij,jk->ik", x, x).sum().backward()
    ones = np.ones((3, 3))
    np.testing.assert_allclose(x.grad, ones @ a.T + a.T @ ones, rtol=1e-12)


@pytest.mark.parametrize(
    ("subscripts", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (4, 5)]),  # j is 3 and 4
        ("ij,jk->ik", [(2, 3)]),  # too few operands
        ("ij->ij", [(2, 3), (2, 3)]),  # too many
        ("ijk->i", [(2, 3)]),  # more letters than axes
        ("i->i", [(2, 3)]),  # fewer letters than axes
        ("ij->ik", [(2, 3)]),  # k comes from nowhere
        ("ij->ii", [(2, 3)]),  # a letter twice in the output
        ("ii->i", [(2, 3)]),  # a diagonal of what is not square
        ("i1->i", [(2, 3)]),  # not a letter
        ("...i...->i", [(2, 3)]),  # two ellipses
        ("ij->jk->ik", [(2, 3)]),
        ("...i,...i->...", [(2, 4, 3), (3, 4, 3)]),
    ],
    ids=str,
)
def test_einsum_refuses_subscripts_that_do_not_fit(subscripts, shapes):
    with pytest.raises(ValueError, match="einsum"):
        ops.einsum(subscripts, *(leaf(np.ones(shape)) for shape in shapes))
