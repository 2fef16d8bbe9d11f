"""Affine layers, activations and normalisations with one slip each."""

import numpy as np

from wrong.base import Wrong, draw, sigmoid


def affine(x, w, b):
    return x @ w + b, (x, w)


def affine_backward_1(dout, cache):
    x, w = cache
    dx = dout @ w
    dw = x.T @ dout
    db = dout.sum(axis=0)
    return dx, dw, db


def affine_backward_2(dout, cache):
    x, w = cache
    dx = dout @ w.T
    dw = x.T @ dout
    db = dout.sum(axis=1)
    return dx, dw, db


def affine_wide(x, w, b):
    return x.reshape(len(x), -1) @ w + b, (x, w)


def affine_wide_backward(dout, cache):
    x, w = cache
    rows = x.reshape(len(x), -1)
    return (dout @ w.T).reshape(x.shape), rows.T @ dout, dout


def relu(x):
    return np.maximum(x, 0), x


def relu_backward_1(dout, cache):
    return dout * (dout > 0)


def relu_backward_2(dout, cache):
    return dout * (cache < 0)


def two_layers(x, W1, b1, W2, b2):
    h = x @ W1 + b1
    a = np.maximum(0, h)
    return a @ W2 + b2, (x, W1, W2, h, a)


def two_layers_backward_1(dout, cache):
    x, W1, W2, h, a = cache
    dW2 = a.T @ dout
    db2 = dout.sum(axis=0)
    da = dout @ W2.T
    dh = da * (da > 0)
    dW1 = x.T @ dh
    db1 = dh.sum(axis=0)
    dx = dh @ W1.T
    return dx, dW1, db1, dW2, db2


def two_layers_backward_2(dout, cache):
    x, W1, W2, h, a = cache
    dW2 = a.T @ dout
    db2 = dout.sum(axis=0)
    da = dout @ W2.T
    dh = da
    dW1 = x.T @ dh
    db1 = dh.sum(axis=0)
    dx = dh @ W1.T
    return dx, dW1, db1, dW2, db2


def leaky_relu(x):
    return np.where(x > 0, x, 0.1 * x), x


def leaky_relu_backward(dout, cache):
    x = cache
    dx = dout.copy()
    dx[x < 0] = 0.1
    return dx


def prelu(x, a):
    return np.where(x > 0, x, a * x), (x, a)


def prelu_backward_1(dout, cache):
    x, a = cache
    negative = x <= 0
    dx = np.where(negative, a * dout, dout)
    da = np.sum(dout * x * negative, axis=1)
    return dx, da


def prelu_backward_2(dout, cache):
    x, a = cache
    negative = x >= 0
    dx = np.where(negative, a * dout, dout)
    da = np.sum(dout * x * negative, axis=0)
    return dx, da


def gelu(x):
    u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    t = np.tanh(u)
    return 0.5 * x * (1 + t), (x, t)


def gelu_backward_1(dout, cache):
    x, t = cache
    du = np.sqrt(2 / np.pi) * (1 + 0.044715 * x**2)
    dt = (1 - t**2) * du
    dx = dout * (0.5 * (1 + t) + 0.5 * x * dt)
    return dx


def gelu_backward_2(dout, cache):
    x, t = cache
    du = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    dt = (1 - np.tanh(x) ** 2) * du
    dx = dout * (0.5 * (1 + t) + 0.5 * x * dt)
    return dx


def swish(x):
    s = sigmoid(x)
    return x * s, (x, s)


def swish_backward(dout, cache):
    x, s = cache
    return dout * (s + s * (1 - s))


def logistic_unit(x):
    return sigmoid(x), (x, sigmoid(x))


def logistic_unit_backward(dout, cache):
    x, out = cache
    return dout * x * (1 - x)


def elu(x):
    out = np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)
    return out, (x, out)


def elu_backward(dout, cache):
    x, out = cache
    slope = np.where(x > 0, 1, out)
    return dout * slope


def dropout(x, keep):
    return x * keep / 0.75, (x, keep)


