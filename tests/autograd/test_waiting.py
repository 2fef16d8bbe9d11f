"""On a GPU a gradient is added to what waits at the same tensor by the kernel that makes it."""

import numpy as np
import pytest

import tinydiff as td
from tests import cupy_stand_in
from tests.cuda.conftest import HALVES, assert_rounded, in_16_bits
from tinydiff import backend, ops
from tinydiff.autograd import waiting
from tinydiff.cuda import host, tensor
from tinydiff.dispatch import on_host
from tinydiff.ops.convolution import conv2d_add, convolve_input_gradient, upsample_conv2d
from tinydiff.ops.fully_connected import linears
from tinydiff.ops.normalization import group_norm_silu, group_normalize, group_normalize_backward
from tinydiff.ops.windows import Window
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


@pytest.mark.parametrize(
    ("dtype", "options", "offered"),
    [
        ("float32", {}, False),
        ("float32", {"adds_waiting": True}, True),
        ("float16", {"adds_waiting": True, "widens_half": True}, False),  # whose backward sees float32
        ("float16", {"adds_waiting": True, "takes_half": True}, True),
    ],
)
def test_only_operations_that_say_so_are_offered_anything(dtype, options, offered, monkeypatch, claims):
    def backward(self, L_Y):
        there = waiting.claim(L_Y.shape, np.dtype(dtype))
        return 2 * L_Y if there is None else 2 * L_Y + there

    twice = {"forward": lambda self, X: 2 * X, "backward": backward}
    Twice = type("Twice", (td.Function,), {**twice, **options})
    with cupy_stand_in.put_in_place(monkeypatch):
        x = td.Tensor(backend.to_device(np.ones((4, 4), dtype), "cuda"), requires_grad=True)
        h = x * 1.0
        (Twice.apply(h) + h).backward(backend.to_device(np.ones((4, 4), dtype), "cuda"))
        assert len(claims) == offered
        np.testing.assert_array_equal(x.grad.get(), 3)


def test_a_sum_that_its_operation_holds_is_not_changed(monkeypatch, claims):
    """By what arrives after it, though what was claimed was nobody else's."""

    class New(td.Function):
        gives_new = True

        def forward(self, X):
            return 3 * X

        def backward(self, L_Y):
            return 3 * L_Y

    class Held(td.Function):
        adds_waiting = True

        def forward(self, X):
            return 2 * X

        def backward(self, L_Y):
            held.append(2 * L_Y + waiting.claim(L_Y.shape))
            return held[0]

    held = []
    with cupy_stand_in.put_in_place(monkeypatch):
        x = parameter((4, 4), "cuda", 0)
        h = x * 1.0
        first, second, third = (
            New.apply(h),
            Held.apply(h),
            New.apply(h),
        )  # the last one is the first to send its gradient
        (first + second + third).backward(backend.to_device(np.ones((4, 4), np.float32), "cuda"))
        np.testing.assert_array_equal(held[0].get(), 5)
        np.testing.assert_array_equal(x.grad.get(), 8)


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
    with waiting.offered(L):
        with waiting.offered(None):  # in a walk of its own, as of a block that is computed again
            assert waiting.claim((6, 4)) is None
        assert waiting.claim((6, 4)).base is L
    for other in (L.swapaxes(0, 1), np.zeros(25, np.float32)[1:].reshape(2, 3, 4)):
        with waiting.offered(other):
            assert waiting.claim(other.shape) is None


@pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))
@pytest.mark.parametrize(
    "shape",
    [(2, 5, 7, 8), (2, 5, 7, 6), (1, 50, 50, 16), (1, 10, 13, 64)],
    ids=["fours", "one by one", "read twice", "several slabs"],
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


@pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_on_tensor_cores_add_what_is_on_offer(stride):
    window = Window((3, 3), (stride, stride), ((1, 1), (1, 1)), (1, 1))
    shape = 2, 5, 4, 16
    L_Y, W, there = (
        Generator(i).normal(s) for i, s in enumerate([(2, *window.output_size(shape), 16), (3, 3, 16, 16), shape])
    )
    with on_host():
        in_float32 = convolve_input_gradient(L_Y, W, shape, window)
        with tensor.precision("tf32"):
            alone = convolve_input_gradient(L_Y, W, shape, window)
            with waiting.offered(there) as offer:
                together = convolve_input_gradient(L_Y, W, shape, window)
    assert offer.gradient is None and np.abs(alone - in_float32).max() > 1e-4
    np.testing.assert_allclose(together, alone + there, rtol=0, atol=1e-5)


@pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))
@pytest.mark.parametrize("C", [6, 32])
def test_convolutions_of_16_bits_lose_nothing_that_is_on_offer(C):
    """Whether they are computed in 16 bits or not: here 6 channels are not."""
    window, shape = Window((1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)), (1, 3, 4, C)
    L_Y, W, there = (Generator(i).normal(s).astype(np.float16) for i, s in enumerate([shape, (1, 1, C, C), shape]))
    with on_host():
        alone = convolve_input_gradient(L_Y, W, shape, window)
        with waiting.offered(there) as offer:
            together = convolve_input_gradient(L_Y, W, shape, window)
    claimed = offer.gradient is None
    np.testing.assert_allclose(together, alone + there if claimed else alone, rtol=0, atol=2.0**-6)
