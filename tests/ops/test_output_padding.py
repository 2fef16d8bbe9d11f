"""conv_transpose2d with more output padding than the stride, by its definition and by the CUDA kernels."""

from contextlib import nullcontext

import numpy as np
import pytest

from tests.ops.test_convolution import conv_gradients_loop, conv_loop, leaf, margins, pair
from tinydiff import ops
from tinydiff.cuda import host
from tinydiff.dispatch import on_host


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("stride", [1, 2, (3, 1)], ids=str)
@pytest.mark.parametrize("padding", [0, (1, 2), ((0, 3), (2, 0))], ids=str)
@pytest.mark.parametrize("extra", [(0, 0), (1, 0), (0, 4), (3, 2), (4, 3)], ids=str)
def test_output_padding_above_the_stride(stride, padding, extra, kernels, rng):
    """With dilation 5 it adds rows that conv2d maps to more outputs; y beyond the given ones is 0."""
    if kernels and host.missing():
        pytest.skip(host.missing())
    dtype, atol = (np.float32, 2e-5) if kernels else (np.float64, 1e-12)
    y, w, b = (rng.normal(size=shape).astype(dtype) for shape in ((2, 3, 2, 4), (2, 3, 3, 4), (3,)))
    geometry = {"stride": stride, "padding": padding, "dilation": (5, 6)}
    tensors = leaf(y), leaf(w), leaf(b)
    with on_host() if kernels else nullcontext():
        out = ops.conv_transpose2d(*tensors, output_padding=extra, **geometry)
        x = rng.normal(size=out.shape).astype(dtype)
        out.backward(x)
    base = [
        (n - 1) * s - sum(p) + d * (r - 1) + 1
        for n, s, p, d, r in zip((3, 2), pair(stride), margins(padding), (5, 6), (2, 3), strict=True)
    ]
    assert out.shape == (2, base[0] + extra[0], base[1] + extra[1], 3)
    all_rows = conv_loop(x.astype(float), w.astype(float), 0, **geometry)
    filled = np.zeros(all_rows.shape)
    filled[:, :3, :2] = y
    expected, L_w, _ = conv_gradients_loop(x.astype(float), w.astype(float), filled, **geometry)
    np.testing.assert_allclose(out.data, expected + b, atol=atol)
    for t, exact in zip(tensors, (all_rows[:, :3, :2], L_w, x.sum((0, 1, 2))), strict=True):
        np.testing.assert_allclose(t.grad, exact, atol=5 * atol)
