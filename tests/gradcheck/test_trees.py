"""tinydiff/gradcheck/trees.py: nested inputs, and gradients by name."""

import numpy as np
import pytest

from tinydiff.errors import InputError
from tinydiff.gradcheck import GradientError, gradcheck
from tinydiff.gradcheck.trees import Tree, as_array, base_of, key_of, outputs_of


def test_leaves_and_their_names():
    leaves, names = [], []
    value = {"W": [np.zeros(1), np.zeros(2)], "b": np.zeros(3)}
    tree = Tree(value, "params", leaves, names)
    assert names == ["W[0]", "W[1]", "b"] and tree.filled([1, 2, 3]) == {"W": [1, 2], "b": 3}
    found = {}
    tree.spread({"db": "third", "dW": ["first", None]}, found, [0, 1, 2])
    assert found == {2: "third", 0: "first"}
    with pytest.raises(InputError, match="no gradient for 'b': its keys are 'dW', 'c'"):
        tree.spread({"dW": [1, 2], "c": 1}, {}, [0, 1, 2])
    with pytest.raises(InputError, match="returned 1 gradients for W, which holds 2"):
        tree.spread({"dW": [1], "b": 1}, {}, [0, 1, 2])


@pytest.mark.parametrize("key", ["dW", "grad_W", "W_grad", "L_W", "dL_dW", "gW"])
def test_names_of_gradients(key):
    assert base_of(key, {"W"}.__contains__) == "W" and key_of("W", {key: 0}) == key
    assert base_of(key, {"V"}.__contains__) is None and key_of("V", {key: 0}) is None


def test_numbers_become_arrays_and_labels_stay():
    assert as_array([1.0, 2.0]).dtype == np.float64 and as_array([1, 2]) == [1, 2]


def test_a_long_list_of_numbers_is_one_output():
    many, few = [0.5] * 19 + [1], [0.5, 1.0]
    (y,), put = outputs_of(many)
    assert y.shape == (20,) and y.dtype == np.float64 and put([2 * y]) == [1.0] * 19 + [2.0]
    assert len(outputs_of(few)[0]) == 2 and len(outputs_of([1] * 20)[0]) == 20
    leaves, put = outputs_of({"losses": many, "total": 3.0})
    assert len(leaves) == 2 and put([y, 4.0]) == {"losses": many, "total": 4.0}


def test_a_list_comes_back_to_backward_as_a_list():
    def doubled(x):
        return [2 * float(v) for v in x]

    def backward(g, x):
        assert type(g) is list
        return [2 * v for v in g]

    x = np.linspace(1, 2, 40)
    assert gradcheck(doubled, [x], backward=backward).ok
    with pytest.raises(GradientError):
        gradcheck(doubled, [x], backward=lambda g, x: [v for v in g])
