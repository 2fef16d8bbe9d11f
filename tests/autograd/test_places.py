"""Gradients that are born in their place: a claim saves a copy and never changes a result."""

import numpy as np
import pytest

import tinydiff as td
from tinydiff import ops
from tinydiff.autograd import places


def weight(rng, *shape):
    return td.nn.Parameter(rng.normal(size=shape).astype(np.float32))


def with_places(*weights):
    """Gives each weight a place in one flat array; returns them."""
    flat = np.full(sum(w.size for w in weights), np.nan, np.float32)
    ends = np.cumsum([0, *(w.size for w in weights)])
    parts = [flat[a:b].reshape(w.shape) for a, b, w in zip(ends, ends[1:], weights, strict=False)]
    for w, part in zip(weights, parts, strict=True):
        places.keep(w, part)
    return parts


class Affine(td.Function):
    """Y = A B + C, whose gradients are claimed in the order that `order` gives, with one claim too many."""

    gives_new = True

    def forward(self, A, B, C, order):
        self.order = order
        self.save(A, B)
        return A @ B + C

    def backward(self, L_Y):
        A, B = self.saved
        makers = {"A": lambda: L_Y @ B.T, "B": lambda: A.T @ L_Y, "C": lambda: L_Y.copy(), "-": lambda: np.ones((3, 3))}
        made = {}
        for name in self.order:
            place = places.claim((3, 3))
            made[name] = makers[name]()
            if place is not None:
                place[...] = made[name]
                made[name] = place
        return made["A"], made["B"], made["C"]


def gradients(ws, order, kept=True, same=False, times=1):
    parts = with_places(*ws) if kept else ()
    for w in ws:
        w.zero_grad()
    for _ in range(times):
        a, b, c = (ws[0], ws[0], ws[2]) if same else ws
        Affine.apply(a, b, c, order=order).backward(np.arange(9, dtype=np.float32).reshape(3, 3))
    return [w.grad for w in ws], parts


@pytest.mark.parametrize("order", ["ABC", "CBA", "BCA", "-ABC", "A-CB"])
@pytest.mark.parametrize("same", [False, True], ids=["three weights", "one twice"])
@pytest.mark.parametrize("times", [1, 2])
def test_claims_in_any_order_give_the_same_gradients(order, same, times, rng):
    ws = [weight(rng, 3, 3) for _ in range(3)]
    expected, _ = gradients(ws, order, same=same, times=times, kept=False)
    for w in ws:
        w._place = None
    ours, parts = gradients(ws, order, same=same, times=times)
    for grad, part, truth in zip(ours, parts, expected, strict=True):
        if truth is None:
            assert grad is None
            continue
        np.testing.assert_array_equal(grad, truth)
        assert grad is part
    assert places.claim((3, 3)) is None  # outside of a backward pass nothing is on offer


def test_a_place_that_does_not_fit_is_left(rng):
    w = weight(rng, 4)
    places.keep(w, np.full(3, np.nan, np.float32))
    ops.sum(w * 2).backward()
    np.testing.assert_array_equal(w.grad, np.full(4, 2, np.float32))
    other = td.nn.Parameter(np.ones(4))  # float64
    places.keep(other, np.full(4, np.nan, np.float32))
    ops.sum(other * 2).backward()
    assert other.grad.dtype == np.float64


def test_kernels_write_there(rng):
    """On the stand-in for CUDA: all but what no kernel makes is written in its place, with the bits of a new array."""
    pytest.importorskip("tinydiff.cuda")
    from tinydiff.cuda import host

    if host.missing():
        pytest.skip(host.missing())
    x = td.Tensor(rng.normal(size=(2, 4, 4, 8)).astype(np.float32))
    conv, norm, line = td.nn.Conv2d(8, 8, 3, padding=1), td.nn.GroupNorm(2, 8), td.nn.Linear(8, 8)
    ws = [p for layer in (conv, norm, line) for p in layer.parameters()]

    def grads():
        for w in ws:
            w.zero_grad()
        with td.dispatch.on_host():
            ops.sum(line(norm(conv(x))) ** 2).backward()
        return [w.grad for w in ws]

    expected = grads()
    parts = with_places(*ws)
    for grad, part, truth in zip(grads(), parts, expected, strict=True):
        assert grad is part
        np.testing.assert_array_equal(grad, truth)
