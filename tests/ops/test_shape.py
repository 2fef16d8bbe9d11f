"""tinydiff/ops/shape.py against NumPy, gradients by gradcheck and the adjoint identity."""

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor
from tinydiff.machine.threads import threads


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


def numbered(*shape):
    return np.arange(np.prod(shape, dtype=int), dtype=float).reshape(shape) + 1


def escaped(shape):
    return str(tuple(shape)).replace("(", r"\(").replace(")", r"\)")


# reshape, transpose, expand_dims, squeeze, broadcast_to


@pytest.mark.parametrize(
    ("old", "new"),
    [((2, 3), (3, 2)), ((2, 3), (6,)), ((2, 3), (-1,)), ((2, 3, 4), (4, -1)), ((1,), ()), ((), (1, 1)),
     ((0, 3), (3, 0)), ((2, 0, 3), (0,)), ((6,), (2, 3))],
    ids=str,
)  # fmt: skip
def test_reshape(old, new, verify):
    a = numbered(*old)
    verify(lambda x: ops.reshape(x, new), a, expected=a.reshape(new))


def test_reshape_takes_numbers_and_one_number():
    x = leaf(numbered(2, 3))
    assert ops.reshape(x, 3, 2).shape == x.reshape(3, -1).shape == (3, 2)
    assert ops.reshape(x, 6).shape == ops.reshape(x, -1).shape == ops.reshape(x, [6]).shape == (6,)


@pytest.mark.parametrize("new", [(4, 2), (5,), (-1, 4), (-1, -1), ()], ids=str)
def test_reshape_names_both_shapes(new):
    with pytest.raises(ValueError, match=rf"reshape.*\(2, 3\).*{escaped(new)}|reshape.*{escaped(new)}.*\(2, 3\)"):
        ops.reshape(leaf(numbered(2, 3)), new)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((2, 3), None), ((2, 3, 4), None), ((2, 3, 4), (1, 2, 0)), ((2, 3, 4), (0, 2, 1)), ((2, 3, 4), (-1, 0, 1)),
     ((), None), ((3,), None), ((2, 0, 3), (2, 0, 1)), ((2, 3, 4, 5), (3, 1, 0, 2))],
    ids=str,
)  # fmt: skip
def test_transpose(shape, axes, verify):
    a = numbered(*shape)
    verify(lambda x: ops.transpose(x, axes), a, expected=a.transpose(axes))


@pytest.mark.parametrize("axes", [(0,), (0, 0), (0, 2), (0, 1, 2), (-3, 0)], ids=str)
def test_transpose_refuses_what_is_no_permutation(axes):
    with pytest.raises(ValueError, match=r"transpose.*\(2, 3\)|transpose.*ax[ie]s"):
        ops.transpose(leaf(numbered(2, 3)), axes)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3, (0, 1), (0, -1), (0, 2, 4)], ids=str)
def test_expand_dims(axis, verify):
    a = numbered(2, 3)
    verify(lambda x: ops.expand_dims(x, axis), a, expected=np.expand_dims(a, axis))


@pytest.mark.parametrize("axis", [3, -4, (0, 0), (0, 4)], ids=str)
def test_expand_dims_refuses_axes_that_are_not_in_the_result(axis):
    with pytest.raises(ValueError, match="expand_dims"):
        ops.expand_dims(leaf(numbered(2, 3)), axis)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((1, 2, 1, 3), None), ((1, 2, 1), 0), ((1, 2, 1), -1), ((1, 2, 1), (0, 2)), ((2, 3), None), ((1, 1), None),
     ((2, 3), ()), ((0, 1), 1)],
    ids=str,
)  # fmt: skip
def test_squeeze(shape, axis, verify):
    a = numbered(*shape)
    verify(lambda x: ops.squeeze(x, axis), a, expected=a.squeeze(axis))


@pytest.mark.parametrize("axis", [1, (0, 1)], ids=str)
def test_squeeze_refuses_axes_that_are_longer_than_1(axis):
    with pytest.raises(ValueError, match=r"squeeze.*\(1, 2, 1\)"):
        ops.squeeze(leaf(numbered(1, 2, 1)), axis)


