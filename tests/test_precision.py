"""tinydiff/precision.py"""

import importlib.util
import threading

import numpy as np
import pytest

import tinydiff as td
from tinydiff import ops
from tinydiff.cuda import host, launch, tensor
from tinydiff.dispatch import on_host
from tinydiff.ops import convolution
from tinydiff.ops.convolution import upsample_conv2d
from tinydiff.ops.fully_connected import linears
from tinydiff.precision import PRECISIONS, emulated, from_memory, in_memory, rounded

BITS = {"float32": 24, "tf32": 11, "fp16": 11, "bf16": 8}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rounded_is_the_nearest_number_of_so_many_bits(precision, rng):
    x = rng.standard_normal(1000).astype(np.float32)
    exponent = np.frexp(x.astype(float))[1]
    scale = 2.0 ** (BITS[precision] - exponent)
    y = rounded(x, precision).astype(float)
    assert (y * scale == np.rint(y * scale)).all()
    assert (np.abs(y - x) * scale <= 0.5).all()


def test_ties_and_numbers_that_are_none():
    halfway = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, -1 - 2.0**-11], np.float32)
    np.testing.assert_array_equal(rounded(halfway, "tf32"), np.float32([1 + 2**-10, 1 + 2**-9, -1 - 2**-10]))
    np.testing.assert_array_equal(rounded(halfway, "fp16"), np.float32([1, 1 + 2**-9, -1]))
    halfway = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8], np.float32)
    np.testing.assert_array_equal(rounded(halfway, "bf16"), np.float32([1, 1 + 2**-6]))
    none = np.array([np.inf, -np.inf, np.nan, 0.0], np.float32)
    none = np.append(none, np.array([0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32))  # NaNs of other bits
    for precision in PRECISIONS:
        np.testing.assert_array_equal(rounded(none, precision), none)
        np.testing.assert_array_equal(from_memory(in_memory(none, precision)), none)
    assert rounded(np.float32([1e6]), "fp16")[0] == np.inf


@pytest.mark.parametrize("precision", PRECISIONS)
def test_memory_holds_what_is_rounded(precision, rng):
    x = rng.standard_normal((3, 5)).astype(np.float32)
    if precision == "tf32":  # rounded on the way to the tensor cores, not before
        np.testing.assert_array_equal(in_memory(x, precision), x)
    else:
        np.testing.assert_array_equal(from_memory(in_memory(x, precision)), rounded(x, precision))


OPERATIONS = {  # of x and w, whose shapes are given; bilinear
    "linear": (lambda x, w: ops.linear(x, w, np.ones(8, x.dtype)), (3, 4, 12), (12, 8)),
    "linears": (lambda x, w: sum(linears(x, [(w, None), (w, None)])), (5, 12), (12, 8)),
    "matmul": (ops.matmul, (2, 1, 4, 8), (3, 8, 12)),
    "conv2d": (lambda x, w: ops.conv2d(x, w, padding=1), (2, 8, 8, 4), (3, 3, 4, 8)),
    "strides": (lambda x, w: ops.conv2d(x, w, stride=2, padding=((0, 1), (0, 1))), (2, 8, 8, 4), (3, 3, 4, 8)),
    "1x1": (ops.conv2d, (2, 4, 4, 8), (1, 1, 8, 4)),
    "groups": (lambda x, w: ops.conv2d(x, w, groups=2), (1, 5, 5, 8), (3, 3, 4, 8)),
    "upsampled": (upsample_conv2d, (2, 4, 4, 4), (3, 3, 4, 8)),
    "transposed": (lambda x, w: ops.conv_transpose2d(x, w, stride=2), (1, 4, 4, 8), (3, 3, 4, 8)),
}


def computed(function, *arrays, dtype=np.float32):
    """The value of a function, its gradient coming in, and the gradients for its arguments."""
    xs = [td.Tensor(a.astype(dtype), requires_grad=True) for a in arrays[1:]]
    y = function(*xs)
    L_Y = arrays[0][: y.size].reshape(y.shape).astype(dtype)
    y.backward(L_Y)
    return [y.data, *(x.grad for x in xs)]


def norms_agree(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "upsampled"])
def test_inside_of_a_block_operands_are_rounded_and_nothing_else(name, rng):
    function, *shapes = OPERATIONS[name]
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in (4096, *shapes)]
    plain = computed(function, *arrays)
    for precision in PRECISIONS:
        with emulated(precision):
            ours = computed(function, *arrays)
        if precision == "float32":
            for a, b in zip(ours, plain, strict=True):
                np.testing.assert_array_equal(a, b)
            continue
        truth = computed(function, *(rounded(a, precision) for a in arrays), dtype=np.float64)
        norms_agree(ours, truth, 2e-6)
        with pytest.raises(AssertionError):
            norms_agree(plain, truth, 5e-5)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_doubled_pixels_are_seen_through_rounded_sums_of_taps(precision, rng):
    X, W, L_Y = (rng.standard_normal(s).astype(np.float32) for s in ((2, 3, 4, 4), (3, 3, 4, 8), (2, 6, 8, 8)))
    T = np.zeros((4, 4, 8, 4), np.float32)
    for r, s, row, column in np.ndindex(
        3, 3, 2, 2
    ):  # tap (r, s) of the output that sees this copy of the pixel through it
        T[2 + row - r, 2 + column - s] += W[r, s].T
    with emulated(precision):
        ours = computed(upsample_conv2d, L_Y.reshape(-1), X, W)
    x, t, l_y = (rounded(a, precision).astype(float) for a in (X, T, L_Y))
    L_T = convolution.convolve_weight_gradient(l_y, x, t.shape, convolution.DOUBLING)
    L_W = np.zeros(W.shape)
    for r, s, row, column in np.ndindex(3, 3, 2, 2):
        L_W[r, s] += L_T[2 + row - r, 2 + column - s].T
    truth = (
        convolution.convolve_input_gradient(x, t, L_Y.shape, convolution.DOUBLING),
        convolution.convolve(l_y, t, None, convolution.DOUBLING),
        L_W,
    )
    norms_agree(ours, truth, 2e-6)
    with pytest.raises(AssertionError):
        norms_agree(computed(upsample_conv2d, L_Y.reshape(-1), X, W), truth, 5e-5)


