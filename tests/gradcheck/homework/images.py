"""Convolutions and pooling, with loops, patches and strides."""

import numpy as np

from homework.base import Pair, cached, draw


def conv_forward(x, w, b, pad, stride):
    N, C, H, W = x.shape
    F, _, HH, WW = w.shape
    xp = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    Ho, Wo = 1 + (H + 2 * pad - HH) // stride, 1 + (W + 2 * pad - WW) // stride
    out = np.zeros((N, F, Ho, Wo), dtype=x.dtype)
    for i in range(Ho):
        for j in range(Wo):
            patch = xp[:, :, i * stride : i * stride + HH, j * stride : j * stride + WW]
            out[:, :, i, j] = np.tensordot(patch, w, ([1, 2, 3], [1, 2, 3])) + b
    return out, (x, w, b, pad, stride)


def conv_backward(dout, cache):
    x, w, b, pad, stride = cache
    _, _, HH, WW = w.shape
    xp = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    dxp, dw = np.zeros_like(xp), np.zeros_like(w)
    db = dout.sum(axis=(0, 2, 3))
    for n in range(x.shape[0]):
        for f in range(w.shape[0]):
            for i in range(dout.shape[2]):
                for j in range(dout.shape[3]):
                    rows = slice(i * stride, i * stride + HH)
                    columns = slice(j * stride, j * stride + WW)
                    dxp[n, :, rows, columns] += w[f] * dout[n, f, i, j]
                    dw[f] += xp[n, :, rows, columns] * dout[n, f, i, j]
    H, W = x.shape[2:]
    return dxp[:, :, pad : pad + H, pad : pad + W], dw, db


def im2col(x, k):
    N, C, H, W = x.shape
    cols = np.empty((N, C, k, k, H - k + 1, W - k + 1), dtype=x.dtype)
    for i in range(k):
        for j in range(k):
            cols[:, :, i, j] = x[:, :, i : i + H - k + 1, j : j + W - k + 1]
    return cols.transpose(0, 4, 5, 1, 2, 3).reshape(N * (H - k + 1) * (W - k + 1), -1)


def conv_im2col_forward(x, w):
    N, _, H, W = x.shape
    F, _, k, _ = w.shape
    cols = im2col(x, k)
    out = cols @ w.reshape(F, -1).T
    return out.reshape(N, H - k + 1, W - k + 1, F).transpose(0, 3, 1, 2), (x, w, cols)


def conv_im2col_backward(dout, cache):
    x, w, cols = cache
    N, C, H, W = x.shape
    F, _, k, _ = w.shape
    d = dout.transpose(0, 2, 3, 1).reshape(-1, F)
    dw = (d.T @ cols).reshape(w.shape)
    dcols = (d @ w.reshape(F, -1)).reshape(N, H - k + 1, W - k + 1, C, k, k)
    dx = np.zeros(x.shape)
    for i in range(k):
        for j in range(k):
            dx[:, :, i : i + H - k + 1, j : j + W - k + 1] += dcols[..., i, j].transpose(0, 3, 1, 2)
    return dx, dw


def conv1d(x, w):
    n, k = len(x), len(w)
    return np.array([x[i : i + k] @ w for i in range(n - k + 1)])


def conv1d_backward(g, x, w):
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for i in range(len(g)):
        dx[i : i + len(w)] += g[i] * w
        dw += g[i] * x[i : i + len(w)]
    return dx, dw


def corr2d(X, K):
    h, w = K.shape
    Y = np.zeros((X.shape[0] - h + 1, X.shape[1] - w + 1), X.dtype)
    for i in range(Y.shape[0]):
        for j in range(Y.shape[1]):
            Y[i, j] = (X[i : i + h, j : j + w] * K).sum()
    return Y


def corr2d_backward(g, X, K):
    padded = np.pad(g, ((K.shape[0] - 1,) * 2, (K.shape[1] - 1,) * 2))
    return corr2d(padded, K[::-1, ::-1]), corr2d(X, g)


def pool_forward(x, size, stride):
    N, C, H, W = x.shape
    Ho, Wo = 1 + (H - size) // stride, 1 + (W - size) // stride
    out = np.zeros((N, C, Ho, Wo), x.dtype)
    for i in range(Ho):
        for j in range(Wo):
            out[:, :, i, j] = x[:, :, i * stride : i * stride + size, j * stride : j * stride + size].max(axis=(2, 3))
    return out, (x, size, stride)


def pool_backward(dout, cache):
    x, size, stride = cache
    dx = np.zeros_like(x)
    for n, c, i, j in np.ndindex(dout.shape):
        window = x[n, c, i * stride : i * stride + size, j * stride : j * stride + size]
        at = np.unravel_index(window.argmax(), window.shape)
        dx[n, c, i * stride + at[0], j * stride + at[1]] += dout[n, c, i, j]
    return dx


