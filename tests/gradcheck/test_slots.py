"""tinydiff/gradcheck/slots.py: parameters that an object keeps, and where their gradients are."""

import numpy as np
import pytest

from tinydiff.errors import InputError
from tinydiff.gradcheck.slots import find_slots, kept, unnamed_gradients


class Layer:
    def __init__(self):
        self.W, self.b, self.n = np.ones((2, 3)), np.ones(3), 3
        self.dW = self.grads = None


def test_a_gradient_is_found_where_it_is_stored():
    layer = Layer()
    W, b = find_slots(["W", "b"], [layer])
    layer.dW, layer.grads = "stored", {"db": "in a dict"}
    assert (W.read(), b.read()) == ("stored", "in a dict")
    layer.gW = "elsewhere"
    assert find_slots({"W": "gW"}, [layer])[0].read() == "elsewhere"
    with pytest.raises(InputError, match="'V', which no layer has"):
        find_slots(["V"], [layer])
    with pytest.raises(InputError, match="'n' is not a floating point array"):
        find_slots("n", [layer])


def test_a_layer_is_left_as_it_was():
    layer = Layer()
    array = layer.W
    with kept([layer], find_slots(["W"], [layer])) as _:
        layer.W[:] = 7
        layer.new, layer.dW = 1, np.ones((2, 3))
        assert unnamed_gradients(layer, [], {"W": array, "dW": None}) == ["W"]
    assert layer.W is array and (array == 1).all() and layer.dW is None and not hasattr(layer, "new")
