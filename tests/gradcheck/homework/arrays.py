"""NumPy's functions on arrays, with their backward passes."""

import numpy as np

from homework.base import Pair, draw, softmax


def take_along(x, i):
    return np.take_along_axis(x, i, 1)


def take_along_backward(g, x, i):
    d = np.zeros_like(x)
    np.put_along_axis(d, i, g, 1)
    return d


def diff_backward(g, x):
    d = np.zeros_like(x)
    d[1:] += g
    d[:-1] -= g
    return d


def softmax_backward(g, x):
    p = softmax(x)
    return p * (g - (g * p).sum(-1, keepdims=True))


def softmax_jacobian_backward(g, x):
    p = softmax(x)
    return np.stack([(np.diag(row) - np.outer(row, row)) @ h for row, h in zip(p, g, strict=True)])


def log_softmax(x):
    return x - x.max(1, keepdims=True) - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True))


def max_backward(g, x):
    d = np.zeros_like(x)
    d[np.arange(len(x)), x.argmax(1)] = g
    return d


def sort_backward(g, x):
    d = np.empty_like(x)
    np.put_along_axis(d, x.argsort(1), g, 1)
    return d


def var_backward(g, x):
    return 2 * g * (x - x.mean(0)) / x.shape[0]


def permute_backward(g, x, order):
    d = np.empty_like(x)
    d[order] = g
    return d


def scatter(x, where, n):
    out = np.zeros((n, x.shape[1]), x.dtype)
    out[where] = x
    return out


def pairwise(a, b):
    return (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)


def pairwise_backward(g, a, b):
    return 2 * (a * g.sum(1)[:, None] - g @ b), 2 * (b * g.sum(0)[:, None] - g.T @ a)


def segment_sum(x, ids):
    out = np.zeros((ids.max() + 1, x.shape[1]), x.dtype)
    np.add.at(out, ids, x)
    return out


def spd(rng):
    a = rng.normal(size=(4, 4))
    return [a @ a.T + 4 * np.eye(4)]


def prod_backward(g, x):
    return (g * x.prod(1))[:, None] / x


