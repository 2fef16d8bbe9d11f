"""tinydiff/gradcheck/repairs.py: the changes that are tried."""

import ast

import pytest

from tinydiff.gradcheck.repairs import repairs


@pytest.mark.parametrize(
    "line, mended, code",
    [
        ("ds = p * dp", "ds = p * (dp - (p * dp).sum(-1, keepdims=True))", "missing"),
        ("dx = m.copy()", "dx = (m > 0) * 1.0", "mask"),
        ("d[x <= 0] = a", "d[x <= 0] *= a", "factor"),
        ("p = cache", "p = np.exp(cache)", "local-derivative"),
        ("d[i] += g", "np.add.at(d, i, g)", "overwritten"),
        ("d = g.T @ x", "d = x.T @ g", "transposed"),
        ("d = a - b", "d = a + b", "sign"),
        ("d = a - b", "d = 2.0 * a - b", "ratio"),
        ("d = a + b", "d = a + 0.5 * b", "ratio"),
        ("d = g * h[t]", "d = g * h[t - 1]", "shifted"),
        ("d = np.maximum(g, 0) @ x", "d = g @ x", "missing"),
        ("d[:, y] -= 1", "d[np.arange(len(y)), y] -= 1", "misplaced"),
    ],
)
def test_changes_are_made_and_undone(line, mended, code):
    tree = ast.parse(f"def backward(g, x):\n    {line}\n    return d").body[0]
    before, made = ast.unparse(tree), {}
    for repair in repairs(tree, lambda a, b: False, []):
        with repair.made():
            made.setdefault(ast.unparse(tree.body[0]), repair.code)
        assert ast.unparse(tree) == before
    assert made[mended] == code
