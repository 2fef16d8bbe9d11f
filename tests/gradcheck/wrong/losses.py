"""Losses with one slip each."""

import numpy as np

from wrong.base import Wrong, draw, labelled, sigmoid, softmax


def softmax_loss(x, y):
    p = softmax(x)
    return -np.log(p[np.arange(len(y)), y]).mean(), (p, y)


def softmax_loss_backward_1(dout, cache):
    p, y = cache
    N = len(y)
    dx = p.copy()
    dx[:, y] -= 1
    dx /= N
    return dout * dx


def softmax_loss_backward_2(dout, cache):
    p, y = cache
    N = len(y)
    dx = p.copy()
    dx[np.arange(N), y] -= 1
    return dout * dx


def softmax_loss_backward_3(dout, cache):
    p, y = cache
    N = len(y)
    dx = p.copy()
    dx[np.arange(N), y] -= 1
    dx /= N
    return dx


def softmax_classifier(W, X, y):
    p = softmax(X @ W)
    loss = -np.log(p[np.arange(len(y)), y]).mean() + 0.5 * 0.1 * np.sum(W * W)
    return loss, (W, X, y, p)


def softmax_classifier_backward_1(dout, cache):
    W, X, y, p = cache
    N = X.shape[0]
    dscores = p.copy()
    dscores[range(N), y] -= 1
    dscores /= N
    dW = X.T @ dscores
    dW += 2 * 0.1 * W
    dX = dscores @ W.T
    return dout * dW, dout * dX


def softmax_classifier_backward_2(dout, cache):
    W, X, y, p = cache
    N = X.shape[0]
    dscores = p.copy()
    dscores[range(N), y] -= 1
    dscores /= N
    dW = X.T @ dscores
    dW = 0.1 * W
    dX = dscores @ W.T
    return dout * dW, dout * dX


def smoothed(x, y):
    N, K = x.shape
    t = np.full((N, K), 0.1 / K)
    t[np.arange(N), y] += 0.9
    p = softmax(x)
    return -np.sum(t * np.log(p)) / N, (p, y)


def smoothed_backward_1(dout, cache):
    p, y = cache
    N, K = p.shape
    t = np.full((N, K), 0.1 / K)
    t[np.arange(N), y] = 0.9
    return dout * (p - t) / N


def smoothed_backward_2(dout, cache):
    p, y = cache
    N, K = p.shape
    t = np.full((N, K), 0.1 / (K - 1))
    t[np.arange(N), y] += 0.9
    return dout * (p - t) / N


def svm_loss(x, y):
    N = len(y)
    margins = np.maximum(0, x - x[np.arange(N), y][:, None] + 1)
    margins[np.arange(N), y] = 0
    return margins.sum() / N, (margins, y)


def svm_loss_backward_1(dout, cache):
    margins, y = cache
    N = len(y)
    dx = (margins > 0).astype(float)
    count = dx.sum(axis=0)
    dx[np.arange(N), y] -= count
    dx /= N
    return dout * dx


def svm_loss_backward_2(dout, cache):
    margins, y = cache
    N = len(y)
    dx = margins.copy()
    count = dx.sum(axis=1)
    dx[np.arange(N), y] -= count
    dx /= N
    return dout * dx


def svm_classifier(W, X, y):
    scores = X @ W
    N = len(y)
    margins = np.maximum(0, scores - scores[np.arange(N), y][:, None] + 1)
    return margins.sum() / N - 1, (W, X, y)


def svm_classifier_backward(dout, cache):
    W, X, y = cache
    dW = np.zeros_like(W)
    dX = np.zeros_like(X)
    for i in range(len(y)):
        scores = X[i] @ W
        for j in range(W.shape[1]):
            if j != y[i] and scores[j] - scores[y[i]] + 1 > 0:
                dW[:, j] += X[i]
                dW[:, y[i]] = -X[i]
                dX[i] += W[:, j] - W[:, y[i]]
    return dout * dW / len(y), dout * dX / len(y)


