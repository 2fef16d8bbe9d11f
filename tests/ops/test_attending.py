"""tinydiff/ops/attending.py and softmaxes.py: softmax and attention against loops in Python, gradients by gradcheck."""

import math

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.tensor import Tensor
from tinydiff.machine.threads import threads

INF = float("inf")


def leaf(array):
    return Tensor(np.asarray(array), requires_grad=True)


def softmax_loop(row):
    total = math.fsum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


def along(function, a, axis):
    return np.apply_along_axis(function, axis, a)


# softmax, log_softmax, logsumexp


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((3, 4), -1), ((3, 4), 0), ((2, 3, 4), 1), ((2, 3, 4), -3), ((5,), 0), ((3, 1), 1), ((0, 3), 1)],
    ids=str,
)
def test_softmax_and_its_logarithm(shape, axis, rng, verify):
    a = 2 * rng.normal(size=shape)
    expected = along(softmax_loop, a, axis) if a.size else a
    verify(lambda x: ops.softmax(x, axis), a, expected=expected)
    verify(lambda x: ops.log_softmax(x, axis), a, expected=np.log(expected))


def test_softmax_takes_the_last_axis_unless_told(rng):
    a = rng.normal(size=(2, 3, 4))
    np.testing.assert_allclose(ops.softmax(a).data.sum(-1), 1, rtol=1e-14)
    np.testing.assert_array_equal(ops.log_softmax(a).data, ops.log_softmax(a, axis=2).data)


def test_softmax_gradient_is_not_hidden_by_a_sum(rng):
    """The rows of softmax sum to 1, so a plain sum has gradient 0; one element has p_i (delta_ij - p_j)."""
    x = leaf(rng.normal(size=4))
    p = ops.softmax(x)
    p[1].backward()
    expected = p.data[1] * (np.eye(4)[1] - p.data)
    np.testing.assert_allclose(x.grad, expected, rtol=1e-12)
    x.grad = None
    ops.softmax(x).sum().backward()
    np.testing.assert_allclose(x.grad, 0, atol=1e-16)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shift", [0.0, 1000.0, -1000.0, 1e30])
def test_huge_inputs_do_not_overflow(shift, dtype):
    a = (np.array([0.0, 1.0, 2.0]) * (1 if abs(shift) < 1e6 else 0) + shift).astype(dtype)
    expected = softmax_loop(a.astype(float) - a[0])
    x = leaf(a)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        p, log_p, total = ops.softmax(x), ops.log_softmax(x), ops.logsumexp(x)
        (p.sum() + (log_p * np.array([1, 0, 0], dtype)).sum() + total).backward()
    np.testing.assert_allclose(p.data, expected, rtol=1e-5)
    np.testing.assert_allclose(log_p.data, np.log(expected), rtol=1e-5)
    if abs(shift) < 1e6:
        np.testing.assert_allclose(total.data - dtype(shift), math.log(sum(map(math.exp, [0, 1, 2]))), rtol=2e-4)
    np.testing.assert_allclose(x.grad, [1, 0, 0], atol=1e-5)  # (e_0 - p) of log_p[0], p of logsumexp


def test_masked_entries_of_minus_infinity():
    x = leaf([0.0, -INF, 1.0])
    with np.errstate(invalid="raise"):
        p = ops.softmax(x)
        p.backward(np.array([1.0, 5.0, 0.0]))
    np.testing.assert_allclose(p.data, [1 / (1 + math.e), 0, math.e / (1 + math.e)])
    assert np.isfinite(x.grad).all()
    assert x.grad[1] == 0
    np.testing.assert_allclose(ops.logsumexp(np.array([0.0, -INF, 1.0])).data, math.log(1 + math.e))
    log_p = ops.log_softmax(np.array([0.0, -INF, 1.0])).data
    np.testing.assert_allclose(log_p, [-math.log(1 + math.e), -INF, 1 - math.log(1 + math.e)])