@pytest.mark.parametrize("axis", [3, -4, (0, 0)], ids=str)
def test_squeeze_refuses_axes_that_are_not_there(axis):
    with pytest.raises(ValueError, match=r"squeeze.*axis|squeeze.*axes"):
        ops.squeeze(leaf(numbered(1, 2, 1)), axis)


@pytest.mark.parametrize(
    ("old", "new"),
    [((3,), (2, 3)), ((2, 1), (2, 4)), ((), (2, 3)), ((1, 3), (0, 3)), ((2, 3), (2, 3)), ((3, 1, 1), (2, 3, 4, 2))],
    ids=str,
)
def test_broadcast_to(old, new, verify):
    a = numbered(*old)
    verify(lambda x: ops.broadcast_to(x, new), a, expected=np.broadcast_to(a, new))


@pytest.mark.parametrize("new", [(2,), (3, 2), (3,), (2, 4)], ids=str)
def test_broadcast_to_names_both_shapes(new):
    with pytest.raises(ValueError, match=rf"broadcast_to.*\(2, 3\).*{escaped(new)}"):
        ops.broadcast_to(leaf(numbered(2, 3)), new)


def test_views_do_not_copy():
    x = leaf(numbered(2, 3))
    for y in (x.reshape(3, 2), x.T, ops.expand_dims(x, 0), x[0], x[:, ::2], ops.broadcast_to(x, (4, 2, 3))):
        assert np.shares_memory(y.data, x.data)


# concatenate, stack, split


@pytest.mark.parametrize(
    ("shapes", "axis"),
    [([(2, 3), (1, 3)], 0), ([(2, 3), (2, 1), (2, 2)], 1), ([(2, 3), (2, 1)], -1), ([(2,), (0,), (3,)], 0),
     ([(2, 3)], 0), ([(2, 1, 3), (2, 4, 3)], -2)],
    ids=str,
)  # fmt: skip
def test_concatenate(shapes, axis, rng, verify):
    arrays = [rng.normal(size=shape) for shape in shapes]
    verify(lambda *xs: ops.concatenate(xs, axis), *arrays, expected=np.concatenate(arrays, axis))


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_stack(axis, rng, verify):
    arrays = [rng.normal(size=(2, 3)) for _ in range(3)]
    verify(lambda *xs: ops.stack(xs, axis), *arrays, expected=np.stack(arrays, axis))


def test_stack_of_scalars(verify):
    verify(lambda *xs: ops.stack(xs), np.array(1.0), np.array(2.0), expected=np.array([1.0, 2.0]))


def test_concatenate_mixes_constants_lists_and_dtypes():
    x = leaf(np.float32([1.0]))
    y = ops.concatenate([x, np.float32([2.0]), Tensor([3.0]), x])
    assert y.dtype == np.float32
    y.backward(np.float32([1, 10, 100, 1000]))
    assert x.grad.tolist() == [1001]
    wide = ops.concatenate([x, np.float64([2.0])])
    assert wide.dtype == np.float64


def test_concatenate_and_stack_name_what_does_not_fit():
    a, b = leaf(numbered(2, 3)), leaf(numbered(2, 4))
    with pytest.raises(ValueError, match=r"concatenate.*\(2, 3\).*\(2, 4\)"):
        ops.concatenate([a, b], 0)
    with pytest.raises(ValueError, match=r"concatenate.*\(2, 3\).*\(3,\)"):
        ops.concatenate([a, numbered(3)], 0)
    with pytest.raises(ValueError, match=r"stack.*\(2, 3\).*\(2, 4\)"):
        ops.stack([a, b])
    for function in (ops.concatenate, ops.stack):
        with pytest.raises(ValueError, match=function.__name__):
            function([])
        with pytest.raises(ValueError, match=rf"{function.__name__}.*axis.*5"):
            function([a, a], 5)


