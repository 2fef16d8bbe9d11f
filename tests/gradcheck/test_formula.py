"""tinydiff/gradcheck/formula.py: the line that computes a gradient."""

import inspect

import numpy as np

import tinydiff as td
from tinydiff import ops
from tinydiff.gradcheck.formula import formula_in, formula_of, recorded
from tinydiff.ops.arithmetic import Multiply
from tinydiff.ops.fully_connected import Linear


class Mixed(td.Function):
    def forward(self, A, B, C, D):
        return A + B + C + D

    def backward(self, L):
        L_A = L * 1
        L_A += 0
        L_D = None
        if self.needs[3]:
            L_D = self.last(L)
        return L_A, -L, self.third(L), L_D

    def third(self, L):
        return L * 3

    def last(self, L):
        return L * 4


def line(text):
    """Where a text stands first in this file."""
    return 1 + [text in x for x in inspect.getsource(inspect.getmodule(Mixed)).splitlines()].index(True)


def test_names_expressions_and_methods_are_followed():
    found = [formula_of(Mixed, i) for i in range(4)]
    assert [f.text for f in found] == ["L_A += 0", "-L", "L * 3", "L_D = self.last(L)"]
    assert [f.line for f in found] == [line("L_A += 0"), line("return L_A"), line("return L * 3"), line("L_D = self.l")]
    assert all(f.op == "Mixed" and f.file.endswith("test_formula.py") for f in found)


def test_operations_of_the_house():
    assert formula_of(Linear, 0).text.startswith("L_X = ")
    assert formula_of(Multiply, 1).text == "L_Y * A"


def test_functions_written_by_hand():
    def backward(L, cache):
        x, w = cache
        dw = x.T @ L
        return L @ w.T, dw

    assert formula_in(backward, 0).text == "L @ w.T"
    assert formula_in(backward, 1).text == "dw = x.T @ L"
    assert formula_in(lambda L, x: (L * x, L), 0).text == "L * x"
    assert formula_in(len, 0) is None


def test_calls_are_recorded_only_inside():
    x = td.Tensor([1.0, 2.0], requires_grad=True)
    calls = []
    with recorded(calls):
        y = ops.exp(x) * 2
    y.sum()
    assert [c.function.__name__ for c in calls] == ["Exp", "Multiply"]
    assert calls[0].inputs[0] is x.data


def test_what_is_written_into_an_array():
    def backward(g, x, i):
        d = np.zeros_like(x)
        np.add.at(d, i, g)
        return d

    def by_index(g, x, d):
        out = np.zeros_like(x)
        out[d] = g
        return out

    assert formula_in(backward, 0).text == "np.add.at(d, i, g)"
    assert formula_in(by_index, 0).text == "out[d] = g"
