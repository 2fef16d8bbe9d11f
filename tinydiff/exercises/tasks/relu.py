"""A leaky ReLU.

    y = x where x > 0, and y = s x elsewhere

s is a number, the slope on the negative side. It is learned, too (He et al., 2015, call this PReLU). `backward` returns L_x
and L_s.

Shapes: x, y and L_y any shape; s ().
"""

import numpy as np

WRITE = ["backward"]
HINTS = [
    "L_x: the slope of y in x is 1 where x > 0 and s elsewhere. np.where chooses between the two.",
    "s is used at every element that is not positive, and L_s is a single number: a sum over all of them.",
    "Where x <= 0, the slope of y in s is x. So L_s adds up L_y x there.",
]


def inputs(rng):
    return [rng.normal(size=(3, 4)), np.array(0.1)]


def forward(x, s):
    positive = x > 0
    y = np.where(positive, x, s * x)
    return y


def backward(L_y, x, s):
    positive = x > 0
    L_x = np.where(positive, L_y, s * L_y)
    L_s = np.where(positive, 0, L_y * x).sum()
    return L_x, L_s
