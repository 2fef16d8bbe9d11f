"""Losses, regression, likelihoods and the terms of variational autoencoders."""

import numpy as np

from homework.base import Pair, cached, draw, sigmoid, softmax


def labelled(rng):
    return [rng.normal(size=(5, 3)), rng.integers(0, 3, 5)]


def softmax_loss(x, y):
    shifted = x - x.max(axis=1, keepdims=True)
    Z = np.exp(shifted).sum(axis=1, keepdims=True)
    log_probs = shifted - np.log(Z)
    N = x.shape[0]
    return -np.sum(log_probs[np.arange(N), y]) / N, (np.exp(log_probs), y)


def softmax_loss_backward(dout, cache):
    probs, y = cache
    N = len(probs)
    dx = probs.copy()
    dx[np.arange(N), y] -= 1
    return dout * dx / N


def cross_entropy(x, y):
    p = softmax(x)
    return -np.log(p[range(len(y)), y]).mean(), (p, y)


def cross_entropy_sum(x, y):
    p = softmax(x)
    return -np.log(np.take_along_axis(p, y[:, None], 1)).sum(), (p, y)


def cross_entropy_sum_backward(g, cache):
    p, y = cache
    return g * (p - np.eye(p.shape[1])[y])


def svm_loss(x, y):
    N = len(x)
    margins = np.maximum(0, x - x[np.arange(N), y][:, None] + 1)
    margins[np.arange(N), y] = 0
    return margins.sum() / N, (margins, y)


def svm_loss_backward(dout, cache):
    margins, y = cache
    N = len(margins)
    dx = np.zeros_like(margins)
    dx[margins > 0] = 1
    dx[np.arange(N), y] -= (margins > 0).sum(axis=1)
    return dout * dx / N


def nll(lp, y):
    return -lp[np.arange(len(lp)), y].mean(), (lp, y)


def nll_backward(g, cache):
    lp, y = cache
    d = np.zeros_like(lp)
    d[np.arange(len(lp)), y] = -g / len(lp)
    return d


def logistic(w, X, y):
    p = sigmoid(X @ w)
    return -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)), (X, y, p)


def logistic_backward(g, cache):
    X, y, p = cache
    return g * X.T @ (p - y) / len(y)


def logistic_with_bias(w, b, X, y):
    z = X @ w + b
    return np.mean(np.logaddexp(0, z) - y * z), (X, y, z)


def logistic_with_bias_backward(g, cache):
    X, y, z = cache
    dz = g * (sigmoid(z) - y) / y.shape[0]
    return X.T @ dz, dz.sum()


def kl(m, lv):
    return -0.5 * np.mean(np.sum(1 + lv - m**2 - np.exp(lv), 1))


def kl_backward(g, m, lv):
    return g * m / len(m), -0.5 * g * (1 - np.exp(lv)) / len(m)


def reparameterise(mu, logvar, eps):
    sigma = np.exp(0.5 * logvar)
    return mu + sigma * eps, (sigma, eps)


def reparameterise_backward(dz, cache):
    sigma, eps = cache
    return dz, 0.5 * dz * sigma * eps


def gaussian_nll(mu, s, x):
    return np.sum(0.5 * ((x - mu) / s) ** 2 + np.log(s))


def gaussian_nll_backward(g, mu, s, x):
    return -g * (x - mu) / s**2, g * (1 / s - (x - mu) ** 2 / s**3)


def huber(p, t):
    r = p - t
    return np.where(np.abs(r) <= 1, 0.5 * r**2, np.abs(r) - 0.5).mean()


def huber_backward(g, p, t):
    d = g * np.clip(p - t, -1, 1) / p.size
    return d, -d


def triplet(a, p, n):
    gap = ((a - p) ** 2).sum(1) - ((a - n) ** 2).sum(1) + 1
    return np.maximum(gap, 0).mean()


def triplet_backward(g, a, p, n):
    gap = ((a - p) ** 2).sum(1) - ((a - n) ** 2).sum(1) + 1
    on = (g * (gap > 0) / len(a))[:, None]
    return on * 2 * (n - p), on * -2 * (a - p), on * 2 * (a - n)


def cosine(a, b):
    na, nb = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    return (a * b).sum(1) / (na * nb)


def cosine_backward(g, a, b):
    na, nb = np.linalg.norm(a, axis=1, keepdims=True), np.linalg.norm(b, axis=1, keepdims=True)
    c, g = (a * b).sum(1, keepdims=True) / (na * nb), g[:, None]
    return g * (b / (na * nb) - c * a / na**2), g * (a / (na * nb) - c * b / nb**2)


def word2vec(center, outside, U):
    p = softmax(U @ center)
    return -np.log(p[outside]), (center, outside, U, p)


def word2vec_backward(g, cache):
    center, outside, U, p = cache
    d = p.copy()
    d[outside] -= 1
    return g * U.T @ d, g * np.outer(d, center)


def negative_sampling(center, U, outside, negative):
    loss = -np.log(sigmoid(U[outside] @ center)) - np.log(sigmoid(-U[negative] @ center)).sum()
    return loss, (center, U, outside, negative)


def negative_sampling_backward(g, cache):
    v, U, outside, negative = cache
    dU = np.zeros_like(U)
    s = sigmoid(U[outside] @ v) - 1
    t = sigmoid(U[negative] @ v)
    dv = s * U[outside] + t @ U[negative]
    dU[outside] += s * v
    np.add.at(dU, negative, np.outer(t, v))
    return g * dv, g * dU


