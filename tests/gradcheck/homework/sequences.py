"""Recurrent networks and attention."""

import numpy as np

from homework.base import Pair, cached, draw, sigmoid, softmax


def rnn_step_forward(x, prev_h, Wx, Wh, b):
    next_h = np.tanh(x @ Wx + prev_h @ Wh + b)
    return next_h, (x, prev_h, Wx, Wh, next_h)


def rnn_step_backward(dnext_h, cache):
    x, prev_h, Wx, Wh, next_h = cache
    da = dnext_h * (1 - next_h**2)
    return da @ Wx.T, da @ Wh.T, x.T @ da, prev_h.T @ da, da.sum(axis=0)


def rnn_forward(x, h0, Wx, Wh, b):
    N, T, D = x.shape
    h, cache, prev = np.zeros((N, T, h0.shape[1]), x.dtype), [], h0
    for t in range(T):
        prev, step = rnn_step_forward(x[:, t], prev, Wx, Wh, b)
        h[:, t] = prev
        cache.append(step)
    return h, cache


def rnn_backward(dh, cache):
    N, T, H = dh.shape
    D = cache[0][0].shape[1]
    dx, dprev = np.zeros((N, T, D)), np.zeros((N, H))
    dWx, dWh, db = np.zeros((D, H)), np.zeros((H, H)), np.zeros(H)
    for t in reversed(range(T)):
        dx[:, t], dprev, dwx, dwh, dbt = rnn_step_backward(dh[:, t] + dprev, cache[t])
        dWx += dwx
        dWh += dwh
        db += dbt
    return dx, dprev, dWx, dWh, db


def rnn_last_forward(xs, Wx, Wh):
    hs = {-1: np.zeros(Wh.shape[0])}
    for t in range(len(xs)):
        hs[t] = np.tanh(Wx @ xs[t] + Wh @ hs[t - 1])
    return hs[len(xs) - 1], (xs, hs, Wx, Wh)


def rnn_last_backward(dh, cache):
    xs, hs, Wx, Wh = cache
    dxs, dWx, dWh = np.zeros_like(xs), np.zeros_like(Wx), np.zeros_like(Wh)
    for t in reversed(range(len(xs))):
        draw = (1 - hs[t] * hs[t]) * dh
        dWx += np.outer(draw, xs[t])
        dWh += np.outer(draw, hs[t - 1])
        dxs[t] = Wx.T @ draw
        dh = Wh.T @ draw
    return dxs, dWx, dWh


def lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b):
    a = x @ Wx + prev_h @ Wh + b
    ai, af, ao, ag = np.split(a, 4, axis=1)
    i, f, o, g = sigmoid(ai), sigmoid(af), sigmoid(ao), np.tanh(ag)
    next_c = f * prev_c + i * g
    tanh_c = np.tanh(next_c)
    return o * tanh_c, next_c, (x, prev_h, prev_c, Wx, Wh, i, f, o, g, tanh_c)


def lstm_step_backward(dnext_h, dnext_c, cache):
    x, prev_h, prev_c, Wx, Wh, i, f, o, g, tanh_c = cache
    dc = dnext_c + dnext_h * o * (1 - tanh_c**2)
    do, df, di, dg = dnext_h * tanh_c, dc * prev_c, dc * g, dc * i
    da = np.hstack([di * i * (1 - i), df * f * (1 - f), do * o * (1 - o), dg * (1 - g**2)])
    return da @ Wx.T, da @ Wh.T, dc * f, x.T @ da, prev_h.T @ da, da.sum(axis=0)


def lstm_step(x, prev_h, prev_c, Wx, Wh, b):
    next_h, next_c, cache = lstm_step_forward(x, prev_h, prev_c, Wx, Wh, b)
    return (next_h, next_c), cache


def lstm_forward(x, h0, Wx, Wh, b):
    h, c, hs, cache = h0, np.zeros_like(h0), [], []
    for t in range(x.shape[1]):
        h, c, step = lstm_step_forward(x[:, t], h, c, Wx, Wh, b)
        hs.append(h)
        cache.append(step)
    return np.stack(hs, axis=1), cache


def lstm_backward(dh, cache):
    x, h0, _, Wx, Wh, *_ = cache[0]
    dx = np.empty((len(x), len(cache), x.shape[1]))
    dprev_h, dprev_c = np.zeros_like(h0), np.zeros_like(h0)
    dWx, dWh, db = np.zeros_like(Wx), np.zeros_like(Wh), np.zeros(Wx.shape[1])
    for t in range(len(cache) - 1, -1, -1):
        dx[:, t], dprev_h, dprev_c, a, b, c = lstm_step_backward(dh[:, t] + dprev_h, dprev_c, cache[t])
        dWx, dWh, db = dWx + a, dWh + b, db + c
    return dx, dprev_h, dWx, dWh, db