def dropout_backward(dout, cache):
    x, keep = cache
    return dout * keep


def batchnorm(x, gamma, beta):
    mu, var = x.mean(axis=0), x.var(axis=0)
    std = np.sqrt(var + 1e-5)
    x_hat = (x - mu) / std
    return gamma * x_hat + beta, (x, mu, std, x_hat, gamma)


def batchnorm_backward_1(dout, cache):
    x, mu, std, x_hat, gamma = cache
    N = x.shape[0]
    dbeta = dout.sum(axis=0)
    dgamma = np.sum(dout * x_hat, axis=0)
    dx_hat = dout * gamma
    dvar = np.sum(dx_hat * (x - mu) * 0.5 * std**-3, axis=0)
    dmu = -np.sum(dx_hat / std, axis=0)
    dx = dx_hat / std + dvar * 2 * (x - mu) / N + dmu / N
    return dx, dgamma, dbeta


def batchnorm_backward_2(dout, cache):
    x, mu, std, x_hat, gamma = cache
    N = x.shape[0]
    dbeta = dout.sum(axis=0)
    dgamma = np.sum(dout * x_hat, axis=0)
    dx_hat = dout * gamma
    dvar = np.sum(dx_hat * (x - mu) * -0.5 * std**-3, axis=0)
    dmu = -np.sum(dx_hat / std, axis=0)
    dx = dx_hat / std + dvar * 2 * (x - mu) / N
    return dx, dgamma, dbeta


def batchnorm_short_1(dout, cache):
    x, mu, std, x_hat, gamma = cache
    N = x.shape[0]
    dbeta = dout.sum(axis=0)
    dgamma = (dout * x).sum(axis=0)
    dx = gamma / (N * std) * (N * dout - dbeta - x_hat * dgamma)
    return dx, dgamma, dbeta


def batchnorm_short_2(dout, cache):
    x, mu, std, x_hat, gamma = cache
    N = x.shape[0]
    dbeta = dout.sum(axis=0)
    dgamma = (dout * x_hat).sum(axis=0)
    dx = gamma / (N * std) * (dout - dbeta - x_hat * dgamma)
    return dx, dgamma, dbeta


def batchnorm_steps(dout, cache):
    x, mu, std, x_hat, gamma = cache
    N = x.shape[0]
    xmu = x - mu
    dbeta = np.sum(dout, axis=0)
    dgamma = np.sum(dout * x_hat, axis=0)
    dxhat = dout * gamma
    divar = np.sum(dxhat * xmu, axis=0)
    dxmu1 = dxhat / std
    dsqrtvar = -divar / std**2
    dvar = dsqrtvar / std
    dsq = dvar * np.ones_like(x) / N
    dxmu2 = 2 * xmu * dsq
    dx1 = dxmu1 + dxmu2
    dmu = -np.sum(dx1, axis=0)
    dx2 = dmu * np.ones_like(x) / N
    return dx1 + dx2, dgamma, dbeta


def layernorm(x, gamma, beta):
    std = np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    x_hat = (x - x.mean(axis=1, keepdims=True)) / std
    return gamma * x_hat + beta, (x_hat, std, gamma)


def layernorm_backward_1(dout, cache):
    x_hat, std, gamma = cache
    dbeta = dout.sum(axis=0)
    dgamma = (dout * x_hat).sum(axis=0)
    dx_hat = dout * gamma
    m1 = dx_hat.mean(axis=0, keepdims=True)
    m2 = (dx_hat * x_hat).mean(axis=1, keepdims=True)
    dx = (dx_hat - m1 - x_hat * m2) / std
    return dx, dgamma, dbeta


def layernorm_backward_2(dout, cache):
    x_hat, std, gamma = cache
    dbeta = dout.sum(axis=0)
    dgamma = (dout * x_hat).sum(axis=0)
    dx_hat = dout * gamma
    m1 = dx_hat.mean(axis=1, keepdims=True)
    m2 = (dx_hat * x_hat).mean(axis=1, keepdims=True)
    dx = (dx_hat - x_hat * m2) / std
    return dx, dgamma, dbeta


