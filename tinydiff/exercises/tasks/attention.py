"""Attention (Vaswani et al., 2017, eq. 1).

    S = Q K^T / sqrt(D)          how well each query fits each key
    P = softmax(S)               along each row
    Y = P V

`backward` returns L_Q, L_K and L_V. Go backwards: L_V and L_P from the last line, L_S from the softmax, L_Q and L_K from the
first line.

Shapes: Q (L, D), K (M, D), V (M, E), S and P (L, M), Y and L_Y (L, E).
"""

import numpy as np

WRITE = ["backward"]
HINTS = [
    "Y = P V is a matrix product: L_P = L_Y V^T and L_V = P^T L_Y.",
    "A softmax with L_P coming in has L_S = P (L_P - sum of P L_P along the row).",
    "S = Q K^T / sqrt(D): L_Q = L_S K / sqrt(D) and L_K = L_S^T Q / sqrt(D).",
]


def inputs(rng):
    return [rng.normal(size=(4, 3)), rng.normal(size=(5, 3)), rng.normal(size=(5, 2))]


def softmax(S):
    E = np.exp(S - S.max(axis=1, keepdims=True))
    return E / E.sum(axis=1, keepdims=True)


def forward(Q, K, V):
    S = Q @ K.T / np.sqrt(Q.shape[1])
    P = softmax(S)
    Y = P @ V
    return Y


def backward(L_Y, Q, K, V):
    scale = 1 / np.sqrt(Q.shape[1])
    P = softmax(Q @ K.T * scale)
    L_P = L_Y @ V.T
    L_V = P.T @ L_Y
    L_S = P * (L_P - (P * L_P).sum(axis=1, keepdims=True))
    L_Q = L_S @ K * scale
    L_K = L_S.T @ Q * scale
    return L_Q, L_K, L_V
