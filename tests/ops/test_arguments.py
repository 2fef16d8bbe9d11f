"""Every public operation takes tensors, arrays and nested lists alike, and returns tensors."""

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor
from tinydiff.random import Generator

VECTOR, MATRIX, IMAGE = [0.5, 2.0], [[1.0, 2.0], [3.0, 5.0]], [[[[1.0, 2.0], [3.0, 5.0]], [[4.0, 8.0], [7.0, 6.0]]]]
UNARY = "negative positive abs exp log sqrt sin cos erf relu silu sigmoid tanh gelu softplus softmax log_softmax logsumexp sum "
UNARY += "mean var std norm max min transpose squeeze layer_norm"
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
    "flatten": (ops.flatten, [MATRIX]),
    "stack": (lambda a, b: ops.stack([a, b]), [MATRIX, MATRIX]),
    "split": (lambda a: ops.split(a, 2)[1], [MATRIX]),
    "getitem": (lambda a: ops.getitem(a, 0), [MATRIX]),
    "pad": (lambda a: ops.pad(a, 1), [MATRIX]),
    "einsum": (lambda a, b: ops.einsum("ij,jk", a, b), [MATRIX, MATRIX]),
    "attention": (ops.attention, [MATRIX, MATRIX, MATRIX]),
    "group_norm": (lambda x, w, b: ops.group_norm(x, 2, w, b), [IMAGE, VECTOR, VECTOR]),
    "batch_norm": (ops.batch_norm, [IMAGE, VECTOR, VECTOR]),
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


ROWS = np.array([[-2.0, 0.5, 3.0], [1.0, -1.0, 0.0]])


def test_limits_of_clip_in_all_forms(verify):
    low, high = np.array([-1.0, 0.0, 1.0]), np.array([[2.0], [0.75]])
    exact = np.minimum(np.maximum(ROWS, low), high)
    for bottom in (low, low.tolist(), Tensor(low)):
        for top in (high, high.tolist(), Tensor(high)):
            for x in (ROWS, Tensor(ROWS)):
                np.testing.assert_array_equal(ops.clip(x, bottom, top).data, exact)
                np.testing.assert_array_equal(ops.clip(x, high=top, low=bottom).data, exact)
    column = Tensor(np.zeros(2)[:, None], requires_grad=True)
    ops.clip(ROWS, column, None).backward(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    np.testing.assert_array_equal(column.grad, [[1], [5]])
    verify(ops.clip, ROWS + 0.1, low, high, expected=np.minimum(np.maximum(ROWS + 0.1, low), high))
    verify(lambda x, top: ops.clip(x, high=top), ROWS + 0.1, high, expected=np.minimum(ROWS + 0.1, high))
    assert ops.clip([1.0, 5.0], 2, 3).dtype == np.float32
    assert ops.clip(np.arange(5), 1, 3).dtype == np.int64
    with pytest.raises(ValueError, match=r"clip.*\(2, 3\).*\(2,\).*\(\)"):
        ops.clip(ROWS, Tensor(np.zeros(2)), 1.0)


def test_clip_without_limits_gives_an_array_of_its_own():
    x = Tensor(np.zeros(3))
    assert not np.shares_memory(ops.clip(x).data, x.data)


def test_scale_and_mask_of_attention_in_all_forms(rng, verify):
    q, k, v = (rng.normal(size=(4, 3)) for _ in range(3))
    mask = rng.random((4, 4)) < 0.6
    mask[:, 0] = True
    added = rng.normal(size=(4, 4))
    exact = ops.attention(q, k, v, scale=0.5).data
    for scale in (0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), np.array([0.5]), Tensor(np.array(0.5))):
        y = ops.attention(q, k, v, scale=scale)
        np.testing.assert_allclose(y.data, exact, rtol=1e-12)
    assert ops.attention(*(a.astype(np.float32) for a in (q, k, v)), scale=np.float64(0.5)).dtype == np.float32
    for given in (mask, added):
        exact = ops.attention(q, k, v, given).data
        for form in (given.tolist(), Tensor(given)):
            np.testing.assert_allclose(ops.attention(q, k, v, form).data, exact, rtol=1e-12)
    verify(lambda q, k, v, m, s: ops.attention(q, k, v, m, s), q, k, v, added, np.array(0.4))
    with pytest.raises(ValueError, match=r"attention: scale must be one number.*\(3,\)"):
        ops.attention(q, k, v, scale=Tensor(np.ones(3)))
    with pytest.raises(TypeError, match="attention: the mask"):
        ops.attention(q, k, v, [[1, 0, 1, 1]] * 4)


