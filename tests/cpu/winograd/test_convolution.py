"""Winograd's convolution against the definition: the same sums, with rounding that stays within bounds."""

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.autograd.tape import no_grad
from tinydiff.autograd.tensor import Tensor
from tinydiff.cpu.winograd import convolution as winograd
from tinydiff.cpu.winograd import plan as plans
from tinydiff.cpu.winograd.plan import Plan
from tinydiff.cpu.winograd.transforms import toom_cook
from tinydiff.machine import threads as workers
from tinydiff.machine import workspaces
from tinydiff.ops import convolution
from tinydiff.ops.windows import Window

SHAPES = [  # N, H, W, C, K, padding
    (4, 16, 16, 32, 32, ((1, 1), (1, 1))),
    (8, 28, 28, 32, 64, ((1, 1), (1, 1))),
    (32, 7, 7, 64, 48, ((1, 1), (1, 1))),
    (13, 14, 13, 17, 21, ((1, 1), (1, 1))),  # blocks of unequal numbers of images
    (8, 18, 11, 16, 40, ((0, 2), (2, 0))),
    (12, 15, 15, 24, 16, ((0, 0), (0, 0))),
    (1, 32, 32, 40, 40, ((1, 1), (1, 1))),  # one image, for two workers
    (3, 12, 12, 136, 144, ((1, 1), (1, 1))),  # so many channels that workers take panels of filters
    (8, 4, 4, 128, 256, ((1, 1), (1, 1))),  # few tiles: filters are turned by transposed products
    (1, 24, 16, 160, 128, ((1, 1), (1, 1))),
]


def problem(N, H, W, C, K, padding, seed=0):
    rng = np.random.default_rng(seed)
    X, F = rng.normal(size=(N, H, W, C)), rng.normal(size=(3, 3, C, K)) / (3 * C**0.5)
    window = Window((3, 3), (1, 1), padding, (1, 1))
    L_Y = rng.normal(size=(N, *window.output_size(X.shape), K))
    return X, F, rng.normal(size=K), L_Y, window


def three(X, F, b, L_Y, window):
    """Output, input gradient and weight gradient."""
    return (
        convolution.convolve(X, F, b, window),
        convolution.convolve_input_gradient(L_Y, F, X.shape, window),
        convolution.convolve_weight_gradient(X, L_Y, F.shape, window),
    )


def single(*arrays):
    return tuple(a.astype(np.float32) for a in arrays)


@pytest.fixture
def definition(monkeypatch):
    """Switches Winograd off for a call."""

    def run(*arguments):
        with monkeypatch.context() as m:
            m.setenv("TINYDIFF_WINOGRAD", "0")
            return three(*arguments)

    return run


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_errors_are_within_bounds_of_the_definitions(shape, threads, definition):
    """At most 12 times the definition's root mean square error and 32 times its largest, both measured in float32 against
    float64."""
    *arrays, window = problem(*shape)
    assert winograd.is_faster(*single(arrays[0], arrays[1]), window.output_size(arrays[0].shape))
    exact = three(*arrays, window)
    with workers.threads(threads):
        fast, again, plain = (
            three(*single(*arrays), window),
            three(*single(*arrays), window),
            definition(*single(*arrays), window),
        )
    for what, e, f, a, p in zip(("Y", "L_X", "L_W"), exact, fast, again, plain, strict=True):
        assert f.dtype == np.float32 and f.shape == e.shape
        np.testing.assert_array_equal(f, a, err_msg=f"{what} differs from one time to the next")
        assert np.any(f != p), f"{what} was not computed by Winograd"
        ours, theirs = f - e, p - e
        assert np.sqrt((ours**2).mean()) < 12 * np.sqrt((theirs**2).mean()), what
        assert np.abs(ours).max() < 32 * np.abs(theirs).max(), what