def bce(p, y):
    return -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()


def ridge(w, X, y):
    r = X @ w - y
    return (r @ r) / len(y) + 0.1 * w @ w, (X, r, w)


PAIRS = [
    cached("softmax loss", softmax_loss, softmax_loss_backward, labelled),
    cached("cross-entropy, mean", cross_entropy, softmax_loss_backward, labelled),
    cached("cross-entropy, sum", cross_entropy_sum, cross_entropy_sum_backward, labelled),
    cached("cross-entropy on a square", cross_entropy, softmax_loss_backward,
           lambda rng: [rng.normal(size=(3, 3)), np.array([2, 0, 1])]),
    Pair(
        "cross-entropy with one-hot targets",
        lambda x, y: -(y * np.log(softmax(x))).sum(1).mean(),
        lambda g, x, y: g * (softmax(x) - y) / len(x),
        lambda rng: [rng.normal(size=(5, 3)), np.eye(3)[rng.integers(0, 3, 5)]],
        {"wrt": [0]},
    ),
    Pair(
        "cross-entropy with soft targets",
        lambda x, y: -(y * np.log(softmax(x))).sum(),
        lambda g, x, y: g * (softmax(x) - y),
        lambda rng: [rng.normal(size=(5, 3)), softmax(rng.normal(size=(5, 3)))],
        {"wrt": ["x"]},
    ),
    cached("svm loss", svm_loss, svm_loss_backward, labelled),
    cached("negative log-likelihood", nll, nll_backward, labelled),
    cached("logistic regression", logistic, logistic_backward,
           lambda rng: [rng.normal(size=4), rng.normal(size=(6, 4)), rng.integers(0, 2, 6).astype(float)], wrt=["w"]),
    cached("logistic regression with bias", logistic_with_bias, logistic_with_bias_backward,
           lambda rng: [rng.normal(size=4), rng.normal(size=()), rng.normal(size=(6, 4)), rng.integers(0, 2, 6)],
           wrt=["w", "b"]),
    cached("ridge regression", ridge, lambda g, c: g * (2 * c[0].T @ c[1] / len(c[1]) + 0.2 * c[2]),
           draw((4,), (6, 4), (6,)), wrt=[0]),
    Pair("mean squared error", lambda p, t: np.mean((p - t) ** 2),
         lambda g, p, t: (2 * g * (p - t) / p.size, -2 * g * (p - t) / p.size), draw((5, 3), (5, 3))),
    Pair("half squared error per example", lambda p, t: 0.5 * np.sum((p - t) ** 2) / p.shape[0],
         lambda g, p, t: g * (p - t) / p.shape[0], draw((5, 3), (5, 3)), {"wrt": ["p"]}),
    Pair("absolute error", lambda p, t: np.abs(p - t).mean(),
         lambda g, p, t: (g * np.sign(p - t) / p.size, -g * np.sign(p - t) / p.size), draw((5, 3), (5, 3))),
    Pair("huber", huber, huber_backward, draw((5, 3), (5, 3))),
    Pair("binary cross-entropy", bce, lambda g, p, y: g * (p - y) / (p * (1 - p)) / p.size,
         lambda rng: [rng.uniform(0.1, 0.9, (5, 3)), rng.integers(0, 2, (5, 3))]),
    Pair("KL of a Gaussian code", kl, kl_backward, draw((4, 3), (4, 3))),
    Pair("KL of a Gaussian code, summed", lambda m, s: 0.5 * np.sum(m**2 + s**2 - 1 - 2 * np.log(np.abs(s))),
         lambda g, m, s: (g * m, g * (s - 1 / s)), draw((4, 3), (4, 3))),
    cached("reparameterisation", reparameterise, reparameterise_backward, draw((4, 3), (4, 3), (4, 3)), wrt=[0, 1]),
    Pair("Gaussian log-likelihood", gaussian_nll, gaussian_nll_backward,
         lambda rng: [rng.normal(size=(4, 3)), rng.uniform(0.5, 2, (4, 3)), rng.normal(size=(4, 3))],
         {"wrt": ["mu", "s"]}),
    Pair("KL of distributions", lambda p, q: np.sum(p * np.log(p / q)),
         lambda g, p, q: (g * (np.log(p / q) + 1), -g * p / q),
         lambda rng: [softmax(rng.normal(size=(4, 3))), softmax(rng.normal(size=(4, 3)))]),
    Pair("triplet loss", triplet, triplet_backward, draw((5, 3), (5, 3), (5, 3))),
    Pair("cosine similarity", cosine, cosine_backward, draw((5, 3), (5, 3))),
    cached("word2vec, naive softmax", word2vec, word2vec_backward,
           lambda rng: [rng.normal(size=3), 2, rng.normal(size=(5, 3))]),
    cached("word2vec, negative sampling", negative_sampling, negative_sampling_backward,
           lambda rng: [rng.normal(size=3), rng.normal(size=(6, 3)), 1, np.array([2, 4, 2, 5])]),
    Pair("L2 penalty", lambda w: 0.5 * 0.1 * np.sum(w * w), lambda g, w: g * 0.1 * w, draw((4, 3))),
]  # fmt: skip
