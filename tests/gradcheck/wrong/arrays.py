"""NumPy's functions, embeddings and small products with one slip each."""

import numpy as np

from wrong.base import Wrong, draw, softmax


def embedding(W, ids):
    return W[ids], (W, ids)


def embedding_backward_1(dout, cache):
    W, ids = cache
    dW = np.zeros_like(W)
    dW[ids] += dout
    return dW


def embedding_backward_2(dout, cache):
    W, ids = cache
    dW = np.zeros_like(W)
    dW[ids] = dout
    return dW


def bag(W, ids):
    return W[ids].mean(axis=1), (W, ids)


def bag_backward_1(dout, cache):
    W, ids = cache
    dW = np.zeros_like(W)
    for i in range(len(ids)):
        for j in ids[i]:
            dW[j] += dout[i]
    return dW


def bag_backward_2(dout, cache):
    W, ids = cache
    dW = np.zeros_like(W)
    for i in range(1, len(ids)):
        for j in ids[i]:
            dW[j] += dout[i] / ids.shape[1]
    return dW


def softmax_rows(x):
    p = softmax(x)
    return p, p


def softmax_rows_backward_1(dout, cache):
    p = cache
    dot = np.sum(dout * p, axis=0, keepdims=True)
    return p * (dout - dot)


def softmax_rows_backward_2(dout, cache):
    p = cache
    dot = np.sum(dout * p, axis=1, keepdims=True)
    return p * dout - dot


def log_softmax(x):
    out = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return out, out


def log_softmax_backward_1(dout, cache):
    p = np.exp(cache)
    total = dout.sum(axis=1, keepdims=True)
    return dout - p * dout


def log_softmax_backward_2(dout, cache):
    p = cache
    total = dout.sum(axis=1, keepdims=True)
    return dout - p * total


def unit(x):
    n = np.sqrt(np.sum(x**2, axis=1, keepdims=True))
    return x / n, (x, n)


def unit_backward_1(dout, cache):
    x, n = cache
    dn = -np.sum(dout * x, axis=0, keepdims=True) / n**2
    dx = dout / n
    dx += dn * x / n
    return dx


def unit_backward_2(dout, cache):
    x, n = cache
    dn = np.sum(dout * x, axis=1, keepdims=True) / n**2
    dx = dout / n
    dx += dn * x / n
    return dx


def weight_norm(x, v, g):
    n = np.linalg.norm(v, axis=0)
    return x @ (g * v / n), (x, v, g, n)


def weight_norm_backward_1(dout, cache):
    x, v, g, n = cache
    w = g * v / n
    dw = x.T @ dout
    dg = np.sum(dw * v, axis=0)
    dv = g / n * (dw - dg * v / n)
    return dout @ w.T, dv, dg


def weight_norm_backward_2(dout, cache):
    x, v, g, n = cache
    w = g * v / n
    dw = x.T @ dout
    dg = np.sum(dw * v, axis=0) / n
    dv = g / n * (dw - dg * v / n)
    return dout @ v.T, dv, dg


def bilinear(a, b, W):
    return np.einsum("ni,kij,nj->nk", a, W, b), (a, b, W)


def bilinear_backward_1(dout, cache):
    a, b, W = cache
    da = np.einsum("nk,kij,nj->ni", dout, W, b)
    db = np.einsum("nk,kij,nj->ni", dout, W, a)
    dW = np.einsum("nk,ni,nj->kij", dout, a, b)
    return da, db, dW


def bilinear_backward_2(dout, cache):
    a, b, W = cache
    da = np.einsum("nk,kij,nj->ni", dout, W, b)
    db = np.einsum("nk,kij,ni->nj", dout, W, a)
    dW = np.einsum("nk,ni,nj->kij", dout, a, a)
    return da, db, dW


def quadratic(x, A):
    return x @ A @ x, (x, A)


def quadratic_backward_1(dout, cache):
    x, A = cache
    return dout * A @ x, dout * np.outer(x, x)


def quadratic_backward_2(dout, cache):
    x, A = cache
    return dout * 2 * A @ x, dout * np.outer(x, x)


def standard(x):
    s = x.std(axis=0)
    return (x - x.mean(axis=0)) / s, (x, s)


def standard_backward(dout, cache):
    x, s = cache
    N = len(x)
    xc = x - x.mean(axis=0)
    ds = -np.sum(dout * x, axis=0) / s**2
    dxc = dout / s + ds * xc / (N * s)
    dmu = -dxc.sum(axis=0)
    dx = dxc + dmu / N
    return dx


def ratio(a, b):
    return a / b, (a, b)


def ratio_backward_1(dout, cache):
    a, b = cache
    da = dout / b
    db = -dout * a / b**2
    return da, db


def ratio_backward_2(dout, cache):
    a, b = cache
    da = dout / b
    db = np.sum(dout * a / b**2, axis=1, keepdims=True)
    return da, db


