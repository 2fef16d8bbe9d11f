"""A fully connected layer.

    Y = X W + b, in elements y_nm = sum_d x_nd w_dm + b_m

L_Y, the derivative of the loss with respect to Y, is given. `backward` returns L_X, L_W and L_b. Start from one element:
which y depend on x_ij, and with which slope? The chain rule sums over them. Then write the sums as matrix products.

Shapes: X (N, D), W (D, M), b (M,), Y and L_Y (N, M). A gradient has the shape of what it is the gradient of.
"""

WRITE = ["backward"]
HINTS = [
    "An element x_ij occurs in y_im for every m, with slope w_jm: L_X_ij = sum_m L_Y_im w_jm. Which product is this?",
    "The shapes leave one way only: L_X (N, D) from (N, M) and (D, M), and L_W (D, M) from (N, D) and (N, M).",
    "b_m is added to every row of Y, so L_b is the sum of L_Y over the rows.",
]


def inputs(rng):
    return [rng.normal(size=(4, 3)), rng.normal(size=(3, 5)), rng.normal(size=5)]


def forward(X, W, b):
    Y = X @ W + b
    return Y


def backward(L_Y, X, W, b):
    L_X = L_Y @ W.T
    L_W = X.T @ L_Y
    L_b = L_Y.sum(axis=0)
    return L_X, L_W, L_b
