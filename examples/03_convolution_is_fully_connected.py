# %% [markdown]
# # 3. A convolution is a fully connected layer on patches
#
# A filter of R x S pixels stands at each place of the image and multiplies the pixels below it. Write these pixels in a row, a
# row for each place. That is the matrix of patches P, and the convolution is the layer of [2](02_fully_connected.py):
#
#     Y = P W         P (N Ho Wo, R S C), W (R S C, K), Y (N Ho Wo, K)
#     L_W = P^T L_Y
#     L_P = L_Y W^T
#
# Only the way from X to P is new. P has copies of X's pixels, so L_X adds up what came to each pixel's copies.

# %%
import numpy as np
from picture import image, options, panels, save

import tinydiff as td

args = options("03_convolution_is_fully_connected")


def patches(X, R, S):
    """X (N, H, W, C) -> P (N, Ho, Wo, R, S, C)."""
    Ho, Wo = X.shape[1] - R + 1, X.shape[2] - S + 1
    P = np.empty((len(X), Ho, Wo, R, S, X.shape[3]))
    for r in range(R):
        for s in range(S):
            P[:, :, :, r, s] = X[:, r : r + Ho, s : s + Wo]  # the pixel below (r, s) of the filter, for all places
    return P


def patches_backward(L_P, shape):
    """L_P (N, Ho, Wo, R, S, C) -> L_X: each line copies in the other direction, and adds."""
    L_X = np.zeros(shape)
    _, Ho, Wo, R, S, _ = L_P.shape
    for r in range(R):
        for s in range(S):
            L_X[:, r : r + Ho, s : s + Wo] += L_P[:, :, :, r, s]
    return L_X


def convolution(X, W):
    R, S, C, K = W.shape
    P = patches(X, R, S)
    Y = P.reshape(-1, R * S * C) @ W.reshape(-1, K)
    return Y.reshape(*P.shape[:3], K)


def backward(L_Y, X, W):
    R, S, C, K = W.shape
    P = patches(X, R, S)
    rows = L_Y.reshape(-1, K)
    L_W = P.reshape(-1, R * S * C).T @ rows
    L_P = rows @ W.reshape(-1, K).T
    return patches_backward(L_P.reshape(P.shape), X.shape), L_W.reshape(W.shape)


# %% [markdown]
# Right? `td.gradcheck` asks differences, and tinydiff's own convolution agrees.

# %%
rng = np.random.default_rng(0)
X, W = rng.normal(size=(2, 6, 5, 3)), rng.normal(size=(3, 2, 3, 4))
print(td.gradcheck(convolution, [X, W], backward=backward))

x, w = td.Tensor(X, requires_grad=True), td.Tensor(W, requires_grad=True)
y = td.ops.conv2d(x, w)
L_Y = rng.normal(size=y.shape)
y.backward(L_Y)
assert np.allclose(y.data, convolution(X, W))
assert all(np.allclose(a, b) for a, b in zip(backward(L_Y, X, W), (x.grad, w.grad), strict=True))

# %% [markdown]
# A digit, and a filter that answers to edges from dark above to light below. What does one number of L_Y do? It stamps the
# filter, as it is, into L_X at its own place. All of L_Y stamps at all places, and the stamps are added: that is a
# convolution as well, of L_Y with the filter turned by half a turn, with zeros around L_Y.

# %%
digit = td.data.draw_glyphs(4, image_size=16).images[3:4] / 255.0
edge = np.array([[-1.0, -2.0, -1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 1.0]])[:, :, None, None]
Y = convolution(digit, edge)
one = np.zeros_like(Y)
one[0, 4, 9] = 1
stamp, _ = backward(one, digit, edge)
assert np.allclose(stamp[0, 4:7, 9:12], edge[..., 0])  # from the place of the number on
every, _ = backward(Y, digit, edge)
padded = np.pad(Y, ((0, 0), (2, 2), (2, 2), (0, 0)))
assert np.allclose(every, convolution(padded, edge[::-1, ::-1].swapaxes(2, 3)))

# %% [markdown]
# How often is a pixel used? Nine times in the middle, once in a corner: what patches does to an image of ones, and back.

# %%
ones = np.ones((1, 16, 16, 1))
uses = patches_backward(patches(ones, 3, 3), ones.shape)
assert uses[0, 0, 0, 0] == 1 and uses[0, 8, 8, 0] == 9

figure, axes = panels(1, 6, 2.6, 3)
image(axes[0, 0], digit[0, ..., 0], "X", cmap="gray", limit=1)
image(axes[0, 1], edge[..., 0, 0], "W", text=".0f")
image(axes[0, 2], Y[0, ..., 0], "Y = P W")
image(axes[0, 3], patches(digit, 3, 3).reshape(-1, 9)[40:70], "30 rows of P,\n9 pixels each", cmap="gray", limit=1)
axes[0, 3].set_aspect(0.4)
image(axes[0, 4], stamp[0, ..., 0], "L_X, where L_Y is 1\nat one place")
image(axes[0, 5], uses[0, ..., 0], "how many patches\na pixel is in", cmap="Blues")
save(figure, args)