def variance(x):
    return x.var(axis=0), x


def variance_backward_1(dout, cache):
    x = cache
    return 2 * dout * x / x.shape[0]


def variance_backward_2(dout, cache):
    x = cache
    return 2 * dout * (x - x.mean(axis=0)) / (x.shape[0] - 1)


def running_sum(x):
    return np.cumsum(x), x


def running_sum_backward_1(dout, cache):
    return np.cumsum(dout)


def running_sum_backward_2(dout, cache):
    return np.cumsum(dout[::-1])


def distances(a, b):
    d = np.sum((a[:, None] - b) ** 2, axis=2)
    return d, (a, b)


def distances_backward(dout, cache):
    a, b = cache
    diff = a[:, None] - b
    g = 2 * dout[:, :, None] * diff
    da = g.sum(axis=1)
    db = g.sum(axis=0)
    return da, db


def product(x):
    return x.prod(axis=1), (x, x.prod(axis=1))


def product_backward(dout, cache):
    x, out = cache
    return (dout * out)[:, None] * x


def inverse(A):
    B = np.linalg.inv(A)
    return B, B


def inverse_backward_1(dout, cache):
    B = cache
    return -B @ dout @ B


def inverse_backward_2(dout, cache):
    B = cache
    return B.T @ dout @ B.T


def residual(x, W, V):
    h = x @ W
    a = np.maximum(h, 0)
    return x + a @ V, (x, W, V, h, a)


def residual_backward_1(dout, cache):
    x, W, V, h, a = cache
    dx = dout.copy()
    dV = a.T @ dout
    da = dout @ V.T
    dh = np.where(h > 0, da, 0)
    dW = x.T @ dh
    dx = dh @ W.T
    return dx, dW, dV


def residual_backward_2(dout, cache):
    x, W, V, h, a = cache
    dx = dout.copy()
    dV = a.T @ dout
    da = dout @ V.T
    dh = np.where(da > 0, da, 0)
    dW = x.T @ dh
    dx += dh @ W.T
    return dx, dW, dV


def film(x, g, b):
    return x * g[:, :, None] + b[:, None, None], (x, g)


def film_backward_1(dout, cache):
    x, g = cache
    dx = dout * g[:, :, None]
    dg = np.sum(dout * x, axis=1)
    db = dout.sum(axis=(1, 2))
    return dx, dg, db


def film_backward_2(dout, cache):
    x, g = cache
    dx = dout * g[:, :, None]
    dg = np.sum(dout * x, axis=2)
    db = dout.sum(axis=2)
    return dx, dg, db


def segments(x, ids):
    n = np.bincount(ids)[:, None]
    out = np.zeros((len(n), x.shape[1]))
    np.add.at(out, ids, x)
    return out / n, (x, ids, n)


def segments_backward(dout, cache):
    x, ids, n = cache
    d = dout
    return d[ids]


