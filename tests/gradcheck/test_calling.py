"""tinydiff/gradcheck/calling.py: what a backward pass written by hand is given, by the number and names of its parameters."""

import functools

import pytest

from tinydiff.errors import InputError
from tinydiff.gradcheck.calling import plan


def given(backward, fn=lambda x: x, outputs=1, cache=False, is_number=False):
    inputs = fn.__code__.co_argcount
    return "".join(
        kind + (str(i) if kind in "gx" else "") + " "
        for kind, i in plan(backward, fn, outputs, inputs, cache, is_number).parts
    ).strip()


@pytest.mark.parametrize(
    "backward, outputs, expected",
    [
        (lambda dout, x, w: 0, 1, "g0 x0 x1"),
        (lambda a, b, x, w: 0, 2, "g0 g1 x0 x1"),
        (lambda d, x, w: 0, 2, "gs x0 x1"),  # one tuple of gradients
        (lambda d: 0, 2, "gs"),
        (lambda d: 0, 1, "g0"),  # an object that remembers
        (lambda dout=1.0: 0, 1, "g0"),
        (lambda x, w, dout: 0, 1, "x0 x1 g0"),
        (lambda d, *rest: 0, 1, "g0 x0 x1"),
        (functools.partial(lambda scale, dout, x, w: 0, 2.0), 1, "g0 x0 x1"),
    ],
)
def test_gradients_and_inputs(backward, outputs, expected):
    assert given(backward, lambda x, w: x, outputs) == expected


@pytest.mark.parametrize(
    "backward, expected",
    [(lambda dy, y: 0, "g0 y"), (lambda x, y, dy: 0, "x0 y g0"), (lambda x, dy: 0, "x0 g0"), (lambda g, x: 0, "g0 x0")],
)
def test_outputs_by_name(backward, expected):
    assert given(backward) == expected


def test_caches():
    assert given(lambda d, cache: 0, cache=True) == "g0 c"
    assert given(lambda res, g: 0, cache=True) == "c g0" == given(lambda r, ct: 0, cache=True)
    assert given(lambda dh, dc, cache: 0, outputs=2, cache=True) == "g0 g1 c"
    assert given(lambda d, cache: 0, outputs=2, cache=True) == "gs c"
    assert plan(lambda store, d: 0, lambda x: x, 1, 1, True, False).unsure


def test_gradients_of_losses():
    assert given(lambda: 0, is_number=True) == ""
    assert given(lambda x: 0, is_number=True) == given(lambda theta: 0, is_number=True) == "x0"
    assert given(lambda dout: 0, is_number=True) == "g0"
    assert plan(lambda: 0, lambda x: x, 1, 1, False, True).scaled


def test_a_backward_that_takes_something_else():
    with pytest.raises(InputError, match=r"backward takes \(a, b, c, d\), and it is to get 1 gradient and 1 input"):
        given(lambda a, b, c, d: 0)
