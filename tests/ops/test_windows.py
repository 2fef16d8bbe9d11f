"""tinydiff/ops/windows.py, and the patches that users see, against loops over every pixel of every patch."""

import itertools

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor
from tinydiff.ops.windows import Window, by_group, fold, joined, unfold


def pair(value):
    return (value, value) if isinstance(value, int) else value


CASES = [  # images, window, stride, padding, dilation
    ((2, 5, 7, 3), (3, 3), 1, 1, 1),
    ((1, 4, 5, 2), (2, 3), (2, 1), 0, 1),
    ((2, 6, 4, 1), (3, 2), 2, ((0, 1), (2, 0)), (2, 1)),
    ((1, 1, 1, 4), (1, 1), 1, 0, 1),
    ((1, 1, 1, 1), (3, 3), 1, 1, 1),
    ((2, 7, 5, 2), (1, 4), (3, 1), (2, 1), (1, 1)),
    ((1, 5, 5, 2), (2, 2), 3, 3, 2),
    ((0, 4, 4, 2), (3, 3), 1, 1, 1),
]


def patches_loop(x, size, stride, padding, dilation):
    (R, S), (sh, sw), (dh, dw) = size, pair(stride), pair(dilation)
    (top, bottom), (left, right) = (pair(p) for p in pair(padding))
    N, H, W, C = x.shape
    Ho = (H + top + bottom - dh * (R - 1) - 1) // sh + 1
    Wo = (W + left + right - dw * (S - 1) - 1) // sw + 1
    P = np.zeros((N, Ho, Wo, R, S, C), x.dtype)
    for i, j, r, s in itertools.product(range(Ho), range(Wo), range(R), range(S)):
        row, column = i * sh + r * dh - top, j * sw + s * dw - left
        if 0 <= row < H and 0 <= column < W:
            P[:, i, j, r, s] = x[:, row, column]
    return P


@pytest.mark.parametrize(("shape", "size", "stride", "padding", "dilation"), CASES, ids=str)
def test_patches(shape, size, stride, padding, dilation, rng, verify):
    """One row for each output pixel, one column for each weight of a filter (N Ho Wo, R S C)."""
    x = rng.normal(size=shape)
    P = patches_loop(x, size, stride, padding, dilation)
    rows = P.reshape(np.prod(P.shape[:3]), np.prod(P.shape[3:]))
    verify(lambda a: ops.patches(a, size, stride, padding, dilation), x, expected=rows)
    window = Window.read("test", size, stride, padding, dilation)
    assert window.output_size(x.shape) == P.shape[1:3]
    np.testing.assert_array_equal(unfold(x, window), P)
    assert unfold(x, window).flags.c_contiguous and not np.shares_memory(unfold(x, window), x)


@pytest.mark.parametrize(("shape", "size", "stride", "padding", "dilation"), CASES, ids=str)
def test_unpatches_is_the_adjoint(shape, size, stride, padding, dilation, rng, verify):
    x = rng.normal(size=shape)
    P = patches_loop(x, size, stride, padding, dilation)
    L_P = rng.normal(size=P.shape)
    rows = L_P.reshape(np.prod(P.shape[:3]), np.prod(P.shape[3:]))
    back = ops.unpatches(rows, shape, size, stride, padding, dilation)
    assert back.shape == shape
    np.testing.assert_allclose((P * L_P).sum(), (x * back.data).sum(), atol=1e-11)
    np.testing.assert_array_equal(fold(L_P, shape, Window.read("test", size, stride, padding, dilation)), back.data)
    verify(lambda p: ops.unpatches(p, shape, size, stride, padding, dilation), rows)


def test_unpatches_counts_how_often_a_pixel_was_read():
    counts = ops.unpatches(np.ones((9, 4)), (1, 4, 4, 1), 2)
    assert counts.data[0, :, :, 0].tolist() == [[1, 2, 2, 1], [2, 4, 4, 2], [2, 4, 4, 2], [1, 2, 2, 1]]


def test_outside_of_the_image_stands_the_given_value():
    window = Window.read("test", 3, 1, 1, 1)
    P = unfold(np.ones((1, 1, 1, 1)), window, fill=-7.0)
    assert P.ravel().tolist() == [-7] * 4 + [1] + [-7] * 4


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize(
    "shape", [(2, 4, 3, 6), (2, 3, 1, 3, 2, 6), (3, 3, 2, 12), (0, 2, 2, 6), (2, 1, 1, 0)], ids=str
)
def test_matrices_of_groups(shape, groups, rng):
    """Row (i, j, k) of group g has its channels alone; `joined` is the inverse."""
    A = rng.normal(size=shape)
    matrices, c = by_group(A, groups), shape[-1] // groups
    assert len(matrices) == groups
    for g in range(groups):
        expected = A[..., g * c : (g + 1) * c]
        np.testing.assert_array_equal(matrices[g], expected.reshape(np.prod(shape[:3]), np.prod(expected.shape[3:])))
    np.testing.assert_array_equal(joined(matrices, shape), A)


def test_patches_name_what_does_not_fit():
    x = Tensor(np.ones((1, 4, 5, 2)))
    with pytest.raises(ValueError, match=r"patches.*\(4, 5, 2\)"):
        ops.patches(np.ones((4, 5, 2)), 3)
    with pytest.raises(ValueError, match=r"patches.*5x5.*\(1, 4, 5, 2\)"):
        ops.patches(x, 5)
    for arguments in (
        (0,), (3, 0), (3, 1, -1), (3, 1, 0, 0), ((1, 2, 3),), (3, 1, (1, 2, 3)), (3, 1, ((1, 0), (0, -1))),
        (1.5,), ("3",), (3, 1.5), (3, 1, 0.5), (3, 1, ((1, 1), 1)),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match="patches"):
            ops.patches(x, *arguments)


def test_unpatches_name_what_does_not_fit():
    P = np.ones((9, 4))
    image = (1, 4, 4, 1)
    for rows, shape in ((P[:8], image), (P[:, :3], image), (P, (1, 5, 4, 1)), (P, (2, 4, 4, 1)), (P, (4, 4, 1))):
        with pytest.raises(ValueError, match=rf"unpatches.*\({shape[0]}"):
            ops.unpatches(rows, shape, 2)
    with pytest.raises((ValueError, TypeError), match=r"unpatches.*stride"):
        ops.unpatches(P, (1, 4, 4, 1), 2, 0)


@pytest.mark.parametrize("dtype", [">f8", ">f4", ">i4", ">c16"])
def test_numbers_of_the_other_byte_order(dtype, rng):
    x = rng.integers(-9, 9, (2, 6, 5, 3))
    for padding in (0, 1):
        window = Window.read("test", 3, 1, padding, 1)
        np.testing.assert_array_equal(unfold(x.astype(dtype), window), unfold(x.astype(float), window))