WRONG = [
    Wrong("embedding, words twice", embedding, embedding_backward_1,
          lambda rng: [rng.normal(size=(5, 3)), np.array([[0, 2, 2], [4, 0, 1]])], "dW[ids] += dout", (),
          "no accumulation"),
    Wrong("embedding, words overwritten", embedding, embedding_backward_2,
          lambda rng: [rng.normal(size=(5, 3)), np.array([[0, 2, 2], [4, 0, 1]])], "dW[ids] = dout", (),
          "overwritten"),
    Wrong("bag of words, not divided", bag, bag_backward_1,
          lambda rng: [rng.normal(size=(5, 3)), np.array([[0, 2, 2], [4, 0, 1]])], "dW[j] += dout[i]", (),
          "missing factor"),
    Wrong("bag of words, first bag left out", bag, bag_backward_2,
          lambda rng: [rng.normal(size=(5, 3)), np.array([[0, 2, 2], [4, 0, 1]])], "for i in range(1, len(ids)):",
          ("dW[j] += dout[i] / ids.shape[1]",), "off by one"),
    Wrong("softmax, sum over axis 0", softmax_rows, softmax_rows_backward_1, draw((4, 4)),
          "dot = np.sum(dout * p, axis=0, keepdims=True)", (), "wrong axis"),
    Wrong("softmax, p not on both", softmax_rows, softmax_rows_backward_2, draw((4, 4)), "return p * dout - dot",
          (), "missing factor"),
    Wrong("log-softmax, sum forgotten", log_softmax, log_softmax_backward_1, draw((4, 3)), "return dout - p * dout",
          (), "missing factor"),
    Wrong("log-softmax, exp forgotten", log_softmax, log_softmax_backward_2, draw((4, 3)), "p = cache", (),
          "wrong array"),
    Wrong("length 1, sum over axis 0", unit, unit_backward_1, draw((4, 4)),
          "dn = -np.sum(dout * x, axis=0, keepdims=True) / n**2", (), "wrong axis"),
    Wrong("length 1, sign of dn", unit, unit_backward_2, draw((4, 4)),
          "dn = np.sum(dout * x, axis=1, keepdims=True) / n**2", (), "wrong sign"),
    Wrong("weight norm, dg not divided", weight_norm, weight_norm_backward_1, draw((3, 4), (4, 4), (4,)),
          "dg = np.sum(dw * v, axis=0)", (), "missing factor"),
    Wrong("weight norm, v for w", weight_norm, weight_norm_backward_2, draw((3, 4), (4, 4), (4,)),
          "return dout @ v.T, dv, dg", (), "wrong array"),
    Wrong("bilinear, W as it is", bilinear, bilinear_backward_1, draw((4, 3), (4, 3), (2, 3, 3)),
          'db = np.einsum("nk,kij,nj->ni", dout, W, a)', (), "not transposed"),
    Wrong("bilinear, a twice", bilinear, bilinear_backward_2, draw((4, 3), (4, 3), (2, 3, 3)),
          'dW = np.einsum("nk,ni,nj->kij", dout, a, a)', (), "wrong array"),
    Wrong("quadratic form, one of two places", quadratic, quadratic_backward_1, draw((4,), (4, 4)),
          "return dout * A @ x, dout * np.outer(x, x)", (), "missing term"),
    Wrong("quadratic form, as if symmetric", quadratic, quadratic_backward_2, draw((4,), (4, 4)),
          "return dout * 2 * A @ x, dout * np.outer(x, x)", (), "not transposed"),
    Wrong("standardised, x not centred", standard, standard_backward, draw((5, 3)),
          "ds = -np.sum(dout * x, axis=0) / s**2", (), "wrong array"),
    Wrong("division, not summed", ratio, ratio_backward_1,
          lambda rng: [rng.normal(size=(4, 3)), rng.uniform(0.5, 2, (4, 1))], "db = -dout * a / b**2", (),
          "missing sum over a broadcast axis"),
    Wrong("division, sign", ratio, ratio_backward_2,
          lambda rng: [rng.normal(size=(4, 3)), rng.uniform(0.5, 2, (4, 1))],
          "db = np.sum(dout * a / b**2, axis=1, keepdims=True)", (), "wrong sign"),
    Wrong("variance, not centred", variance, variance_backward_1, draw((5, 3)), "return 2 * dout * x / x.shape[0]",
          (), "missing term"),
    Wrong("variance, as with ddof", variance, variance_backward_2, draw((5, 3)),
          "return 2 * dout * (x - x.mean(axis=0)) / (x.shape[0] - 1)", (), "wrong factor"),
    Wrong("cumsum, not turned", running_sum, running_sum_backward_1, draw((6,)), "return np.cumsum(dout)", (),
          "not flipped"),
    Wrong("cumsum, not turned back", running_sum, running_sum_backward_2, draw((6,)),
          "return np.cumsum(dout[::-1])", (), "not flipped"),
    Wrong("distances, sign of db", distances, distances_backward, draw((4, 3), (4, 3)), "db = g.sum(axis=0)", (),
          "wrong sign"),
    Wrong("product, times x", product, product_backward, draw((4, 3)), "return (dout * out)[:, None] * x", (),
          "wrong factor"),
    Wrong("inverse, not transposed", inverse, inverse_backward_1,
          lambda rng: [rng.normal(size=(4, 4)) + 4 * np.eye(4)], "return -B @ dout @ B", (), "not transposed"),
    Wrong("inverse, sign", inverse, inverse_backward_2, lambda rng: [rng.normal(size=(4, 4)) + 4 * np.eye(4)],
          "return B.T @ dout @ B.T", (), "wrong sign"),
    Wrong("residual block, shortcut overwritten", residual, residual_backward_1, draw((3, 4), (4, 5), (5, 4)),
          "dx = dh @ W.T", (), "overwritten"),
    Wrong("residual block, mask from da", residual, residual_backward_2, draw((3, 4), (4, 5), (5, 4)),
          "dh = np.where(da > 0, da, 0)", (), "wrong mask"),
    Wrong("scale and shift, dg over axis 1", film, film_backward_1, draw((3, 3, 3), (3, 3), (3,)),
          "dg = np.sum(dout * x, axis=1)", (), "wrong axis"),
    Wrong("scale and shift, db over one axis", film, film_backward_2, draw((3, 3, 3), (3, 3), (3,)),
          "db = dout.sum(axis=2)", (), "missing sum over a broadcast axis"),
    Wrong("segment mean, not divided", segments, segments_backward,
          lambda rng: [rng.normal(size=(6, 3)), np.array([0, 0, 1, 2, 2, 2])], "d = dout", (), "missing factor"),
]  # fmt: skip
