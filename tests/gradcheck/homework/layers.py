"""Fully connected layers, activations, normalisation, dropout, embeddings."""

import numpy as np

from homework.base import Pair, cached, draw, sigmoid


def affine_forward(x, w, b):
    out = x.reshape(x.shape[0], -1) @ w + b
    return out, (x, w, b)


def affine_backward(dout, cache):
    x, w, b = cache
    dx = (dout @ w.T).reshape(x.shape)
    dw = x.reshape(x.shape[0], -1).T @ dout
    db = np.sum(dout, axis=0)
    return dx, dw, db


def relu_forward(x):
    return np.maximum(0, x), x


def relu_backward(dout, cache):
    dx = dout.copy()
    dx[cache <= 0] = 0
    return dx


def affine_relu_forward(x, w, b):
    a, fc = affine_forward(x, w, b)
    out, act = relu_forward(a)
    return out, (fc, act)


def affine_relu_backward(dout, cache):
    fc, act = cache
    return affine_backward(relu_backward(dout, act), fc)


def two_layers_forward(x, w1, b1, w2, b2):
    h = np.tanh(x @ w1 + b1)
    return h @ w2 + b2, (x, h, w1, w2)


def two_layers_backward(dout, cache):
    x, h, w1, w2 = cache
    dw2, db2 = h.T @ dout, dout.sum(0)
    dh = dout @ w2.T
    da = dh * (1 - h**2)
    return da @ w1.T, x.T @ da, da.sum(0), dw2, db2


def batchnorm_forward(x, gamma, beta):
    eps = 1e-5
    mu = x.mean(axis=0)
    var = x.var(axis=0)
    std = np.sqrt(var + eps)
    xhat = (x - mu) / std
    return gamma * xhat + beta, (x, xhat, mu, std, gamma)


def batchnorm_backward(dout, cache):
    x, xhat, mu, std, gamma = cache
    N = x.shape[0]
    dbeta = dout.sum(axis=0)
    dgamma = (dout * xhat).sum(axis=0)
    dxhat = dout * gamma
    dvar = np.sum(dxhat * (x - mu), axis=0) * -0.5 / std**3
    dmu = -np.sum(dxhat, axis=0) / std + dvar * np.mean(-2 * (x - mu), axis=0)
    dx = dxhat / std + dvar * 2 * (x - mu) / N + dmu / N
    return dx, dgamma, dbeta


def batchnorm_steps_forward(x, gamma, beta, eps=1e-5):
    N, D = x.shape
    mu = 1.0 / N * np.sum(x, axis=0)
    xmu = x - mu
    sq = xmu**2
    var = 1.0 / N * np.sum(sq, axis=0)
    sqrtvar = np.sqrt(var + eps)
    ivar = 1.0 / sqrtvar
    xhat = xmu * ivar
    return gamma * xhat + beta, (xhat, gamma, xmu, ivar, sqrtvar, var, eps)


def batchnorm_steps_backward(dout, cache):
    xhat, gamma, xmu, ivar, sqrtvar, var, eps = cache
    N, D = dout.shape
    dbeta = np.sum(dout, axis=0)
    dgamma = np.sum(dout * xhat, axis=0)
    dxhat = dout * gamma
    divar = np.sum(dxhat * xmu, axis=0)
    dxmu = dxhat * ivar
    dsqrtvar = -1.0 / sqrtvar**2 * divar
    dvar = 0.5 / np.sqrt(var + eps) * dsqrtvar
    dsq = 1.0 / N * np.ones((N, D)) * dvar
    dxmu = dxmu + 2 * xmu * dsq
    dmu = -1 * np.sum(dxmu, axis=0)
    dx = dxmu + 1.0 / N * np.ones((N, D)) * dmu
    return dx, dgamma, dbeta


def batchnorm_alt_backward(dout, cache):
    x, xhat, mu, std, gamma = cache
    N = len(x)
    dbeta, dgamma = dout.sum(0), (dout * xhat).sum(0)
    dx = gamma / (N * std) * (N * dout - dbeta - xhat * dgamma)
    return dx, dgamma, dbeta


def batchnorm_running(x, gamma, beta, running):
    mu, var = x.mean(0), x.var(0)
    running["mean"] = 0.9 * running.get("mean", 0) + 0.1 * mu
    xhat = (x - mu) / np.sqrt(var + 1e-5)
    return gamma * xhat + beta, (x, xhat, mu, np.sqrt(var + 1e-5), gamma)


def layernorm_forward(x, gamma, beta):
    mu = x.mean(axis=-1, keepdims=True)
    std = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    xhat = (x - mu) / std
    return gamma * xhat + beta, (xhat, std, gamma)


def layernorm_backward(dout, cache):
    xhat, std, gamma = cache
    over = tuple(range(dout.ndim - 1))
    dgamma, dbeta = (dout * xhat).sum(over), dout.sum(over)
    dxhat = dout * gamma
    mean = lambda a: a.mean(-1, keepdims=True)  # noqa: E731
    return (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)) / std, dgamma, dbeta


