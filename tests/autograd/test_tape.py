"""tinydiff/autograd/tape.py: the walk backwards, gradients of one's own, second backward, no_grad.

Memory, changes in place, check_finite and recompute are in test_tape_memory.py, test_tape_in_place.py,
test_tape_check_finite.py and test_recompute.py.
"""

import threading

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd import tape
from tinydiff.autograd.function import Function
from tinydiff.autograd.recompute import recompute
from tinydiff.autograd.tape import no_grad
from tinydiff.autograd.tensor import Tensor


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


# The walk


def test_gradients_add_up_over_paths():
    x, y = leaf(3.0), leaf(4.0)
    a = x * y
    b = a + x
    c = a * b  # xy (xy + x) = x^2 y^2 + x^2 y
    c.backward()
    assert x.grad == 2 * 3 * 16 + 2 * 3 * 4
    assert y.grad == 2 * 9 * 4 + 9


def test_every_op_runs_once_and_after_everything_that_used_it():
    order = []

    class Named(Function):
        def forward(self, *arrays, name):
            self.name = name
            return sum(arrays)

        def backward(self, L_Y):
            order.append(self.name)
            return (L_Y,) * len(self.needs)

    x = leaf(1.0)
    a = Named.apply(x, name="a")
    b = Named.apply(a, name="b")
    c = Named.apply(a, b, name="c")
    d = Named.apply(c, a, b, name="d")  # a is reached by paths of length 1, 2 and 3
    Named.apply(a, name="unused")
    d.backward()
    assert sorted(order) == ["a", "b", "c", "d"]
    for later, earlier in ("dc", "db", "da", "cb", "ca", "ba"):
        assert order.index(later) < order.index(earlier)
    assert x.grad == 4  # d = c + a + b, c = a + b: paths through a: c-a, c-b-a, a, b-a


def test_a_ladder_with_2_to_the_60_paths():
    x = leaf(1.0)
    y = x
    for _ in range(60):
        y = y + y
    y.backward()
    assert x.grad == 2.0**60


def test_a_random_graph_against_forward_differentiation(rng):
    """Each value also carries its derivative by the leaf forwards, in plain Python numbers."""
    x = leaf(0.7)
    values = [(x, 0.7, 1.0), (Tensor(np.array(0.3)), 0.3, 0.0)]
    for _ in range(300):
        (a, va, da), (b, vb, db) = (values[i] for i in rng.integers(0, len(values), 2))
        if rng.random() < 0.5:
            values.append((a * b, va * vb, va * db + vb * da))
        else:
            values.append((0.5 * a + 0.5 * b, 0.5 * va + 0.5 * vb, 0.5 * da + 0.5 * db))
    total = sum(v[0] for v in values)
    total.backward()
    np.testing.assert_allclose(x.grad, sum(v[2] for v in values), rtol=1e-12)


# No aliasing


def test_the_same_gradient_array_for_two_parents():
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    L = np.array([1.0, 10.0])
    (x + y).backward(L)  # both parents get L_Y itself
    assert not np.shares_memory(x.grad, y.grad)
    assert not np.shares_memory(x.grad, L)
    assert not np.shares_memory(y.grad, L)
    x.grad += 5
    assert y.grad.tolist() == [1, 10]
    assert L.tolist() == [1, 10]


class HandsOn(Function):
    """y = a + b, whose backward returns L_Y as it came and, for b, a new array, as it promises."""

    gives_new = True

    def forward(self, A, B):
        return A + B

    def backward(self, L_Y):
        return L_Y, 1 * L_Y


def test_a_new_gradient_takes_the_sum_and_one_that_came_from_above_does_not():
    for order in (0, 1):
        x, L = leaf([1.0, 2.0]), np.array([1.0, 10.0])
        y, z = x * 2, x * 3
        pair = (y, z) if order else (z, y)
        s = HandsOn.apply(*pair)
        t = HandsOn.apply(s, y + z)
        (t + HandsOn.apply(y, s)).backward(L)
        assert x.grad.tolist() == [17, 170]  # of 2 s + 2 y + z = 4 y + 3 z
        assert L.tolist() == [1, 10]