def test_every_fast_version_of_a_product_is_given_rounded_factors(rng, monkeypatch):
    given = set()

    def checked(name, fast):
        def version(*args, **options):
            for x in (*args[0],) if isinstance(args[0], list) else args[:2]:
                np.testing.assert_array_equal(x, rounded(x, "bf16"), err_msg=name)
            given.add(name)
            return fast(*args, **options)

        return version

    products = set()
    for name in ("contraction", "fully_connected", "convolution"):
        definitions, fast = (importlib.import_module(f"tinydiff.{folder}.{name}") for folder in ("ops", "cpu"))
        for function in [n for n, f in vars(definitions).items() if hasattr(f, "definition") and hasattr(fast, n)]:
            sums = "sum_rows", "sum_pixels", "sum_pixels_and_images", "repeat_pixels", "sum_pixel_blocks"
            if function not in sums and not function.startswith("upsample_"):
                products.add(function)
                monkeypatch.setattr(fast, function, checked(function, getattr(fast, function)))
    for function, *shapes in OPERATIONS.values():
        with emulated("bf16"):
            computed(function, *(rng.standard_normal(shape).astype(np.float32) for shape in (4096, *shapes)))
    assert given == products and len(products) > 8


def test_a_block_ends_and_is_of_a_thread(rng):
    x = rng.standard_normal((4, 4)).astype(np.float32)
    with pytest.raises(ZeroDivisionError), emulated("bf16"):
        with emulated("float32"):
            np.testing.assert_array_equal(ops.matmul(x, x).data, x @ x)
        assert (ops.matmul(x, x).data != x @ x).any()
        found = []
        thread = threading.Thread(target=lambda: found.append(ops.matmul(x, x).data))
        thread.start()
        thread.join()
        np.testing.assert_array_equal(found[0], x @ x)
        np.testing.assert_array_equal(ops.einsum("ij,jk->ik", x, x).data, np.einsum("ij,jk->ik", x, x))
        raise ZeroDivisionError
    np.testing.assert_array_equal(ops.matmul(x, x).data, x @ x)
    with pytest.raises(ValueError, match="not 'fp8'"), emulated("fp8"):
        pass


def attention(q, k, v):
    return ops.attention(q, k, v)


ON_TENSOR_CORES = {name: OPERATIONS[name] for name in ("linear", "linears", "matmul")}
HAS_CONVOLUTIONS = importlib.util.find_spec("tinydiff.cuda.tensor_convolution") is not None
CONVOLUTIONS = {  # of whole slices of channels
    "conv2d": (1, 4, 4, 16), "strides": (1, 6, 4, 16), "1x1": (2, 2, 3, 16), "upsampled": (1, 2, 3, 16),
}  # fmt: skip
for name, shape in CONVOLUTIONS.items():
    ON_TENSOR_CORES[name] = OPERATIONS[name][0], shape, (*OPERATIONS[name][2][:2], 16, 16)
ON_TENSOR_CORES["attention"] = (attention, (2, 8, 4), (2, 12, 4), (2, 12, 8))
ON_TENSOR_CORES["masked attention"] = (
    lambda q, k, v: ops.attention(q, k, v, mask=np.eye(8, 12, dtype=bool) | np.eye(8, 12, 3, dtype=bool)),
    (2, 8, 4), (2, 12, 4), (2, 12, 8),
)  # fmt: skip


@pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))
@pytest.mark.parametrize("name", ON_TENSOR_CORES)
def test_the_kernels_agree_with_the_emulation(name, rng, monkeypatch):
    """On the stand-in for CUDA, forward and backward; and they are those for tensor cores."""
    if name in CONVOLUTIONS and not HAS_CONVOLUTIONS:
        pytest.skip("convolutions are not computed on tensor cores")
    function, *shapes = ON_TENSOR_CORES[name]
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in (4096, *shapes)]
    launched, run = [], host.run
    monkeypatch.setattr(launch.host, "run", lambda *args: (launched.append(dict(args[8])), run(*args))[1])
    with on_host(), tensor.precision("tf32"):
        kernels = computed(function, *arrays)
    assert any(d.get("PRECISION") == "TF32" for d in launched)
    with emulated("tf32"):
        ours = computed(function, *arrays)
    # where P of attention differs by its last bit, it may be rounded to another number
    norms_agree(kernels, ours, 6e-5 if "attention" in name else 2e-6)
    with pytest.raises(AssertionError):
        norms_agree(kernels, computed(function, *arrays), 6e-5)
