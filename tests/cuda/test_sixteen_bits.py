"""Operations on arrays of 16 bits by kernels, on the stand-in for CUDA: which kernels compute them, and that they round once."""

import numpy as np
import pytest

import tinydiff as td
from tests.cuda.conftest import assert_rounded
from tinydiff.cuda import host, tensor
from tinydiff.dispatch import on_host
from tinydiff.ops.convolution import conv2d_add, upsample_conv2d
from tinydiff.ops.fully_connected import linears
from tinydiff.precision import half, mixed

UNIT = {"fp16": 2.0**-11, "bf16": 2.0**-8}
C = 32


@pytest.fixture
def launched(monkeypatch):
    """The kernels that ran, and the precision of each."""
    found, run = [], host.run

    def noted(name, text, kernel, parameters, grid, block, args, shared, defines, *rest):
        found.append((kernel, defines.get("PRECISION")))
        run(name, text, kernel, parameters, grid, block, args, shared, defines, *rest)

    monkeypatch.setattr(host, "run", noted)
    return found


def shapes(C):
    return {
        "convolution": (
            lambda x, w, b, e, r: conv2d_add(x, w, b, e, r, padding=1),
            [(1, 4, 4, C), (3, 3, C, C), (C,), (1, C), (1, 4, 4, C)],
        ),
        "stride": (lambda x, w, b: td.ops.conv2d(x, w, b, 2, 1), [(1, 4, 4, C), (3, 3, C, C), (C,)]),
        "doubled": (upsample_conv2d, [(1, 2, 2, C), (3, 3, C, C), (C,)]),
        "linears": (lambda x, w, b, v, c: linears(x, [(w, b), (v, c)])[0], [(2, 3, C), (C, C), (C,), (C, C), (C,)]),
        "linear": (td.ops.linear, [(5, C), (C, C), (C,)]),
    }


def run(function, arrays, dtype, known):
    """Result and gradients; maps have the dtype, the others stay float32. known: the type of the numbers that come back."""
    xs = [
        td.Tensor(a.astype(dtype) if a.ndim != 1 and i in (0, 4) else a, requires_grad=True)
        for i, a in enumerate(arrays)
    ]
    y = function(*xs)
    y.backward(np.random.default_rng(3).normal(size=y.shape).astype(known).astype(y.dtype))
    return [y.data, *(x.grad for x in xs if x.grad is not None)]


@pytest.mark.parametrize("name", shapes(C))
@pytest.mark.parametrize("precision", UNIT)
def test_products_of_16_bits_run_on_tensor_cores_and_round_once(name, precision, launched):
    if precision == "bf16":
        pytest.importorskip("ml_dtypes", reason="gives NumPy bfloat16")
    function, sizes = shapes(C)[name]
    rng = np.random.default_rng(2)
    arrays = [
        rng.normal(size=size).astype(half(precision)).astype(np.float32) for size in sizes
    ]  # numbers of both types
    with mixed(precision), on_host():
        ours = run(function, arrays, *[half(precision)] * 2)
    words = "product", "conv", "weight", "joint_forward", "joint_input"
    products = [(k, p) for k, p in launched if any(word in k for word in words)]
    assert products and all("tensor" in kernel and p == precision.upper() for kernel, p in products)
    assert "from_half" not in dict(launched)  # sums for biases read 16 bits
    with td.by_definition():
        truth = run(function, arrays, np.float64, half(precision))
    dtypes = [y.dtype for y in ours]
    assert dtypes[:2] == [half(precision)] * 2 and set(dtypes[2:4]) <= {np.dtype(np.float32)}
    for i, (a, b) in enumerate(zip(ours, truth, strict=True)):
        rounding = 1e-5 if a.dtype == np.float32 else (2 if name == "doubled" else 1) * UNIT[precision]
        rounding = 4 * UNIT[precision] if name == "doubled" and i < 2 else rounding  # whose filters are sums
        if rounding == UNIT[precision]:
            assert_rounded(a.view(np.uint16) if precision == "bf16" else a, b, 1e-5)
        a, b = a.astype(np.float64), b.astype(np.float64)
        assert np.abs(a - b).max() <= (rounding + 1e-5) * np.abs(b).max(), i