def test_a_sum_does_not_go_into_the_gradient_that_another_holds():
    x, c, L = leaf([1.0, 2.0]), leaf([0.0, 0.0]), np.array([1.0, 10.0])
    y = x * 2
    HandsOn.apply(y, HandsOn.apply(c, y)).backward(L)  # y first gets L itself, then a new array
    assert x.grad.tolist() == [4, 40] and c.grad.tolist() == [1, 10] and L.tolist() == [1, 10]


def test_a_leaf_takes_a_new_gradient_without_a_copy_and_any_other_with_one():
    class Keeps(Function):
        gives_new = True
        returned = None

        def forward(self, A):
            return A * 1

        def backward(self, L_Y):
            Keeps.returned = 2 * L_Y
            return Keeps.returned

    x = leaf([1.0, 2.0])
    Keeps.apply(x).backward(np.ones(2))
    assert x.grad is Keeps.returned
    Keeps.apply(x).backward(np.ones(2))
    assert x.grad.tolist() == [4, 4] and Keeps.returned.tolist() == [2, 2]
    Keeps.gives_new = False
    y = leaf([1.0, 2.0])
    Keeps.apply(y).backward(np.ones(2))
    assert y.grad is not Keeps.returned


@pytest.mark.parametrize(
    "make",
    [
        lambda x: ops.group_norm(x, 2, leaf(np.ones(4)), leaf(np.ones(4))),
        lambda x: ops.linear(x, leaf(np.ones((4, 4))), leaf(np.ones(4))),
        lambda x: ops.attention(x[0], x[0], x[0]),
        lambda x: ops.attention(x[0], x[0], x[0], leaf(np.zeros((3, 3)))),
        lambda x: ops.conv2d(x, leaf(np.ones((3, 3, 4, 4))), leaf(np.ones(4)), padding=1),
        lambda x: ops.conv2d(x, leaf(np.ones((1, 1, 4, 4))), leaf(np.ones(4))),
        lambda x: ops.conv2d(x, leaf(np.ones((3, 3, 2, 4))), leaf(np.ones(4)), stride=2, padding=1, groups=2),
    ],
)
def test_what_an_operation_promises_to_be_new_is(make, rng):
    x = leaf(rng.normal(size=(2, 3, 3, 4)))
    op = make(x)._node.op
    if not op.gives_new:
        return
    saved = [a for a in (*op._saved, *vars(op).values()) if isinstance(a, np.ndarray)]
    L_Y = np.ones(make(x).shape)
    L_Xs = [L for L in op.backward(L_Y) if L is not None and L is not L_Y]
    for i, L in enumerate(L_Xs):
        assert not any(np.shares_memory(L, other) for other in (*saved, *L_Xs[:i], L_Y, x.data))


def test_x_plus_x():
    x = leaf([1.0, 2.0])
    L = np.array([1.0, 10.0])
    (x + x).backward(L)
    assert x.grad.tolist() == [2, 20]
    assert L.tolist() == [1, 10]


class Fork(Function):
    """The sum of its inputs; returns one and the same array as the gradient of each."""

    def forward(self, *arrays):
        return sum(arrays)

    def backward(self, L_Y):
        return (L_Y,) * len(self.needs)


@pytest.mark.parametrize("arrangement", range(4))
def test_diamonds_do_not_add_into_a_shared_array(arrangement):
    x, y = leaf([1.0]), leaf([1.0])
    a, b = x * 1, y * 1
    L = np.array([1.0])
    if arrangement == 0:  # a gets the shared array, then more: b's must not change
        (Fork.apply(a, b) + a + a).backward(L)
        expected = (3, 1)
    elif arrangement == 1:
        (a + a + Fork.apply(a, b)).backward(L)
        expected = (3, 1)
    elif arrangement == 2:
        Fork.apply(Fork.apply(a, b), a, b, a, a).backward(L)
        expected = (4, 2)
    else:
        Fork.apply(a, b, Fork.apply(b, a, b), Fork.apply(a, a)).backward(L)
        expected = (4, 3)
    assert (x.grad.item(), y.grad.item()) == expected
    assert L.tolist() == [1]


def test_a_wide_graph_of_100_000_edges():
    x = leaf(np.float32(1))
    y = Fork.apply(*[x * 1] * 100_000)
    y.backward()
    assert x.grad == 100_000