def layernorm_transposed_forward(x, gamma, beta):
    xt = x.T
    mu, var = xt.mean(0), xt.var(0)
    std = np.sqrt(var + 1e-5)
    xhat = ((xt - mu) / std).T
    return gamma * xhat + beta, (xhat, std, gamma)


def layernorm_transposed_backward(dout, cache):
    xhat, std, gamma = cache
    dgamma, dbeta = (dout * xhat).sum(0), dout.sum(0)
    d, h = (dout * gamma).T, xhat.T
    D = d.shape[0]
    dx = ((D * d - d.sum(0) - h * (d * h).sum(0)) / (D * std)).T
    return dx, dgamma, dbeta


def spatial_batchnorm_forward(x, gamma, beta):
    N, C, H, W = x.shape
    flat = x.transpose(0, 2, 3, 1).reshape(-1, C)
    out, cache = batchnorm_forward(flat, gamma, beta)
    return out.reshape(N, H, W, C).transpose(0, 3, 1, 2), cache


def spatial_batchnorm_backward(dout, cache):
    N, C, H, W = dout.shape
    dflat, dgamma, dbeta = batchnorm_backward(dout.transpose(0, 2, 3, 1).reshape(-1, C), cache)
    return dflat.reshape(N, H, W, C).transpose(0, 3, 1, 2), dgamma, dbeta


