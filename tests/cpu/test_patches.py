"""tinydiff/cpu/patches.py: patches in memory that is used again, and blocks of images."""

import sys

import numpy as np
import pytest

from tests.ops.test_windows import CASES, patches_loop
from tinydiff.cpu import patches
from tinydiff.cpu.patches import image_blocks, unfold
from tinydiff.machine import threads as workers
from tinydiff.machine import workspaces
from tinydiff.ops import convolution as definition
from tinydiff.ops import windows
from tinydiff.ops.windows import Window


@pytest.mark.parametrize(("shape", "size", "stride", "padding", "dilation"), CASES, ids=str)
def test_patches(shape, size, stride, padding, dilation, rng):
    x, window = rng.normal(size=shape), Window.read("test", size, stride, padding, dilation)
    wide = np.repeat(x, 2, axis=3)[..., ::2]
    for layout in (x, np.asfortranarray(x), wide, x[::-1].copy()[::-1]):
        np.testing.assert_array_equal(unfold(layout, window), patches_loop(x, size, stride, padding, dilation))


def test_patches_do_not_leak_old_margins(rng):
    window = Window.read("test", 3, 1, 2, 1)
    unfold(np.full((2, 10, 10, 3), 9.0), Window.read("test", 3, 1, 0, 1))
    workspaces.workspace("padded", (2, 10, 10, 3), float)[...] = 9
    x = rng.normal(size=(1, 4, 5, 3))
    np.testing.assert_array_equal(unfold(x, window), patches_loop(x, (3, 3), 1, 2, 1))


@pytest.mark.parametrize("dtype", [">f8", ">f4", ">i4", ">c16"])
def test_numbers_of_the_other_byte_order(dtype, rng):
    """Patches are moved as they lie, beside those of native order, whose memory is used again."""
    x = rng.integers(-9, 9, (2, 6, 5, 3))
    for padding in (0, 1):
        window = Window.read("test", 3, 1, padding, 1)
        native = x.astype(np.dtype(dtype).newbyteorder("="))
        for given in (native, x.astype(dtype), native):
            np.testing.assert_array_equal(unfold(given, window), windows.unfold(x.astype(float), window))


def test_objects_keep_their_references():
    thing = object()
    x = np.full((1, 3, 3, 1), thing)
    count = sys.getrefcount(thing)
    for _ in range(5):
        assert (unfold(x, Window.read("test", 2, 1, 0, 1)) == thing).all()
    workspaces.forget_workspaces()
    assert sys.getrefcount(thing) == count


@pytest.mark.parametrize("images", [0, 1, 7, 64])
@pytest.mark.parametrize("entries", [0, 1, 1000, 10**5, 10**9])
def test_image_blocks_cover_every_image_once(images, entries):
    for at_once in (1, 1 << 17, 1 << 19):
        covered = [i for block in image_blocks(images, entries, at_once) for i in range(images)[block]]
        assert covered == list(range(images))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_many_blocks(threads, groups, rng, monkeypatch):
    """Each of the three in blocks of 1, 2 and all images."""
    X, W = rng.normal(size=(7, 6, 5, 4)), rng.normal(size=(3, 2, 4 // groups, 6))
    b, E = rng.normal(size=6), rng.normal(size=(7, 6))
    window = Window.read("test", (3, 2), (2, 1), ((0, 1), (2, 0)), 1)
    L_Y = rng.normal(size=(7, *window.output_size(X.shape), 6))
    R = rng.normal(size=L_Y.shape)
    original, entries = image_blocks, L_Y[0, ..., 0].size * W[..., 0].size
    for images in (1, 2, 7):
        monkeypatch.setattr(patches, "image_blocks", lambda n, e, at=images * entries: original(n, e, at))
        with workers.threads(threads):
            found = (
                patches.convolve(X, W, b, window, groups, E, R),
                patches.convolve_input_gradient(L_Y, W, X.shape, window, groups),
                patches.convolve_weight_gradient(X, L_Y, W.shape, window, groups),
            )
        expected = (
            definition.convolve.definition(X, W, b, window, groups, E, R),
            definition.convolve_input_gradient.definition(L_Y, W, X.shape, window, groups),
            definition.convolve_weight_gradient.definition(X, L_Y, W.shape, window, groups),
        )
        for f, e in zip(found, expected, strict=True):
            np.testing.assert_allclose(f, e, rtol=0, atol=1e-12)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(
    ("shape", "filters", "stride"),
    [((1, 4, 4, 64), (3, 3, 64, 50), 1), ((1, 16, 20, 64), (1, 1, 64, 40), 1), ((1, 32, 32, 16), (3, 3, 16, 24), 2)],
)
def test_an_image_that_is_shared_by_threads(shape, filters, stride, threads, rng, monkeypatch):
    X, W, b = rng.standard_normal(shape), rng.standard_normal(filters), rng.standard_normal(filters[3])
    window = Window.read("test", filters[:2], stride, filters[0] // 2, 1)
    E, R = rng.standard_normal((1, filters[3])), rng.standard_normal((1, *window.output_size(shape), filters[3]))
    with workers.threads(threads):
        assert patches.convolve_together(X, W, b, window, 1, E, R) is NotImplemented  # too little to do
        monkeypatch.setattr(patches, "MULTIPLICATIONS_WORTH_SHARING", 0)
        Y = patches.convolve_together(X, W, b, window, 1, E, R)
        assert patches.convolve_together(np.concatenate([X, X]), W, b, window) is NotImplemented  # images enough
        assert patches.convolve_together(X, W, b, window, 2) is NotImplemented
    np.testing.assert_allclose(Y, definition.convolve.definition(X, W, b, window, 1, E, R), rtol=1e-12, atol=1e-12)