def gru_step_forward(x, h, Wz, Wr, Wn):
    xh = np.concatenate([x, h], axis=1)
    z, r = sigmoid(xh @ Wz), sigmoid(xh @ Wr)
    xrh = np.concatenate([x, r * h], axis=1)
    n = np.tanh(xrh @ Wn)
    return (1 - z) * n + z * h, (x, h, xh, z, r, xrh, n, Wz, Wr, Wn)


def gru_step_backward(dout, cache):
    x, h, xh, z, r, xrh, n, Wz, Wr, Wn = cache
    D = x.shape[1]
    dz, dn, dh = dout * (h - n), dout * (1 - z), dout * z
    dan = dn * (1 - n**2)
    dxrh = dan @ Wn.T
    dx = dxrh[:, :D]
    dr = dxrh[:, D:] * h
    dh = dh + dxrh[:, D:] * r
    daz, dar = dz * z * (1 - z), dr * r * (1 - r)
    dxh = daz @ Wz.T + dar @ Wr.T
    return dx + dxh[:, :D], dh + dxh[:, D:], xh.T @ daz, xh.T @ dar, xrh.T @ dan


def gru_forward(x, h0, Wz, Wr, Wn):
    h, out, cache = h0, [], []
    for t in range(x.shape[1]):
        h, step = gru_step_forward(x[:, t], h, Wz, Wr, Wn)
        out.append(h)
        cache.append(step)
    return np.stack(out, 1), cache


def gru_backward(dout, cache):
    dh, dxs = 0, []
    dWz, dWr, dWn = (np.zeros_like(W) for W in cache[0][-3:])
    for t in reversed(range(dout.shape[1])):
        dx, dh, a, b, c = gru_step_backward(dout[:, t] + dh, cache[t])
        dxs.insert(0, dx)
        dWz += a
        dWr += b
        dWn += c
    return np.stack(dxs, 1), dh, dWz, dWr, dWn


def attention_forward(Q, K, V):
    d = Q.shape[-1]
    S = Q @ K.swapaxes(-1, -2) / np.sqrt(d)
    P = softmax(S)
    return P @ V, (Q, K, V, P)


def attention_backward(dO, cache):
    Q, K, V, P = cache
    dV = P.swapaxes(-1, -2) @ dO
    dP = dO @ V.swapaxes(-1, -2)
    dS = P * (dP - (dP * P).sum(-1, keepdims=True)) / np.sqrt(Q.shape[-1])
    return dS @ K, dS.swapaxes(-1, -2) @ Q, dV


def causal_attention_forward(Q, K, V):
    T = len(Q)
    S = Q @ K.T / np.sqrt(Q.shape[1])
    S = np.where(np.tril(np.ones((T, T))) == 1, S, -1e9)
    P = softmax(S)
    return P @ V, (Q, K, V, P)