@pytest.mark.parametrize(
    ("sections", "axis"), [(2, 0), (3, 1), (1, 1), ([1, 4], 1), ([2], -1), ([0, 6], 1), ((2, 2), 1), ([], 0)], ids=str
)
def test_split(sections, axis, verify):
    a = numbered(4, 6)
    verify(lambda x: ops.split(x, sections, axis), a, expected=np.split(a, sections, axis))


def test_pieces_that_are_not_used_get_zeros():
    x = leaf(numbered(6))
    _, middle, _ = ops.split(x, 3)
    (middle * 5).sum().backward()
    assert x.grad.tolist() == [0, 0, 5, 5, 0, 0]


def test_split_undoes_concatenate(rng):
    arrays = [rng.normal(size=(2, n)) for n in (1, 3, 2)]
    pieces = ops.split(ops.concatenate(arrays, 1), [1, 4], 1)
    for piece, a in zip(pieces, arrays, strict=True):
        np.testing.assert_array_equal(piece.data, a)


@pytest.mark.parametrize(("sections", "axis"), [(4, 0), (5, 1), (0, 0), (-1, 0), ([4, 2], 1), (2, 2)], ids=str)
def test_split_refuses_what_does_not_divide(sections, axis):
    with pytest.raises(ValueError, match="split"):
        ops.split(leaf(numbered(6, 6)), sections, axis)


# getitem


@pytest.mark.parametrize(
    "index",
    [
        0, -1, (1, 2), slice(1, 3), slice(None, None, -2), (slice(None), 1), (..., 0), None, (0, None, slice(None)),
        (None, ..., None), ..., (), slice(3, 1), np.array([0, 2, 2, 2]), [1, 1, -1], np.array([[0, 1], [1, 0]]),
        (np.array([0, 1, 0]), np.array([2, 2, 2])), (np.array([[0], [1]]), np.array([1, 2])), (slice(None), [0, 0, 1]),
        (0, [2, 1]), (slice(None), np.array([0, 1]), slice(0, 2)), np.array([True, False, True, True]),
        (slice(None), np.array([True, False, True])), np.arange(24).reshape(4, 3, 2) % 3 == 0,
        (np.array([0, 0]), ..., 1),
        np.array([], int), np.int64(2), np.zeros(4, bool), (np.array([1, 0, 1]), slice(None), np.array([0, 0, 0])),
    ],
    ids=lambda index: str(index).replace("\n", ""),
)  # fmt: skip
def test_getitem(index, rng, verify):
    a = rng.normal(size=(4, 3, 2))
    verify(lambda x: x[index], a, expected=a[index])


def test_repeated_indices_accumulate():
    x = leaf(np.zeros(3))
    x[[0, 0, 2, 0]].backward(np.array([1.0, 10.0, 100.0, 1000.0]))
    assert x.grad.tolist() == [1011, 0, 100]


def test_getitem_with_tensors_as_index():
    x = leaf([1.0, 2.0, 3.0])
    assert x[Tensor(np.array([2, 0]))].data.tolist() == [3, 1]
    assert x[x > 1.5].data.tolist() == [2, 3]
    assert ops.getitem(x, 1).data == 2
    y = leaf(numbered(2, 3))
    assert y[:, Tensor(np.array([0, 2]))].data.tolist() == [[1, 3], [4, 6]]


@pytest.mark.parametrize("index", [3, -4, (0, 0), [0, 7], (slice(None), 0)], ids=str)
def test_getitem_outside_is_an_index_error(index):
    with pytest.raises(IndexError):
        leaf([1.0, 2.0, 3.0])[index]


def test_getitem_by_a_mask_of_another_shape_is_an_error():
    with pytest.raises(IndexError):
        leaf([1.0, 2.0, 3.0])[np.array([True, False])]


# pad

WIDTHS = [((0, 0), (1, 2), (2, 1), (0, 0)), ((1, 0), (0, 0), (3, 2), (1, 1)), ((0, 0), (0, 0), (0, 0), (0, 0))]


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_pad(mode, widths, rng, verify):
    a = rng.normal(size=(2, 3, 4, 2))
    verify(lambda x: ops.pad(x, widths, mode), a, expected=np.pad(a, widths, mode))


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_one_width_for_all_axes(mode, rng, verify):
    a = rng.normal(size=(2, 3))
    verify(lambda x: ops.pad(x, 1, mode=mode), a, expected=np.pad(a, 1, mode))