UPSAMPLED = [(2, 16, 16, 32, 32), (9, 5, 7, 24, 40), (2, 8, 8, 160, 128), (1, 12, 11, 64, 32)]  # N, H, W, C, K


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", UPSAMPLED, ids=str)
def test_upsampled_errors_are_within_bounds_of_the_definitions(shape, threads, definition):
    """The same bounds, for the convolution of an image with its pixels doubled, from the image itself."""
    N, H, W, C, K = shape
    X, F, b, L_Y, window = problem(N, 2 * H, 2 * W, C, K, ((1, 1), (1, 1)))
    X = X[:, :H, :W]

    def doubled(X, F, b, L_Y, window, by=three):
        Y, L_X, L_W = by(X.repeat(2, 1).repeat(2, 2), F, b, L_Y, window)
        return Y, L_X.reshape(N, H, 2, W, 2, C).sum((2, 4)), L_W

    exact = doubled(X, F, b, L_Y, window)
    plain = doubled(*single(X, F, b, L_Y), window, definition)
    with workers.threads(threads):
        x, f, bias = (Tensor(a, True) for a in single(X, F, b))
        y = convolution.upsample_conv2d(x, f, bias)
        y.backward(L_Y.astype(np.float32))
    for what, e, ours, p in zip(("Y", "L_X", "L_W"), exact, (y.data, x.grad, f.grad), plain, strict=True):
        assert np.any(ours != p), f"{what} was not computed by Winograd"
        ours, theirs = ours - e, p - e
        assert np.sqrt((ours**2).mean()) < 12 * np.sqrt((theirs**2).mean()), what
        assert np.abs(ours).max() < 32 * np.abs(theirs).max(), what
    np.testing.assert_allclose(bias.grad, L_Y.sum((0, 1, 2)), rtol=0, atol=1e-3)


def test_one_frequency_vanishes_on_doubled_pixels():
    transform = toom_cook([0, 1, -1, 0.6, -0.6])
    tiles = np.random.default_rng(0).normal(size=(100, 4)).repeat(2, axis=1)[:, 1:7]
    frequencies = tiles @ transform.B_T.T
    np.testing.assert_allclose(frequencies[:, 2], 0, atol=1e-6)
    assert np.abs(np.delete(frequencies, 2, axis=1)).max(0).min() > 0.1
    np.testing.assert_allclose(transform.A_T[0::2, 2] + transform.A_T[1::2, 2], 0, atol=1e-6)


DIVISIONS = {  # images, filters or rows of tiles for each worker, and images in a block
    "filters, one block": (0, 1e9, 1 << 30),
    "filters, blocks and a rest": (0, 1e9, 36 * 9 * 144 * 2),
    "images": (0, 0, 1 << 30),
    "images, blocks and a rest": (0, 0, 36 * 9 * 144 * 2),
    "images, blocks of one": (0, 0, 1),
    "one worker": (1e9, 0, 36 * 9 * 144 * 2),
}


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "shape", [(7, 12, 12, 136, 144), (7, 12, 12, 48, 64), (1, 9, 12, 136, 144), (2, 28, 8, 64, 96)]
)
@pytest.mark.parametrize("division", DIVISIONS)
def test_any_division_of_the_work(division, shape, threads, monkeypatch):
    worth, filters, block = DIVISIONS[division]
    *arrays, window = problem(*shape, ((1, 1), (1, 1)))
    E, R = np.ones((len(arrays[3]), shape[4])), arrays[3] * 2
    exact = (convolution.convolve(*arrays[:3], window, 1, E, R), *three(*arrays, window)[1:])
    for name, value in (
        ("MULTIPLICATIONS_WORTH_A_THREAD", worth), ("TILES_PER_FILTER", filters),
        ("TILES_PER_FILTER_IN_A_GRADIENT", filters), ("ENTRIES_OF_A_BLOCK", block),
    ):  # fmt: skip
        monkeypatch.setattr(plans, name, value)
    for module in (plans, winograd):  # as on processors with and without AVX-512
        monkeypatch.setattr(module, "has_small_products", lambda: threads in (1, 5))
    monkeypatch.setattr(workspaces._workspaces, "prepared", {})
    kept = []
    with workers.threads(threads):
        X, F, b, L_Y, E, R = single(*arrays, E, R)
        for _ in range(200):  # first with new plans, then with those that were kept
            found = (convolution.convolve(X, F, b, window, 1, E, R), *three(X, F, b, L_Y, window)[1:])
            for f, e in zip(found, exact, strict=True):
                np.testing.assert_allclose(f, e, rtol=0, atol=1e-5 * np.abs(e).max())
            before, kept = kept, [p for p in workspaces._workspaces.prepared.values() if isinstance(p, Plan)]
            if len(before) == len(kept) == 3:
                break  # a part that another thread took last time may need more memory, which makes plans anew
    assert len(kept) == 3
    for plan in kept:
        counts = np.zeros((shape[0], plan.vertical.tiles, plan.outputs[3]))
        for part, steps in zip(plan.parts, plan.steps, strict=True):
            for images in (images for step in steps for images in step.blocks):
                counts[images, part.rows, part.filters] += 1
        assert (counts == 1).all()
        assert (len(plan.parts) > 1) == (threads > 1 and worth == 0)


