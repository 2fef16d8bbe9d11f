"""Layer normalisation (Ba et al., 2016).

    u = mean of a row of X,   v = its variance,   s = sqrt(v + eps)
    Z = (X - u) / s
    Y = Z w

Every element of a row moves the row's u and v, so it reaches every element of the row of Y. `backward` returns L_X and L_w.

Shapes: X, Y and L_Y (N, D), w (D,), u, v and s (N, 1); eps is 1e-5.
"""

import numpy as np

WRITE = ["backward"]
HINTS = [
    "First L_Z = L_Y w and L_w = sum over rows of L_Y Z.",
    "L_X has three terms, all divided by s: the direct one L_Z, one through the mean, one through the variance.",
    "Through the mean: -mean(L_Z). Through the variance: -Z mean(L_Z Z). Both means run over a row.",
]


def inputs(rng):
    return [rng.normal(1, 2, (3, 5)), rng.normal(size=5)]


def forward(X, w):
    u = X.mean(axis=1, keepdims=True)
    v = X.var(axis=1, keepdims=True)
    s = np.sqrt(v + 1e-5)
    Z = (X - u) / s
    Y = Z * w
    return Y


def backward(L_Y, X, w):
    u = X.mean(axis=1, keepdims=True)
    s = np.sqrt(X.var(axis=1, keepdims=True) + 1e-5)
    Z = (X - u) / s
    L_w = (L_Y * Z).sum(axis=0)
    L_Z = L_Y * w
    L_X = (L_Z - L_Z.mean(axis=1, keepdims=True) - Z * (L_Z * Z).mean(axis=1, keepdims=True)) / s
    return L_X, L_w