def groupnorm(x, gamma, beta, G):
    N, C, H, W = x.shape
    groups = x.reshape(N, G, -1)
    std = np.sqrt(groups.var(axis=2, keepdims=True) + 1e-5)
    x_hat = ((groups - groups.mean(axis=2, keepdims=True)) / std).reshape(x.shape)
    return gamma[:, None, None] * x_hat + beta[:, None, None], (x_hat, std, gamma, G)


def groupnorm_backward(dout, cache):
    x_hat, std, gamma, G = cache
    N, C, H, W = dout.shape
    dbeta = dout.sum(axis=(2, 3))
    dgamma = (dout * x_hat).sum(axis=(0, 2, 3))
    g = (dout * gamma[:, None, None]).reshape(N, G, -1)
    xg = x_hat.reshape(N, G, -1)
    m = C // G * H * W
    mean = g.sum(axis=2, keepdims=True) / m
    dot = (g * xg).sum(axis=2, keepdims=True) / m
    dx = (g - mean - xg * dot) / std
    return dx.reshape(N, C, H, W), dgamma, dbeta


def rmsnorm(x, g):
    r = np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)
    return g * x / r, (x, g, r)


def rmsnorm_backward(dout, cache):
    x, g, r = cache
    dg = np.sum(dout * x / r, axis=0)
    dn = dout * g
    dot = np.mean(dn * x, axis=-1, keepdims=True)
    dx = dn / r - x * dot / r**2
    return dx, dg


def highway(x, Wt, Wh):
    t, h = sigmoid(x @ Wt), np.tanh(x @ Wh)
    return t * h + (1 - t) * x, (x, Wt, Wh, t, h)


def highway_backward(dout, cache):
    x, Wt, Wh, t, h = cache
    dt = dout * (h - x)
    dh = dout * t
    dat = dt * t * (1 - t)
    dah = dh * (1 - h**2)
    dx = dout * (1 - t)
    dx += dat @ Wt.T
    dx = dah @ Wh.T
    return dx, x.T @ dat, x.T @ dah


def gated(x, W, V):
    a, s = x @ W, sigmoid(x @ V)
    return a * s, (x, W, V, a, s)


def gated_backward(dout, cache):
    x, W, V, a, s = cache
    da = dout * s
    dv = dout * a * s * (1 - s)
    return da @ W.T, x.T @ da, x.T @ dv


