"""Convolutions on tensor cores against the definition in float64 on rounded operands."""

import numpy as np
import pytest

from tests.cuda import occupancy as made
from tinydiff.cuda import convolution, nvrtc, occupancy, source, tensor, tensor_convolution
from tinydiff.cuda.taps import Place, taps_of
from tinydiff.cuda.tensor import Plan
from tinydiff.ops import convolution as definition
from tinydiff.ops.windows import Window
from tinydiff.precision import from_memory, in_memory, rounded

FORWARD, BACKWARD, WEIGHT = "convolve", "convolve_input_gradient", "convolve_weight_gradient"
ON_TENSOR_CORES = {FORWARD: "tensor_convolution", BACKWARD: "tensor_convolution", WEIGHT: "tensor_weight_gradient"}


def window(size, stride=1, padding=0, dilation=1):
    return Window.read("test", size, stride, padding, dilation)


SAME = window(3, 1, 1)
HALVING = window(3, 2, ((0, 1), (0, 1)))

# images, channels, filters, window
CASES = {
    "3x3": ((2, 6, 5), 16, 16, SAME),
    "one pixel": ((3, 1, 1), 16, 32, SAME),
    "many images in a tile": ((40, 2, 2), 16, 16, SAME),
    "several tiles": ((3, 7, 5), 48, 80, SAME),
    "several tiles, all whole": ((2, 8, 8), 128, 64, window(1)),
    "1x1": ((2, 4, 9), 32, 48, window(1)),
    "1x1, stride 2": ((2, 5, 4), 16, 16, window(1, 2)),
    "halving": ((3, 8, 8), 16, 32, HALVING),
    "halving, odd sizes": ((2, 7, 5), 16, 16, HALVING),
    "no padding": ((2, 6, 7), 16, 16, window(3)),
    "uneven padding": ((2, 5, 6), 16, 16, window(3, 1, ((2, 0), (1, 3)))),
    "more padding than filter": ((1, 3, 4), 16, 16, window(3, 1, ((5, 4), (3, 6)))),
    "even filter": ((2, 6, 5), 16, 16, window((2, 4), 1, 1)),
    "stride 3 and 2": ((2, 11, 9), 16, 16, window((5, 3), (3, 2), ((1, 2), (0, 1)))),
    "no tap reaches some pixels": ((1, 13, 12), 16, 16, window(2, (3, 2), 0, (3, 4))),
    "dilation above the stride": ((2, 11, 12), 16, 16, window((3, 2), 2, ((1, 2), (3, 0)), (3, 5))),
    "15 taps": ((1, 4, 17), 16, 16, window((1, 15), 1, ((0, 0), (7, 7)))),
}


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def arrays(images, C, K, window):
    """X, W, L_Y and what is added: b, E, R."""
    X, W = normal(*images, C), normal(*window.size, C, K)
    L_Y = normal(images[0], *window.output_size(X.shape), K)
    return X, W, L_Y, (normal(K), normal(images[0], K), normal(*L_Y.shape, seed=1))


def error(y, truth):
    """Relative, by norm."""
    assert y.shape == truth.shape and y.dtype == np.float32
    return np.linalg.norm(y - truth) / np.linalg.norm(truth)


@pytest.fixture
def launched(monkeypatch):
    """The kernels that convolutions launch, and the precision of their operands."""
    ran = []
    for module in (convolution, tensor_convolution):

        def launch(name, kernel, grid, block, args, shared=0, defines=None, real=module.launch):
            ran.append((kernel, (defines or {}).get("PRECISION")))
            real(name, kernel, grid, block, args, shared, defines)

        monkeypatch.setattr(module, "launch", launch)
    return ran


@pytest.fixture
def forced(monkeypatch):
    """force(plan) has every convolution on tensor cores use it."""
    return lambda p: monkeypatch.setattr(tensor, "plan", lambda *sizes: p)


def in_tf32(device, X, W, L_Y, added, window, seed=0):
    """{function: result} of the layers' functions in a block of TF32."""
    calls = {
        FORWARD: (X, W, added[0], window, 1, *added[1:]),
        BACKWARD: (L_Y, W, X.shape, window),
        WEIGHT: (X, L_Y, W.shape, window),
    }

    def run(name, *args):
        with tensor.precision("tf32"):
            return getattr(convolution, name)(*args)

    return {name: device.run(run, name, *args, seed=seed) for name, args in calls.items()}


