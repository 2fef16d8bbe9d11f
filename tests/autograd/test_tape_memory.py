"""tinydiff/autograd/tape.py: what is alive, and for how long. Reference counting alone must free everything."""

import gc
import tracemalloc
import weakref

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.function import Function
from tinydiff.autograd.recompute import recompute
from tinydiff.autograd.tensor import Tensor


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


def test_after_backward_only_leaves_are_alive(alive):
    x, w = leaf(np.ones((4, 3))), leaf(np.ones((3, 2)))
    ops.softplus(x[0] @ w).sum().backward()
    before = alive()
    loss = (ops.softmax(ops.relu(x @ w) * 2 + ops.exp(x).sum(), -1) ** 2).mean() + ops.split(x, 2)[1].sum()
    assert alive() > before + 10
    loss.backward()
    del loss
    assert alive() == before


def test_dropping_a_graph_without_backward_frees_it(alive):
    x = leaf(np.ones(3))
    before = alive()
    y = ops.tanh(x * x + x).sum()
    pieces = ops.split(x * 2, 3)
    piece = recompute(ops.exp, x)
    del y, pieces, piece
    assert alive() == before


def test_no_cycles_are_left_for_the_collector():
    x = leaf(np.ones((2, 3)))
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        y = recompute(lambda a: ops.layer_norm(a * a), x)
        y.retain_grad()
        (y.sum() + ops.attention(x, x, x).sum()).backward()
        del y
        with pytest.raises(RuntimeError):
            z = x * 2
            z.backward(np.ones((2, 3)))
            z.backward(np.ones((2, 3)))
        del z
        gc.collect()
        mine = [o for o in gc.garbage if type(o).__module__.startswith("tinydiff")]
        assert [o for o in mine if not isinstance(o, RuntimeError)] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


class Chain(Function):
    """x + 1, with a saved array and outgoing gradients that are watched from outside."""

    log: list = []  # noqa: RUF012
    saved_arrays: list = []  # noqa: RUF012
    gradients: list = []  # noqa: RUF012

    def forward(self, X):
        kept = X + 1
        self.saved_arrays.append(weakref.ref(kept))
        self.save(kept)
        return X + 1

    def backward(self, L_Y):
        L_X = L_Y * 2
        self.log.append((sum(r() is not None for r in self.saved_arrays), sum(r() is not None for r in self.gradients)))
        self.gradients.append(weakref.ref(L_X))
        return L_X


def test_saved_arrays_and_consumed_gradients_go_during_the_walk(no_collector):
    for log in (Chain.log, Chain.saved_arrays, Chain.gradients):
        log.clear()
    x = leaf(np.ones(3))
    y = x
    for _ in range(10):
        y = Chain.apply(y)
    y.backward(np.ones(3))
    assert x.grad.tolist() == [1024] * 3
    assert [saved for saved, _ in Chain.log] == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert max(gradients for _, gradients in Chain.log) <= 1  # the one that just arrived
    assert not any(r() is not None for r in Chain.saved_arrays)


def test_peak_memory_of_backward_is_below_that_of_two_arrays_more_than_forward(no_collector):
    n = 1 << 17  # 1 MiB of float64
    x = leaf(np.full(n, 0.5))
    (x * 1.0).sum().backward()
    tracemalloc.start()
    try:
        y = x
        for _ in range(24):
            y = ops.tanh(y)
        loss = y.sum()
        del y
        after_forward, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        loss.backward()
        after_backward, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after_forward > 24 * 8 * n
    assert peak - after_forward < 5.5 * 8 * n  # a few gradients and temporaries, not one per op
    assert after_backward < 0.1 * 8 * n


def test_activations_that_nobody_saved_are_freed_in_forward(no_collector):
    references = []
    x = leaf(np.ones(5))
    y = x
    for _ in range(4):
        y = y + 1  # its backward needs no array
        references.append(weakref.ref(y.data))
    assert [r() is not None for r in references] == [False, False, False, True]


def test_a_chain_of_30_000_nodes_neither_recurses_nor_leaks(alive):
    before = alive()
    for walk in (True, False):
        x = leaf(np.float32(1))
        y = x
        for _ in range(30_000):
            y = -y
        if walk:
            y.backward()
            assert x.grad == 1
        del x, y
        assert alive() == before