WRONG = [
    Wrong("affine, w as it is", affine, affine_backward_1, draw((4, 4), (4, 4), (4,)), "dx = dout @ w", (),
          "not transposed"),
    Wrong("affine, bias over axis 1", affine, affine_backward_2, draw((4, 4), (4, 4), (4,)),
          "db = dout.sum(axis=1)", (), "wrong axis"),
    Wrong("affine of images, bias not summed", affine_wide, affine_wide_backward, draw((3, 2, 2), (4, 5), (5,)),
          "return (dout @ w.T).reshape(x.shape), rows.T @ dout, dout", (), "missing sum over a broadcast axis"),
    Wrong("relu, mask of dout", relu, relu_backward_1, draw((4, 5)), "return dout * (dout > 0)", (), "wrong mask"),
    Wrong("relu, mask turned", relu, relu_backward_2, draw((4, 5)), "return dout * (cache < 0)", (), "wrong mask"),
    Wrong("two layers, relu's mask from da", two_layers, two_layers_backward_1,
          draw((4, 3), (3, 5), (5,), (5, 2), (2,)), "dh = da * (da > 0)", (), "wrong mask"),
    Wrong("two layers, relu forgotten", two_layers, two_layers_backward_2, draw((4, 3), (3, 5), (5,), (5, 2), (2,)),
          "dh = da", (), "missing factor"),
    Wrong("leaky relu, slope without dout", leaky_relu, leaky_relu_backward, draw((4, 5)), "dx[x < 0] = 0.1", (),
          "overwritten"),
    Wrong("prelu, da over axis 1", prelu, prelu_backward_1, draw((5, 5), (5,)),
          "da = np.sum(dout * x * negative, axis=1)", (), "wrong axis"),
    Wrong("prelu, mask turned", prelu, prelu_backward_2, draw((5, 5), (5,)), "negative = x >= 0", (), "wrong mask"),
    Wrong("gelu, the 3 forgotten", gelu, gelu_backward_1, draw((4, 5)),
          "du = np.sqrt(2 / np.pi) * (1 + 0.044715 * x**2)", (), "wrong factor"),
    Wrong("gelu, tanh from x", gelu, gelu_backward_2, draw((4, 5)), "dt = (1 - np.tanh(x) ** 2) * du", (),
          "wrong array"),
    Wrong("swish, x forgotten", swish, swish_backward, draw((4, 5)), "return dout * (s + s * (1 - s))", (),
          "missing factor"),
    Wrong("sigmoid of the input", logistic_unit, logistic_unit_backward, draw((4, 5)), "return dout * x * (1 - x)",
          (), "wrong array"),
    Wrong("elu, slope from the output", elu, elu_backward, draw((4, 5)), "slope = np.where(x > 0, 1, out)", (),
          "missing term"),
    Wrong("dropout, scale forgotten", dropout, dropout_backward,
          lambda rng: [rng.normal(size=(4, 5)), rng.random((4, 5)) < 0.75], "return dout * keep", (),
          "missing factor"),
    Wrong("batch norm, sign of dvar", batchnorm, batchnorm_backward_1, draw((6, 4), (4,), (4,)),
          "dvar = np.sum(dx_hat * (x - mu) * 0.5 * std**-3, axis=0)", (), "wrong sign"),
    Wrong("batch norm, the mean's term", batchnorm, batchnorm_backward_2, draw((6, 4), (4,), (4,)),
          "dx = dx_hat / std + dvar * 2 * (x - mu) / N", (), "missing term"),
    Wrong("short batch norm, dgamma from x", batchnorm, batchnorm_short_1, draw((6, 4), (4,), (4,)),
          "dgamma = (dout * x).sum(axis=0)", (), "wrong array"),
    Wrong("short batch norm, one N forgotten", batchnorm, batchnorm_short_2, draw((6, 4), (4,), (4,)),
          "dx = gamma / (N * std) * (dout - dbeta - x_hat * dgamma)", (), "missing factor"),
    Wrong("batch norm in steps, half forgotten", batchnorm, batchnorm_steps, draw((6, 4), (4,), (4,)),
          "dvar = dsqrtvar / std", (), "wrong factor"),
    Wrong("layer norm, mean over axis 0", layernorm, layernorm_backward_1, draw((5, 5), (5,), (5,)),
          "m1 = dx_hat.mean(axis=0, keepdims=True)", (), "wrong axis"),
    Wrong("layer norm, the mean's term", layernorm, layernorm_backward_2, draw((5, 5), (5,), (5,)),
          "dx = (dx_hat - x_hat * m2) / std", (), "missing term"),
    Wrong("group norm, bias of each example", groupnorm, groupnorm_backward,
          lambda rng: [*draw((2, 4, 2, 3), (4,), (4,))(rng), 2], "dbeta = dout.sum(axis=(2, 3))", (),
          "missing sum over a broadcast axis"),
    Wrong("rms norm, power of r", rmsnorm, rmsnorm_backward, draw((4, 5), (5,)), "dx = dn / r - x * dot / r**2", (),
          "wrong factor"),
    Wrong("highway, dx replaced", highway, highway_backward, draw((3, 4), (4, 4), (4, 4)), "dx = dah @ Wh.T", (),
          "overwritten"),
    Wrong("gated unit, one branch of x", gated, gated_backward, draw((3, 4), (4, 2), (4, 2)),
          "return da @ W.T, x.T @ da, x.T @ dv", (), "missing term"),
]  # fmt: skip
