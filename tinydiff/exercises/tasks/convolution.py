"""A convolution.

    y_n,i,j,k = sum over r, s, c of x_n,i+r,j+s,c w_r,s,c,k + b_k

A filter of R x S pixels moves over the image; at each place it is a fully connected layer on the pixels below it. `backward`
returns L_X, L_W and L_b. Take the loop of forward: each of its lines is a product like that of a fully connected layer.
`patch.reshape(-1, C)` is the matrix of that product: one row of C numbers for each place of each image.

Shapes: X (N, H, W, C), W (R, S, C, K), b (K,), Y and L_Y (N, H-R+1, W-S+1, K).
"""

import numpy as np

WRITE = ["backward"]
HINTS = [
    "L_b sums L_Y over images, rows and columns: axes 0, 1 and 2.",
    "For one (r, s), Y gets patch @ W[r, s]. So L_W[r, s] is patch^T L_Y, with all axes but the last as rows.",
    "And the patch gets L_Y W[r, s]^T. Pixels lie in several patches: add (+=) at the same slice of L_X.",
]


def inputs(rng):
    return [rng.normal(size=(2, 5, 4, 3)), rng.normal(size=(3, 2, 3, 4)), rng.normal(size=4)]


def forward(X, W, b):
    R, S = W.shape[:2]
    H, V = X.shape[1] - R + 1, X.shape[2] - S + 1
    Y = np.zeros((len(X), H, V, W.shape[3]), X.dtype) + b
    for r in range(R):
        for s in range(S):
            patch = X[:, r : r + H, s : s + V]
            Y = Y + patch @ W[r, s]
    return Y


def backward(L_Y, X, W, b):
    R, S, C, K = W.shape
    H, V = L_Y.shape[1:3]
    L_X, L_W = np.zeros_like(X), np.zeros_like(W)
    for r in range(R):
        for s in range(S):
            patch = X[:, r : r + H, s : s + V]
            L_W[r, s] = patch.reshape(-1, C).T @ L_Y.reshape(-1, K)
            L_X[:, r : r + H, s : s + V] += L_Y @ W[r, s].T
    L_b = L_Y.sum(axis=(0, 1, 2))
    return L_X, L_W, L_b