def test_the_value_of_a_margin_in_all_forms(verify):
    exact = np.pad(ROWS, ((1, 0), (0, 2)), constant_values=2.5)
    for value in (2.5, np.float32(2.5), np.array(2.5), Tensor(np.array(2.5))):
        np.testing.assert_array_equal(ops.pad(ROWS, ((1, 0), (0, 2)), value=value).data, exact)
    verify(lambda x, v: ops.pad(x, ((1, 0), (0, 2)), value=v), ROWS, np.array(2.5), expected=exact)
    assert ops.pad(np.arange(3), 1).dtype == np.int64
    assert ops.pad(ROWS.astype(np.float32), 1, value=Tensor(np.array(2.5))).dtype == np.float32
    for value in ([1.0, 2.0], Tensor(np.ones(1))):
        with pytest.raises(ValueError, match=r"pad: value must be one number"):
            ops.pad(ROWS, 1, value=value)


def test_operands_in_all_forms(verify):
    x = ROWS.astype(np.float32)
    other = [[1.0, 0.5, -1.0]]
    for function in (ops.maximum, ops.minimum, ops.add, ops.subtract, ops.multiply, ops.divide):
        exact = function(x, np.array(other, np.float32)).data
        for form in (other, Tensor(other)):
            np.testing.assert_array_equal(function(Tensor(x), form).data, exact)
    condition = x > 0
    for form in (condition.tolist(), Tensor(condition), Tensor(x) > 0):
        np.testing.assert_array_equal(ops.where(form, x, other).data, np.where(condition, x, other))
    for index in (
        Tensor(np.array([1, 0])),
        (slice(None), Tensor(np.array([1, 0]))),
        Tensor(x) > 0,
        Tensor(np.array(1)),
    ):
        plain = tuple(i.data if isinstance(i, Tensor) else i for i in index) if isinstance(index, tuple) else index.data
        np.testing.assert_array_equal(ops.getitem(x, index).data, x[plain])
    verify(ops.mse_loss, ROWS, ROWS[::-1].copy(), expected=np.mean((ROWS - ROWS[::-1]) ** 2))
    labels = Tensor(np.array([2, 0]))
    np.testing.assert_array_equal(ops.cross_entropy(x, labels).data, ops.cross_entropy(x, [2, 0]).data)


NUMBER = Tensor(np.array(0.5))
MISUSED = {
    "dropout: p": lambda: ops.dropout(ROWS, NUMBER, Generator(0)),
    "var: ddof": lambda: ops.var(ROWS, ddof=NUMBER),
    "group_norm: eps": lambda: ops.group_norm(ROWS, 1, eps=NUMBER),
    "group_norm: groups": lambda: ops.group_norm(ROWS, NUMBER),
    "layer_norm: eps": lambda: ops.layer_norm(ROWS, eps=NUMBER),
    "sum: axis": lambda: ops.sum(ROWS, NUMBER),
    "softmax: axis": lambda: ops.softmax(ROWS, NUMBER),
    "conv2d.*groups": lambda: ops.conv2d(np.ones((1, 2, 2, 1)), np.ones((1, 1, 1, 1)), groups=NUMBER),
    "conv2d: stride": lambda: ops.conv2d(np.ones((1, 2, 2, 1)), np.ones((1, 1, 1, 1)), stride=NUMBER),
    "max_pool2d: .*window": lambda: ops.max_pool2d(np.ones((1, 2, 2, 1)), NUMBER),
    "upsample_nearest2d: factor": lambda: ops.upsample_nearest2d(np.ones((1, 2, 2, 1)), NUMBER),
}


@pytest.mark.parametrize("what", MISUSED)
def test_tensors_where_only_a_number_will_do_are_named(what):
    with pytest.raises((TypeError, ValueError), match=what):
        MISUSED[what]()


def test_images_with_their_channels_first_get_a_hint():
    x, w = np.ones((2, 3, 8, 8), np.float32), np.ones((3, 3, 3, 4), np.float32)
    hint = r"look like \(N, C, H, W\): write x\.transpose\(0, 2, 3, 1\)"
    calls = {
        "conv2d": lambda x: ops.conv2d(x, w),
        "conv_transpose2d": lambda x: ops.conv_transpose2d(x, w.transpose(0, 1, 3, 2)),
        "group_norm": lambda x: ops.group_norm(x, 3),
        "group_norm with a weight": lambda x: ops.group_norm(x, 3, np.ones(3)),
        "weight": lambda x: ops.group_norm(x, 1, np.ones(3)),
        "layer_norm": lambda x: ops.layer_norm(x, np.ones(3)),
        "upsample": lambda x: ops.convolution.upsample_conv2d(x, w),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=hint):
            call(x)
        with pytest.raises(ValueError) as error:
            call(np.ones((2, 5, 8, 8), np.float32))
        assert "look like" not in str(error.value), name
        call(x.transpose(0, 2, 3, 1))
    with pytest.raises(ValueError, match=r"write x\.transpose\(0, 2, 3, 1\) for the one that is \(N, C, H, W\)"):
        ops.mse_loss(x, x.transpose(0, 2, 3, 1))
    with pytest.raises(ValueError, match=r"differ in shape$"):
        ops.mse_loss(x, x[:1])
    with pytest.raises(ValueError, match=r"write w\.transpose\(2, 3, 1, 0\)"):
        ops.conv2d(np.ones((1, 8, 8, 5)), np.ones((4, 5, 3, 3)))
