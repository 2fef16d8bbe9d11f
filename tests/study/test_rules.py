"""The rule of a backward pass: the lines that are lit, formulas, equation numbers, shapes."""

import inspect

import numpy as np
import pytest

import tinydiff as td
from tinydiff.ops import activation, arithmetic, attending, convolution, fully_connected, normalization, softmaxes
from tinydiff.study.recorder import input_names
from tinydiff.study.rules import rule_of, shapes_of


class Own(td.Function):
    def forward(self, X, W, b):
        self.save(X, W)
        return X @ W + b

    def backward(self, L_Y):
        X, W = self.saved
        L_b = L_Y.sum(0)
        return L_Y @ W.T, X.T @ L_Y, L_b  # L_X = L_Y W^T


def rule(function, count):
    names = tuple(input_names(function, count))
    return rule_of(function, names, frozenset(names) - {"mask"})


def lit(found, i):
    """The texts of the lit lines of a gradient."""
    numbered = [dict(block.lines) for block in found.blocks]
    return [numbered[block][line].strip() for block, line in found.gradients[i].lit]


@pytest.mark.parametrize(
    "function, count, formulas",
    [
        (fully_connected.Linear, 3, {"L_X": "L_Y Wᵀ", "L_W": "Xᵀ L_Y", "L_b": "1ᵀ L_Y"}),
        (convolution.Conv2d, 3, {"L_X": "patchesᵀ(L_Y Wᵀ)", "L_W": "Pᵀ L_Y", "L_b": "1ᵀ L_Y"}),
        (convolution.ConvTranspose2d, 2, {"L_X": "patches(L_Y) W", "L_W": "patches(L_Y)ᵀ X"}),
        (normalization.GroupNorm, 3, {"L_X": "(L_Z - mean(L_Z) - Z * mean(L_Z * Z)) / s", "L_w": "sum(L_Y * Z)"}),
        (attending.Attention, 3, {"L_Q": "scale L_S K", "L_K": "scale L_Sᵀ Q", "L_V": "Pᵀ L_Y"}),
        (arithmetic.Multiply, 2, {"L_A": "L_Y * B", "L_B": "L_Y * A"}),
        (activation.Silu, 1, {"L_A": "L_Y * (S + A * S * (1 - S))"}),
        (softmaxes.Softmax, 1, {"L_X": "Y * (L_Y - sum(L_Y * Y))"}),
        (Own, 3, {"L_X": "L_Y Wᵀ", "L_W": "Xᵀ L_Y", "L_b": "L_Y.sum(0)"}),
    ],
)
def test_formulas_come_from_the_source(function, count, formulas):
    found = {g.name: g.formula for g in rule(function, count).gradients}
    assert {name: found[name] for name in formulas} == formulas


def test_the_lit_lines_make_the_gradient():
    linear = rule(fully_connected.Linear, 3)
    assert [block.title for block in linear.blocks] == [
        "Linear.backward", "linear_input_gradient", "linear_weight_gradient", "sum_rows",
    ]  # fmt: skip
    assert lit(linear, 1) == ["L_W = linear_weight_gradient(x, l_y)  # (4.1.11)", "return X.T @ L_Y"]
    assert [g.equation for g in linear.gradients] == ["(4.1.8)", "(4.1.11)", "(4.1.14)"]
    norm = rule(normalization.GroupNorm, 3)
    assert lit(norm, 0)[1] == "L_X = (L_Z - _mean(L_Z) - G * _mean(L_Z * G)) * scale"
    assert lit(rule(Own, 3), 2) == ["L_b = L_Y.sum(0)"]
    _, start = inspect.getsourcelines(Own.backward)
    assert rule(Own, 3).blocks[0].lines[0] == (start, "def backward(self, L_Y):")


def test_letters_are_explained_by_the_head_of_the_file():
    def letters(function, *given):
        names = tuple(input_names(function, 3))
        return rule_of(function, names, frozenset(given)).gradients[0].letters

    assert letters(attending.Attention) == {
        "L_S": "P * (L_P - d)", "P": "softmax(S)", "L_P": "L_Y Vᵀ", "d": "sum(P * L_P)", "S": "scale Q Kᵀ",
    }  # fmt: skip
    assert letters(attending.Attention, "mask")["S"] == "scale Q Kᵀ + mask"
    assert letters(fully_connected.Linear) == {}
    plain, weighted = letters(normalization.GroupNorm), letters(normalization.GroupNorm, "w")
    assert "L_Z" not in plain and weighted["L_Z"] == "L_Y * w" and weighted["Z"] == "(X - u) / s"
    silu = letters(normalization.GroupNorm, "w", "silu")
    assert silu["L_Z"] == "L_A * w" and silu["L_A"] == "L_Y * (S + A * S * (1 - S))" and silu["S"] == "sigmoid(A)"


def test_attention_with_a_mask_has_the_other_lines():
    names = tuple(input_names(attending.Attention, 4))
    simple, masked = (rule_of(attending.Attention, names, frozenset(given)) for given in ((), ("mask",)))
    assert "attend_backward" in lit(simple, 2)[0] and lit(masked, 2)[0].startswith("L_V = unbroadcast")


def test_every_operation_of_the_package_has_a_rule():
    from tinydiff.autograd.function import Function

    def below(cls):
        return [cls, *(c for sub in cls.__subclasses__() for c in below(sub))]

    checked = 0
    for function in below(Function):
        if function.__module__.startswith("tinydiff.ops.") and "forward" in vars(function):
            found = rule(function, len(inspect.signature(function.forward).parameters) - 1)
            assert found.blocks and found.gradients[0].lit, function
            checked += 1
    assert checked > 40


def test_shapes_of_products():
    known = {"X": (4, 3), "L_Y": (4, 5), "W": (3, 5)}
    assert shapes_of("Xᵀ L_Y", (3, 5), known, True) == "(3, 5) = (3, 4) (4, 5)"
    assert shapes_of("L_Y Wᵀ", (4, 3), known, True) == "(4, 3) = (4, 5) (5, 3)"
    assert shapes_of("1ᵀ L_Y", (5,), known, True) == "(1, 5) = (1, 4) (4, 5)"
    assert shapes_of("Aᵀ B", (2, 3, 5), {"A": (2, 4, 3), "B": (2, 4, 5)}, False) == "(2, 3, 5) = (2, 3, 4) (2, 4, 5)"
    rows = {"X": (2, 7, 3), "L_Y": (2, 7, 5)}
    assert shapes_of("Xᵀ L_Y", (3, 5), rows, True) == "(3, 5) = (3, 14) (14, 5)"
    for formula in ("L_Y * B", "sum(L_Y Z)", "", "Xᵀ Q"):
        assert shapes_of(formula, (), known, True) == ""


def test_a_function_without_source_has_gradients_without_lines():
    scope = {"td": td}
    exec("class Hidden(td.Function):\n def forward(self, X): return X\n def backward(self, L_Y): return L_Y", scope)
    found = rule(scope["Hidden"], 1)
    assert not found.blocks and [g.name for g in found.gradients] == ["L_X"]
    with td.trace() as trace:
        scope["Hidden"].apply(td.Tensor(np.ones(2), requires_grad=True)).sum().backward()
    assert trace.operations[0].L_Xs[0].values.tolist() == [1, 1]
