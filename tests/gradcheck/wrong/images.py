"""Convolutions, pooling and resizing with one slip each."""

import numpy as np

from wrong.base import Wrong, draw


def conv(x, w, b, pad, stride):
    N, C, H, W = x.shape
    F, _, k, _ = w.shape
    xp = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    Ho, Wo = 1 + (H + 2 * pad - k) // stride, 1 + (W + 2 * pad - k) // stride
    out = np.zeros((N, F, Ho, Wo))
    for i in range(Ho):
        for j in range(Wo):
            patch = xp[:, :, i * stride : i * stride + k, j * stride : j * stride + k]
            out[:, :, i, j] = np.tensordot(patch, w, ([1, 2, 3], [1, 2, 3])) + b
    return out, (x, xp, w, pad, stride)


def conv_backward_1(dout, cache):
    x, xp, w, pad, stride = cache
    H, W = x.shape[2:]
    k = w.shape[2]
    dxp = np.zeros_like(xp)
    dw = np.zeros_like(w)
    db = dout.sum(axis=(0, 2, 3))
    for n, f, i, j in np.ndindex(dout.shape):
        r, c = i * stride, j * stride
        d = dout[n, f, i, j]
        dw[f] += d * xp[n, :, i : i + k, j : j + k]
        dxp[n, :, r : r + k, c : c + k] += d * w[f]
    dx = dxp[:, :, pad : pad + H, pad : pad + W]
    return dx, dw, db


def conv_backward_2(dout, cache):
    x, xp, w, pad, stride = cache
    H, W = x.shape[2:]
    k = w.shape[2]
    dxp = np.zeros_like(xp)
    dw = np.zeros_like(w)
    db = dout.sum(axis=(0, 2, 3))
    for n, f, i, j in np.ndindex(dout.shape):
        r, c = i * stride, j * stride
        d = dout[n, f, i, j]
        dw[f] += d * xp[n, :, r : r + k, c : c + k]
        dxp[n, :, r : r + k, c : c + k] += d * w[f]
    dx = dxp[:, :, :H, :W]
    return dx, dw, db


def conv_backward_3(dout, cache):
    x, xp, w, pad, stride = cache
    H, W = x.shape[2:]
    k = w.shape[2]
    dxp = np.zeros_like(xp)
    dw = np.zeros_like(w)
    db = dout.sum(axis=(0, 2, 3))
    for n, f, i, j in np.ndindex(dout.shape):
        r, c = i * stride, j * stride
        d = dout[n, f, i, j]
        dw[f] += d * xp[n, :, r : r + k, c : c + k]
        dxp[n, :, r : r + k, c : c + k] += d * w[f]
    dx = dxp
    return dx, dw, db


def im2col(x, k):
    N, C, H, W = x.shape
    cols = np.empty((N, C, k, k, H - k + 1, W - k + 1))
    for i in range(k):
        for j in range(k):
            cols[:, :, i, j] = x[:, :, i : i + H - k + 1, j : j + W - k + 1]
    return cols.transpose(0, 4, 5, 1, 2, 3).reshape(N * (H - k + 1) * (W - k + 1), -1)


def conv_by_columns(x, w):
    N, C, H, W = x.shape
    F, _, k, _ = w.shape
    cols = im2col(x, k)
    out = (cols @ w.reshape(F, -1).T).reshape(N, H - k + 1, W - k + 1, F)
    return out.transpose(0, 3, 1, 2), (x, w, cols)


def conv_by_columns_backward_1(dout, cache):
    x, w, cols = cache
    N, C, H, W = x.shape
    F, _, k, _ = w.shape
    h, v = H - k + 1, W - k + 1
    d = dout.transpose(0, 2, 3, 1).reshape(-1, F)
    dw = (d.T @ cols).reshape(w.shape)
    dcols = (d @ w.reshape(F, -1)).reshape(N, h, v, C, k, k)
    dx = np.zeros_like(x)
    for i in range(k):
        for j in range(k):
            patch = dcols[:, :, :, :, i, j].transpose(0, 3, 1, 2)
            dx[:, :, i : i + h, j : j + v] = patch
    return dx, dw


