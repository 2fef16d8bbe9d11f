"""The chain rule.

For numbers a and b, elementwise in arrays of the same shape,

    u = a b
    v = sin(u)
    y = v^2 + a.

The loss L depends on y alone, and L_y = dL/dy is given. `backward` returns L_a and L_b. Go from y back to a and b: first
write L_v, then L_u from L_v, then L_a and L_b. Note that a reaches y in two ways.

Shapes: a, b, y, L_y, L_a and L_b (N,).
"""

import numpy as np

WRITE = ["backward"]
HINTS = [
    "Each step is the gradient that comes in times the step's own derivative: L_v = L_y 2 v.",
    "The derivative of sin(u) is cos(u), so L_u = L_v cos(u).",
    "a is used in u = a b and in y = ... + a. What comes back along both ways is added: L_a = L_u b + L_y.",
]


def inputs(rng):
    return [rng.normal(size=5), rng.normal(size=5)]


def forward(a, b):
    u = a * b
    v = np.sin(u)
    y = v**2 + a
    return y


def backward(L_y, a, b):
    u = a * b
    v = np.sin(u)
    L_v = L_y * 2 * v
    L_u = L_v * np.cos(u)
    L_a = L_u * b + L_y
    L_b = L_u * a
    return L_a, L_b