def test_pad_with_a_value(rng, verify):
    a = rng.normal(size=(2, 3))
    expected = np.pad(a, ((1, 0), (0, 2)), constant_values=-1.5)
    verify(lambda x: ops.pad(x, ((1, 0), (0, 2)), value=-1.5), a, expected=expected)


@pytest.mark.parametrize(("mode", "width"), [("edge", 7), ("reflect", 2), ("reflect", 7), ("constant", 9)])
def test_wide_margins(mode, width, rng, verify):
    a = rng.normal(size=(3,))
    verify(lambda x: ops.pad(x, ((width, width),), mode), a, expected=np.pad(a, width, mode))


def test_pad_of_a_single_pixel_by_its_edge(verify):
    verify(lambda x: ops.pad(x, 2, "edge"), np.array([[3.0]]), expected=np.full((5, 5), 3.0))


def test_pad_of_no_images(verify):
    verify(lambda x: ops.pad(x, ((0, 0), (1, 1)), "constant"), np.zeros((0, 3)), expected=np.zeros((0, 5)))


def test_pad_refuses_what_it_cannot_do():
    x = leaf(numbered(2, 3))
    for mode in ("constant", "reflect", "edge"):
        with pytest.raises(ValueError, match="pad"):
            ops.pad(x, ((0, 0), (-1, 0)), mode)
        with pytest.raises(ValueError, match=r"pad.*\(2, 3\)"):
            ops.pad(x, ((1, 1), (1, 1), (1, 1)), mode)
    with pytest.raises(ValueError, match=r"pad.*wrap"):
        ops.pad(x, 1, "wrap")
    with pytest.raises(ValueError, match=r"pad.*\(1, 3\)"):
        ops.pad(leaf(numbered(2, 3))[:1], ((1, 0), (0, 0)), "reflect")  # one row has no neighbour to mirror
    with pytest.raises(ValueError, match="pad"):
        ops.pad(leaf(np.zeros((0, 3))), ((1, 0), (0, 0)), "edge")


# Everything here is linear: <A x, y> = <x, A^T y>

LINEAR = {
    "reshape": lambda x: ops.reshape(x, (4, -1)),
    "transpose": lambda x: ops.transpose(x, (2, 0, 1)),
    "broadcast_to": lambda x: ops.broadcast_to(x, (3, 4, 3, 4)),
    "concatenate": lambda x: ops.concatenate([x, x[:, :1], x], 1),
    "stack": lambda x: ops.stack([x, x * 0.5, x], 1),
    "split": lambda x: ops.split(x, [1, 2], 1)[1],
    "getitem": lambda x: x[[3, 3, 0], ..., ::2],
    "pad": lambda x: ops.pad(x, ((1, 2), (2, 0), (0, 3))),
    "pad reflect": lambda x: ops.pad(x, ((1, 2), (2, 0), (0, 3)), "reflect"),
    "pad edge": lambda x: ops.pad(x, ((1, 2), (2, 0), (0, 3)), "edge"),
}


@pytest.mark.parametrize("operation", LINEAR.values(), ids=LINEAR)
def test_adjoint_identity(operation, rng):
    a = rng.normal(size=(4, 3, 4))
    x = leaf(a)
    y = operation(x)
    L_Y = rng.normal(size=y.shape)
    y.backward(L_Y)
    np.testing.assert_allclose((y.data * L_Y).sum(), (a * x.grad).sum(), rtol=1e-12)


@pytest.mark.parametrize("axis", [1, -1])
def test_large_maps_are_joined_by_several_threads(axis, rng):
    xs = [rng.normal(size=(40, 30 + (axis == 1) * i, 20, 8 + (axis == -1) * i)).astype(np.float32) for i in range(3)]
    with threads(3):
        y = ops.concatenate(xs, axis).data
    np.testing.assert_array_equal(y, np.concatenate(xs, axis))