def conv_by_columns_backward_2(dout, cache):
    x, w, cols = cache
    N, C, H, W = x.shape
    F, _, k, _ = w.shape
    h, v = H - k + 1, W - k + 1
    d = dout.transpose(0, 2, 3, 1).reshape(-1, F)
    dw = (d.T @ cols).reshape(w.shape)
    dcols = (d @ w.reshape(F, -1)).reshape(N, h, v, C, k, k)
    dx = np.zeros_like(x)
    for i in range(k - 1):
        for j in range(k):
            patch = dcols[:, :, :, :, i, j].transpose(0, 3, 1, 2)
            dx[:, :, i : i + h, j : j + v] += patch
    return dx, dw


def conv1d(x, w):
    k = len(w)
    return np.array([x[i : i + k] @ w for i in range(len(x) - k + 1)]), (x, w)


def conv1d_backward_1(dout, cache):
    x, w = cache
    k = len(w)
    dx = np.zeros_like(x)
    dw = np.zeros_like(w)
    for i in range(len(dout)):
        dx[i : i + k] += dout[i] * w[::-1]
        dw += dout[i] * x[i : i + k]
    return dx, dw


def conv1d_backward_2(dout, cache):
    x, w = cache
    k = len(w)
    dx = np.zeros_like(x)
    dw = np.zeros_like(w)
    for i in range(len(dout) - 1):
        dx[i : i + k] += dout[i] * w
        dw += dout[i] * x[i : i + k]
    return dx, dw


def correlate(X, K):
    h, w = K.shape
    Y = np.zeros((X.shape[0] - h + 1, X.shape[1] - w + 1))
    for i in range(Y.shape[0]):
        for j in range(Y.shape[1]):
            Y[i, j] = np.sum(X[i : i + h, j : j + w] * K)
    return Y


def corr2d(X, K):
    return correlate(X, K), (X, K)


def corr2d_backward_1(dout, cache):
    X, K = cache
    h, w = K.shape
    padded = np.pad(dout, ((h - 1, h - 1), (w - 1, w - 1)))
    turned = K[::-1, ::-1]
    dX = correlate(padded, K)
    dK = correlate(X, dout)
    return dX, dK


def corr2d_backward_2(dout, cache):
    X, K = cache
    h, w = K.shape
    padded = np.pad(dout, ((h - 1, h - 1), (w - 1, w - 1)))
    turned = K[::-1]
    dX = correlate(padded, turned)
    dK = correlate(X, dout)
    return dX, dK


def depthwise(x, w):
    N, H, W, C = x.shape
    xp = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = sum(w[i, j] * xp[:, i : i + H, j : j + W] for i in range(3) for j in range(3))
    return out, (xp, w)


def depthwise_backward_1(dout, cache):
    xp, w = cache
    N, H, W, C = dout.shape
    dxp = np.zeros_like(xp)
    dw = np.zeros_like(w)
    for i in range(3):
        for j in range(3):
            window = xp[:, i : i + H, j : j + W]
            dw[i, j] = np.sum(dout * window, axis=(0, 1, 2))
            dxp[:, i : i + H, j : j + W] += dout * w[j, i]
    return dxp[:, 1:-1, 1:-1], dw


def depthwise_backward_2(dout, cache):
    xp, w = cache
    N, H, W, C = dout.shape
    dxp = np.zeros_like(xp)
    dw = np.zeros_like(w)
    for i in range(3):
        for j in range(3):
            window = xp[:, i : i + H, j : j + W]
            dw[i, j] = np.sum(dout * window, axis=(0, 1, 2))
            dxp[:, i : i + H, j : j + W] += dout * w[i, j]
    return dxp[:, 2:, 2:], dw


def transposed_conv(x, w):
    n, m = x.shape
    k = len(w)
    out = np.zeros((2 * n + k - 2, 2 * m + k - 2))
    for i in range(n):
        for j in range(m):
            out[2 * i : 2 * i + k, 2 * j : 2 * j + k] += x[i, j] * w
    return out, (x, w)


def transposed_conv_backward_1(dout, cache):
    x, w = cache
    k = len(w)
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            d = dout[i : i + k, j : j + k]
            dx[i, j] = np.sum(d * w)
            dw += x[i, j] * d
    return dx, dw


def transposed_conv_backward_2(dout, cache):
    x, w = cache
    k = len(w)
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            d = dout[2 * i : 2 * i + k, 2 * j : 2 * j + k]
            dx[i, j] = np.sum(d * w)
            dw = x[i, j] * d
    return dx, dw