def logistic(w, b, X, y):
    p = sigmoid(X @ w + b)
    return -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)), (w, X, y, p)


def logistic_backward(dout, cache):
    w, X, y, p = cache
    N = len(y)
    dz = dout * (y - p) / N
    dw = X.T @ dz
    db = dz.sum()
    dX = np.outer(dz, w)
    return dw, db, dX


def bce(p, y):
    return -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)), (p, y)


def bce_backward_1(dout, cache):
    p, y = cache
    return dout * (-y / p - (1 - y) / (1 - p)) / p.size


def bce_backward_2(dout, cache):
    p, y = cache
    return dout * (-y / p + (1 - y) / (1 - p)) / len(p)


def mse(p, t):
    return np.mean((p - t) ** 2), (p, t)


def mse_backward_1(dout, cache):
    p, t = cache
    return dout * (p - t) / p.size, -2 * dout * (p - t) / p.size


def mse_backward_2(dout, cache):
    p, t = cache
    return 2 * dout * (p - t) / p.size, 2 * dout * (p - t) / p.size


def huber(p, t):
    r = p - t
    small = np.abs(r) <= 1
    return np.where(small, 0.5 * r**2, np.abs(r) - 0.5).sum(), (r, small)


def huber_backward(dout, cache):
    r, small = cache
    dr = np.where(small, np.sign(r), r)
    dp = dout * dr
    dt = -dout * dr
    return dp, dt


def kl(mu, logvar):
    return -0.5 * np.sum(1 + logvar - mu**2 - np.exp(logvar)) / len(mu), (mu, logvar)


def kl_backward(dout, cache):
    mu, logvar = cache
    N = len(mu)
    dmu = dout * mu / N
    dlogvar = 0.5 * dout * (1 - np.exp(logvar)) / N
    return dmu, dlogvar


def vae(mu, logvar, eps, target):
    std = np.exp(0.5 * logvar)
    z = mu + std * eps
    loss = 0.5 * np.sum((z - target) ** 2) - 0.5 * np.sum(1 + logvar - mu**2 - std**2)
    return loss, (mu, std, eps, z, target)


def vae_backward_1(dout, cache):
    mu, std, eps, z, target = cache
    dz = dout * (z - target)
    dtarget = -dz
    dmu = dz + dout * mu
    deps = dz * std
    dstd = dz * eps
    dlogvar = std * dstd
    dlogvar += 0.5 * dout * (std**2 - 1)
    return dmu, dlogvar, deps, dtarget


def vae_backward_2(dout, cache):
    mu, std, eps, z, target = cache
    dz = dout * (z - target)
    dtarget = -dz
    dmu = dz
    deps = dz * std
    dstd = dz * eps
    dlogvar = 0.5 * std * dstd
    dlogvar += 0.5 * dout * (std**2 - 1)
    return dmu, dlogvar, deps, dtarget


def gaussian_nll(mu, s, x):
    r = (x - mu) / s
    return np.sum(np.log(s) + 0.5 * r**2), (s, r)


def gaussian_nll_backward_1(dout, cache):
    s, r = cache
    dr = dout * r
    dx = dr / s
    dmu = dr / s
    ds = dout / s - dr * r / s
    return dmu, ds, dx


def gaussian_nll_backward_2(dout, cache):
    s, r = cache
    dr = dout * r
    dx = dr / s
    dmu = -dr / s
    ds = -dr * r / s
    return dmu, ds, dx


def triplet(a, p, n):
    d = np.sum((a - p) ** 2, axis=1) - np.sum((a - n) ** 2, axis=1) + 1
    return np.maximum(d, 0).mean(), (a, p, n, d)


def triplet_backward_1(dout, cache):
    a, p, n, d = cache
    m = dout * (d > 0)[:, None] / len(d)
    dp = -2 * m * (a - p)
    dn = 2 * m * (a - n)
    da = -dp
    return da, dp, dn


