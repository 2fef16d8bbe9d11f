"""tinydiff/autograd/tape.py: check_finite names the operation that made the first NaN or infinity."""

import numpy as np
import pytest

from tinydiff import nn, ops
from tinydiff.autograd.recompute import recompute
from tinydiff.autograd.tape import NonFiniteError, check_finite
from tinydiff.autograd.tensor import Tensor


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


def test_check_finite_names_the_op_of_forward():
    x = leaf([1.0, -1.0])
    with np.errstate(all="ignore"):
        y = ops.log(x)  # silent outside
        with check_finite(), pytest.raises(NonFiniteError, match="Log"):
            ops.exp(ops.log(x) * 2)
        with check_finite(), pytest.raises(NonFiniteError, match="Divide"):
            1.0 / (x - x)
    assert np.isnan(y.data[1])


def test_check_finite_names_the_op_of_backward():
    x = leaf([0.0, 1.0])
    with np.errstate(all="ignore"), check_finite():
        y = ops.sqrt(x * 2.0)  # finite, but its slope at 0 is not
        with pytest.raises(NonFiniteError, match=r"backward.*Sqrt"):
            y.sum().backward()


def test_check_finite_names_the_module_and_the_callers_line():
    class Root(nn.Module):
        def forward(self, x):
            return ops.sqrt(x)

    class Net(nn.Module):
        def __init__(self):
            self.roots = [Root(), Root()]

        def forward(self, x):
            return self.roots[1](ops.abs(x))

    net, x = Net(), leaf([-1.0, 0.0])
    with np.errstate(all="ignore"), check_finite():
        y = net(x)  # the line of the root
        with pytest.raises(
            NonFiniteError,
            match=r"^the backward pass of Sqrt, called in roots\.1 \(.*test_tape_check_finite\.py:\d+: return ops",
        ):
            y.sum().backward()
        with pytest.raises(
            NonFiniteError, match=r"^Sqrt, called in Root \(.*test_tape_check_finite\.py:\d+: return ops\.sqrt"
        ):
            net.roots[0](x)
        with pytest.raises(NonFiniteError, match=r"^Log, called in \S*test_tape_check_finite\.py:\d+: ops\.log\(x\)$"):
            ops.log(x)


def test_check_finite_is_an_arithmetic_error_and_ends_with_its_block():
    assert issubclass(NonFiniteError, ArithmeticError)
    x = Tensor(np.array([np.inf]))
    with check_finite():
        (Tensor([1.0]) * 2).sum()
        with pytest.raises(NonFiniteError):
            x * 2.0
    (x * 2.0).sum()
    with check_finite(), check_finite():
        pass
    (x * 2.0).sum()


def test_check_finite_looks_into_recomputed_blocks():
    x = leaf([0.0, 1.0])
    with np.errstate(all="ignore"), check_finite():
        y = recompute(lambda a: ops.sqrt(a) * 3.0, x)
        with pytest.raises(NonFiniteError, match="Sqrt"):
            y.sum().backward()


def test_check_finite_is_not_disturbed_by_integers():
    with check_finite():
        assert (Tensor(np.array([1, 2])) + 1).data.tolist() == [2, 3]
