"""Batch normalisation (Ioffe and Szegedy, 2015).

    u = mean of a column of X,   v = its variance,   s = sqrt(v + eps)
    Z = (X - u) / s
    Y = Z w + b

The means run over the batch, that is over the rows: each example reaches all others. `backward` returns L_X, L_w and L_b.

Shapes: X, Y and L_Y (N, D), u, v, s, w and b (D,); eps is 1e-5.
"""

import numpy as np

WRITE = ["backward"]
HINTS = [
    "L_b is the sum of L_Y over the rows, L_w that of L_Y Z.",
    "With L_Z = L_Y w: L_X = (L_Z - mean(L_Z) - Z mean(L_Z Z)) / s. Over which axis are the means?",
    "Over axis 0. A variance over N rows divides by N, so the means do, too.",
]


def inputs(rng):
    return [rng.normal(1, 2, (4, 3)), rng.normal(size=3), rng.normal(size=3)]


def forward(X, w, b):
    u = X.mean(axis=0)
    v = X.var(axis=0)
    s = np.sqrt(v + 1e-5)
    Z = (X - u) / s
    Y = Z * w + b
    return Y


def backward(L_Y, X, w, b):
    u = X.mean(axis=0)
    s = np.sqrt(X.var(axis=0) + 1e-5)
    Z = (X - u) / s
    L_b = L_Y.sum(axis=0)
    L_w = (L_Y * Z).sum(axis=0)
    L_Z = L_Y * w
    L_X = (L_Z - L_Z.mean(axis=0) - Z * (L_Z * Z).mean(axis=0)) / s
    return L_X, L_w, L_b