def triplet_backward_2(dout, cache):
    a, p, n, d = cache
    m = dout * np.ones((len(d), 1)) / len(d)
    dp = -2 * m * (a - p)
    dn = 2 * m * (a - n)
    da = -dp - dn
    return da, dp, dn


def cosine(a, b):
    na = np.linalg.norm(a, axis=1, keepdims=True)
    nb = np.linalg.norm(b, axis=1, keepdims=True)
    c = np.sum(a * b, axis=1, keepdims=True) / (na * nb)
    return c, (a, b, na, nb, c)


def cosine_backward_1(dout, cache):
    a, b, na, nb, c = cache
    da = dout * b / (na * nb)
    db = dout * (a / (na * nb) - c * b / nb**2)
    return da, db


def cosine_backward_2(dout, cache):
    a, b, na, nb, c = cache
    da = dout * (b / (na * nb) - c * a / na**2)
    db = dout * (a / (na * nb) - c * b / nb)
    return da, db


def cosine_backward_3(dout, cache):
    a, b, na, nb, c = cache
    da = dout * (b / (na * nb) - c * a / nb**2)
    db = dout * (a / (na * nb) - c * b / nb**2)
    return da, db


def negative_sampling(v, U, outside, negative):
    s, t = sigmoid(U[outside] @ v), sigmoid(-U[negative] @ v)
    return -np.log(s) - np.log(t).sum(), (v, U, outside, negative, s, t)


def negative_sampling_backward(dout, cache):
    v, U, outside, negative, s, t = cache
    ds = dout * (s - 1)
    dt = dout * (1 - t)
    dv = ds * U[outside] + U[negative].T @ dt
    dU = np.zeros_like(U)
    dU[outside] += ds * v
    dU[negative] += np.outer(dt, v)
    return dv, dU