@pytest.mark.parametrize(("use", "images_alone"), [("forward", 1), ("turned", 1), ("gradient", 3)])
def test_a_single_thread_takes_smaller_blocks_where_products_are_copied(use, images_alone, monkeypatch):
    """A block of V or M has 2^19 entries, 36 for each of 64 tiles and 32 channels: 7 images."""

    def most(count, channels=32, small=False):
        monkeypatch.setattr(plans, "has_small_products", lambda: small)
        plan = Plan("F4", (16, 32, 32, channels), (32, 32), (1, 1), channels, count, use)
        blocks = [images for steps in plan.steps for step in steps for images in step.blocks]
        return max(images.stop - images.start for images in blocks)

    assert most(1) == images_alone
    assert most(2) == 4 and most(1, small=True) == 6  # 8 and 16 images in equal blocks
    assert most(1, channels=128) == most(2, channels=128) > 1  # many filters


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("C", "K"), [(48, 32), (64, 96)])
def test_small_convolutions_see_every_change_of_their_filters(C, K, threads, monkeypatch):
    """Transformed filters are kept, but only while the filters are the same."""
    monkeypatch.setattr(plans, "MULTIPLICATIONS_WORTH_A_THREAD", 0)
    monkeypatch.setattr(winograd, "_recent", winograd._Recent())
    X, F, b, L_Y, window = problem(1, 16, 16, C, K, ((1, 1), (1, 1)))
    exact = three(X, F, b, L_Y, window)
    X, F, b, L_Y = single(X, F, b, L_Y)
    with workers.threads(threads), no_grad():
        first = three(X, F, b, L_Y, window)
        again = three(X, F, b, L_Y, window)
        assert len(winograd._recent.filters) == 2  # as they are, and turned
        F[1, 1, -1, -1] += 1
        changed = three(X, F, b, L_Y, window)
        F *= np.nan
        assert np.isnan(three(X, F, b, L_Y, window)[0]).any()
    monkeypatch.setattr(winograd, "_recent", winograd._Recent())
    three(X, F, b, L_Y, window)
    assert not winograd._recent.filters  # in training they are not the same again
    for a, f, e in zip(again, first, exact, strict=True):
        np.testing.assert_array_equal(a, f)
        np.testing.assert_allclose(f, e, rtol=0, atol=1e-5 * np.abs(e).max())
    np.testing.assert_allclose((changed[0] - first[0])[..., -1], X[..., -1], atol=1e-4)
    np.testing.assert_allclose((changed[1] - first[1])[..., -1], L_Y[..., -1], atol=1e-4)


