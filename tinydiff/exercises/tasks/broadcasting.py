"""Broadcasting.

    Y = s X + c X^2, in elements y_nd = s_d x_nd + c_n x_nd^2

NumPy repeats s along the rows and c along the columns. `backward` returns L_X, L_s and L_c. What is repeated in forward is
summed in backward, over the axes along which it was repeated.

Shapes: X, Y and L_Y (N, D), s (D,), c (N, 1).
"""

WRITE = ["backward"]
HINTS = [
    "Elementwise: L_X is L_Y times the slope of y in x. If s and c had the shape of X, L_s would be L_Y X, and L_c L_Y X^2.",
    "s has one number for each column: L_s sums over the rows, axis 0.",
    "c has the shape (N, 1): L_c sums over axis 1 and keeps the axis, with keepdims=True.",
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
