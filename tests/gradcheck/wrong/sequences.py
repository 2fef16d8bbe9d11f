"""Recurrent networks and attention with one slip each."""

import numpy as np

from wrong.base import Wrong, draw, sigmoid, softmax


def rnn_step(x, h, Wx, Wh, b):
    out = np.tanh(x @ Wx + h @ Wh + b)
    return out, (x, h, Wx, Wh, out)


def rnn_step_backward_1(dout, cache):
    x, h, Wx, Wh, out = cache
    da = dout * (1 - out) ** 2
    dx = da @ Wx.T
    dh = da @ Wh.T
    dWx = x.T @ da
    dWh = h.T @ da
    db = da.sum(axis=0)
    return dx, dh, dWx, dWh, db


def rnn_step_backward_2(dout, cache):
    x, h, Wx, Wh, out = cache
    da = dout * (1 - out**2)
    dx = da @ Wx.T
    dh = da @ Wh
    dWx = x.T @ da
    dWh = h.T @ da
    db = da.sum(axis=0)
    return dx, dh, dWx, dWh, db


def rnn(x, h0, Wx, Wh, b):
    h = {-1: h0}
    for t in range(x.shape[1]):
        h[t] = np.tanh(x[:, t] @ Wx + h[t - 1] @ Wh + b)
    return np.stack([h[t] for t in range(x.shape[1])], axis=1), (x, h, Wx, Wh)


def rnn_backward_1(dout, cache):
    x, h, Wx, Wh = cache
    T = x.shape[1]
    dx, dWx, dWh, db = np.zeros_like(x), np.zeros_like(Wx), np.zeros_like(Wh), np.zeros(len(Wh))
    dnext = np.zeros_like(h[-1])
    for t in reversed(range(T)):
        dh = dout[:, t]
        da = dh * (1 - h[t] ** 2)
        dx[:, t] = da @ Wx.T
        dWx += x[:, t].T @ da
        dWh += h[t - 1].T @ da
        db += da.sum(axis=0)
        dnext = da @ Wh.T
    return dx, dnext, dWx, dWh, db


def rnn_backward_2(dout, cache):
    x, h, Wx, Wh = cache
    T = x.shape[1]
    dx, dWx, dWh, db = np.zeros_like(x), np.zeros_like(Wx), np.zeros_like(Wh), np.zeros(len(Wh))
    dnext = np.zeros_like(h[-1])
    for t in reversed(range(T)):
        dh = dout[:, t] + dnext
        da = dh * (1 - h[t] ** 2)
        dx[:, t] = da @ Wx.T
        dWx = x[:, t].T @ da
        dWh += h[t - 1].T @ da
        db += da.sum(axis=0)
        dnext = da @ Wh.T
    return dx, dnext, dWx, dWh, db


def rnn_backward_3(dout, cache):
    x, h, Wx, Wh = cache
    T = x.shape[1]
    dx, dWx, dWh, db = np.zeros_like(x), np.zeros_like(Wx), np.zeros_like(Wh), np.zeros(len(Wh))
    dnext = np.zeros_like(h[-1])
    for t in reversed(range(1, T)):
        dh = dout[:, t] + dnext
        da = dh * (1 - h[t] ** 2)
        dx[:, t] = da @ Wx.T
        dWx += x[:, t].T @ da
        dWh += h[t - 1].T @ da
        db += da.sum(axis=0)
        dnext = da @ Wh.T
    return dx, dnext, dWx, dWh, db


def lstm_step(x, h, c, Wx, Wh, b):
    a = x @ Wx + h @ Wh + b
    ai, af, ao, ag = np.split(a, 4, axis=1)
    i, f, o, g = sigmoid(ai), sigmoid(af), sigmoid(ao), np.tanh(ag)
    next_c = f * c + i * g
    tc = np.tanh(next_c)
    return np.stack([o * tc, next_c]), (x, h, c, Wx, Wh, i, f, o, g, tc)


def lstm_step_backward_1(dout, cache):
    x, h, c, Wx, Wh, i, f, o, g, tc = cache
    dnext_h, dnext_c = dout
    do = dnext_h * tc
    dtc = dnext_h * o
    dcell = dnext_c
    df = dcell * c
    dc = dcell * f
    di = dcell * g
    dg = dcell * i
    dai = di * i * (1 - i)
    daf = df * f * (1 - f)
    dao = do * o * (1 - o)
    dag = dg * (1 - g**2)
    da = np.hstack([dai, daf, dao, dag])
    return da @ Wx.T, da @ Wh.T, dc, x.T @ da, h.T @ da, da.sum(axis=0)