def pool_reshape_forward(x):
    N, C, H, W = x.shape
    windows = x.reshape(N, C, H // 2, 2, W // 2, 2)
    out = windows.max(axis=3).max(axis=4)
    return out, (x, windows, out)


def pool_reshape_backward(dout, cache):
    x, windows, out = cache
    mask = windows == out[:, :, :, None, :, None]
    d = np.where(mask, dout[:, :, :, None, :, None], 0)
    return (d / mask.sum(axis=(3, 5), keepdims=True)).reshape(x.shape)


def average_pool(x):
    N, H, W, C = x.shape
    return x.reshape(N, H // 2, 2, W // 2, 2, C).mean(axis=(2, 4))


def average_pool_backward(g, x):
    return g.repeat(2, axis=1).repeat(2, axis=2) / 4


def depthwise(x, w):
    N, H, W, C = x.shape
    xp = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(w[i, j] * xp[:, i : i + H, j : j + W] for i in range(3) for j in range(3))


def depthwise_backward(g, x, w):
    N, H, W, C = x.shape
    xp = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    dxp, dw = np.zeros_like(xp), np.zeros_like(w)
    for i in range(3):
        for j in range(3):
            dw[i, j] = (g * xp[:, i : i + H, j : j + W]).sum((0, 1, 2))
            dxp[:, i : i + H, j : j + W] += g * w[i, j]
    return dxp[:, 1:-1, 1:-1], dw


def transposed_conv(x, w):
    n, m = x.shape
    k, l = w.shape  # noqa: E741
    out = np.zeros((n + k - 1, m + l - 1), x.dtype)
    for i in range(n):
        for j in range(m):
            out[i : i + k, j : j + l] += x[i, j] * w
    return out


def transposed_conv_backward(g, x, w):
    k, l = w.shape  # noqa: E741
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            dx[i, j] = (g[i : i + k, j : j + l] * w).sum()
            dw += x[i, j] * g[i : i + k, j : j + l]
    return dx, dw


def with_numbers(*numbers):
    return lambda shapes: lambda rng: [*draw(*shapes)(rng), *numbers]


PAIRS = [
    cached("conv", conv_forward, conv_backward, with_numbers(1, 1)(((2, 3, 4, 4), (3, 3, 3, 3), (3,)))),
    cached("conv with stride", conv_forward, conv_backward, with_numbers(1, 2)(((2, 3, 5, 5), (4, 3, 3, 3), (4,)))),
    cached("conv without padding", conv_forward, conv_backward, with_numbers(0, 1)(((2, 2, 4, 5), (3, 2, 2, 2), (3,)))),
    cached("conv by im2col", conv_im2col_forward, conv_im2col_backward, draw((2, 3, 5, 4), (4, 3, 3, 3))),
    Pair("conv in one dimension", conv1d, conv1d_backward, draw((7,), (3,))),
    Pair("cross-correlation", corr2d, corr2d_backward, draw((6, 5), (2, 3))),
    Pair("1x1 conv", lambda x, w: x @ w, lambda g, x, w: (g @ w.T, np.tensordot(x, g, ([0, 1, 2], [0, 1, 2]))),
         draw((2, 4, 4, 3), (3, 5))),
    Pair("depthwise conv", depthwise, depthwise_backward, draw((2, 4, 5, 3), (3, 3, 3))),
    Pair("transposed conv", transposed_conv, transposed_conv_backward, draw((3, 4), (2, 3))),
    cached("max pooling", pool_forward, pool_backward, with_numbers(2, 2)(((2, 3, 4, 4),))),
    cached("max pooling, overlapping", pool_forward, pool_backward, with_numbers(3, 2)(((2, 2, 5, 5),))),
    cached("max pooling by reshape", pool_reshape_forward, pool_reshape_backward, draw((2, 3, 4, 4))),
    Pair("average pooling", average_pool, average_pool_backward, draw((2, 4, 6, 3))),
    Pair("global average pooling", lambda x: x.mean((2, 3)),
         lambda g, x: np.broadcast_to(g[:, :, None, None], x.shape) / (x.shape[2] * x.shape[3]), draw((2, 3, 4, 4))),
    Pair("upsampling", lambda x: x.repeat(2, 0).repeat(2, 1),
         lambda g, x: g.reshape(len(x), 2, -1, 2).sum((1, 3)), draw((3, 4))),
    Pair("padding", lambda x: np.pad(x, ((1, 2), (0, 1))), lambda g, x: g[1:-2, :-1], draw((3, 4))),
    Pair("flattening", lambda x: x.reshape(len(x), -1), lambda g, x: g.reshape(x.shape), draw((2, 3, 4))),
]  # fmt: skip