@pytest.mark.parametrize("name", shapes(6))
def test_what_tensor_cores_do_not_take_is_computed_in_float32_and_rounded(name, launched):
    function, sizes = shapes(6)[name]
    rng = np.random.default_rng(2)
    arrays = [rng.normal(size=size).astype(np.float16).astype(np.float32) for size in sizes]
    with mixed("fp16"), on_host():
        ours = run(function, arrays, np.float16, np.float16)
    kernels = {kernel for kernel, _ in launched}
    assert ("matrix_product" if name.startswith("linear") else "conv_forward") in kernels
    assert not [kernel for kernel in kernels if "tensor" in kernel]
    with td.by_definition():
        truth = run(function, arrays, np.float64, np.float16)
    for a, b in zip(ours, truth, strict=True):
        assert a.dtype == (np.float32 if a is not ours[0] and a is not ours[1] and a.shape != sizes[0] else np.float16)
        assert np.abs(a.astype(np.float64) - b).max() <= 2.0**-10 * np.abs(b).max()


def test_a_gpu_without_such_tensor_cores_takes_float32(monkeypatch):
    x = np.ones((2, 2), np.float16)
    assert tensor.of(x) == "fp16" and tensor.of(x.astype(np.float32)) == "float32"
    monkeypatch.setattr(tensor, "np", type("NumPy", (), {"ndarray": int}))  # so that x is an array of the GPU's
    for capability, name in ((75, None), (80, "fp16")):
        monkeypatch.setattr(tensor, "compute_capability", lambda capability=capability: capability)
        assert tensor.of(x) == name


@pytest.mark.parametrize("precision", UNIT)
def test_a_network_runs_its_inner_products_on_tensor_cores_and_agrees_with_the_cpu(precision, launched):
    """As in a run: all convolutions but the first and the last, with their gradients, and attention's projections."""
    if precision == "bf16":
        pytest.importorskip("ml_dtypes", reason="gives NumPy bfloat16")
    options = {"blocks_per_level": 1, "channel_mults": (1, 1), "attention_resolutions": (2,), "groups": 4}
    unet = td.UNet(4, 1, channels=C, generator=td.random.Generator(1), **options)
    rng = np.random.default_rng(0)
    for w in unet.parameters():  # some begin at zero, and gradients behind them would be
        w.data += (0.05 * rng.normal(size=w.shape)).astype(np.float32)
    x, noise = rng.normal(size=(2, 1, 4, 4, 1)).astype(np.float32)

    def step():
        unet.zero_grad()
        y = unet(x, t=5)
        td.ops.mse_loss(y, noise).backward()
        return np.concatenate([a.ravel() for a in (y.data, *(p.grad for p in unet.parameters()))])

    with mixed(precision):
        on_cpu = step()
        with on_host():
            on_gpu = step()
    products = [k for k in launched if k[0].startswith(("conv_forward", "conv_weight", "tensor_"))]
    inner = [k for k in products if k[0].startswith("tensor_")]
    assert {p for _, p in inner} == {precision.upper()}
    convolutions = sum(w.ndim == 4 for w in unet.parameters())
    assert sum(kernel == "tensor_weight_gradient" for kernel, _ in inner) == convolutions - 2
    assert sum(kernel == "conv_weight_gradient" for kernel, _ in products) == 2
    attention = {(f"attention_{name}", precision.upper()) for name in ("forward", "queries_gradient", "keys_gradient")}
    assert attention <= set(launched)
    assert np.linalg.norm(on_gpu - on_cpu) < 4 * UNIT[precision] * np.linalg.norm(on_cpu)