def lstm_step_backward_2(dout, cache):
    x, h, c, Wx, Wh, i, f, o, g, tc = cache
    dnext_h, dnext_c = dout
    do = dnext_h * tc
    dtc = dnext_h * o
    dcell = dnext_c + dtc * (1 - tc**2)
    df = dcell * c
    dc = dcell * f
    di = dcell * g
    dg = dcell * i
    dai = di * i * (1 - i)
    daf = df * f * (1 - f)
    dao = do * o * (1 - o)
    dag = dg * (1 - g**2)
    da = np.hstack([dai, daf, dag, dao])
    return da @ Wx.T, da @ Wh.T, dc, x.T @ da, h.T @ da, da.sum(axis=0)


def gru_step(x, h, Wz, Wr, Wn):
    xh = np.concatenate([x, h], axis=1)
    z, r = sigmoid(xh @ Wz), sigmoid(xh @ Wr)
    xrh = np.concatenate([x, r * h], axis=1)
    n = np.tanh(xrh @ Wn)
    return (1 - z) * n + z * h, (x, h, xh, z, r, xrh, n, Wz, Wr, Wn)


def gru_step_backward(dout, cache):
    x, h, xh, z, r, xrh, n, Wz, Wr, Wn = cache
    D = x.shape[1]
    dz = dout * (h - n)
    dn = dout * (1 - z)
    dh = dout * z
    dan = dn * (1 - n**2)
    dxrh = dan @ Wn.T
    dx = dxrh[:, :D]
    dr = dxrh[:, D:] * h
    dh = dxrh[:, D:] * r
    daz = dz * z * (1 - z)
    dar = dr * r * (1 - r)
    dxh = daz @ Wz.T + dar @ Wr.T
    dx = dx + dxh[:, :D]
    dh = dh + dxh[:, D:]
    return dx, dh, xh.T @ daz, xh.T @ dar, xrh.T @ dan


def attention(Q, K, V):
    P = softmax(Q @ K.T / np.sqrt(Q.shape[1]))
    return P @ V, (Q, K, V, P)


def attention_backward_1(dout, cache):
    Q, K, V, P = cache
    dV = P.T @ dout
    dP = dout @ V.T
    ds = P * (dP - np.sum(dP * P, axis=1, keepdims=True))
    ds = ds / np.sqrt(Q.shape[1])
    dQ = ds @ K
    dK = ds @ Q
    return dQ, dK, dV


def attention_backward_2(dout, cache):
    Q, K, V, P = cache
    dV = P.T @ dout
    dP = dout @ V.T
    ds = P * dP
    ds = ds / np.sqrt(Q.shape[1])
    dQ = ds @ K
    dK = ds.T @ Q
    return dQ, dK, dV


def attention_backward_3(dout, cache):
    Q, K, V, P = cache
    dV = P.T @ dout
    dP = dout @ V.T
    ds = P * (dP - np.sum(dP * P, axis=0, keepdims=True))
    ds = ds / np.sqrt(Q.shape[1])
    dQ = ds @ K
    dK = ds.T @ Q
    return dQ, dK, dV


def attention_backward_4(dout, cache):
    Q, K, V, P = cache
    dV = P.T @ dout
    dP = dout @ V.T
    ds = P * (dP - np.sum(dP * P, axis=1, keepdims=True))
    dQ = ds @ K
    dK = ds.T @ Q
    return dQ, dK, dV


def heads(x, H):
    N, T, D = x.shape
    return x.reshape(N, T, H, D // H).transpose(0, 2, 1, 3)


def joined(x):
    N, H, T, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(N, T, H * d)


def multihead(x, Wq, Wk, Wv, Wo, keep):
    H = keep.shape[1]
    q, k, v = heads(x @ Wq, H), heads(x @ Wk, H), heads(x @ Wv, H)
    scores = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[3])
    mask = np.tril(np.ones(scores.shape[2:])) == 1
    p = softmax(np.where(mask, scores, -1e9))
    z = joined(p * keep / 0.8 @ v)
    return z @ Wo, (x, Wq, Wk, Wv, Wo, H, q, k, v, p, keep, z)