def test_few_transformed_filters_are_kept(monkeypatch):
    recent = winograd._Recent()
    monkeypatch.setattr(winograd, "CONVOLUTIONS_WITH_KEPT_FILTERS", 3)
    filters = [np.full((3, 3, 16, 16), i, np.float32) for i in range(5)]
    for W in (*filters, filters[2], filters[0]):
        recent.transformed(W, "F4", False)
    assert [before[0, 0, 0, 0] for before, _ in recent.filters.values()] == [4, 2, 0]


def test_filters_whose_last_axis_is_strided():
    X, F, b, L_Y, window = problem(*SHAPES[0])
    wide = np.repeat(F.astype(np.float32), 2, axis=3)[..., ::2]
    x, f, b, l_y = single(X, F, b, L_Y)
    for got, expected in zip(three(x, wide, b, l_y, window), three(x, f, b, l_y, window), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_gradients_of_any_memory_layout(definition):
    X, F, b, L_Y, window = problem(16, 16, 12, 16, 24, ((1, 1), (1, 1)))
    X, F, b, L_Y = single(X, F, b, L_Y)
    x, w = Tensor(X, True), Tensor(F, True)
    results = []
    wide = np.repeat(L_Y, 2, axis=3)[..., ::2]
    backwards = np.ascontiguousarray(L_Y[:, ::-1])[:, ::-1]
    for cotangent in (L_Y, wide, backwards, np.asfortranarray(L_Y)):
        cotangent.flags.writeable = False
        x.grad = w.grad = None
        ops.conv2d(x, w, b, padding=1).backward(cotangent)
        results.append((x.grad, w.grad))
    for L_X, L_W in results[1:]:
        np.testing.assert_array_equal(L_X, results[0][0])
        np.testing.assert_array_equal(L_W, results[0][1])
    same = np.broadcast_to(L_Y[:1, :1, :1], L_Y.shape)  # strides of 0
    x.grad = w.grad = None
    ops.conv2d(x, w, b, padding=1).backward(same)
    _, L_X, L_W = definition(X, F, b, same.copy(), window)
    np.testing.assert_allclose(x.grad, L_X, atol=2e-5)
    np.testing.assert_allclose(w.grad, L_W, atol=2e-3)


def left(X, F, L_Y, window, groups=1):
    """Which of the three are left to others."""
    found = (
        winograd.convolve(X, F, None, window, groups),
        winograd.convolve_input_gradient(L_Y, F, X.shape, window, groups),
        winograd.convolve_weight_gradient(X, L_Y, F.shape, window, groups),
    )
    return [f is NotImplemented for f in found]


def test_what_is_left_to_others():
    X, F, b, L_Y, window = problem(*SHAPES[0])
    x, w, l_y = single(X, F, L_Y)
    assert left(x, w, l_y, window) == [False] * 3
    assert left(X, F, L_Y, window) == [True] * 3  # float64: gradient checks see the definition
    assert left(x, F, L_Y, window) == [True] * 3
    assert left(x, w, l_y, window, 2) == [True] * 3
    assert left(x, w[..., :8], l_y[..., :8], window) == [True] * 3
    assert left(x[:1, :8, :8], w, l_y[:1, :8, :8], window) == [True] * 3  # too little to do
    for other in (
        Window((3, 3), (2, 2), window.padding, (1, 1)),
        Window((3, 3), (1, 1), window.padding, (2, 2)),
        Window((1, 1), (1, 1), window.padding, (1, 1)),
    ):
        assert left(x, w, l_y, other) == [True] * 3
    assert winograd.convolve(x, w, b, window) is NotImplemented  # a wider bias


def test_what_of_upsampled_images_is_left_to_others(monkeypatch):
    X, F, b, L_Y, _ = problem(*SHAPES[0])
    X = X[:, ::2, ::2]
    x, w, l_y = single(X, F, L_Y)

    def left(x, w, l_y):
        found = (
            winograd.upsample_convolve(x, w, None),
            winograd.upsample_convolve_input_gradient(l_y, w),
            winograd.upsample_convolve_weight_gradient(x, l_y),
        )
        return [f is NotImplemented for f in found]

    assert left(x, w, l_y) == [False] * 3
    assert winograd.upsample_convolve(x, w, b) is NotImplemented  # a wider bias
    assert left(X, F, L_Y) == [True] * 3
    assert left(x[..., :8], w[:, :, :8], l_y) == [True] * 3  # few channels
    assert left(x[:1, :4, :4], w, l_y[:1, :8, :8]) == [True] * 3  # too little to do
    monkeypatch.setenv("TINYDIFF_WINOGRAD", "0")
    assert left(x, w, l_y) == [True] * 3


def test_the_switch(monkeypatch):
    monkeypatch.setenv("TINYDIFF_WINOGRAD", "0")
    assert not winograd.enabled()
    monkeypatch.delenv("TINYDIFF_WINOGRAD")
    assert winograd.enabled()


def test_a_wider_bias_widens_the_result():
    X, F, b, _, _ = problem(*SHAPES[0])
    x, w = single(X, F)
    assert ops.conv2d(x, w, b, padding=1).dtype == np.float64


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("padding", [((24, 24), (24, 24)), ((0, 39), (0, 39)), ((39, 0), (2, 30))], ids=str)
def test_tiles_that_lie_wholly_outside_of_the_image(padding, threads, definition, monkeypatch):
    monkeypatch.setattr(plans, "MULTIPLICATIONS_WORTH_A_THREAD", 0)
    monkeypatch.setattr(plans, "TILES_PER_FILTER", 0)
    X, F, b, L_Y, window = problem(1, 12, 12, 32, 32, padding)
    X, F, b, L_Y = single(X, F, b, L_Y)
    with workers.threads(threads):
        found = convolution.convolve(X, F, b, window)
    np.testing.assert_allclose(found, definition(X, F, b, L_Y, window)[0], atol=1e-4)


@pytest.mark.parametrize(
    ("N", "H", "W", "C", "K", "threads"),
    [
        (3, 32, 32, 64, 128, 2),
        (9, 16, 16, 64, 256, 2),
        (4, 28, 28, 64, 128, 3),
        (1, 60, 36, 64, 128, 2),
        (3, 32, 32, 128, 64, 2),
    ],
)
def test_workers_with_few_and_with_many_tiles_share_filters(N, H, W, C, K, threads):
    """Images, or rows of tiles of one, do not divide evenly: some workers have up to 64 tiles, others more."""
    X, F, b, L_Y, window = problem(N, H, W, C, K, ((1, 1), (1, 1)))
    exact = three(X, F, b, L_Y, window)
    with workers.threads(threads):
        for f, e in zip(three(*single(X, F, b, L_Y), window), exact, strict=True):
            np.testing.assert_allclose(f, e, rtol=0, atol=1e-5 * np.abs(e).max())


@pytest.mark.parametrize(
    ("N", "H", "C", "K", "forward", "backward"),
    [
        (1, 8, 64, 64, False, False),  # too little to do
        (1, 8, 128, 128, True, True),
        (1, 8, 256, 128, False, True),  # large filters for 4 tiles
        (2, 8, 256, 128, True, True),
        (4, 4, 256, 128, True, True),
        (1, 16, 256, 128, True, True),
        (64, 28, 15, 64, False, False),  # few channels
        (64, 5, 64, 64, False, False),  # tiles stick out
    ],
)
def test_which_convolutions_are_computed_by_winograd(N, H, C, K, forward, backward, monkeypatch):
    used = []
    for name in ("_filtered", "_weight_gradient"):
        original = getattr(winograd, name)
        monkeypatch.setattr(winograd, name, lambda *a, f=original, name=name, **k: used.append(name) or f(*a, **k))
    X, F, b, L_Y, window = problem(N, H, H, C, K, ((1, 1), (1, 1)))
    three(*single(X, F, b, L_Y), window)
    assert used.count("_filtered") == forward + backward and used.count("_weight_gradient") == backward
