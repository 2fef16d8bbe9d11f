"""tinydiff/gradcheck/kinks.py: what is asked where there is no derivative."""

import numpy as np
import pytest

import tinydiff as td
from tinydiff import ops
from tinydiff.gradcheck import GradientError, gradcheck


def test_the_check_moves_away_from_a_kink_and_says_so():
    report = gradcheck(ops.relu, [np.array([[-1.0, 0.0, 1.0], [0.0, 0.0, 2.0]])])
    assert any("no slope at the given inputs" in note for note in report.notes)
    assert not gradcheck(ops.relu, [np.array([[-1.0, 1.0]])]).notes


@pytest.mark.parametrize("at_zero", [0.0, 0.5, 1.0])
def test_any_slope_between_those_on_both_sides_will_do(at_zero):
    class Relu(td.Function):
        def forward(self, X):
            self.save(X)
            return np.maximum(X, 0)

        def backward(self, L):
            (X,) = self.saved
            return L * np.where(X == 0, at_zero, X > 0)

    assert gradcheck(Relu, [np.array([-1.0, 0.0, 1.0])]).ok


@pytest.mark.parametrize("at_zero", [-1.0, 2.0])
def test_a_slope_beyond_both_is_wrong(at_zero):
    def backward(L, x):
        return L * np.where(x == 0, at_zero, x > 0)

    with pytest.raises(GradientError) as caught:
        gradcheck(lambda x: np.maximum(x, 0), [np.array([-1.0, 0.0, 1.0])], backward=backward)
    assert caught.value.report.diagnosis == "kink"


def test_of_several_operations_it_is_only_noted():
    """relu(x) - relu(-x) / 2 has slopes 1 and 1/2 at 0; by the rules for its parts its gradient there is 0."""
    report = gradcheck(lambda x: ops.relu(x) - ops.relu(-x) * 0.5, [np.array([-1.0, 0.0, 1.0])])
    assert any("at a kink" in note for note in report.notes)


def test_nan_is_never_right():
    def backward(L, x):
        with np.errstate(all="ignore"):
            return L * x / np.abs(x)

    with pytest.raises(GradientError) as caught:
        gradcheck(np.abs, [np.array([-1.0, 0.0, 1.0])], backward=backward)
    assert caught.value.report.diagnosis == "not-finite"


def test_a_jump_has_no_slope_anywhere_near():
    with pytest.raises(GradientError) as caught:
        gradcheck(lambda x: np.floor(1e6 * x) * 1e-3, [np.linspace(0.1, 1, 7)], backward=lambda L, x: 0 * L)
    assert caught.value.report.diagnosis in ("not-differentiable", "zero")
