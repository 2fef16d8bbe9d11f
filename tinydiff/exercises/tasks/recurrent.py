"""A recurrent network through time.

    h_t = tanh(x_t W + h_(t-1) U),  t = 1..T,  from h_0

W and U are the same at every step, so each step adds to their gradients. A state h_t counts twice: in the output, and in the
next state. `backward` returns L_X, L_h0, L_W and L_U. Walk through time backwards and carry along what comes from the step
after.

Shapes: X (T, N, D), h0 (N, M), W (D, M), U (M, M), H and L_H (T, N, M), the states h_1..h_T and their gradients.
"""

import numpy as np

WRITE = ["backward"]
HINTS = [
    "Keep L_h = zeros for what comes from the step after. At step t, the state's whole gradient is L_H[t] + L_h.",
    "The derivative of tanh(a) is 1 - h^2. So L_a = (L_H[t] + L_h) (1 - h^2), with h the state of this step.",
    "Add x_t^T L_a to L_W and h_(t-1)^T L_a to L_U; L_X[t] = L_a W^T, and the next L_h is L_a U^T. It ends as L_h0.",
]


def inputs(rng):
    shapes = [(4, 2, 3), (2, 5), (3, 5), (5, 5)]
    return [rng.normal(size=shape) * 0.7 for shape in shapes]


def forward(X, h0, W, U):
    h, H = h0, []
    for x in X:
        h = np.tanh(x @ W + h @ U)
        H.append(h)
    return np.stack(H)


def backward(L_H, X, h0, W, U):
    H = forward(X, h0, W, U)
    L_X, L_W, L_U, L_h = np.zeros_like(X), np.zeros_like(W), np.zeros_like(U), np.zeros_like(h0)
    for t in reversed(range(len(X))):
        before = H[t - 1] if t > 0 else h0
        L_a = (L_H[t] + L_h) * (1 - H[t] ** 2)
        L_W += X[t].T @ L_a
        L_U += before.T @ L_a
        L_X[t] = L_a @ W.T
        L_h = L_a @ U.T
    return L_X, L_h, L_W, L_U