def truths(X, W, L_Y, added, window, precision):
    x, w, l_y = (rounded(a, precision).astype(float) for a in (X, W, L_Y))
    b, E, R = added
    return {
        FORWARD: definition.convolve(x, w, None, window) + b + E[:, None, None] + R,
        BACKWARD: definition.convolve_input_gradient(l_y, w, X.shape, window),
        WEIGHT: definition.convolve_weight_gradient(x, l_y, W.shape, window),
    }


def check_in_memory(device, images, C, K, window, precision):
    """The functions of `tensor_convolution`, into memory that holds NaN. Operands and results are what the precision is in memory,
    but gradients of filters are float32."""
    X, W, L_Y, (b, E, R) = arrays(images, C, K, window)
    R = from_memory(in_memory(R, precision))
    x, w, l_y, r = (in_memory(a, precision) for a in (X, W, L_Y, R))
    place, taps = Place(*L_Y.shape[1:3], *L_Y.shape[1:3]), taps_of(window)
    nothing = lambda like: in_memory(np.full(like.shape, np.nan, np.float32), precision)  # noqa: E731
    calls = {
        FORWARD: (lambda *a: (*a[:2], a[2:5], a[5], taps, place), (x, w, b, E, r, nothing(L_Y))),
        BACKWARD: (lambda *a: (*a, window), (l_y, w, nothing(X))),
        WEIGHT: (lambda *a: (*a, taps), (x, l_y, np.full(W.shape, np.nan, np.float32))),
    }
    for name, truth in truths(X, W, L_Y, (b, E, R), window, precision).items():
        arguments, given = calls[name]

        def run(*given, name=name, arguments=arguments):
            assert getattr(tensor_convolution, name)(*arguments(*given), precision)
            return given[-1]

        ours = from_memory(device.run(run, *given))
        ulp = 0 if name == WEIGHT or precision == "tf32" else {"fp16": 2**-11, "bf16": 2**-8}[precision]
        np.testing.assert_allclose(ours, truth, rtol=ulp, atol=2e-6 * np.abs(truth).max())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_tf32_by_the_layers_functions(device, launched, case):
    given = arrays(*case)
    ours, truth = in_tf32(device, *given, case[3]), truths(*given, case[3], "tf32")
    for name, y in ours.items():
        assert error(y, truth[name]) < 4e-7, name
    assert set(launched) == {(kernel, "TF32") for kernel in ON_TENSOR_CORES.values()}
    assert launched[0] == (ON_TENSOR_CORES[FORWARD], "TF32") and launched[-1] == (ON_TENSOR_CORES[WEIGHT], "TF32")
    assert error(ours[FORWARD], truths(*given, case[3], "float32")[FORWARD]) > 1e-5, "nothing was rounded"


@pytest.mark.parametrize("case", ["many images in a tile", "halving"])
def test_parts_give_the_same_bits_whoever_is_last(device, forced, case):
    """In one group of parts, and in three of which the last has two; some parts are empty."""
    given = *arrays(*CASES[case]), CASES[case][3]
    truth = truths(*given, "tf32")
    for parts in (3, 18):
        forced(Plan(64, 64, parts))
        one, other = in_tf32(device, *given), in_tf32(device, *given, seed=parts)
        for name, y in one.items():
            assert error(y, truth[name]) < 4e-7
            np.testing.assert_array_equal(y, other[name])


def test_an_infinite_pixel_reaches_only_the_outputs_that_read_it(device):
    X, W, L_Y, (b, _, _) = arrays((2, 9, 7), 16, 16, SAME)
    X[1, 6, 6], L_Y[1, 6, 6] = np.inf, np.inf
    near = np.zeros(L_Y.shape, bool)
    near[1, 5:8, 5:] = True
    ours = in_tf32(device, X, W, L_Y, (b, None, None), SAME)
    np.testing.assert_array_equal(np.isfinite(ours[FORWARD]), ~near)
    np.testing.assert_array_equal(np.isfinite(ours[BACKWARD]), ~near)


