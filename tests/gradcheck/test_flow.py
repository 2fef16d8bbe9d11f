"""tinydiff/gradcheck/flow.py: which line must be wrong because all that it reads is right."""

import ast

import pytest

from tinydiff.gradcheck.flow import Flow, lines_of_loss, suspects

BODY = """def backward(g, x, w):
    da = g * x
    dx = da @ w
    dw = da.sum(0)
    return dx, dw
"""


@pytest.mark.parametrize(
    "wrong, right, lines",
    [([0], [], [3]), ([1], [], [4]), ([0, 1], [], [2]), ([0], ["da"], [3]), ([], [], None)],
)
def test_what_a_right_gradient_was_computed_from_is_right(wrong, right, lines):
    flow = Flow(ast.parse(BODY).body[0], ["g"], [])
    assert suspects(flow, 2, wrong, right) == lines


def test_nothing_is_said_of_helpers_and_of_variables_with_two_writers():
    helped = BODY.replace("da @ w", "helper(da, w)")
    assert suspects(Flow(ast.parse(helped).body[0], ["g"], ["helper"]), 2, [0], []) is None
    twice = BODY.replace("    dw =", "    dx = dx + 1\n    dw =")
    assert suspects(Flow(ast.parse(twice).body[0], ["g"], []), 2, [0], []) is None


def test_what_a_loss_depends_on():
    body = "def f(x):\n    y = x * 2\n    z, w = y, 3\n    d = y + 1\n    z += d[0] * 0\n    g = d\n    return z.sum(), g\n"
    assert lines_of_loss(ast.parse(body).body[0]) == {2, 3, 4, 5}
    assert lines_of_loss(ast.parse(body.replace("    z += d[0] * 0\n", "    g = d\n")).body[0]) == {2, 3}
