"""tinydiff/autograd/tape.py: a recomputed block gives the bits and gradients of a plain one, with less memory."""

import tracemalloc
import weakref

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd import tape
from tinydiff.autograd.recompute import recompute
from tinydiff.autograd.tape import no_grad
from tinydiff.autograd.tensor import Tensor
from tinydiff.random import Generator


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


def block(x, w):
    return ops.tanh(ops.layer_norm(x @ w) * w[0]) + x.sum()


def gradients_of(run, *leaves):
    for x in leaves:
        x.grad = None
    y = run()
    loss = (y * np.linspace(-1, 1, y.size).reshape(y.shape)).sum()
    loss.backward()
    return [loss.data, *(x.grad for x in leaves)]


def assert_same_bits(a, b):
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_recompute_gives_the_same_bits(rng, dtype):
    x, w = (leaf(rng.normal(size=(4, 4)).astype(dtype)) for _ in range(2))
    plain = gradients_of(lambda: block(x * 2, w), x, w)
    assert_same_bits(plain, gradients_of(lambda: recompute(block, x * 2, w), x, w))


def test_recompute_reaches_parameters_captured_by_closure(rng):
    x, w = leaf(rng.normal(size=(4, 4))), leaf(rng.normal(size=(4, 4)))
    plain = gradients_of(lambda: block(x, w), x, w)
    assert_same_bits(plain, gradients_of(lambda: recompute(lambda a: block(a, w), x), x, w))
    constant = Tensor(x.data)
    for run in (lambda: block(constant, w), lambda: recompute(lambda a: block(a, w), constant)):
        result = gradients_of(run, w)
        np.testing.assert_array_equal(result[1], plain[2])


def test_recompute_reaches_values_captured_from_outside_the_block(rng):
    x, w = leaf(rng.normal(size=(4, 4))), leaf(rng.normal(size=(4, 4)))

    def run(wrap):
        scale = ops.exp(w)  # computed outside, used inside and after
        y = wrap(lambda a: ops.sin(a * scale) @ scale, x)
        return y + scale

    assert_same_bits(gradients_of(lambda: run(lambda f, a: f(a)), x, w), gradients_of(lambda: run(recompute), x, w))


def test_recompute_of_a_block_whose_input_is_used_elsewhere_too(rng):
    x = leaf(rng.normal(size=(4, 4)))

    def run(wrap):
        a = ops.sin(x)
        y = wrap(lambda b: ops.exp(b) * b + b, a)
        return y * a + wrap(ops.cos, a) + wrap(lambda b, c: b @ c, a, a)

    assert_same_bits(gradients_of(lambda: run(lambda f, *a: f(*a)), x), gradients_of(lambda: run(recompute), x))


def test_nested_recompute(rng):
    x, w = leaf(rng.normal(size=(4, 4))), leaf(rng.normal(size=(4, 4)))

    def run(wrap):
        def outer(a):
            b = wrap(lambda c: ops.tanh(c @ w), a)
            return wrap(lambda c: wrap(ops.exp, c * w), b) + a

        return wrap(outer, wrap(outer, x))

    assert_same_bits(gradients_of(lambda: run(lambda f, *a: f(*a)), x, w), gradients_of(lambda: run(recompute), x, w))


def test_recompute_with_several_outputs(rng):
    x = leaf(rng.normal(size=(4, 4)))

    def pair(a):
        return ops.sin(a), ops.exp(a) * 2, a * 3

    def run(wrap):
        first, _, third = wrap(pair, x)
        return first * third

    assert isinstance(recompute(pair, x), tuple)
    assert_same_bits(gradients_of(lambda: run(lambda f, a: f(a)), x), gradients_of(lambda: run(recompute), x))


def test_integer_outputs_of_a_recomputed_block_need_no_gradient():
    x = leaf([3.0, 1.0, 2.0])
    ordered, order = recompute(lambda a: (a[np.argsort(a.data)], Tensor(np.argsort(a.data))), x)
    assert not order.requires_grad
    assert order.data.tolist() == [1, 2, 0]
    ordered.backward(np.array([1.0, 2.0, 3.0]))
    assert x.grad.tolist() == [3, 1, 2]


def test_recompute_of_a_block_that_returns_its_input_or_a_constant():
    x = leaf([1.0, 2.0])
    same, constant = recompute(lambda a: [a, Tensor([5.0, 6.0])], x)
    (same * constant).sum().backward()
    assert x.grad.tolist() == [5, 6]


def test_recompute_replays_dropout(rng):
    x = leaf(rng.normal(size=(64, 8)))

    def run(wrap, generator):
        y = wrap(lambda a: ops.dropout(ops.exp(a), 0.5, generator) * a, x)
        return ops.dropout(wrap(lambda a: ops.dropout(a, 0.3, generator), y), 0.1, generator)

    plain_generator, generator = Generator(5, 5), Generator(5, 5)
    plain = gradients_of(lambda: run(lambda f, a: f(a), plain_generator), x)
    replayed = gradients_of(lambda: run(recompute, generator), x)
    assert_same_bits(plain, replayed)
    assert generator.state == plain_generator.state
    assert plain_generator.offset == 3 * 64 * 8 // 4


