"""tinydiff/gradcheck/shares.py: through which expressions of forward a gradient is missing, or comes twice."""

import ast

import numpy as np
import pytest

from tinydiff.gradcheck import GradientError, gradcheck
from tinydiff.gradcheck.shares import places

X, A, B = (np.random.default_rng(7).normal(size=s) for s in ((4, 3), (3, 3), (3, 3)))


def forward(x, a, b):
    first = np.tanh(x @ a)
    return first * np.sin(x @ b) + x**2


def backward(parts):
    """The gradient of x with its three shares times numbers."""

    def run(g, x, a, b):
        s, t = np.sin(x @ b), np.tanh(x @ a)
        through_a, through_b = g * s * (1 - t**2), g * t * np.cos(x @ b)
        dx = parts[0] * through_a @ a.T + parts[1] * through_b @ b.T + parts[2] * 2 * g * x
        return dx, x.T @ through_a, x.T @ through_b

    return run


@pytest.mark.parametrize(
    "parts, code, text",
    [
        ((0, 1, 1), "missing", "through x @ a (line 15) in forward is missing"),
        ((1, 2, 1), "twice", "through x @ b (line 16) in forward is counted twice"),
        ((1, 1, -1), "sign", "through x ** 2 (line 16) in forward has the wrong sign"),
        ((1, 0, 0), "missing", "through x @ b (line 16) and x ** 2 (line 16) in forward is missing"),
    ],
)
def test_the_share_is_named(parts, code, text):
    with pytest.raises(GradientError) as caught:
        gradcheck(forward, [X, A, B], backward=backward(parts))
    (diagnosis,) = caught.value.report.findings[0].diagnoses
    assert diagnosis.code == code and text in diagnosis.text


def test_places():
    node = ast.parse("def f(x):\n    y = x.shape[0] * x\n    return g(x @ w) + y").body[0]
    assert [(p.text, p.line) for p in places(node, "x")] == [("x", 2), ("x @ w", 3)]
    assert places(ast.parse("def f(x):\n    x = x + 1\n    return x").body[0], "x") == []