PAIRS = [
    Pair("softmax", softmax, softmax_backward, draw((5, 4))),
    Pair("softmax by its Jacobian", softmax, softmax_jacobian_backward, draw((5, 4))),
    Pair("log-softmax", log_softmax, lambda g, x: g - softmax(x) * g.sum(1, keepdims=True), draw((5, 4))),
    Pair("log-sum-exp", lambda x: np.log(np.exp(x).sum(1)), lambda g, x: g[:, None] * softmax(x), draw((5, 4))),
    Pair("take_along_axis", take_along, take_along_backward,
         lambda rng: [rng.normal(size=(5, 4)), rng.integers(0, 4, (5, 1))]),
    Pair("take_along_axis of distinct", take_along, take_along_backward,
         lambda rng: [rng.normal(size=(3, 5)), np.stack([rng.permutation(5)[:2] for _ in range(3)])]),
    Pair("diff", lambda x: np.diff(x, axis=0), diff_backward, draw((5, 3))),
    Pair("cumsum", lambda x: np.cumsum(x), lambda g, x: np.cumsum(g[::-1])[::-1], draw((6,))),
    Pair("sum", lambda x: x.sum(1), lambda g, x: np.repeat(g[:, None], x.shape[1], 1), draw((5, 4))),
    Pair("mean", lambda x: x.mean(0), lambda g, x: np.tile(g, (len(x), 1)) / len(x), draw((5, 4))),
    Pair("mean of all", np.mean, lambda g, x: np.full(x.shape, g / x.size), draw((4, 4))),
    Pair("variance", lambda x: x.var(0), var_backward, draw((5, 4))),
    Pair("standard deviation", lambda x: x.std(), lambda g, x: g * (x - x.mean()) / (x.size * x.std()), draw((5, 4))),
    Pair("max", lambda x: x.max(1), max_backward, draw((5, 4))),
    Pair("sort", lambda x: np.sort(x, 1), sort_backward, draw((5, 4))),
    Pair("prod", lambda x: x.prod(1), prod_backward, draw((5, 4))),
    Pair("transpose", lambda x: x.T, lambda g, x: g.T, draw((5, 4))),
    Pair("concatenate", lambda a, b: np.concatenate([a, b], 1),
         lambda g, a, b: (g[:, : a.shape[1]], g[:, a.shape[1] :]), draw((5, 4), (5, 3))),
    Pair("two outputs", lambda x: (x[:2], x[2:] ** 2), lambda g, h, x: np.concatenate([g, 2 * h * x[2:]]), draw((5, 3))),
    Pair("permutation", lambda x, order: x[order], permute_backward,
         lambda rng: [rng.normal(size=(4, 3)), rng.permutation(4)]),
    Pair("scatter", scatter, lambda g, x, where, n: g[where],
         lambda rng: [rng.normal(size=(3, 2)), rng.permutation(6)[:3], 6]),
    Pair("segment sum", segment_sum, lambda g, x, ids: g[ids],
         lambda rng: [rng.normal(size=(5, 3)), np.array([0, 0, 1, 2, 2])]),
    Pair("clip", lambda x: np.clip(x, -1, 1), lambda g, x: g * (np.abs(x) <= 1), draw((5, 4))),
    Pair("matmul", np.matmul, lambda g, a, b: (g @ b.T, a.T @ g), draw((4, 4), (4, 4))),
    Pair("batched matmul", np.matmul, lambda g, a, b: (g @ b.swapaxes(1, 2), a.swapaxes(1, 2) @ g),
         draw((2, 3, 4), (2, 4, 3))),
    Pair("outer product", np.outer, lambda g, a, b: (g @ b, a @ g), draw((4,), (3,))),
    Pair("inner product", lambda a, b: a @ b, lambda g, a, b: (g * b, g * a), draw((4,), (4,))),
    Pair("quadratic form", lambda x, A: x @ A @ x, lambda g, x, A: (g * (A + A.T) @ x, g * np.outer(x, x)),
         draw((4,), (4, 4))),
    Pair("division with broadcasting", lambda a, b: a / b,
         lambda g, a, b: (g / b, -(g * a / b**2).sum(1, keepdims=True)), draw((5, 4), (5, 1))),
    Pair("scalar", lambda x: x**2 * np.sin(x), lambda g, x: g * (2 * x * np.sin(x) + x**2 * np.cos(x)), draw(())),
    Pair("pairwise distances", pairwise, pairwise_backward, draw((5, 3), (4, 3))),
    Pair("normalisation to length 1", lambda x: x / np.linalg.norm(x, axis=1, keepdims=True),
         lambda g, x: (g - x * (g * x).sum(1, keepdims=True) / (x**2).sum(1, keepdims=True))
         / np.linalg.norm(x, axis=1, keepdims=True), draw((5, 3))),
    Pair("inverse", np.linalg.inv, lambda g, A: -np.linalg.inv(A).T @ g @ np.linalg.inv(A).T, spd),
    Pair("log-determinant of a symmetric matrix", lambda A: np.linalg.slogdet(A)[1],
         lambda g, A: g * np.linalg.inv(A), spd),
    Pair("trace", np.trace, lambda g, A: g * np.eye(len(A)), draw((4, 4))),
    Pair("squared singular values", lambda A: np.sum((A @ A.T) ** 2), lambda g, A: 4 * g * A @ A.T @ A, draw((4, 3))),
    Pair("einsum", lambda a, b: np.einsum("bij,bjk->bik", a, b),
         lambda g, a, b: (np.einsum("bik,bjk->bij", g, b), np.einsum("bij,bik->bjk", a, g)),
         draw((2, 3, 4), (2, 4, 5))),
]  # fmt: skip
