"""A Gaussian, drawn so that gradients pass (Kingma and Welling, 2014, sections 2.4 and 3).

    z = m + exp(v / 2) e,   e drawn from N(0, 1)
    kl = -1/2 sum (1 + v - m^2 - exp(v))

m is a mean and v the logarithm of a variance. Written so, z is a function of m and v, and the random e is a constant. The
two outputs are z and kl, with the gradients L_z and L_kl. `backward` returns L_m, L_v and None for e.

Shapes: m, v, e, z and L_z (N, D), kl and L_kl ().
"""

import numpy as np

WRITE = ["backward"]
WRT = ["m", "v"]
HINTS = [
    "Both outputs depend on m and on v, so each gradient is a sum of two parts.",
    "The derivative of exp(v / 2) in v is exp(v / 2) / 2. So z gives L_v the part L_z e exp(v / 2) / 2.",
    "kl gives L_m the part L_kl m, and L_v the part L_kl (exp(v) - 1) / 2.",
]


def inputs(rng):
    constant = np.random.default_rng(0).normal(size=(3, 4))
    return [rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), constant]


def forward(m, v, e):
    z = m + np.exp(v / 2) * e
    kl = -0.5 * np.sum(1 + v - m**2 - np.exp(v))
    return z, kl


def backward(L_z, L_kl, m, v, e):
    L_m = L_z + L_kl * m
    L_v = L_z * e * np.exp(v / 2) / 2 + L_kl * (np.exp(v) - 1) / 2
    return L_m, L_v, None