def groupnorm_forward(x, gamma, beta, G):
    N, C, H, W = x.shape
    g = x.reshape(N, G, C // G, H, W)
    mu = g.mean(axis=(2, 3, 4), keepdims=True)
    std = np.sqrt(g.var(axis=(2, 3, 4), keepdims=True) + 1e-5)
    xhat = ((g - mu) / std).reshape(N, C, H, W)
    return gamma * xhat + beta, (xhat, std, gamma, G)


def groupnorm_backward(dout, cache):
    xhat, std, gamma, G = cache
    N, C, H, W = dout.shape
    dgamma = (dout * xhat).sum(axis=(0, 2, 3), keepdims=True)
    dbeta = dout.sum(axis=(0, 2, 3), keepdims=True)
    d = (dout * gamma).reshape(N, G, C // G, H, W)
    h = xhat.reshape(N, G, C // G, H, W)
    axes = (2, 3, 4)
    dx = (d - d.mean(axes, keepdims=True) - h * (d * h).mean(axes, keepdims=True)) / std
    return dx.reshape(N, C, H, W), dgamma, dbeta


def rmsnorm_forward(x, gamma):
    r = np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x / r * gamma, (x, r, gamma)


def rmsnorm_backward(dout, cache):
    x, r, gamma = cache
    dgamma = (dout * x / r).sum(0)
    d = dout * gamma
    return d / r - x * (d * x).mean(-1, keepdims=True) / r**3, dgamma


def dropout_forward(x, p, seed):
    rng = np.random.RandomState(seed)
    mask = (rng.rand(*x.shape) < p) / p
    return x * mask, mask


def embedding_forward(x, W):
    return W[x], (x, W)


def embedding_backward(dout, cache):
    x, W = cache
    dW = np.zeros_like(W)
    np.add.at(dW, x, dout)
    return dW


def embedding_loop_backward(dout, cache):
    x, W = cache
    dW = np.zeros_like(W)
    for i, word in enumerate(x):
        dW[word] += dout[i]
    return dW


def maxout_forward(x, w, b):
    z = np.einsum("nd,kdm->nkm", x, w) + b
    return z.max(1), (x, w, z.argmax(1), z.shape)


def maxout_backward(dout, cache):
    x, w, best, shape = cache
    dz = np.zeros(shape)
    n, m = np.indices(best.shape)
    dz[n, best, m] = dout
    return np.einsum("nkm,kdm->nd", dz, w), np.einsum("nd,nkm->kdm", x, dz), dz.sum(0)


def prelu(x, a):
    return np.where(x > 0, x, a * x)


def prelu_backward(g, x, a):
    return np.where(x > 0, g, a * g), (g * np.where(x > 0, 0, x)).sum(0)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_backward(g, x):
    c = np.sqrt(2 / np.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    return g * (0.5 * (1 + t) + 0.5 * x * (1 - t**2) * c * (1 + 3 * 0.044715 * x**2))


class Linear:
    """A layer that keeps its input."""

    def forward(self, x, w, b):
        self.x, self.w = x, w
        return x @ w + b

    def backward(self, dout):
        return dout @ self.w.T, self.x.T @ dout, dout.sum(axis=0)


class Sigmoid:
    def forward(self, x):
        self.out = sigmoid(x)
        return self.out

    def backward(self, dout):
        return dout * self.out * (1 - self.out)


_linear, _sigmoid = Linear(), Sigmoid()
_norm = draw((5, 4), (4,), (4,))

PAIRS = [
    cached("affine", affine_forward, affine_backward, draw((3, 2, 4), (8, 5), (5,))),
    cached("affine on a square", affine_forward, affine_backward, draw((4, 4), (4, 4), (4,))),
    Pair(
        "affine of the inputs",
        lambda x, w, b: x @ w + b,
        lambda g, x, w, b: (g @ w.T, x.T @ g, g.sum(0)),
        draw((5, 4), (4, 3), (3,)),
    ),
    Pair(
        "affine, columns are examples",
        lambda W, X, b: W @ X + b,
        lambda dZ, W, X, b: (dZ @ X.T, W.T @ dZ, dZ.sum(axis=1, keepdims=True)),
        draw((3, 4), (4, 5), (3, 1)),
    ),
    Pair("bias", lambda x, b: x + b, lambda g, x, b: {"x": g, "b": g.sum(0)}, draw((5, 4), (4,))),
    cached("relu", relu_forward, relu_backward, draw((5, 4))),
    cached("affine and relu", affine_relu_forward, affine_relu_backward, draw((5, 4), (4, 3), (3,))),
    cached("two layers", two_layers_forward, two_layers_backward, draw((5, 4), (4, 6), (6,), (6, 3), (3,))),
    Pair("layer object", _linear.forward, _linear.backward, draw((5, 4), (4, 3), (3,))),
    Pair("sigmoid object", _sigmoid.forward, _sigmoid.backward, draw((5, 4))),
    Pair("sigmoid", sigmoid, lambda g, x: g * sigmoid(x) * (1 - sigmoid(x)), draw((5, 4))),
    Pair("tanh", np.tanh, lambda g, x: g * (1 - np.tanh(x) ** 2), draw((5, 4))),
    Pair(
        "leaky relu",
        lambda x: np.where(x > 0, x, 0.01 * x),
        lambda g, x: g * np.where(x > 0, 1, 0.01),
        draw((5, 4)),
    ),
    Pair(
        "elu",
        lambda x: np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1),
        lambda g, x: g * np.where(x > 0, 1, np.exp(np.minimum(x, 0))),
        draw((5, 4)),
    ),
    Pair("prelu", prelu, prelu_backward, draw((5, 4), (4,))),
    Pair("gelu", gelu, gelu_backward, draw((5, 4))),
    Pair(
        "swish",
        lambda x: x * sigmoid(x),
        lambda g, x: g * (sigmoid(x) + x * sigmoid(x) * (1 - sigmoid(x))),
        draw((5, 4)),
    ),
    Pair("softplus", lambda x: np.logaddexp(0, x), lambda g, x: g * sigmoid(x), draw((5, 4))),
    cached("batchnorm", batchnorm_forward, batchnorm_backward, _norm),
    cached("batchnorm in steps", batchnorm_steps_forward, batchnorm_steps_backward, _norm),
    cached("batchnorm simplified", batchnorm_forward, batchnorm_alt_backward, _norm),
    cached("batchnorm with ones and zeros", batchnorm_forward, batchnorm_backward,
           lambda rng: [rng.normal(size=(5, 4)), np.ones(4), np.zeros(4)]),
    cached("batchnorm with running mean", batchnorm_running, batchnorm_backward,
           lambda rng: [*_norm(rng), {}]),
    cached("layernorm", layernorm_forward, layernorm_backward, _norm),
    cached("layernorm of sequences", layernorm_forward, layernorm_backward, draw((2, 3, 4), (4,), (4,))),
    cached("layernorm, transposed", layernorm_transposed_forward, layernorm_transposed_backward, _norm),
    cached("spatial batchnorm", spatial_batchnorm_forward, spatial_batchnorm_backward,
           draw((2, 3, 4, 5), (3,), (3,))),
    cached("groupnorm", groupnorm_forward, groupnorm_backward,
           lambda rng: [*draw((2, 6, 4, 5), (1, 6, 1, 1), (1, 6, 1, 1))(rng), 2]),
    cached("instance norm", groupnorm_forward, groupnorm_backward,
           lambda rng: [*draw((2, 4, 3, 3), (1, 4, 1, 1), (1, 4, 1, 1))(rng), 4]),
    cached("rmsnorm", rmsnorm_forward, rmsnorm_backward, draw((5, 4), (4,))),
    cached("dropout", dropout_forward, lambda dout, mask: dout * mask,
           lambda rng: [rng.normal(size=(5, 4)), 0.6, 3]),
    cached("embedding", embedding_forward, embedding_backward,
           lambda rng: [rng.integers(0, 5, (2, 3)), rng.normal(size=(5, 4))]),
    cached("embedding of distinct words", embedding_forward, embedding_backward,
           lambda rng: [np.array([0, 3, 1]), rng.normal(size=(5, 4))]),
    cached("embedding in a loop", embedding_forward, embedding_loop_backward,
           lambda rng: [np.array([4, 1, 1, 0]), rng.normal(size=(5, 3))]),
    cached("maxout", maxout_forward, maxout_backward, draw((5, 4), (3, 4, 2), (3, 2))),
]  # fmt: skip
