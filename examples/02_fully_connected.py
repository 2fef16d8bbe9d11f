# %% [markdown]
# # 2. Fully connected layers, by hand and by the tape
#
# A layer is Y = X W + 1 b with X (N, D), W (D, M), b (M,). L_Y (N, M) is the derivative of the loss with respect
# to Y. To find L_X, start with one element. x_ij occurs in y_im for every m, with slope w_jm, and in no other row of Y. The
# chain rule sums:
#
#     L_x_ij = sum over m of L_y_im w_jm        which is element (i, j) of L_Y W^T
#     L_w_jm = sum over i of x_ij L_y_im        which is element (j, m) of X^T L_Y
#     L_b_m  = sum over i of L_y_im             which is element m of 1^T L_Y
#
# The derivatives of Y with respect to X would be an array (N, M, N, D). Nobody builds it: a backward pass computes L_X from
# L_Y directly.
#
# Two layers with a tanh between them learn to tell two spirals apart. Every gradient is computed twice.

# %%
import numpy as np
from picture import options, panels, save

import tinydiff as td

args = options("02_fully_connected", steps=1500)
rng = np.random.default_rng(0)

# Two spirals, N points in D = 2 dimensions; the target is -1 or 1.
N, H = 200, 32
angle, side = rng.uniform(0.5, 6, N), rng.choice([-1.0, 1.0], N)
X = (side * angle * np.stack([np.cos(angle), np.sin(angle)])).T / 3 + rng.normal(scale=0.04, size=(N, 2))
target = side[:, None]


# %% [markdown]
# First by hand: from the loss back to the first layer.

# %%
W1, b1 = rng.normal(size=(2, H)), np.zeros(H)
W2, b2 = rng.normal(size=(H, 1)) / np.sqrt(H), np.zeros(1)


def forward(X):
    hidden = np.tanh(X @ W1 + b1)  # (N, H)
    return hidden, hidden @ W2 + b2  # (N, 1)


def by_hand():
    """The loss, mean (Y - target)^2, and the gradients of W1, b1, W2, b2."""
    hidden, Y = forward(X)
    L_Y = 2 * (Y - target) / N  # (N, 1)
    L_hidden = L_Y @ W2.T  # (N, H): the loss by the layer's input, handed down
    L_W2, L_b2 = hidden.T @ L_Y, L_Y.sum(0)
    L_Y1 = L_hidden * (1 - hidden**2)  # through tanh, whose slope is 1 - tanh^2
    L_W1, L_b1 = X.T @ L_Y1, L_Y1.sum(0)
    return np.mean((Y - target) ** 2), (L_W1, L_b1, L_W2, L_b2)


# %% [markdown]
# Now by the tape: forward is written down, backward follows from it.


# %%
def by_tape():
    w1, c1, w2, c2 = parameters = [td.Tensor(p, requires_grad=True) for p in (W1, b1, W2, b2)]
    Y = td.ops.linear(td.ops.tanh(td.ops.linear(X, w1, c1)), w2, c2)
    loss = td.ops.mse_loss(Y, target)
    loss.backward()
    return loss.item(), [p.grad for p in parameters]


(loss_hand, hand), (loss_tape, tape) = by_hand(), by_tape()
print(f"loss: {loss_hand:.12f} by hand, {loss_tape:.12f} by the tape")
for name, a, b in zip(("L_W1", "L_b1", "L_W2", "L_b2"), hand, tape, strict=True):
    print(f"{name} {a.shape!s:8} largest {np.abs(a).max():.4f}, largest difference {np.abs(a - b).max():.1e}")
    assert np.allclose(a, b, rtol=1e-12, atol=1e-15)

# %% [markdown]
# Training with the gradients by hand: gradient descent with momentum.

# %%
losses, velocity = [], [np.zeros_like(p) for p in (W1, b1, W2, b2)]
for _ in range(args.steps):
    loss, gradients = by_hand()
    losses.append(loss)
    for p, v, g in zip((W1, b1, W2, b2), velocity, gradients, strict=True):
        v *= 0.95  # momentum
        v -= 0.02 * g
        p += v
right = np.mean(np.sign(forward(X)[1]) == target)
print(f"after {args.steps} steps by hand: loss {losses[-1]:.4f}, {100 * right:.1f}% of the points on the right side")

# %%
figure, axes = panels(1, 3)
a, b, c = axes[0]
for name, x, y in zip(("L_W1", "L_b1", "L_W2", "L_b2"), hand, tape, strict=True):
    a.plot(x.ravel(), y.ravel(), "o", label=name, alpha=0.7)
a.axline((0, 0), slope=1, color="grey", linewidth=0.8)
a.set(title="each element of each gradient", xlabel="by hand", ylabel="by the tape")
a.legend()
b.semilogy(losses)
b.set(title="loss, trained with the gradients by hand", xlabel="step")
grid = np.stack(np.meshgrid(*[np.linspace(-2.4, 2.4, 160)] * 2), -1)
shade = forward(grid.reshape(-1, 2))[1].reshape(grid.shape[:2])
c.contourf(grid[..., 0], grid[..., 1], shade, levels=np.linspace(-2, 2, 21), cmap="RdBu", extend="both", alpha=0.6)
c.scatter(*X.T, c=side, cmap="RdBu", edgecolor="black", linewidth=0.5, s=14)
c.set(title="what the network says", aspect="equal")
save(figure, args)
