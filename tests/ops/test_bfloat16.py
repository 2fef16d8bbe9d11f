"""Operations on bfloat16, the dtype of ml_dtypes: sums are float32, and results and gradients are rounded once."""

import numpy as np
import pytest

import tinydiff as td
from tinydiff import ops

bfloat16 = pytest.importorskip("ml_dtypes", reason="gives NumPy bfloat16").bfloat16

CASES = {
    "mean": (ops.mean, (1000,)),
    "sum": (lambda x: ops.sum(x, 0), (300, 4)),
    "var": (lambda x: ops.var(x, 1), (4, 90)),
    "softmax": (ops.softmax, (4, 50)),
    "logsumexp": (ops.logsumexp, (90,)),
    "product": (lambda a, b: a @ b, (5, 300), (300, 6)),
    "einsum": (lambda a, b: ops.einsum("ij,jk->ik", a, b), (4, 300), (300, 2)),
    "linear": (ops.linear, (5, 300), (300, 6), (6,)),
    "conv2d": (lambda x, w, b: ops.conv2d(x, w, b, padding=1), (2, 6, 6, 8), (3, 3, 8, 4), (4,)),
    "group_norm": (lambda x, w, b: ops.group_norm(x, 2, w, b), (2, 6, 6, 8), (8,), (8,)),
    "attention": (ops.attention, (2, 9, 4), (2, 9, 4), (2, 9, 4)),
    "mse_loss": (ops.mse_loss, (300, 4), (300, 4)),
    "avg_pool2d": (lambda x: ops.avg_pool2d(x, 2), (2, 4, 4, 3)),
    "broadcast": (lambda a, b: a * b, (300, 3), (3,)),
    "silu": (ops.silu, (50,)),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operation_is_that_of_float64_on_the_same_numbers(name, rng):
    function, *shapes = CASES[name]
    arrays = [rng.normal(size=shape).astype(bfloat16) for shape in shapes]
    short, long = ([td.Tensor(a.astype(d), requires_grad=True) for a in arrays] for d in (bfloat16, np.float64))
    y, expected = function(*short), function(*long)
    assert y.dtype == bfloat16
    L_Y = rng.normal(size=y.shape).astype(bfloat16)
    y.backward(L_Y)
    expected.backward(L_Y.astype(np.float64))
    pairs = [(y.data, expected.data), *((a.grad, b.grad) for a, b in zip(short, long, strict=True))]
    for ours, truth in pairs:
        assert ours.dtype == bfloat16
        assert np.abs(ours.astype(np.float64) - truth).max() <= 2**-7 * np.abs(truth).max()


def test_a_loss_of_mixed_types_is_float32(rng):
    x = td.Tensor(rng.normal(size=(4, 3)).astype(bfloat16), requires_grad=True)
    y = x * td.Tensor(rng.normal(size=(4, 3)).astype(np.float32))
    assert y.dtype == np.float32
    y.backward(np.ones((4, 3), np.float32))
    assert x.grad.dtype == bfloat16