def max_pool(x, size, stride):
    N, C, H, W = x.shape
    out = np.zeros((N, C, 1 + (H - size) // stride, 1 + (W - size) // stride))
    for n, c, i, j in np.ndindex(out.shape):
        r, s = i * stride, j * stride
        out[n, c, i, j] = x[n, c, r : r + size, s : s + size].max()
    return out, (x, size, stride)


def max_pool_backward(dout, cache):
    x, size, stride = cache
    dx = np.zeros_like(x)
    for n, c, i, j in np.ndindex(dout.shape):
        r, s = i * stride, j * stride
        window = x[n, c, r : r + size, s : s + size]
        mask = window == window.max()
        dx[n, c, r : r + size, s : s + size] = mask * dout[n, c, i, j]
    return dx


def max_pool_by_place(dout, cache):
    x, size, stride = cache
    dx = np.zeros_like(x)
    for n, c, i, j in np.ndindex(dout.shape):
        window = x[n, c, i * stride : i * stride + size, j * stride : j * stride + size]
        b, a = divmod(window.argmax(), size)
        dx[n, c, i * stride + a, j * stride + b] += dout[n, c, i, j]
    return dx


def average_pool(x):
    N, H, W, C = x.shape
    return x.reshape(N, H // 2, 2, W // 2, 2, C).mean(axis=(2, 4)), x.shape


def average_pool_backward_1(dout, cache):
    return dout.repeat(2, axis=1).repeat(2, axis=2)


def average_pool_backward_2(dout, cache):
    return np.tile(dout, (1, 2, 2, 1)) / 4


def global_pool(x, w):
    m = x.mean(axis=(2, 3))
    return m @ w, (x, w, m)


def global_pool_backward(dout, cache):
    x, w, m = cache
    N, C, H, W = x.shape
    dm = dout @ w.T
    dw = m.T @ dout
    dx = np.ones_like(x) * dm[:, :, None, None] / H
    return dx, dw


def upsample(x):
    return x.repeat(2, axis=0).repeat(2, axis=1), x.shape


def upsample_backward_1(dout, cache):
    H, W = cache
    blocks = dout.reshape(H, 2, W, 2)
    return blocks.mean(axis=(1, 3))


def upsample_backward_2(dout, cache):
    H, W = cache
    blocks = dout.reshape(2, H, 2, W).transpose(1, 0, 3, 2)
    return blocks.sum(axis=(1, 3))


def upsample_backward_3(dout, cache):
    H, W = cache
    blocks = dout.reshape(H, 2, W, 2)
    return blocks[:, 0, :, 0]


def spatial_batchnorm(x, gamma, beta):
    std = np.sqrt(x.var(axis=(0, 2, 3), keepdims=True) + 1e-5)
    x_hat = (x - x.mean(axis=(0, 2, 3), keepdims=True)) / std
    return gamma[:, None, None] * x_hat + beta[:, None, None], (x_hat, std, gamma)


def spatial_batchnorm_backward(dout, cache):
    x_hat, std, gamma = cache
    N, C, H, W = dout.shape
    m = N * H * W
    dbeta = np.sum(dout, axis=(0, 2, 3), keepdims=True)
    dgamma = np.sum(dout * x_hat, axis=(0, 2, 3), keepdims=True)
    dx = gamma[:, None, None] / (m * std) * (m * dout - dgamma - x_hat * dbeta)
    return dx, dgamma.reshape(C), dbeta.reshape(C)


WRONG = [
    Wrong("conv, stride forgotten in dw", conv, conv_backward_1,
          lambda rng: [*draw((2, 2, 5, 5), (3, 2, 3, 3), (3,))(rng), 1, 2],
          "dw[f] += d * xp[n, :, i : i + k, j : j + k]", (), "stride or padding"),
    Wrong("conv, padding cut at the end", conv, conv_backward_2,
          lambda rng: [*draw((2, 2, 5, 5), (3, 2, 3, 3), (3,))(rng), 1, 2], "dx = dxp[:, :, :H, :W]", (),
          "stride or padding"),
    Wrong("conv, padding not cut", conv, conv_backward_3,
          lambda rng: [*draw((2, 2, 5, 5), (3, 2, 3, 3), (3,))(rng), 1, 2], "dx = dxp", (), "stride or padding"),
    Wrong("im2col, dx overwritten", conv_by_columns, conv_by_columns_backward_1, draw((2, 3, 4, 4), (3, 3, 3, 3)),
          "dx[:, :, i : i + h, j : j + v] = patch", (), "overwritten"),
    Wrong("im2col, kernel one short", conv_by_columns, conv_by_columns_backward_2, draw((2, 3, 4, 4), (3, 3, 3, 3)),
          "for i in range(k - 1):", ("dx[:, :, i : i + h, j : j + v] += patch",), "off by one"),
    Wrong("conv in one dimension, kernel turned", conv1d, conv1d_backward_1, draw((7,), (3,)),
          "dx[i : i + k] += dout[i] * w[::-1]", (), "other"),
    Wrong("conv in one dimension, last step", conv1d, conv1d_backward_2, draw((7,), (3,)),
          "for i in range(len(dout) - 1):", ("dx[i : i + k] += dout[i] * w", "dw += dout[i] * x[i : i + k]"),
          "off by one"),
    Wrong("cross-correlation, kernel not flipped", corr2d, corr2d_backward_1, draw((5, 6), (2, 3)),
          "dX = correlate(padded, K)", (), "not flipped"),
    Wrong("cross-correlation, one axis flipped", corr2d, corr2d_backward_2, draw((5, 6), (2, 3)),
          "turned = K[::-1]", (), "not flipped"),
    Wrong("depthwise conv, weights transposed", depthwise, depthwise_backward_1, draw((2, 4, 3, 2), (3, 3, 2)),
          "dxp[:, i : i + H, j : j + W] += dout * w[j, i]", (), "not transposed"),
    Wrong("depthwise conv, padding cut on one side", depthwise, depthwise_backward_2, draw((2, 4, 3, 2), (3, 3, 2)),
          "return dxp[:, 2:, 2:], dw", (), "stride or padding"),
    Wrong("transposed conv, stride forgotten", transposed_conv, transposed_conv_backward_1, draw((3, 2), (3, 3)),
          "d = dout[i : i + k, j : j + k]", (), "stride or padding"),
    Wrong("transposed conv, dw overwritten", transposed_conv, transposed_conv_backward_2, draw((3, 2), (3, 3)),
          "dw = x[i, j] * d", (), "no accumulation"),
    Wrong("max pooling, overlaps overwritten", max_pool, max_pool_backward,
          lambda rng: [rng.normal(size=(2, 2, 5, 5)), 3, 1],
          "dx[n, c, r : r + size, s : s + size] = mask * dout[n, c, i, j]", (), "overwritten"),
    Wrong("max pooling by place, row and column", max_pool, max_pool_by_place,
          lambda rng: [rng.normal(size=(2, 2, 6, 6)), 2, 2], "b, a = divmod(window.argmax(), size)", (),
          "not transposed"),
    Wrong("average pooling, not divided", average_pool, average_pool_backward_1, draw((2, 4, 6, 3)),
          "return dout.repeat(2, axis=1).repeat(2, axis=2)", (), "missing factor"),
    Wrong("average pooling, tiled", average_pool, average_pool_backward_2, draw((2, 4, 6, 3)),
          "return np.tile(dout, (1, 2, 2, 1)) / 4", (), "other"),
    Wrong("global pooling, one side counted", global_pool, global_pool_backward, draw((3, 2, 2, 4), (2, 3)),
          "dx = np.ones_like(x) * dm[:, :, None, None] / H", (), "wrong factor"),
    Wrong("upsampling, averaged", upsample, upsample_backward_1, draw((3, 3)), "return blocks.mean(axis=(1, 3))",
          (), "wrong factor"),
    Wrong("upsampling, axes of the blocks", upsample, upsample_backward_2, draw((3, 3)),
          "blocks = dout.reshape(2, H, 2, W).transpose(1, 0, 3, 2)", (), "wrong axis"),
    Wrong("upsampling, first of each block", upsample, upsample_backward_3, draw((3, 3)),
          "return blocks[:, 0, :, 0]", (), "missing sum over a broadcast axis"),
    Wrong("spatial batch norm, sums swapped", spatial_batchnorm, spatial_batchnorm_backward,
          draw((3, 2, 3, 2), (2,), (2,)),
          "dx = gamma[:, None, None] / (m * std) * (m * dout - dgamma - x_hat * dbeta)", (), "wrong array"),
]  # fmt: skip
