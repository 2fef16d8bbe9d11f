"""On a GPU a gradient is added to what waits at the same tensor by the kernel that makes it."""

import numpy as np
import pytest

import tinydiff as td
from tests import cupy_stand_in
from tests.cuda.conftest import HALVES, assert_rounded, in_16_bits
from tinydiff import backend, ops
from tinydiff.autograd import waiting
from tinydiff.cuda import host
from tinydiff.dispatch import on_host
from tinydiff.ops.convolution import conv2d_add, upsample_conv2d
from tinydiff.ops.fully_connected import linears
from tinydiff.ops.normalization import group_norm_silu, group_normalize, group_normalize_backward
from tinydiff.random import Generator


def parameter(shape, device, number):
    return td.Tensor(backend.to_device(Generator(number).normal(shape), device), requires_grad=True)


def rows(h):
    return h.reshape(2, 16, 4)


CONSUMERS = {  # of images (2, 4, 4, 4); w: weights by shape
    "convolution": lambda h, w: ops.conv2d(h, w(3, 3, 4, 8), padding=1),
    "odd convolution": lambda h, w: ops.conv2d(h, w(3, 3, 4, 3), padding=1),
    "convolution with stride": lambda h, w: ops.conv2d(h, w(3, 3, 4, 8), stride=2, padding=((0, 1), (0, 1))),
    "itself as residual": lambda h, w: conv2d_add(h, w(1, 1, 4, 4), residual=h),
    "doubled pixels": lambda h, w: upsample_conv2d(h, w(3, 3, 4, 4)),
    "group norm": lambda h, w: group_norm_silu(h, 2, w(4), w(4)),
    "fully connected": lambda h, w: ops.linear(h, w(4, 8), w(8)),
    "several layers": lambda h, w: sum(linears(h, [(w(4, 8), w(8)), (w(4, 8), None), (w(4, 8), w(8))])[1:], 0 * w(8)),
    "by definition": lambda h, w: ops.conv2d(h, w(3, 3, 2, 4), padding=1, groups=2),
    "another operation": lambda h, w: ops.tanh(h),
}  # fmt: skip
CLAIMS = tuple(CONSUMERS)[:-2]


@pytest.fixture
def claims(monkeypatch):
    """How many gradients were claimed."""
    found, claim = [], waiting.claim

    def noted(*args):
        claimed = claim(*args)
        found.extend([claimed] if claimed is not None else [])
        return claimed

    monkeypatch.setattr(waiting, "claim", noted)
    return found


def gradients(device, consumers, precision="float32"):
    """Those of x, of h = silu(x) and of all weights of a loss that sees h through several operations; what a hook on h is given."""
    weights, seen = [], []

    def w(*shape):
        weights.append(parameter(shape, device, len(weights)))
        return weights[-1]

    x = parameter((2, 4, 4, 4), device, 99)
    h = ops.silu(x)
    h.retain_grad()
    h.register_hook(lambda L: seen.append(backend.to_numpy(L).copy()))
    loss = sum(ops.sum(ops.sin(CONSUMERS[name](h, w))) for name in consumers)
    loss.backward()
    return [backend.to_numpy(g).copy() for g in (x.grad, h.grad, *(v.grad for v in weights))] + seen


@pytest.mark.parametrize("name", CONSUMERS)
def test_the_sum_is_that_of_the_cpu(name, monkeypatch, claims):
    consumers = ("convolution", name, "another operation")  # the last one is the first to send its gradient
    expected = gradients("cpu", consumers)
    assert not claims
    with cupy_stand_in.put_in_place(monkeypatch):
        ours = gradients("cuda", consumers)
    assert len(claims) == (name != "by definition") + (
        name in CLAIMS
    )  # the one by definition leaves no array in one piece
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


def test_what_others_hold_is_not_changed(monkeypatch, claims):
    """The gradient of a sum is one array for both terms: the claim of one must not reach the other."""
    with cupy_stand_in.put_in_place(monkeypatch):
        w, x, y = (parameter((4, 4), "cuda", n) for n in range(3))
        h, g = ops.silu(x), ops.silu(y)
        (ops.linear(h, w) + (h + g)).backward(backend.to_device(np.ones((4, 4), np.float32), "cuda"))
        assert len(claims) == 1
        np.testing.assert_allclose(y.grad.get(), of_silu(y), rtol=1e-5, atol=1e-6)


def of_silu(x):
    sigma = 1 / (1 + np.exp(-x.numpy()))
    return (sigma * (1 + x.numpy() * (1 - sigma))).astype(np.float32)


def test_a_trace_shows_the_sum_where_gradients_meet(monkeypatch, claims):
    with cupy_stand_in.put_in_place(monkeypatch):
        x, w = parameter((4, 4), "cuda", 0), parameter((4, 4), "cuda", 1)
        with td.trace():
            h = ops.silu(x)
            ops.sum(ops.linear(h, w) + h).backward()
    assert not claims


def test_what_is_on_offer_fits_or_stays():
    L = np.zeros((2, 3, 4), np.float32)
    with waiting.offered(L) as offer:
        for shape, dtype in (((6, 4), np.float16), ((8, 3), np.float32), ((5, 4), np.float32)):
            assert waiting.claim(shape, dtype) is None
        assert waiting.claim((6, 4)).base is L and waiting.claim((6, 4)) is None and offer.gradient is None
    assert waiting.claim((6, 4)) is None
    for other in (L.swapaxes(0, 1), np.zeros(25, np.float32)[1:].reshape(2, 3, 4)):
        with waiting.offered(other):
            assert waiting.claim(other.shape) is None


@pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))
@pytest.mark.parametrize(
    "shape", [(2, 5, 7, 8), (2, 5, 7, 6), (1, 50, 50, 16)], ids=["fours", "one by one", "read twice"]
)
def test_group_norm_adds_what_is_on_offer(shape):
    X, L_Y, there = (Generator(number).normal(shape) for number in range(3))
    _, mean, scale = group_normalize.definition(X, None, None, 2, 1e-5)
    known = L_Y, X, mean, scale, None, None, 2, False, (True, False, False)
    with on_host(), waiting.offered(there) as offer:
        L_X, _, _ = group_normalize_backward(*known)
    assert offer.gradient is None
    truth = group_normalize_backward.definition(*known)[0].astype(float) + there
    np.testing.assert_allclose(L_X, truth, rtol=0, atol=2e-6 * np.abs(truth).max())


@pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))
@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("C", [8, 6], ids=["eights", "one by one"])
def test_group_norm_rounds_the_sum_once(C, precision):
    arrays, (X, L_Y, there) = in_16_bits(precision, *(Generator(number).normal((2, 5, 7, C)) for number in range(3)))
    _, mean, scale = group_normalize.definition(X, None, None, 2, 1e-5)
    known = mean.astype(np.float32), scale.astype(np.float32), None, None, 2, False, (True, False, False)
    with on_host(), waiting.offered(arrays[2]) as offer:
        L_X, _, _ = group_normalize_backward(arrays[1], arrays[0], *known)
    assert offer.gradient is None
    assert_rounded(L_X, group_normalize_backward.definition(L_Y, X, *known)[0] + there)
