"""tinydiff/cpu/fully_connected.py against the definitions."""

import numpy as np
import pytest

from tests.cpu.agreement import check
from tinydiff import ops
from tinydiff.autograd.tensor import Tensor
from tinydiff.cpu import blas
from tinydiff.cpu import fully_connected as module
from tinydiff.machine.threads import share_blocks, share_tasks, threads
from tinydiff.ops.fully_connected import (
    linear_forward,
    linear_input_gradient,
    linear_weight_gradient,
    linears,
    linears_forward,
    linears_input_gradient,
    sum_rows,
)

SIZES = [  # N, D, M: one row, none, no columns, small, cut, for several threads
    (1, 1, 1), (1, 128, 64), (5, 3, 4), (0, 3, 4), (2, 0, 3), (2, 3, 0), (300, 64, 64), (65, 256, 128), (1024, 192, 128),
    (1025, 130, 100), (16384, 64, 32),
]  # fmt: skip


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


@pytest.mark.parametrize(("N", "D", "M"), SIZES, ids=str)
@pytest.mark.parametrize("small", [True, False])
def test_agrees_with_the_definition(N, D, M, small, rng, monkeypatch):
    monkeypatch.setattr(blas, "has_small_products", lambda: small)
    X, W, b, L_Y = (rng.normal(size=s) for s in ((N, D), (D, M), (M,), (N, M)))
    check(linear_forward, X, W, b)
    check(linear_forward, X, W, None)
    check(linear_input_gradient, L_Y, W)
    check(linear_weight_gradient, X, L_Y, single=1e-5)
    check(sum_rows, L_Y, single=1e-5)


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 0, 3), (0, 2, 3)], ids=str)
def test_the_rows_of_several_matrices(shape, rng):
    check(sum_rows, rng.normal(size=shape))


@pytest.mark.parametrize("N", [0, 1, 8, 65, 3000])
@pytest.mark.parametrize("layers", [1, 2, 9])
def test_several_layers_agree_with_the_definition(N, layers, rng):
    X, widths = rng.normal(size=(N, 128)), [64 + 32 * (i % 3) for i in range(layers)]
    Ws, L_Ys = [rng.normal(size=(128, M)) for M in widths], [rng.normal(size=(N, M)) for M in widths]
    bs = [None if i % 3 == 1 else rng.normal(size=M) for i, M in enumerate(widths)]
    check(linears_forward, X, Ws, bs)
    check(linears_input_gradient, L_Ys, Ws)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_large_linears_fork_once_and_agree_with_float64(count, rng, monkeypatch):
    X = rng.normal(size=(1100, 128)).astype(np.float32)
    Ws, bs = rng.normal(size=(3, 128, 64)).astype(np.float32), rng.normal(size=(3, 64)).astype(np.float32)
    forks = []

    def fork(work, X, **options):
        forks.append(len(X))
        return share_blocks(work, X, **options)

    monkeypatch.setattr(module, "share_blocks", fork)
    with threads(count):
        Ys = module.linears_forward(X, Ws, [bs[0], None, bs[2]])
    assert forks == [1100]
    for Y, W, b in zip(Ys, Ws.astype(np.float64), (bs[0], 0, bs[2]), strict=True):
        np.testing.assert_allclose(Y, X @ W + b, atol=6e-5)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_of_few_rows_each_thread_takes_layers(count, rng, monkeypatch):
    """All layers have turns, in whatever thread, and none of the rows is taken apart."""
    X, widths = rng.normal(size=(64, 256)).astype(np.float32), [64, 128, 64, 1, 256, 300, 64, 64]
    Ws = [rng.normal(size=(256, M)).astype(np.float32) for M in widths]
    bs = [None if i == 2 else rng.normal(size=M).astype(np.float32) for i, M in enumerate(widths)]
    shared = []

    def share(work, tasks):
        shared.append(len(tasks))
        return share_tasks(work, tasks)

    monkeypatch.setattr(module, "share_tasks", share)
    with threads(count):
        Ys = module.linears_forward(X, Ws, bs)
    assert shared == [len(widths)]
    for Y, W, b in zip(Ys, Ws, bs, strict=True):
        assert Y.dtype == np.float32
        np.testing.assert_allclose(Y, X @ W.astype(np.float64) + (0 if b is None else b), atol=1e-4)


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 64, 65])
def test_many_linears_and_their_gradients_agree_with_layers_one_by_one(rows, large, rng, monkeypatch):
    """Also for gradients of the outputs that are broadcast, that have gaps, and that do not come."""
    monkeypatch.setattr(module, "MULTIPLICATIONS_WORTH_A_THREAD", 0 if large else 12 << 20)
    widths = [8 + 4 * (i % 3) for i in range(9)]
    X, Ws, L = rng.normal(size=(rows, 24)), [rng.normal(size=(24, M)) for M in widths], rng.normal(size=(rows, 88))
    bs = [None if i == 4 else rng.normal(size=M) for i, M in enumerate(widths)]

    def loss(ys):
        """y_0 has no gradient, that of y_1 is one number everywhere, those of the others are columns of L."""
        return ys[1].sum() + (ops.concatenate(ys[2:], axis=1) * L).sum()

    def gradients(several, x):
        layers = [(leaf(W), None if b is None else leaf(b)) for W, b in zip(Ws, bs, strict=True)]
        ys = several(x, layers)
        loss(ys).backward()
        leaves = [term for layer in layers for term in layer if term is not None]
        return [y.data for y in ys], [np.zeros(w.shape) if w.grad is None else w.grad for w in leaves]

    def apart(x, layers):
        return [ops.linear(x, w, b) for w, b in layers]

    x, again = leaf(X), leaf(X)
    with threads(2):
        ours, constant = gradients(linears, x), gradients(linears, X)
    truth = gradients(apart, again)
    for a, b in zip([*ours[0], *ours[1], x.grad], [*truth[0], *truth[1], again.grad], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-13 * rows * np.abs(b).max(initial=1))
    for a, b in zip(constant[1], ours[1], strict=True):  # where x needs no gradient, the others are the same
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, 5, 300, 1025])
@pytest.mark.parametrize("cut", [True, False])
def test_small_and_large_products_agree_with_float64(rows, cut, dtype, rng, monkeypatch):
    """Few rows are one product, more are spread and, where that is faster, cut; so is the sum of the weight gradient."""
    monkeypatch.setattr(blas, "has_small_products", lambda: cut)
    x, w, b = (leaf(rng.normal(size=s).astype(dtype)) for s in ((rows, 192), (192, 128), (128,)))
    L_Y = rng.normal(size=(rows, 128)).astype(dtype)
    X, W, B = (a.data.astype(np.float64) for a in (x, w, b))
    with threads(2):
        y = ops.linear(x, w, b)
        y.backward(L_Y)
    exact = X @ W + B, L_Y @ W.T, X.T @ L_Y, L_Y.sum(0)
    for ours, truth in zip((y.data, x.grad, w.grad, b.grad), exact, strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours, truth, atol=(1e-6 if dtype == np.float32 else 1e-14) * np.abs(truth).max())
