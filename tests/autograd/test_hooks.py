"""tinydiff/autograd/hooks.py, and `backward(retain_graph=True)`."""

import numpy as np
import pytest

import tinydiff as td
from tests.gradcheck.right_operations import cases
from tinydiff.autograd.tensor import Tensor


def leaf(array):
    return Tensor(np.asarray(array, float), requires_grad=True)


def test_a_hook_is_called_once_with_the_sum_and_may_replace_it():
    x, seen = leaf([1.0, 2.0]), []
    y = x * 3
    y.register_hook(lambda L: seen.append(L.tolist()))
    y.register_hook(lambda L: L * 10)
    y.register_hook(lambda L: seen.append(L.tolist()))
    y.retain_grad()
    (y * 1 + y * 2).sum().backward()
    assert seen == [[3, 3], [30, 30]]  # in order
    assert y.grad.tolist() == [30, 30] and x.grad.tolist() == [90, 90]


def test_hooks_of_leaves():
    x, seen = leaf([1.0, 2.0]), []
    handle = x.register_hook(lambda L: seen.append(L.copy()) or Tensor(L / 2))
    for n in (1, 2):
        (x * 2 + x * x).sum().backward()
        np.testing.assert_array_equal(seen[-1], [4, 6])  # the sum of this pass, not of both
        np.testing.assert_array_equal(x.grad, n * np.array([2, 3]))
    handle.remove()
    handle.remove()
    x.backward(np.ones(2))
    assert len(seen) == 2
    with x.register_hook(lambda L: L * 0):
        x.backward(np.ones(2))
    np.testing.assert_array_equal(x.grad, [5, 7])


def test_a_hook_may_change_its_gradient_in_place_and_disturbs_nobody():
    x, w = leaf([1.0, 2.0]), leaf([1.0, 1.0])
    y = x + 0

    def double(L):
        L *= 2

    y.register_hook(double)
    L = np.ones(2)
    (y + w).backward(L)  # one array goes to both
    assert x.grad.tolist() == [2, 2] and w.grad.tolist() == [1, 1] and L.tolist() == [1, 1]


def test_hooks_live_as_long_as_the_graph_and_are_not_called_without_a_gradient():
    x, seen = leaf([1.0, 2.0]), []
    y = x * 2
    y.register_hook(lambda L: seen.append("y"))
    z = y.sum()
    del y
    first, second = td.ops.split(x, 2)
    second.register_hook(lambda L: seen.append("second"))
    (z + first.sum()).backward()
    assert seen == ["y"]


def test_hooks_that_make_no_sense():
    with pytest.raises(RuntimeError, match="requires a gradient"):
        Tensor([1.0]).register_hook(print)
    with pytest.raises(TypeError, match="function"):
        leaf([1.0]).register_hook(3)
    x = leaf([1.0, 2.0])
    x.register_hook(lambda L: L.sum())
    with pytest.raises(ValueError, match=r"\(\).*\(2,\)"):
        x.sum().backward()


def test_retain_graph():
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.tolist() == [4, 8]
    with pytest.raises(RuntimeError, match=r"retain_graph=True"):
        y.backward()
    with pytest.raises(RuntimeError, match="first order"):
        x.sum().backward(create_graph=True)


def test_every_operation_gives_the_same_gradients_twice():
    checked = 0
    for case in cases(0):
        if case.options or not all(isinstance(a, np.ndarray) and a.dtype == float for a in case.inputs):
            continue
        xs = [leaf(a.copy()) for a in case.inputs]
        y = getattr(case.fn, "apply", case.fn)(*xs)
        if not isinstance(y, Tensor) or not y.requires_grad:
            continue
        L = np.random.default_rng(1).normal(size=y.shape)
        y.backward(L, retain_graph=True)
        once = [None if x.grad is None else x.grad.copy() for x in xs]
        y.backward(L)
        for x, g in zip(xs, once, strict=True):
            assert g is None or np.allclose(x.grad, 2 * g, rtol=1e-12, atol=1e-12), case.name
        checked += 1
    assert checked > 60


def test_recomputed_blocks_can_be_walked_twice():
    x = leaf([1.0, 2.0])
    y = td.recompute(lambda x: (x * x).sum(), x)
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.tolist() == [4, 8]
