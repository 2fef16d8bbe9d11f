"""tinydiff/gradcheck/reindex.py: changes of windows, axes and terms."""

import ast

import pytest

from tinydiff.gradcheck.reindex import constants, idle, relatives, windows
from tinydiff.gradcheck.repairs import repairs

FORWARD = ast.parse("def f(x):\n    out[2 * i : 2 * i + k] += x[i]\n    return out").body[0]


def changed(line, names=(), loop=""):
    """{statement: code} of all changes to a line of a backward pass."""
    body = f"    for {loop}:\n        {line}" if loop else f"    {line}"
    tree = ast.parse(f"def backward(d, x):\n{body}\n    return d").body[0]
    alike = lambda a, b: False  # noqa: E731
    alike.names = list(names)
    made = {}
    for repair in repairs(tree, alike, [], windows(FORWARD)):
        with repair.made():
            holder = tree.body[0].body if loop else tree.body
            made.setdefault(ast.unparse(holder[0]), repair.code)
    return made


@pytest.mark.parametrize(
    "line, mended, code",
    [
        ("a = d[i:i + k]", "a = d[2 * i:2 * i + k]", "misplaced"),  # forward's window
        ("a[i:i + k] = d", "a[2 * i:2 * i + k] = d", "misplaced"),
        ("a = d[:, 0, :, 0]", "a = d.sum((1, 3))", "broadcast"),
        ("a = d[0]", "a = d.sum(0)", "broadcast"),
        ("a = d.reshape(2, i, k).transpose(1, 0, 2)", "a = d.reshape(i, 2, k)", "axis"),
        ("a = d.reshape(i, k)", "a = d.reshape(k, i).transpose(1, 0)", "axis"),
        ("a = p * d - s", "a = p * (d - s)", "factor"),
        ("a = p * (d - s)", "a = p * d - s", "factor"),
        ("dx = dq @ Wq.T", "dx = dq @ Wq.T + dk @ Wk.T", "missing"),
        ("x, w = cache", "w, x = cache", "exchanged"),
        ("a = d[:, i, 2 * k]", "a = d[:, k, 2 * i]", "misplaced"),
        ("a[i, k] += d", "a[k, i] += d", "misplaced"),
        ("a = d.transpose(0, 1, 3, 2, 4)", "a = d.transpose(0, 1, 2, 3, 4)", "axis"),
        ("a = p + d * i", "a = d * i - p", "sign"),
        ("a = 1 + p ** 2", "a = 1 + 3 * p ** 2", "local-derivative"),
        ("a = p", "a = np.exp(p)", "local-derivative"),
    ],
)
def test_changes(line, mended, code):
    assert changed(line, ["i", "k", "dq", "dk", "Wq", "Wk"])[mended] == code


def test_strides_in_all_places_of_a_statement():
    assert "a[2 * i, 2 * j] += d[i]" not in changed("a[i, j] += d[i]", loop="i, j in grid")
    assert "a[2 * i, 2 * j] += d" in changed("a[i, j] += d", loop="i, j in grid")
    assert "a[stride * i, stride * j] += d" in changed("a[i, j] += d", ["stride"], loop="i, j in grid")


def test_terms_that_are_like_another():
    e = ast.parse("dq @ Wq.T", mode="eval").body
    found = [ast.unparse(r) for r in relatives(e, ["dq", "dk", "Wq", "Wk", "dz", "other"])]
    assert {"dk @ Wk.T", "dz @ Wq.T"} <= set(found) and not any("other" in text for text in found)


def test_what_is_computed_and_not_used():
    lines = "def f(d, T):\n    a, b = d\n    c = 0\n    e = a + 1\n    for t in range(T):\n        c = a\n    return c"
    assert idle(ast.parse(lines).body[0]) == {"e": 4, "c": 6}


def test_constants_of_forward():
    forward = ast.parse(
        "def f(x):\n    u = np.sqrt(2 / np.pi) * (x + 0.04 * x**3)\n    return 0.5 * x + np.sqrt(2 / np.pi)"
    )
    assert constants(forward) == ["np.sqrt(2 / np.pi)"]