def test_recompute_replays_dropout_in_nested_blocks_and_mid_stream(rng):
    x = leaf(rng.normal(size=(16, 8)))

    def run(wrap, generator):
        def inner(a):
            return ops.dropout(a * a, 0.4, generator)

        def outer(a):
            b = ops.dropout(a, 0.2, generator)
            return wrap(inner, b) + wrap(inner, ops.dropout(a, 0.2, generator))

        y = wrap(outer, x)
        generator.normal(7)  # draws between forward and backward must not matter
        return wrap(outer, y)

    plain_generator, generator = Generator(1, 5, 3, 17), Generator(1, 5, 3, 17)
    plain = gradients_of(lambda: run(lambda f, a: f(a), plain_generator), x)
    replayed = gradients_of(lambda: run(recompute, generator), x)
    assert_same_bits(plain, replayed)
    assert generator.state == plain_generator.state


def test_recompute_of_a_generator_made_inside_the_block(rng):
    x = leaf(rng.normal(size=(16, 8)))

    def noisy(a):
        return ops.dropout(a * a, 0.5, Generator(3).at(5, 1))

    assert_same_bits(gradients_of(lambda: noisy(x), x), gradients_of(lambda: recompute(noisy, x), x))


def test_recompute_frees_what_is_inside(alive):
    references = []
    x = leaf(np.ones(1000))

    def deep(a):
        for _ in range(5):
            a = ops.tanh(a)
            references.append(weakref.ref(a.data))
        return a

    y = recompute(deep, x)
    assert [r() is not None for r in references] == [False] * 4 + [True]  # the result itself is y
    before = alive()
    y.sum().backward()
    assert len(references) == 10, "the block runs once forward and once in backward"
    del y
    assert not any(r() is not None for r in references)
    assert alive() < before


def test_peak_memory_of_recomputed_blocks(no_collector):
    n = 1 << 15
    x = leaf(np.full(n, 0.5))

    def deep(a):
        for _ in range(8):
            a = ops.tanh(a)
        return a

    def peak(wrap):
        tracemalloc.start()
        try:
            y = x
            for _ in range(8):
                y = wrap(deep, y)
            loss = y.sum()
            del y
            loss.backward()
            return tracemalloc.get_traced_memory()[1] / (8 * n)
        finally:
            tracemalloc.stop()

    plain, recomputed = peak(lambda f, a: f(a)), peak(recompute)
    assert plain > 64
    assert recomputed < 8 + 8 + 6  # the blocks' inputs, one block inside, gradients


def test_recompute_where_nothing_needs_a_gradient():
    y = recompute(ops.exp, Tensor(np.ones(2)))
    np.testing.assert_allclose(y.data, np.e)
    assert not (y * 2).requires_grad, "a block of constants is a constant"


def test_recompute_of_an_input_changed_in_place_is_an_error():
    x = leaf([1.0])
    y = recompute(lambda a: a * 2, x)
    with no_grad():
        x += 1.0
    with pytest.raises(RuntimeError, match="in place"):
        y.backward()


def test_recompute_of_a_captured_tensor_changed_in_place_is_an_error():
    x, w = leaf([1.0]), leaf([2.0])
    y = recompute(lambda a: a * w, x)
    with no_grad():
        w *= 10.0  # an optimiser step before backward
    with pytest.raises(RuntimeError, match="in place"):
        y.backward()


def test_recompute_takes_arrays_and_numbers_beside_tensors():
    x, array = leaf([1.0, 2.0]), np.array([3.0, 4.0])
    y = recompute(lambda a, b, c: a * b * c, x, array, 2.0)
    y.backward(np.ones(2))
    assert x.grad.tolist() == [6, 8]


def test_recompute_inside_no_grad_and_backward_inside_no_grad():
    x = leaf([2.0])
    y = recompute(lambda a: a * a, x)
    with no_grad():
        y.backward()  # the block must be recorded again all the same
    assert x.grad.tolist() == [4]
    assert tape.is_recording()


def test_an_exception_in_a_recomputed_block_leaves_the_tape_recording():
    x, generator = leaf([1.0]), Generator(0)

    def fail(a):
        generator.uniform(4)
        raise KeyError

    with pytest.raises(KeyError):
        recompute(fail, x)
    assert tape.is_recording()
    y = recompute(lambda a: ops.dropout(a, 0.5, generator), x)
    assert y.requires_grad


def test_recompute_calls_the_block_once_more_and_only_if_needed():
    calls = []

    def count(a):
        calls.append(tape.is_recording())
        return a * 2

    x = leaf([1.0])
    y = recompute(count, x)
    assert calls == [False]
    y.backward()
    assert calls == [False, True]
    recompute(count, x)
    x.backward()
    assert calls == [False, True, False]