def test_gradient_views_do_not_alias_leaves():
    x, y = leaf(np.zeros((2, 3))), leaf(np.zeros(6))
    L = np.arange(6.0)
    (ops.reshape(x, (6,)) + y).backward(L)
    assert not np.shares_memory(x.grad, y.grad)
    assert not np.shares_memory(x.grad, L)
    a = leaf(np.zeros((3, 2)))
    (ops.transpose(a).reshape(6) + ops.concatenate([y, y])[3:9]).backward(L)
    assert not np.shares_memory(a.grad, y.grad)
    a.grad[:] = -1
    y.grad[:] = -1
    assert L.tolist() == [0, 1, 2, 3, 4, 5]


def test_retained_gradients_are_not_added_into():
    x = leaf([1.0])
    y = x * 1
    y.retain_grad()
    z = y + x
    z.retain_grad()
    (z + y + y).backward()
    assert (z.grad.item(), y.grad.item(), x.grad.item()) == (1, 3, 4)
    y.grad += 100
    assert (z.grad.item(), x.grad.item()) == (1, 4)


# Second backward


def test_second_backward_raises_a_sentence():
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match=r"Sum.*second time.*forward"):
        y.backward()
    np.testing.assert_array_equal(x.grad, [2, 4])


def test_backward_into_a_part_that_was_freed_raises_a_sentence():
    x = leaf([1.0])
    shared = x * x
    (shared * 2).backward()
    with pytest.raises(RuntimeError, match=r"Multiply.*second time"):
        (shared * 3).backward()


def test_backward_again_after_a_new_forward_accumulates():
    x = leaf([3.0])
    for _ in range(3):
        (x * x).backward()
    assert x.grad.tolist() == [18]


def test_second_backward_through_ops_that_save_nothing_raises_too():
    x = leaf([1.0])
    y = ops.reshape(x + 1, (1, 1))
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_second_backward_through_a_recomputed_block_raises():
    x = leaf([1.0])
    y = recompute(ops.exp, x)
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


# no_grad


def test_no_grad_records_nothing():
    x = leaf([1.0])
    assert tape.is_recording()
    with no_grad():
        assert not tape.is_recording()
        y = x * 2
        z = recompute(ops.exp, x)
    assert tape.is_recording()
    assert not y.requires_grad
    assert not z.requires_grad
    assert (x * 2).requires_grad


def test_no_grad_survives_exceptions_and_nesting():
    x = leaf([1.0])
    with pytest.raises(KeyError), no_grad(), no_grad():
        raise KeyError
    assert (x * 2).requires_grad
    with no_grad():
        with no_grad():
            pass
        assert not (x * 2).requires_grad
        with pytest.raises(KeyError), no_grad():
            raise KeyError
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


def test_no_grad_as_a_decorator():
    x = leaf([1.0])

    @no_grad()
    def evaluate(depth):
        """The docstring."""
        if depth:
            assert not evaluate(depth - 1).requires_grad
        return x * 2

    assert evaluate.__doc__ == "The docstring."
    for _ in range(3):
        assert not evaluate(2).requires_grad
        assert (x * 2).requires_grad


def test_one_no_grad_object_can_be_used_again():
    block = no_grad
    for _ in range(2):
        with block():
            assert not tape.is_recording()
        assert tape.is_recording()


def test_no_grad_is_a_matter_of_its_own_thread():
    x = leaf([1.0])
    inside, done = threading.Event(), threading.Event()
    seen = []

    def sample():
        with no_grad():
            inside.set()
            done.wait(10)
            seen.append((x * 2).requires_grad)
        seen.append((x * 2).requires_grad)

    worker = threading.Thread(target=sample)
    worker.start()
    inside.wait(10)
    recorded_here = (x * 2).requires_grad
    with no_grad():
        other = []
        second = threading.Thread(target=lambda: other.append((x * 2).requires_grad))
        second.start()
        second.join(10)
    done.set()
    worker.join(10)
    assert recorded_here
    assert other == [True]
    assert seen == [False, True]


def test_backward_in_several_threads():
    results = [None] * 4

    def work(i):
        x = leaf(np.arange(5.0))
        for _ in range(50):
            y = x
            for _ in range(10):
                y = y * 1.0 + float(i) * x
            y.sum().backward()
        results[i] = x.grad

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for i in range(4):
        np.testing.assert_array_equal(results[i], np.full(5, 50 * (1 + 10.0 * i)))
