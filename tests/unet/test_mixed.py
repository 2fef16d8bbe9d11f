"""A U-Net whose maps have 16 bits, in a block of `precision.mixed`: what is rounded, and how far it is from float32."""

import numpy as np
import pytest

import tinydiff as td
from tinydiff.autograd import tape
from tinydiff.ops.fully_connected import Linear
from tinydiff.precision import emulated, half, mixed

UNIT = {"fp16": 2.0**-11, "bf16": 2.0**-8}  # what rounding to nearest changes a number by, at most, relative to it


def network(**options):
    options = {"channel_mults": (1, 2), "blocks_per_level": 1, "attention_resolutions": (4,)} | options
    unet = td.UNet(8, 1, channels=8, groups=4, generator=td.random.Generator(1), **options)
    rng = np.random.default_rng(0)
    for w in unet.parameters():  # some begin at zero, and gradients behind them would be
        w.data += (0.1 * rng.normal(size=w.shape)).astype(np.float32)
    return unet


def step(unet, observer=None):
    """Prediction and gradients of a step."""
    x, noise = np.random.default_rng(1).normal(size=(2, 3, 8, 8, 1)).astype(np.float32)
    unet.zero_grad()
    with tape.observing(observer):
        y = unet(x, t=5)
        td.ops.mse_loss(y, noise).backward()
    return y.data, [p.grad for p in unet.parameters()]


def distance(a, b):
    a, b = (np.concatenate([np.ravel(x) for x in xs]).astype(np.float64) for xs in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("precision", UNIT)
def test_a_step_agrees_with_float32_within_the_rounding(precision):
    """And is about as far from it as one whose products alone are rounded."""
    if precision == "bf16":
        pytest.importorskip("ml_dtypes", reason="gives NumPy bfloat16")
    unet = network()
    exact, exact_gradients = step(unet)
    with mixed(precision):
        y, gradients = step(unet)
    with emulated(precision):
        rounded, rounded_gradients = step(unet)
    assert y.dtype == np.float32 and {g.dtype for g in gradients} == {np.dtype(np.float32)}
    assert UNIT[precision] / 8 < distance([y], [exact]) < 4 * UNIT[precision]
    assert UNIT[precision] / 8 < distance(gradients, exact_gradients) < 6 * UNIT[precision]
    assert distance([y], [exact]) < 4 * distance([rounded], [exact])
    assert distance(gradients, exact_gradients) < 4 * distance(rounded_gradients, exact_gradients)


def test_maps_and_their_gradients_have_16_bits_and_nothing_else_has():
    """Between the first convolution and the last, of which both are float32, and so is the time's way."""
    found = []

    def observer(op, way, arrays, options):
        result = op.forward(*arrays, **options) if way == "forward" else op.backward(*arrays)
        found.append(
            (type(op).__name__, way, [None if a is None else a.dtype.name for a in arrays if hasattr(a, "dtype")])
        )
        return result

    unet = network(attention_resolutions=(8, 4), dropout=0.1)
    unet.train(td.random.Generator(3))
    with mixed("fp16"):
        step(unet, observer)
    forward = [(name, dtypes) for name, way, dtypes in found if way == "forward"]
    kinds = {}
    for name, dtypes in forward:
        kinds.setdefault(name, []).append(dtypes)
    assert [dtypes for dtypes in kinds["Conv2d"] if dtypes[0] == "float32"] == [["float32"] * 3] * 2
    inner = [dtypes for dtypes in kinds["Conv2d"] if dtypes[0] == "float16"]
    assert {tuple(d) for d in inner} == {
        ("float16", "float16", "float32"),  # X, W, b
        ("float16", "float16", "float32", "float32"),  # E
        ("float16", "float16", "float32", "float16"),  # R
    }
    assert {tuple(d) for d in kinds["GroupNorm"]} == {("float16", "float32", "float32")}
    assert {tuple(d) for d in kinds["Attention"]} == {("float16",) * 3}
    assert ["float16"] + ["float16", "float32"] * 3 in kinds["Linears"]  # q, k, v
    assert all(d[0] == "float32" for d in kinds["Linears"] if len(d) != 7)  # the time
    assert {tuple(d) for d in kinds["Concatenate"]} == {("float16", "float16")}
    backward = {}
    for name, way, dtypes in found:
        if way == "backward":
            backward.setdefault(name, set()).update(dtypes)
    assert backward["GroupNorm"] == backward["Attention"] == backward["Concatenate"] == {"float16"}


def test_a_weight_is_rounded_again_when_it_has_changed_and_only_then():
    unet = network()
    w = unet.mid_block.resnets[0].conv1.weight
    with mixed("fp16"):
        step(unet)
        array = w._half.array
        np.testing.assert_array_equal(array, w.data.astype(np.float16))
        step(unet)
        assert w._half.array is array
        td.optim.SGD([w], 0.5).step()
        np.testing.assert_array_equal(array, w.data.astype(np.float16))
        with td.no_grad():
            w *= 2.0
        step(unet)
        assert w._half.array is array  # a graph may hold its place
        np.testing.assert_array_equal(array, w.data.astype(np.float16))
    assert unet.conv_in.weight._half is unet.time_embedding.linear_1.weight._half is None
    assert step(unet)[0].dtype == np.float32
    td.optim.Adam(unet.parameters(), 0.01).step()  # all weights at once
    with mixed("fp16"):
        step(unet)
    assert w._half.array is array
    np.testing.assert_array_equal(array, w.data.astype(np.float16))


def test_averages_in_the_place_of_weights_are_rounded_for_themselves():
    unet = network()
    ema = td.optim.EMA(unet.parameters(), 0.9)
    with mixed("fp16"):
        before, _ = step(unet)
        for a in ema.averages:
            a *= 2
        other = network()
        for p, a in zip(other.parameters(), ema.averages, strict=True):
            p.data = a.copy()
        with ema.applied():
            np.testing.assert_array_equal(step(unet)[0], step(other)[0])
        np.testing.assert_array_equal(step(unet)[0], before)


def test_a_change_between_forward_and_backward_is_an_error():
    unet = network()
    w = unet.mid_block.resnets[0].conv1.weight
    with mixed("fp16"):
        y = unet(np.zeros((1, 8, 8, 1), np.float32), t=5)
        with td.no_grad():
            w += 1.0
        unet(np.zeros((1, 8, 8, 1), np.float32), t=5)
        with pytest.raises(RuntimeError, match="changed in place"):
            y.backward(np.ones(y.shape, np.float32))


def test_outside_of_a_block_types_are_numpys():
    x = td.Tensor(np.ones((1, 4, 4, 8), np.float16))
    w, b = np.ones((3, 3, 8, 8), np.float32), np.ones(8, np.float32)
    assert td.ops.conv2d(x, w, b).dtype == np.float32
    with mixed("fp16"):
        assert td.ops.conv2d(x, w, b).dtype == np.float16
        assert td.ops.conv2d(td.Tensor(x.data.astype(np.float32)), w, b).dtype == np.float32
        assert (x * np.float32([3])).dtype == np.float16
        assert (td.Tensor(np.float32([3])) * x).dtype == np.float32
        assert Linear.apply(x, [[1.0]] * 8, None).dtype == np.float16
    assert half("float32") is half("tf32") is None
