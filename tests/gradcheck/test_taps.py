"""tinydiff/gradcheck/taps.py: other code for a while."""

import ast

import numpy as np
import pytest

from tinydiff.gradcheck.source import source_of
from tinydiff.gradcheck.taps import compiled, exchanged, functions_run, tapped

SHIFT = 2.0


def helper(x):
    y = x * SHIFT
    y += 1
    return y


def test_each_assignment_passes_through_the_tap_and_may_change():
    seen = []

    def tap(name, line, value):
        seen.append((name, line - helper.__code__.co_firstlineno, value))
        return value * 10 if len(seen) == 1 else value

    code = helper.__code__
    with exchanged({helper: tapped(helper, source_of(helper).node)}, tap):
        assert helper(3.0) == 61.0
    assert seen == [("y", 1, 6.0), ("y", 2, 61.0)]
    assert helper.__code__ is code and helper(3.0) == 7.0


def test_the_code_is_put_back_after_an_exception():
    code = helper.__code__
    with pytest.raises(TypeError), exchanged({helper: tapped(helper, source_of(helper).node)}, lambda n, at, v: v):
        helper(None)
    assert helper.__code__ is code and "__tinydiff_tap__" not in helper.__globals__


def test_closures_keep_their_cells():
    factor = 3

    def scaled(x, *, by=2):
        return x * factor * by

    node = source_of(scaled).node
    node.body[0].value = ast.parse("x + factor + by", mode="eval").body
    with exchanged({scaled: compiled(scaled, ast.fix_missing_locations(node))}):
        assert scaled(1) == 6
    assert scaled(1) == 6 * 1 and scaled(2) == 12


def test_the_users_functions_alone_are_listed():
    assert functions_run(lambda: np.mean(helper(np.ones(2))))[-1:] == [helper]