WRONG = [
    Wrong("softmax loss, whole columns", softmax_loss, softmax_loss_backward_1, labelled(5, 4), "dx[:, y] -= 1", (),
          "other"),
    Wrong("softmax loss, not divided by N", softmax_loss, softmax_loss_backward_2, labelled(5, 4),
          "dx[np.arange(N), y] -= 1", ("return dout * dx",), "missing factor"),
    Wrong("softmax loss, dout forgotten", softmax_loss, softmax_loss_backward_3, labelled(5, 4), "return dx", (),
          "missing factor"),
    Wrong("softmax classifier, penalty twice", softmax_classifier, softmax_classifier_backward_1,
          lambda rng: [*draw((4, 3), (5, 4))(rng), rng.integers(0, 3, 5)], "dW += 2 * 0.1 * W", (), "wrong factor"),
    Wrong("softmax classifier, penalty alone", softmax_classifier, softmax_classifier_backward_2,
          lambda rng: [*draw((4, 3), (5, 4))(rng), rng.integers(0, 3, 5)], "dW = 0.1 * W", (), "overwritten"),
    Wrong("smoothed labels, true class set", smoothed, smoothed_backward_1, labelled(5, 4),
          "t[np.arange(N), y] = 0.9", (), "overwritten"),
    Wrong("smoothed labels, other classes only", smoothed, smoothed_backward_2, labelled(5, 4),
          "t = np.full((N, K), 0.1 / (K - 1))", (), "wrong factor"),
    Wrong("svm loss, count over axis 0", svm_loss, svm_loss_backward_1, labelled(5, 5), "count = dx.sum(axis=0)",
          (), "wrong axis"),
    Wrong("svm loss, margins for their mask", svm_loss, svm_loss_backward_2, labelled(5, 5), "dx = margins.copy()",
          (), "wrong mask"),
    Wrong("svm by loops, true class overwritten", svm_classifier, svm_classifier_backward,
          lambda rng: [*draw((4, 3), (6, 4))(rng), rng.integers(0, 3, 6)], "dW[:, y[i]] = -X[i]", (), "overwritten"),
    Wrong("logistic regression, y minus p", logistic, logistic_backward,
          lambda rng: [*draw((4,), (), (6, 4))(rng), rng.integers(0, 2, 6)], "dz = dout * (y - p) / N", (),
          "wrong sign"),
    Wrong("binary cross-entropy, both minus", bce, bce_backward_1,
          lambda rng: [rng.uniform(0.1, 0.9, (4, 3)), rng.integers(0, 2, (4, 3))],
          "return dout * (-y / p - (1 - y) / (1 - p)) / p.size", (), "wrong sign"),
    Wrong("binary cross-entropy, rows counted", bce, bce_backward_2,
          lambda rng: [rng.uniform(0.1, 0.9, (4, 3)), rng.integers(0, 2, (4, 3))],
          "return dout * (-y / p + (1 - y) / (1 - p)) / len(p)", (), "wrong factor"),
    Wrong("squared error, 2 forgotten", mse, mse_backward_1, draw((4, 3), (4, 3)),
          "return dout * (p - t) / p.size, -2 * dout * (p - t) / p.size", (), "wrong factor"),
    Wrong("squared error, targets' sign", mse, mse_backward_2, draw((4, 3), (4, 3)),
          "return 2 * dout * (p - t) / p.size, 2 * dout * (p - t) / p.size", (), "wrong sign"),
    Wrong("huber, branches swapped", huber, huber_backward, draw((5, 3), (5, 3)),
          "dr = np.where(small, np.sign(r), r)", (), "wrong mask"),
    Wrong("KL, sign of dlogvar", kl, kl_backward, draw((4, 3), (4, 3)),
          "dlogvar = 0.5 * dout * (1 - np.exp(logvar)) / N", (), "wrong sign"),
    Wrong("vae, half of logvar", vae, vae_backward_1, draw((4, 3), (4, 3), (4, 3), (4, 3)), "dlogvar = std * dstd",
          (), "wrong factor"),
    Wrong("vae, KL's branch of mu", vae, vae_backward_2, draw((4, 3), (4, 3), (4, 3), (4, 3)), "dmu = dz", (),
          "missing term"),
    Wrong("Gaussian likelihood, sign of dmu", gaussian_nll, gaussian_nll_backward_1,
          lambda rng: [rng.normal(size=(4, 3)), rng.uniform(0.5, 2, (4, 3)), rng.normal(size=(4, 3))],
          "dmu = dr / s", (), "wrong sign"),
    Wrong("Gaussian likelihood, log's term", gaussian_nll, gaussian_nll_backward_2,
          lambda rng: [rng.normal(size=(4, 3)), rng.uniform(0.5, 2, (4, 3)), rng.normal(size=(4, 3))],
          "ds = -dr * r / s", (), "missing term"),
    Wrong("triplet, negative's part of the anchor", triplet, triplet_backward_1, draw((8, 3), (8, 3), (8, 3)),
          "da = -dp", (), "missing term"),
    Wrong("triplet, hinge forgotten", triplet, triplet_backward_2, draw((8, 3), (8, 3), (8, 3)),
          "m = dout * np.ones((len(d), 1)) / len(d)", (), "wrong mask"),
    Wrong("cosine, norm held fixed", cosine, cosine_backward_1, draw((5, 3), (5, 3)), "da = dout * b / (na * nb)",
          (), "missing term"),
    Wrong("cosine, power of the norm", cosine, cosine_backward_2, draw((5, 3), (5, 3)),
          "db = dout * (a / (na * nb) - c * b / nb)", (), "wrong factor"),
    Wrong("cosine, norm of the other", cosine, cosine_backward_3, draw((5, 3), (5, 3)),
          "da = dout * (b / (na * nb) - c * a / nb**2)", (), "wrong array"),
    Wrong("negative sampling, words drawn twice", negative_sampling, negative_sampling_backward,
          lambda rng: [*draw((3,), (6, 3))(rng), 1, np.array([2, 4, 2, 5])], "dU[negative] += np.outer(dt, v)", (),
          "no accumulation"),
]  # fmt: skip
