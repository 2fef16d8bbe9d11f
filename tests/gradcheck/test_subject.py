"""tinydiff/gradcheck/subject.py: values and gradients of whatever is checked."""

import inspect

import numpy as np
import pytest

import tinydiff as td
from tinydiff import ops
from tinydiff.errors import InputError
from tinydiff.gradcheck.making import make_subject
from tinydiff.gradcheck.pairs import PairSubject
from tinydiff.gradcheck.subject import TapeSubject

X = np.arange(6.0).reshape(2, 3)


def test_names_are_those_of_the_parameters():
    class Twice(td.Function):
        def forward(self, Z):
            return 2 * Z

        def backward(self, L):
            return 2 * L

    assert make_subject(ops.linear, [X, X.T]).names == ["x", "w"]
    assert make_subject(Twice, [X]).names == ["Z"]
    assert make_subject(lambda *xs: xs[0], [X, X]).names == ["input 0", "input 1"]
    assert make_subject(lambda a, *rest: a, [X, 3, X]).names == ["a", "input 2"]


class Unsigned:
    """A function whose signature `inspect` cannot tell, as those of many compiled modules are."""

    __signature__ = 0

    def __call__(self, *arguments):
        return arguments[0]


def test_a_function_whose_signature_nobody_knows():
    with pytest.raises(TypeError):
        inspect.signature(Unsigned())
    assert make_subject(Unsigned(), [X, X]).names == ["input 0", "input 1"]


@pytest.mark.parametrize(
    "backward, remembers",
    [
        (lambda L: L, True),
        (lambda L, scale=2.0: L, True),
        (lambda L, x: L, False),
        (lambda *Ls: Ls[0], False),
        (lambda L, *xs: L, False),
        (Unsigned(), False),
    ],
)
def test_whether_a_backward_by_hand_is_given_the_inputs(backward, remembers):
    """An object that keeps what it needs takes the gradients of the outputs alone."""
    subject = make_subject(lambda x: 2 * x, [X], backward=backward)
    assert isinstance(subject, PairSubject) and subject.plan([X]).remembers is remembers


def test_values_and_gradients_by_the_tape():
    subject = make_subject(lambda x, y: (x * y, ops.sum(y)), [X, X + 1])
    assert isinstance(subject, TapeSubject)
    product, total = subject.forward(subject.point)
    np.testing.assert_array_equal(product, X * (X + 1))
    assert total == 21
    u = np.ones((2, 3))
    both = subject.vjp(subject.point, [u, np.asarray(2.0)])
    np.testing.assert_array_equal(both[0], X + 1)
    np.testing.assert_array_equal(both[1], X + 2)
    first = subject.vjp(subject.point, [u, None], needs=[False, True])
    assert first[0] is None
    np.testing.assert_array_equal(first[1], X)
    shared = subject.vjp([X, X], [u, None], same=(0, 1))
    np.testing.assert_array_equal(shared[0], 2 * X)
    assert shared[1] is shared[0]


def test_the_cotangent_reaches_backward_as_it_lies_in_memory():
    seen = []

    class Spy(td.Function):
        def forward(self, X):
            return X * 1.0, X * 2.0

        def backward(self, *Ls):
            seen.extend(Ls)
            return Ls[0] + 2 * Ls[1]

    flipped, spread = np.ones((3, 2)).T[::-1], np.broadcast_to(np.ones(3), (2, 3))
    make_subject(Spy, [X]).vjp([X], [flipped, spread])
    assert seen[0] is flipped and seen[1] is spread


def test_two_passes_before_the_backward_ones():
    subject = make_subject(lambda x: x * x, [X])
    (g,) = subject.vjp_of_two([X], [X + 1], [np.ones((2, 3))])
    np.testing.assert_array_equal(g, 2 * X + 2 * (X + 1))
    by_hand = make_subject(lambda x: (x * x, x), [X], backward=lambda L, x: 2 * L * x, cache=True)
    (g,) = by_hand.vjp_of_two([X], [X + 1], [np.ones((2, 3))])
    np.testing.assert_array_equal(g, 2 * X + 2 * (X + 1))


def test_a_pair_written_by_hand():
    subject = make_subject(lambda x, n, y: x * n + y, [X, 3, X], backward=lambda L, x, n, y: (3 * L, L))
    assert isinstance(subject, PairSubject)
    u = np.ones((2, 3))
    gx, gy = subject.vjp(subject.point, [u])
    np.testing.assert_array_equal(gx, 3 * u)
    np.testing.assert_array_equal(gy, u)
    shared = subject.vjp(subject.point, [u], same=(0, 1))
    np.testing.assert_array_equal(shared[0], 4 * u)
    every = make_subject(lambda x, n: x * n, [X, 3], backward=lambda L, x, n: (3 * L, None))
    np.testing.assert_array_equal(every.vjp(every.point, [u])[0], 3 * u)


def test_a_wrong_number_of_gradients():
    subject = make_subject(lambda x, y: x * y, [X, X], backward=lambda L, x, y: (L, L, L))
    with pytest.raises(ValueError, match="returned 3 gradients for 2 floating point inputs"):
        subject.vjp(subject.point, [X])


def test_backward_may_return_the_gradients_that_are_checked_alone():
    def backward(L, x, y, z):
        return L * y

    subject = make_subject(lambda x, y, z: x * y + z, [X, 2 * X, X], wrt=[0], backward=backward)
    np.testing.assert_array_equal(subject.vjp(subject.point, [X])[0], 2 * X * X)


def test_a_cache_needs_two_results():
    subject = make_subject(lambda x: x, [X], backward=lambda L, c: L, cache=True)
    with pytest.raises(InputError, match="must return"):
        subject.forward([X])


def test_parameters_are_lent():
    p = td.Tensor(np.ones(3, np.float32), requires_grad=True)
    p.grad = np.full(3, 7, np.float32)
    subject = make_subject(lambda x: x * p, [X], parameters={"p": p})
    assert subject.names == ["x", "p"]
    data, grad = p.data, p.grad
    gx, gp = subject.vjp([X, np.full(3, 2.0)], [np.ones((2, 3))])
    np.testing.assert_array_equal(gx, np.full((2, 3), 2))
    np.testing.assert_array_equal(gp, X.sum(0))
    assert gp.dtype == np.float64
    assert p.data is data and p.grad is grad and p.requires_grad