def test_what_is_added_to_pixels_that_lie_apart(device):
    """Every second pixel of Y along either axis, and its own entries of R; the others stay as they are."""
    X, W, _, (b, E, _) = arrays((3, 3, 4), 16, 16, window(1))
    R, taps, place = normal(3, 7, 8, 16), taps_of(window(1)), Place(3, 4, 7, 8, (2, 2), (1, 0))
    truth = np.full(R.shape, 7.0)
    truth[:, 1::2, ::2] = truths(X, W, X, (b, E, R[:, 1::2, ::2]), window(1), "tf32")[FORWARD]

    def run(X, W, b, E, R, Y):
        assert tensor_convolution.convolve(X, W, (b, E, R), Y, taps, place, "tf32")
        return Y

    Y = device.run(run, X, W, b, E, R, np.full(R.shape, 7, np.float32))
    np.testing.assert_allclose(Y, truth, rtol=0, atol=2e-6 * np.abs(truth).max())


def test_no_images_no_channels_no_filters(device):
    for images, C, K in [((0, 4, 4), 16, 16), ((2, 4, 4), 0, 16), ((2, 4, 4), 16, 0)]:
        X, W, L_Y, (b, E, R) = arrays(images, C, K, SAME)
        ours = in_tf32(device, X, W, L_Y, (b, E, R), SAME)
        np.testing.assert_array_equal(ours[FORWARD], b + E[:, None, None] + R)
        np.testing.assert_array_equal(ours[BACKWARD], np.zeros(X.shape))
        np.testing.assert_array_equal(ours[WEIGHT], np.zeros(W.shape))


# what does not fit, and the functions that it leaves to float32
ODD = {
    "3 channels": ((2, 5, 4), 3, 16, {FORWARD, BACKWARD, WEIGHT}),
    "3 filters": ((2, 5, 4), 16, 3, {FORWARD, BACKWARD, WEIGHT}),
    "8 channels": ((2, 5, 4), 8, 16, {FORWARD}),  # no whole slice
    "8 filters": ((2, 5, 4), 16, 8, {BACKWARD}),
}


@pytest.mark.parametrize("case", ODD.values(), ids=ODD.keys())
def test_what_does_not_fit_is_left_to_float32(device, launched, case):
    *sizes, left = case
    given = *arrays(*sizes, SAME), SAME
    precise, rough = truths(*given, "float32"), truths(*given, "tf32")
    for name, y in in_tf32(device, *given).items():
        assert error(y, (precise if name in left else rough)[name]) < 1e-6
    kernels = {kernel for kernel, precision in launched if precision == "TF32"}
    assert kernels == {ON_TENSOR_CORES[name] for name in ON_TENSOR_CORES if name not in left}


@pytest.mark.parametrize("which", range(6))
def test_arrays_that_do_not_begin_at_16_bytes_are_left_to_float32(launched, device, which):
    X, W, L_Y, added = arrays((2, 4, 3), 16, 16, SAME)
    given = [X, W, L_Y, *added]
    memory = device.array(np.append(np.float32(0), given[which]))  # a copy to the device would begin at 16 bytes again
    given[which] = memory[1:].reshape(given[which].shape)
    truth = truths(X, W, L_Y, added, SAME, "float32")
    left = [{FORWARD, WEIGHT}, {FORWARD, BACKWARD}, {BACKWARD, WEIGHT}, {FORWARD}, {FORWARD}, {FORWARD}][which]
    for name, y in in_tf32(device, *given[:3], given[3:], SAME).items():
        assert (error(y, truth[name]) < 1e-6) == (name in left)


def test_what_is_too_large_for_the_kernels_is_left_to_others():
    """Where a patch begins is counted in an int; so many taps have a bit each."""
    many = np.broadcast_to(np.float32(0), (1, 2**13, 2**14, 16))
    W, b = normal(1, 1, 16, 16), (None, None, None)
    whole = Place(2**13, 2**14, 2**13, 2**14)
    assert not tensor_convolution.convolve(many, W, b, many, taps_of(window(1)), whole, "tf32")
    X, wide = normal(1, 1, 16, 16), window((1, 16))
    assert not tensor_convolution.convolve_weight_gradient(X, X[:, :, :1], normal(1, 16, 16, 16), taps_of(wide), "tf32")
    assert not tensor_convolution.convolve(X, W, b, X, taps_of(window(1)), Place(1, 16, 1, 16), "float32")