def multihead_backward(dout, cache):
    x, Wq, Wk, Wv, Wo, H, q, k, v, p, keep, z = cache
    N, T, D = x.shape
    flat = x.reshape(N * T, D)
    dWo = z.reshape(N * T, D).T @ dout.reshape(N * T, D)
    dz = heads(dout @ Wo.T, H)
    dv = (p * keep / 0.8).swapaxes(2, 3) @ dz
    dp = dz @ v.swapaxes(2, 3) * keep / 0.8
    ds = p * (dp - (dp * p).sum(axis=3, keepdims=True))
    ds /= np.sqrt(D // H)
    dq = joined(ds @ k)
    dk = joined(ds.swapaxes(2, 3) @ q)
    dv = joined(dv)
    dx = dq @ Wq.T
    dx += dv @ Wv.T
    dWq = flat.T @ dq.reshape(N * T, D)
    dWk = flat.T @ dk.reshape(N * T, D)
    dWv = flat.T @ dv.reshape(N * T, D)
    return dx, dWq, dWk, dWv, dWo


def masked_attention(Q, K, V, mask):
    scores = np.where(mask, Q @ K.T, -3)
    A = softmax(scores)
    return A @ V, (Q, K, V, A, mask)


def masked_attention_backward(dout, cache):
    Q, K, V, A, mask = cache
    dV = A.T @ dout
    dA = dout @ V.T
    dscores = A * (dA - np.sum(dA * A, axis=1, keepdims=True))
    dQ = dscores @ K
    dK = dscores.T @ Q
    return dQ, dK, dV


def linear_attention(Q, K, V, mask):
    S = (Q @ K.T) * mask
    return S @ V, (Q, K, V, S, mask)


def linear_attention_backward(dout, cache):
    Q, K, V, S, mask = cache
    dV = S.T @ dout
    dS = dout @ V.T
    return dS @ K, dS.T @ Q, dV


def additive_attention(q, k, v):
    t = np.tanh(q + k)
    w = softmax(t @ v)
    return w @ k, (k, v, t, w)


def additive_attention_backward(dout, cache):
    k, v, t, w = cache
    dw = k @ dout
    ds = w * (dw - w @ dw)
    dv = t.T @ ds
    da = np.outer(ds, v) * (1 - t**2)
    dq = da
    dk = np.outer(w, dout) + da
    return dq, dk, dv


def temporal_softmax(x, y, mask):
    N, T, V = x.shape
    p = softmax(x.reshape(N * T, V))
    m = mask.reshape(N * T)
    loss = -np.sum(m * np.log(p[np.arange(N * T), y.reshape(N * T)])) / N
    return loss, (p, y, m, x.shape)


def temporal_softmax_backward(dout, cache):
    p, y, m, (N, T, V) = cache
    dx = p.copy()
    dx[np.arange(N * T), y.reshape(N * T)] -= 1
    dx /= N
    return dout * dx.reshape(N, T, V)


def moving_average(x, a):
    h = np.zeros_like(x)
    for t in range(len(x)):
        h[t] = a * (h[t - 1] if t else 0) + (1 - a) * x[t]
    return h, (x, a, h)


def moving_average_backward_1(dout, cache):
    x, a, h = cache
    dx = np.zeros_like(x)
    da = np.zeros_like(a)
    dh = np.zeros_like(x[0])
    for t in reversed(range(len(x))):
        dh = dh + dout[t]
        dx[t] = (1 - a) * dh
        da += np.sum(dh * ((h[t - 1] if t else 0) - x[t]), axis=0)
    return dx, da


def moving_average_backward_2(dout, cache):
    x, a, h = cache
    dx = np.zeros_like(x)
    da = np.zeros_like(a)
    dh = np.zeros_like(x[0])
    for t in reversed(range(len(x))):
        dh = dh + dout[t]
        dx[t] = (1 - a) * dh
        da = np.sum(dh * ((h[t - 1] if t else 0) - x[t]), axis=0)
        dh = a * dh
    return dx, da


WRONG = [
    Wrong("rnn step, (1 - h)**2", rnn_step, rnn_step_backward_1, draw((4, 3), (4, 4), (3, 4), (4, 4), (4,)),
          "da = dout * (1 - out) ** 2", (), "wrong factor"),
    Wrong("rnn step, Wh as it is", rnn_step, rnn_step_backward_2, draw((4, 3), (4, 4), (3, 4), (4, 4), (4,)),
          "dh = da @ Wh", (), "not transposed"),
    Wrong("rnn, nothing from the step after", rnn, rnn_backward_1, draw((2, 4, 3), (2, 4), (3, 4), (4, 4), (4,)),
          "dh = dout[:, t]", (), "missing term"),
    Wrong("rnn, dWx of one step", rnn, rnn_backward_2, draw((2, 4, 3), (2, 4), (3, 4), (4, 4), (4,)),
          "dWx = x[:, t].T @ da", (), "no accumulation"),
    Wrong("rnn, first step left out", rnn, rnn_backward_3, draw((2, 4, 3), (2, 4), (3, 4), (4, 4), (4,)),
          "for t in reversed(range(1, T)):", ("dx[:, t] = da @ Wx.T", "dWx += x[:, t].T @ da",
          "dWh += h[t - 1].T @ da", "db += da.sum(axis=0)", "dnext = da @ Wh.T"), "off by one"),
    Wrong("lstm step, h's branch left out", lstm_step, lstm_step_backward_1,
          draw((3, 4), (3, 2), (3, 2), (4, 8), (2, 8), (8,)), "dcell = dnext_c", (), "missing term"),
    Wrong("lstm step, order of the gates", lstm_step, lstm_step_backward_2,
          draw((3, 4), (3, 2), (3, 2), (4, 8), (2, 8), (8,)), "da = np.hstack([dai, daf, dag, dao])", (), "other"),
    Wrong("gru step, dh replaced", gru_step, gru_step_backward, draw((3, 4), (3, 2), (6, 2), (6, 2), (6, 2)),
          "dh = dxrh[:, D:] * r", (), "overwritten"),
    Wrong("attention, ds not transposed", attention, attention_backward_1, draw((4, 3), (4, 3), (4, 2)),
          "dK = ds @ Q", (), "not transposed"),
    Wrong("attention, softmax's sum", attention, attention_backward_2, draw((4, 3), (4, 3), (4, 2)), "ds = P * dP",
          (), "missing term"),
    Wrong("attention, sum over axis 0", attention, attention_backward_3, draw((4, 3), (4, 3), (4, 2)),
          "ds = P * (dP - np.sum(dP * P, axis=0, keepdims=True))", (), "wrong axis"),
    Wrong("attention, scale forgotten", attention, attention_backward_4, draw((4, 3), (4, 3), (4, 2)),
          "ds = P * (dP - np.sum(dP * P, axis=1, keepdims=True))", ("dQ = ds @ K", "dK = ds.T @ Q"),
          "missing factor"),
    Wrong("multi-head attention, x only through q and v", multihead, multihead_backward,
          lambda rng: [*draw((2, 3, 4), (4, 4), (4, 4), (4, 4), (4, 4))(rng), rng.random((2, 2, 3, 3)) < 0.8],
          "dx = dq @ Wq.T", ("dx += dv @ Wv.T", "return dx, dWq, dWk, dWv, dWo"), "missing term"),
    Wrong("masked attention, mask forgotten", masked_attention, masked_attention_backward,
          lambda rng: [*draw((4, 3), (4, 3), (4, 2))(rng), np.tril(np.ones((4, 4), bool))],
          "dscores = A * (dA - np.sum(dA * A, axis=1, keepdims=True))", ("dQ = dscores @ K", "dK = dscores.T @ Q"),
          "wrong mask"),
    Wrong("linear attention, mask forgotten", linear_attention, linear_attention_backward,
          lambda rng: [*draw((4, 3), (4, 3), (4, 2))(rng), np.tril(np.ones((4, 4), bool))], "dS = dout @ V.T",
          ("return dS @ K, dS.T @ Q, dV",), "wrong mask"),
    Wrong("additive attention, query not summed", additive_attention, additive_attention_backward,
          draw((4,), (5, 4), (4,)), "dq = da", (), "missing sum over a broadcast axis"),
    Wrong("temporal softmax, mask forgotten", temporal_softmax, temporal_softmax_backward,
          lambda rng: [rng.normal(size=(2, 3, 4)), rng.integers(0, 4, (2, 3)), rng.permutation(6).reshape(2, 3) < 4],
          "dx /= N", ("return dout * dx.reshape(N, T, V)",), "wrong mask"),
    Wrong("moving average, decay forgotten", moving_average, moving_average_backward_1,
          lambda rng: [rng.normal(size=(5, 3)), rng.uniform(0.2, 0.8, 1)],
          "da += np.sum(dh * ((h[t - 1] if t else 0) - x[t]), axis=0)", ("dh = dh + dout[t]",), "missing factor"),
    Wrong("moving average, da of one step", moving_average, moving_average_backward_2,
          lambda rng: [rng.normal(size=(5, 3)), rng.uniform(0.2, 0.8, 1)],
          "da = np.sum(dh * ((h[t - 1] if t else 0) - x[t]), axis=0)", (), "no accumulation"),
]  # fmt: skip
