"""Every public operation takes tensors, arrays and nested lists alike, and returns tensors."""

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor
from tinydiff.random import Generator

VECTOR, MATRIX, IMAGE = [0.5, 2.0], [[1.0, 2.0], [3.0, 5.0]], [[[[1.0, 2.0], [3.0, 5.0]], [[4.0, 8.0], [7.0, 6.0]]]]
UNARY = (
    "negative abs exp log sqrt sin cos erf relu silu sigmoid tanh gelu softplus softmax log_softmax logsumexp sum mean "
)
UNARY += "var max min transpose squeeze layer_norm"
BINARY = "add subtract multiply divide power maximum minimum matmul linear mse_loss"

CALLS = {name: (getattr(ops, name), [MATRIX]) for name in UNARY.split()}
CALLS |= {name: (getattr(ops, name), [MATRIX, MATRIX]) for name in BINARY.split()}
CALLS |= {
    "where": (lambda a, b: ops.where([True, False], a, b), [VECTOR, VECTOR]),
    "clip": (lambda a: ops.clip(a, 1.0, 2.0), [MATRIX]),
    "reshape": (lambda a: ops.reshape(a, 4), [MATRIX]),
    "expand_dims": (lambda a: ops.expand_dims(a, 0), [MATRIX]),
    "broadcast_to": (lambda a: ops.broadcast_to(a, (3, 2)), [VECTOR]),
    "concatenate": (lambda a, b: ops.concatenate([a, b]), [MATRIX, MATRIX]),
    "stack": (lambda a, b: ops.stack([a, b]), [MATRIX, MATRIX]),
    "split": (lambda a: ops.split(a, 2)[1], [MATRIX]),
    "getitem": (lambda a: ops.getitem(a, 0), [MATRIX]),
    "pad": (lambda a: ops.pad(a, 1), [MATRIX]),
    "einsum": (lambda a, b: ops.einsum("ij,jk", a, b), [MATRIX, MATRIX]),
    "attention": (ops.attention, [MATRIX, MATRIX, MATRIX]),
    "group_norm": (lambda x, w, b: ops.group_norm(x, 2, w, b), [IMAGE, VECTOR, VECTOR]),
    "layer_norm with weights": (ops.layer_norm, [MATRIX, VECTOR, VECTOR]),
    "linear with bias": (ops.linear, [MATRIX, MATRIX, VECTOR]),
    "conv2d": (ops.conv2d, [IMAGE, IMAGE, VECTOR]),
    "conv_transpose2d": (ops.conv_transpose2d, [IMAGE, IMAGE, VECTOR]),
    "patches": (lambda x: ops.patches(x, 2), [IMAGE]),
    "unpatches": (lambda p: ops.unpatches(p, (1, 2, 2, 1), 1), [[[1.0], [2.0], [3.0], [4.0]]]),
    "avg_pool2d": (lambda x: ops.avg_pool2d(x, 2), [IMAGE]),
    "max_pool2d": (lambda x: ops.max_pool2d(x, 2), [IMAGE]),
    "upsample_nearest2d": (ops.upsample_nearest2d, [IMAGE]),
    "embedding": (lambda w: ops.embedding([0, 1, 1], w), [MATRIX]),
    "cross_entropy": (lambda x: ops.cross_entropy(x, [0, 1]), [MATRIX]),
    "dropout": (lambda x: ops.dropout(x, 0.5, Generator(0)), [MATRIX]),
}


def test_every_public_operation_is_here():
    assert set(ops.__all__) == {name.partition(" ")[0] for name in CALLS}


@pytest.mark.parametrize("name", CALLS)
def test_lists_arrays_and_tensors_give_the_same(name):
    function, lists = CALLS[name]
    arrays = [np.array(a, np.float32) for a in lists]
    leaves = [Tensor(a, requires_grad=True) for a in arrays]
    results = [function(*given) for given in (lists, arrays, leaves)]
    for y in results:
        assert type(y) is Tensor
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y.data, results[0].data)
    assert [y.requires_grad for y in results] == [False, False, True]