def split_heads(x, H):
    N, T, D = x.shape
    return x.reshape(N, T, H, D // H).transpose(0, 2, 1, 3)


def join_heads(x):
    N, H, T, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(N, T, H * d)


def multihead_forward(x, Wq, Wk, Wv, Wo, H):
    q, k, v = (split_heads(x @ W, H) for W in (Wq, Wk, Wv))
    out, cache = attention_forward(q, k, v)
    z = join_heads(out)
    return z @ Wo, (x, Wq, Wk, Wv, Wo, H, z, cache)


def multihead_backward(dout, cache):
    x, Wq, Wk, Wv, Wo, H, z, inner = cache
    D = x.shape[-1]
    dWo = z.reshape(-1, D).T @ dout.reshape(-1, D)
    heads = attention_backward(split_heads(dout @ Wo.T, H), inner)
    dx, dWs = np.zeros_like(x), []
    for d, W in zip(heads, (Wq, Wk, Wv), strict=True):
        d = join_heads(d)
        dx += d @ W.T
        dWs.append(x.reshape(-1, D).T @ d.reshape(-1, D))
    return dx, *dWs, dWo


def self_attention_forward(X, Wq, Wk, Wv):
    Q, K, V = X @ Wq, X @ Wk, X @ Wv
    out, cache = attention_forward(Q, K, V)
    return out, (X, Wq, Wk, Wv, cache)


def self_attention_backward(dO, cache):
    X, Wq, Wk, Wv, inner = cache
    dQ, dK, dV = attention_backward(dO, inner)
    return dQ @ Wq.T + dK @ Wk.T + dV @ Wv.T, X.T @ dQ, X.T @ dK, X.T @ dV


def additive_attention(q, k, v):
    w = softmax(np.tanh(q + k) @ v)
    return w @ k, (q, k, v, w)


def additive_attention_backward(g, cache):
    q, k, v, w = cache
    t = np.tanh(q + k)
    dw = k @ g
    ds = w * (dw - w @ dw)
    da = np.outer(ds, v) * (1 - t**2)
    return da.sum(0), np.outer(w, g) + da, t.T @ ds


def temporal_affine_forward(x, w, b):
    N, T, D = x.shape
    return (x.reshape(N * T, D) @ w).reshape(N, T, -1) + b, (x, w)


def temporal_affine_backward(dout, cache):
    x, w = cache
    N, T, D = x.shape
    M = w.shape[1]
    d = dout.reshape(N * T, M)
    return (d @ w.T).reshape(N, T, D), x.reshape(N * T, D).T @ d, dout.sum(axis=(0, 1))


def temporal_softmax(x, y, mask):
    N, T, V = x.shape
    flat, labels, m = x.reshape(N * T, V), y.reshape(-1), mask.reshape(-1)
    p = softmax(flat)
    return -np.sum(m * np.log(p[np.arange(N * T), labels])) / N, (p, labels, m, x.shape)


def temporal_softmax_backward(g, cache):
    p, labels, m, (N, T, V) = cache
    d = p.copy()
    d[np.arange(N * T), labels] -= 1
    return g * (d * m[:, None] / N).reshape(N, T, V)


_rnn = draw((2, 3, 4), (2, 5), (4, 5), (5, 5), (5,))
_lstm = draw((2, 3, 4), (2, 5), (4, 20), (5, 20), (20,))

PAIRS = [
    cached("rnn step", rnn_step_forward, rnn_step_backward, draw((3, 4), (3, 5), (4, 5), (5, 5), (5,))),
    cached("rnn", rnn_forward, rnn_backward, _rnn),
    cached("rnn, square", rnn_forward, rnn_backward, draw((3, 3, 3), (3, 3), (3, 3), (3, 3), (3,))),
    cached("rnn, last state", rnn_last_forward, rnn_last_backward, draw((4, 3), (5, 3), (5, 5))),
    cached("lstm step", lstm_step, lambda dh, dc, cache: lstm_step_backward(dh, dc, cache),
           draw((3, 4), (3, 5), (3, 5), (4, 20), (5, 20), (20,))),
    cached("lstm", lstm_forward, lstm_backward, _lstm),
    cached("gru step", gru_step_forward, gru_step_backward, draw((3, 4), (3, 2), (6, 2), (6, 2), (6, 2))),
    cached("gru", gru_forward, gru_backward, draw((3, 4, 4), (3, 2), (6, 2), (6, 2), (6, 2))),
    cached("attention", attention_forward, attention_backward, draw((4, 3), (5, 3), (5, 2))),
    cached("attention in batches", attention_forward, attention_backward, draw((2, 4, 3), (2, 5, 3), (2, 5, 2))),
    cached("attention, square", attention_forward, attention_backward, draw((4, 4), (4, 4), (4, 4))),
    cached("causal attention", causal_attention_forward, attention_backward, draw((4, 3), (4, 3), (4, 2))),
    cached("self-attention", self_attention_forward, self_attention_backward, draw((5, 4), (4, 3), (4, 3), (4, 2))),
    cached("multi-head attention", multihead_forward, multihead_backward,
           lambda rng: [*draw((2, 3, 4), (4, 4), (4, 4), (4, 4), (4, 4))(rng), 2]),
    cached("additive attention", additive_attention, additive_attention_backward, draw((4,), (5, 4), (4,))),
    cached("temporal affine", temporal_affine_forward, temporal_affine_backward, draw((2, 3, 4), (4, 5), (5,))),
    cached("temporal softmax", temporal_softmax, temporal_softmax_backward,
           lambda rng: [rng.normal(size=(2, 3, 4)), rng.integers(0, 4, (2, 3)), rng.random((2, 3)) < 0.7]),
    Pair("exponential average", lambda x, a: a * x[1:] + (1 - a) * x[:-1],
         lambda g, x, a: (np.concatenate([(1 - a) * g, [0 * g[0]]]) + np.concatenate([[0 * g[0]], a * g]),
                          np.sum(g * (x[1:] - x[:-1]))),
         lambda rng: [rng.normal(size=(5, 3)), rng.normal(size=())]),
]  # fmt: skip
