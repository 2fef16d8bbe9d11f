"""Broadcasting.

    Y = s X + c X^2, in elements y_nd = s_d x_nd + c_n x_nd^2

NumPy repeats s along the rows and c along the columns. `backward` returns L_X, L_s and L_c. What is repeated in forward is
summed in backward, over the axes along which it was repeated.

Shapes: X, Y and L_Y (N, D), s (D,), c (N, 1).
"""

WRITE = ["backward"]
HINTS = [
    "First pretend that s and c have the shape of X. Their gradients would be L_Y X and L_Y X^2, elementwise.",
    "s has one number for each column: its gradient sums over the rows, axis 0.",
    "c has the shape (N, 1). Sum over axis 1 and keep the axis: keepdims=True.",
]


def inputs(rng):
    return [rng.normal(size=(4, 3)), rng.normal(size=3), rng.normal(size=(4, 1))]


def forward(X, s, c):
    Y = s * X + c * X**2
    return Y


def backward(L_Y, X, s, c):
    L_X = L_Y * (s + 2 * c * X)
    L_s = (L_Y * X).sum(axis=0)
    L_c = (L_Y * X**2).sum(axis=1, keepdims=True)
    return L_X, L_s, L_c