@pytest.mark.parametrize("C, K, left", [(16, 80, set()), (8, 16, {FORWARD}), (16, 6, {FORWARD, BACKWARD, WEIGHT})])
@pytest.mark.parametrize("image", [(2, 5, 4), (1, 1, 1)])
def test_doubled_pixels(device, launched, image, C, K, left):
    """Whole numbers, which TF32 and sums of them hold exactly, give what the definition gives."""
    rng = np.random.default_rng(C)
    whole = lambda *shape: rng.integers(-4, 5, shape).astype(np.float32)  # noqa: E731
    X, W, b, L_Y = whole(*image, C), whole(3, 3, C, K), whole(K), whole(image[0], 2 * image[1], 2 * image[2], K)
    for name, given in {FORWARD: (X, W, b), BACKWARD: (L_Y, W), WEIGHT: (X, L_Y)}.items():

        def run(*given, name=f"upsample_{name}"):
            with tensor.precision("tf32"):
                return getattr(convolution, name)(*given)

        launched.clear()
        np.testing.assert_array_equal(
            device.run(run, *given), getattr(definition, f"upsample_{name}").definition(*map(np.float64, given))
        )
        assert (launched[0] == (ON_TENSOR_CORES[name], "TF32")) == (name not in left)


def test_doubled_pixels_in_parts(device, forced):
    forced(Plan(64, 64, 10))
    rng = np.random.default_rng(1)
    X, W = (rng.integers(-4, 5, shape).astype(np.float32) for shape in ((1, 2, 3, 64), (3, 3, 64, 16)))

    def run(X, W):
        with tensor.precision("tf32"):
            return convolution.upsample_convolve(X, W, None)

    truth = definition.upsample_convolve.definition(X.astype(float), W.astype(float), None)
    np.testing.assert_array_equal(device.run(run, X, W), truth)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("tile", tensor.TILES, ids=lambda tile: f"{tile[0]}x{tile[1]}")
@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_every_variant(device, forced, launched, tile, parts, precision):
    """Whole tiles, and ones that end within a tile along either axis."""
    forced(Plan(*tile, parts))
    for case in [((5, 7, 9), 32, 288, SAME), ((4, 8, 8), 64, 128, SAME), ((2, 6, 8), 32, 32, HALVING)]:
        check_in_memory(device, *case, precision)
    assert set(launched) == {(kernel, precision.upper()) for kernel in ON_TENSOR_CORES.values()}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_random_convolutions(device, monkeypatch, seed):
    rng, plan = np.random.default_rng(seed), tensor.plan
    parts = int(rng.integers(1, 12))
    monkeypatch.setattr(tensor, "plan", lambda *sizes: plan(*sizes)._replace(parts=parts))
    pair = lambda low, high: tuple(int(n) for n in rng.integers(low, high, 2))  # noqa: E731
    size, stride, dilation = pair(1, 4) if seed % 4 else pair(1, 2), pair(1, 3), pair(1, 3)
    least = [d * (r - 1) for d, r in zip(dilation, size, strict=True)]
    shape = int(rng.integers(1, 5)), *(n + more for n, more in zip(least, pair(1, 9), strict=True))
    C, K = (int(n) * 32 for n in rng.integers(1, 4, 2))
    check_in_memory(
        device,
        shape,
        C,
        K,
        window(size, stride, (pair(0, 3), pair(0, 3)), dilation),
        ("tf32", "bf16", "fp16")[seed % 3],
    )


@pytest.mark.slow
@pytest.mark.skipif(nvrtc.missing() is not None, reason=str(nvrtc.missing()))
@pytest.mark.parametrize("architecture", [a for a in nvrtc.ARCHITECTURES if a >= tensor.OLDEST])
def test_every_variant_compiles_without_spills(architecture):
    for name, defines, usages in nvrtc.compile_variants([architecture], tensor_convolution.VARIANTS):
        assert isinstance(usages, list), usages
        (usage,) = usages
        assert not usage.spills and usage.registers <= 240, (name, source.flags(defines))
        if architecture == occupancy.PLANNED:
            held = occupancy.least_warps((usage.kernel,), **defines)
            assert made.warps(usage, *made.dynamic_shared(usage.kernel, defines)) >= held, "plans count on as many"
        assert usage.shared + Plan(defines["TILE_M"], defines["TILE_N"], 1).shared <= 99 << 10
