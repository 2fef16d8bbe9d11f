"""An embedding.

    y_n = row number i_n of the table W

The labels i are whole numbers; they have no gradient. `backward` returns L_W, and None for the labels. A label may occur
several times, and a row may be used by no label at all.

Shapes: W (K, D), i (N,), y and L_y (N, D).
"""

import numpy as np

WRITE = ["backward"]
HINTS = [
    "L_W has the shape of W. Rows that no label uses have gradient 0.",
    "A row that is used twice gets the sum of both gradients.",
    "L_W[i] += L_y keeps only the last of equal labels. np.add.at(L_W, i, L_y) adds all.",
]


def inputs(rng):
    return [rng.normal(size=(5, 3)), np.array([4, 0, 4, 2, 4])]


def forward(W, i):
    y = W[i]
    return y


def backward(L_y, W, i):
    L_W = np.zeros_like(W)
    np.add.at(L_W, i, L_y)
    return L_W, None
