"""tinydiff/ops/tables.py and dropping.py: rows of a table against a loop, dropout against its definition."""

import math

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor
from tinydiff.random import Generator


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


@pytest.mark.parametrize("indices", [[0, 2, 2, 1], [[3, 3], [0, 3]], 2, [], np.zeros((2, 0, 3), int)], ids=str)
def test_embedding(indices, rng, verify):
    indices = np.asarray(indices, int)
    w = rng.normal(size=(4, 3))
    expected = np.zeros((*indices.shape, 3))
    for position in np.ndindex(*indices.shape):
        expected[position] = w[indices[position]]
    verify(ops.embedding, indices, w, expected=expected)


def test_rows_that_are_read_twice_get_both_gradients_and_others_none():
    w = leaf(np.zeros((4, 2)))
    ops.embedding([1, 3, 1], w).backward(np.array([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]]))
    assert w.grad.tolist() == [[0, 0], [101, 202], [0, 0], [10, 20]]


def test_large_tables_and_many_indices(rng):
    indices = rng.integers(0, 50, 2000)
    L_Y = rng.normal(size=(2000, 8)).astype(np.float32)
    w = leaf(np.zeros((50, 8), np.float32))
    ops.embedding(indices, w).backward(L_Y)
    expected = np.stack([L_Y[indices == row].astype(np.float64).sum(0) for row in range(50)])
    assert w.grad.dtype == np.float32
    np.testing.assert_allclose(w.grad, expected, atol=2e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_indices_of_any_integer_type_as_array_tensor_or_list(dtype):
    w = np.arange(6.0).reshape(3, 2)
    indices = np.array([2, 0], dtype)
    for given in (indices, Tensor(indices), indices.tolist()):
        assert ops.embedding(given, w).data.tolist() == [[4, 5], [0, 1]]


@pytest.mark.parametrize("index", [-1, 4, -5, 1000])
def test_indices_out_of_range_are_named(index):
    with pytest.raises(IndexError, match=rf"embedding.*{index}"):
        ops.embedding(np.array([0, index]), leaf(np.ones((4, 3))))


def test_indices_that_are_not_integers_are_a_type_error():
    for indices in (np.array([0.0, 1.0]), np.array([True, False])):
        with pytest.raises(TypeError, match=f"embedding.*{indices.dtype}"):
            ops.embedding(indices, leaf(np.ones((4, 3))))


def test_a_table_that_is_no_matrix_is_an_error():
    with pytest.raises(ValueError, match=r"embedding.*\(4,\)"):
        ops.embedding([0], leaf(np.ones(4)))


# dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dropout_zeroes_a_fraction_p_and_scales_the_rest(p, dtype, rng):
    a = rng.uniform(1, 2, (200, 100)).astype(dtype)
    x = leaf(a)
    y = ops.dropout(x, p, Generator(1, 5))
    kept = y.data != 0
    assert y.dtype == dtype
    np.testing.assert_allclose(y.data[kept], a[kept] / (1 - p), rtol=1e-6)
    n = a.size
    assert abs(kept.mean() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / n)
    y.backward(np.ones(y.shape, dtype))
    np.testing.assert_allclose(x.grad, kept / (1 - p), rtol=1e-6)
    assert x.grad.dtype == dtype


def test_dropout_by_gradcheck(rng, verify):
    verify(lambda x: ops.dropout(x, 0.4, Generator(3, 5, 1)), rng.normal(size=(5, 7)))


def test_one_random_number_per_element_from_the_given_generator():
    generator = Generator(1, 5, 2)
    x = np.ones((3, 7))
    first = ops.dropout(x, 0.5, generator)
    assert generator.state == (1, 5, 2, 6)  # 21 numbers are 6 blocks
    second = ops.dropout(x, 0.5, generator)
    assert (first.data != second.data).any()
    np.testing.assert_array_equal(first.data, ops.dropout(x, 0.5, Generator(1, 5, 2)).data)
    np.testing.assert_array_equal(second.data, ops.dropout(x, 0.5, Generator(1, 5, 2, 6)).data)


def test_the_pattern_does_not_depend_on_dtype_or_layout():
    x = np.ones((6, 5))
    patterns = [
        ops.dropout(a, 0.5, Generator(2)).data != 0 for a in (x, x.astype(np.float32), np.asfortranarray(x), x[::-1])
    ]
    for pattern in patterns[1:]:
        np.testing.assert_array_equal(pattern, patterns[0])


def test_no_dropout_needs_no_generator():
    x = leaf(np.array([1.0, 2.0]))
    y = ops.dropout(x, 0.0, None)
    assert y.data.tolist() == [1, 2]
    y.backward(np.ones(2))
    assert x.grad.tolist() == [1, 1]


def test_dropout_without_a_generator_is_an_error():
    with pytest.raises((ValueError, TypeError), match=r"dropout.*generator"):
        ops.dropout(leaf(np.ones(3)), 0.5, None)


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5])
def test_probabilities_outside_0_to_1_are_named(p):
    with pytest.raises(ValueError, match=f"dropout.*{p}"):
        ops.dropout(leaf(np.ones(3)), p, Generator(0))
