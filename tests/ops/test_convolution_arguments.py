"""What conv2d and conv_transpose2d say of arguments that do not fit."""

import numpy as np
import pytest

from tests.ops.test_convolution import leaf
from tinydiff import ops


def shapes_in(*shapes):
    return ".*".join(str(shape).replace("(", r"\(").replace(")", r"\)") for shape in shapes)


@pytest.mark.parametrize("function", [ops.conv2d, ops.conv_transpose2d])
@pytest.mark.parametrize(
    ("x", "w", "groups"),
    [
        ((4, 4, 3), (3, 3, 3, 3), 1),  # no batch
        ((1, 4, 4, 3), (3, 3, 3), 1),
        ((1, 4, 4, 2), (3, 3, 3, 3), 1),  # channels
        ((1, 4, 4, 3), (3, 3, 3, 4), 2),  # the filters are those of one group
        ((1, 4, 4, 3), (3, 3, 1, 3), 2),  # 3 channels in 2 groups
    ],
    ids=str,
)
def test_shapes_that_do_not_fit_are_named(function, x, w, groups):
    with pytest.raises(ValueError, match=rf"{function.__name__}.*({shapes_in(x)}|{shapes_in(w)})"):
        function(leaf(np.ones(x)), leaf(np.ones(w)), groups=groups)


def test_channels_that_do_not_fit_name_both_shapes():
    for function in (ops.conv2d, ops.conv_transpose2d):
        with pytest.raises(ValueError, match=rf"{function.__name__}.*{shapes_in((1, 4, 4, 5), (3, 3, 2, 7))}"):
            function(leaf(np.ones((1, 4, 4, 5))), leaf(np.ones((3, 3, 2, 7))))


@pytest.mark.parametrize("function", [ops.conv2d, ops.conv_transpose2d])
@pytest.mark.parametrize("b", [(2,), (1,), (3, 1), (1, 3), ()], ids=str)
def test_biases_that_do_not_fit_are_named(function, b):
    with pytest.raises(ValueError, match=rf"{function.__name__}.*{shapes_in(b)}"):
        function(leaf(np.ones((1, 4, 4, 3))), leaf(np.ones((2, 2, 3, 3))), leaf(np.ones(b)))


def test_a_filter_larger_than_the_image_is_an_error():
    with pytest.raises(ValueError, match=r"conv2d.*5x5.*\(1, 4, 4, 3\)"):
        ops.conv2d(leaf(np.ones((1, 4, 4, 3))), leaf(np.ones((5, 5, 3, 2))))
    with pytest.raises(ValueError, match=r"conv2d.*\(1, 4, 4, 3\)"):
        ops.conv2d(leaf(np.ones((1, 4, 4, 3))), leaf(np.ones((3, 3, 3, 2))), dilation=2)
    with pytest.raises(ValueError, match="conv_transpose2d"):
        ops.conv_transpose2d(leaf(np.ones((1, 1, 1, 2))), leaf(np.ones((3, 3, 3, 2))), padding=2)


@pytest.mark.parametrize("function", [ops.conv2d, ops.conv_transpose2d])
@pytest.mark.parametrize(
    "options",
    [
        {"stride": 0}, {"stride": (1, 0)}, {"stride": -1}, {"stride": 1.5}, {"stride": (1, 1, 1)}, {"padding": -1},
        {"padding": (0, -1)}, {"padding": ((0, 0), (0, -1))}, {"padding": ((0, 0),)}, {"padding": 0.5},
        {"padding": "same"}, {"dilation": 0}, {"dilation": (0, 1)}, {"groups": 0}, {"groups": -1}, {"groups": 5},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_options_are_named(function, options):
    with pytest.raises((ValueError, TypeError), match=rf"{function.__name__}.*{next(iter(options))}"):
        function(leaf(np.ones((1, 4, 4, 4))), leaf(np.ones((2, 2, 4, 4))), **options)


@pytest.mark.parametrize("output_padding", [-1, 2, (0, 3), 1.5], ids=str)
def test_impossible_output_paddings_are_named(output_padding):
    with pytest.raises((ValueError, TypeError), match=r"conv_transpose2d.*output_padding"):
        ops.conv_transpose2d(np.ones((1, 4, 4, 4)), np.ones((2, 2, 4, 4)), stride=2, output_padding=output_padding)