def test_a_row_of_minus_infinity_alone():
    rows = np.array([[-INF, -INF], [0.0, 0.0]])
    x = leaf(rows)
    with np.errstate(invalid="raise"):
        p = ops.softmax(x)
        p.backward(np.array([[1.0, 2.0], [1.0, 2.0]]))
    assert p.data.tolist() == [[0, 0], [0.5, 0.5]]
    assert x.grad.tolist() == [[0, 0], [-0.25, 0.25]]
    assert ops.logsumexp(rows, axis=1).data.tolist() == [-INF, math.log(2)]
    x.grad = None
    ops.logsumexp(x, axis=1).backward(np.ones(2))
    assert x.grad.tolist() == [[0, 0], [0.5, 0.5]]


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), (1,), ()], ids=str)
def test_logsumexp(axis, keepdims, rng, verify):
    a = rng.normal(size=(2, 3, 4))
    expected = np.log(np.exp(a).sum(axis, keepdims=keepdims))
    verify(lambda x: ops.logsumexp(x, axis, keepdims=keepdims), a, expected=expected)


def test_integers_are_taken_as_numbers():
    for function in (ops.softmax, ops.log_softmax, ops.logsumexp):
        np.testing.assert_allclose(function(np.array([1, 2, 3])).data, function(np.array([1.0, 2.0, 3.0])).data)


def test_logsumexp_of_infinity():
    assert ops.logsumexp(np.array([0.0, INF])).data == INF


@pytest.mark.parametrize("function", [ops.softmax, ops.log_softmax, ops.logsumexp])
def test_axes_out_of_range_are_named(function):
    for axis in (2, -3):
        with pytest.raises(ValueError, match=rf"{function.__name__}.*axis.*{axis}"):
            function(leaf(np.ones((2, 3))), axis)


# attention


