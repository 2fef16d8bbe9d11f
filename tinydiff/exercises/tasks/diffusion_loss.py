"""The loss of a diffusion model (Ho et al., 2020, eq. 14), with a network of one layer.

    x_t = sqrt(a) x0 + sqrt(1 - a) e        a between 0 and 1 for each example, e drawn from N(0, 1)
    p = x_t W + b                           what the network takes for the noise
    loss = mean of (p - e)^2                over all N D elements

`backward` returns L_x0, L_W, L_b, and None for the noise e and the levels a, which are constants. In training x0 is data and
needs no gradient; a sampler with guidance needs it.

Shapes: x0, e, x_t and p (N, D), a (N, 1), W (D, D), b (D,), loss and L ().
"""

import numpy as np

WRITE = ["backward"]
WRT = ["x0", "W", "b"]
HINTS = [
    "The mean over N D squares has L_p = L 2 (p - e) / (N D).",
    "p = x_t W + b is a fully connected layer: L_W = x_t^T L_p, L_b sums L_p over rows, L_xt = L_p W^T.",
    "x_t depends on x0 with slope sqrt(a): L_x0 = sqrt(a) L_xt.",
]


def inputs(rng):
    constant = np.random.default_rng(0)
    e, a = constant.normal(size=(4, 3)), constant.uniform(0.1, 0.9, (4, 1))
    return [rng.normal(size=(4, 3)), rng.normal(size=(3, 3)), rng.normal(size=3), e, a]


def forward(x0, W, b, e, a):
    x_t = np.sqrt(a) * x0 + np.sqrt(1 - a) * e
    p = x_t @ W + b
    loss = np.mean((p - e) ** 2)
    return loss


def backward(L, x0, W, b, e, a):
    x_t = np.sqrt(a) * x0 + np.sqrt(1 - a) * e
    p = x_t @ W + b
    L_p = L * 2 * (p - e) / p.size
    L_W = x_t.T @ L_p
    L_b = L_p.sum(axis=0)
    L_x0 = np.sqrt(a) * (L_p @ W.T)
    return L_x0, L_W, L_b, None, None