def attention_loop(q, k, v, mask=None, scale=None):
    """One query at a time: weights over the keys, then their mean of the values."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    L, M = q.shape[-2], k.shape[-2]
    q, k, v = (np.broadcast_to(a, (*lead, *a.shape[-2:])) for a in (q, k, v))
    mask = np.broadcast_to(True if mask is None else mask, (*lead, L, M))
    out = np.zeros((*lead, L, v.shape[-1]))
    for i in np.ndindex(*lead, L):
        scores = [scale * float(q[i] @ k[(*i[:-1], j)]) for j in range(M)]
        if mask.dtype == bool:
            weights = [math.exp(s) if keep else 0.0 for s, keep in zip(scores, mask[i], strict=True)]
        else:
            weights = [math.exp(s + m) for s, m in zip(scores, mask[i], strict=True)]
        total = sum(weights)
        for j, weight in enumerate(weights):
            out[i] += (weight / total if total else 0.0) * v[(*i[:-1], j)]
    return out


SHAPES = [
    ((4, 3), (4, 3), (4, 3)),
    ((4, 3), (5, 3), (5, 2)),  # other numbers of keys and of value channels
    ((2, 4, 3), (2, 5, 3), (2, 5, 3)),
    ((2, 3, 4, 2), (2, 3, 5, 2), (2, 3, 5, 4)),
    ((2, 1, 4, 3), (3, 5, 3), (5, 2)),  # leading axes broadcast
    ((4, 3), (2, 5, 3), (2, 5, 3)),
    ((1, 1), (1, 1), (1, 1)),
    ((2, 1, 3), (2, 4, 3), (2, 4, 3)),
    ((0, 4, 3), (0, 4, 3), (0, 4, 3)),
    ((2, 0, 3), (2, 4, 3), (2, 4, 3)),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_attention(shapes, rng, verify):
    q, k, v = (rng.normal(size=shape) for shape in shapes)
    verify(ops.attention, q, k, v, expected=attention_loop(q, k, v))


@pytest.mark.parametrize("scale", [1.0, 0.3, 0, -0.5])
def test_scale(scale, rng, verify):
    q, k, v = rng.normal(size=(4, 3)), rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    verify(lambda *x: ops.attention(*x, scale=scale), q, k, v, expected=attention_loop(q, k, v, scale=scale))


@pytest.mark.parametrize("kind", ["boolean", "float", "float with -inf"])
@pytest.mark.parametrize("shape", [(4, 5), (2, 4, 5), (1, 5), (2, 1, 5), (5,), (4, 1), (2, 1, 4, 5)], ids=str)
def test_masks(shape, kind, rng, verify):
    q, k, v = rng.normal(size=(2, 1, 4, 3)), rng.normal(size=(2, 2, 5, 3)), rng.normal(size=(2, 2, 5, 2))
    allowed = rng.random(shape) < 0.7
    allowed[..., 0] = True
    mask = allowed if kind == "boolean" else rng.normal(size=shape)
    if kind == "float with -inf":
        mask = np.where(allowed, mask, -INF)
    expected = attention_loop(q, k, v, mask)
    for given in (mask, Tensor(mask)):
        np.testing.assert_allclose(ops.attention(q, k, v, given).data, expected, rtol=1e-12, atol=1e-14)
    mask32 = mask.astype(np.float32) if kind != "boolean" else mask
    assert ops.attention(*(a.astype(np.float32) for a in (q, k, v)), mask32).dtype == np.float32
    verify(lambda *x: ops.attention(*x, mask if x[0].dtype == np.float64 else mask32), q, k, v, expected=expected)


def test_a_causal_mask_hides_the_future(rng):
    q, k, v = leaf(rng.normal(size=(4, 3))), leaf(rng.normal(size=(4, 3))), leaf(rng.normal(size=(4, 2)))
    y = ops.attention(q, k, v, np.tril(np.ones((4, 4), bool)))
    np.testing.assert_allclose(y.data[0], v.data[0])
    y[1].sum().backward()
    for x in (k, v):
        assert (x.grad[2:] == 0).all()
        assert (x.grad[:2] != 0).any()
    assert (q.grad[[0, 2, 3]] == 0).all()


@pytest.mark.parametrize("kind", ["boolean", "float"])
def test_a_query_that_may_attend_to_nothing_gets_zeros_and_no_nan(kind, rng):
    allowed = np.ones((3, 4), bool)
    allowed[1] = False
    mask = allowed if kind == "boolean" else np.where(allowed, 0.0, -INF)
    q, k, v = leaf(rng.normal(size=(3, 2))), leaf(rng.normal(size=(4, 2))), leaf(rng.normal(size=(4, 5)))
    with np.errstate(invalid="raise", divide="raise"):
        y = ops.attention(q, k, v, mask)
        y.backward(rng.normal(size=(3, 5)))
    assert (y.data[1] == 0).all()
    assert (q.grad[1] == 0).all()
    assert all(np.isfinite(x.grad).all() for x in (q, k, v))
    rest = ops.attention(q.data[[0, 2]], k, v)
    np.testing.assert_allclose(y.data[[0, 2]], rest.data)


def test_weights_sum_to_1_and_order_of_keys_does_not_matter(rng):
    q, k, v = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 5, 2))
    ones = ops.attention(q, k, np.ones((2, 5, 2)))
    np.testing.assert_allclose(ones.data, 1)
    order = [3, 1, 4, 0, 2]
    np.testing.assert_allclose(ops.attention(q, k, v).data, ops.attention(q, k[:, order], v[:, order]).data)


def test_huge_scores_do_not_overflow():
    q = np.float32([[1e4, 0.0]])
    k = np.float32([[1e4, 0.0], [0.0, 1.0]])
    with np.errstate(over="raise", invalid="raise"):
        y = ops.attention(q, k, np.float32([[1.0], [2.0]]))
    assert y.data.tolist() == [[1.0]]


def test_long_sequences_agree_with_the_plain_products(rng):
    """Large enough that an implementation in blocks has several of them."""
    q, k, v = (rng.normal(size=(3, n, 16)) for n in (300, 1100, 1100))
    s = q @ k.swapaxes(-1, -2) / 4
    p = np.exp(s - s.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    x = [leaf(a.astype(np.float32)) for a in (q, k, v)]
    y = ops.attention(*x)
    L_Y = rng.normal(size=(3, 300, 16))
    y.backward(L_Y.astype(np.float32))
    L_P = L_Y @ v.swapaxes(-1, -2)
    L_S = p * (L_P - (L_P * p).sum(-1, keepdims=True)) / 4
    exact = [L_S @ k, L_S.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ L_Y]
    np.testing.assert_allclose(y.data, p @ v, atol=2e-6)
    for ours, theirs in zip(x, exact, strict=True):
        np.testing.assert_allclose(ours.grad, theirs, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("q", "k", "v"),
    [((4, 3), (5, 2), (5, 2)), ((4, 3), (5, 3), (4, 3)), ((2, 4, 3), (3, 5, 3), (3, 5, 3)), ((3,), (5, 3), (5, 3))],
    ids=str,
)
def test_shapes_that_do_not_fit_are_named(q, k, v):
    patterns = [str(shape).replace("(", r"\(").replace(")", r"\)") for shape in (q, k, v)]
    with pytest.raises(ValueError, match="attention.*" + ".*".join(patterns)):
        ops.attention(*(leaf(np.ones(shape)) for shape in (q, k, v)))


@pytest.mark.parametrize("mask", [(4, 4), (3, 5), (2, 4, 5)], ids=str)
def test_masks_that_do_not_fit_are_named(mask):
    pattern = str(mask).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"attention.*mask.*{pattern}"):
        ops.attention(np.ones((3, 4, 3)), np.ones((3, 5, 3)), np.ones((3, 5, 3)), np.ones(mask, bool))


def test_an_integer_mask_is_refused_as_ambiguous():
    with pytest.raises((TypeError, ValueError), match="mask"):
        ops.attention(np.ones((4, 3)), np.ones((4, 3)), np.ones((4, 3)), np.ones((4, 4), int))


def exact_attention(q, k, v, scale, L_y):
    """Y and the gradients of sum(L_y Y) in float64, term by term as in the definition."""
    q, k, v, L_y = (a.astype(np.float64) for a in (q, k, v, L_y))
    S = scale * q @ k.swapaxes(-1, -2)
    P = np.exp(S - S.max(-1, keepdims=True))
    P /= P.sum(-1, keepdims=True)
    L_P = L_y @ v.swapaxes(-1, -2)
    L_S = P * (L_P - (P * L_P).sum(-1, keepdims=True))
    return P @ v, scale * L_S @ k, scale * L_S.swapaxes(-1, -2) @ q, P.swapaxes(-1, -2) @ L_y


@pytest.mark.parametrize("logits", [0.1, 5, 40, 200])
@pytest.mark.parametrize(
    ("stack", "L", "M", "D", "E"),
    [((12,), 256, 256, 32, 32), ((3, 2), 96, 160, 64, 24), ((2,), 33, 7, 5, 3), ((), 200, 256, 256, 256)],
)
def test_stacks_over_threads_and_blocks_against_float64(stack, L, M, D, E, logits, rng):
    """Small logits, for which no maximum is taken off, and large ones; several blocks and threads, twice alike."""
    q, k, v, L_y = (rng.normal(size=(*stack, *s)).astype(np.float32) for s in ((L, D), (M, D), (M, E), (L, E)))
    q *= np.float32(logits / 5)
    exact = exact_attention(q, k, v, D**-0.5, L_y)

    def run():
        leaves = [Tensor(a, requires_grad=True) for a in (q, k, v)]
        y = ops.attention(*leaves)
        y.backward(L_y)
        return y.data, *(a.grad for a in leaves)

    with threads(2):
        ours, again = run(), run()
    for a, e, a2 in zip(ours, exact, again, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, e, atol=max(4e-6, 3e-7 * logits) * np.abs(e).max())
        np.testing.assert_array_equal(a, a2)


def test_rows_of_very_small_logits_alone_keep_their_sum(rng):
    q = (10 + rng.uniform(size=(2, 8, 4))).astype(np.float32)
    k, v = -q, rng.normal(size=(2, 8, 3)).astype(np.float32)  # all logits below -200
    exact, *_ = exact_attention(q, k, v, 0.5, v)
    np.testing.assert_allclose(ops.attention(q, k, v).data, exact, atol=1e-4)


def test_probabilities_are_not_kept(rng):
    q, k, v = (Tensor(rng.normal(size=(2, 64, 4)), requires_grad=True) for _ in range(3))
    assert all(a is None or a.size < 64 * 64 for a in ops.attention(q, k, v)._node.op._saved)
