# %% [markdown]
# # 7. Shared weights through time
#
# A recurrent network uses the same weights at every step:
#
#     h_t = tanh(x_t W + h_(t-1) U)            t = 1 .. T
#
# Written out it is a deep network whose layers happen to share W and U. Each step sends its own gradient to them, and the
# gradients are added. A state h_t is used in two ways, by the loss and by the next state, so what comes to it is a sum, too:
#
#     L_a_t     = (L_h_t + what came from step t + 1) * (1 - h_t^2)
#     L_W       = sum over t of x_t^T L_a_t
#     L_U       = sum over t of h_(t-1)^T L_a_t
#     to step t - 1 goes L_a_t U^T

# %%
import numpy as np
from picture import graph, image, options, panels, save

import tinydiff as td

args = options("07_shared_weights_through_time")
rng = np.random.default_rng(0)


def states(X, W, U):
    """h_0 = 0, h_1, .., h_T of X (T, N, D): a list of (N, M)."""
    h = [np.zeros((X.shape[1], W.shape[1]))]
    for x in X:
        h.append(np.tanh(x @ W + h[-1] @ U))
    return h


def backward(L_H, X, W, U):
    """L_W and L_U step by step, (T, ..) each, and what went through time, (T, N, M). L_H (T, N, M)."""
    h, from_later, L_Ws, L_Us, carried = states(X, W, U), 0, [], [], []
    for t in reversed(range(len(X))):
        L_a = (L_H[t] + from_later) * (1 - h[t + 1] ** 2)
        L_Ws.append(X[t].T @ L_a)
        L_Us.append(h[t].T @ L_a)
        from_later = L_a @ U.T
        carried.append(from_later)
    return np.array(L_Ws[::-1]), np.array(L_Us[::-1]), np.array(carried[::-1])


# %% [markdown]
# Three steps, a loss of the last state, and the tape. In the picture W and U have three arrows each; where two gradients meet,
# the trace counts a sum.

# %%
X, W, U = rng.normal(size=(3, 2, 2)), rng.normal(size=(2, 3)), rng.normal(size=(3, 3))
W_, U_ = td.Tensor(W, requires_grad=True), td.Tensor(U, requires_grad=True)
with td.trace() as trace:
    x_1, x_2, x_3 = X
    h_1 = td.ops.tanh(x_1 @ W_)  # h_0 is 0
    h_2 = td.ops.tanh(x_2 @ W_ + h_1 @ U_)
    loss = td.ops.tanh(x_3 @ W_ + h_2 @ U_).sum()
    loss.backward()
sums = [step for step in trace.steps if step.kind == "sum"]
print(f"{len(trace.operations)} operations, {len(sums)} sums of gradients: W is used 3 times, U twice")
assert len(sums) == 3

L_H = np.zeros((3, 2, 3))
L_H[-1] = 1
L_Ws, L_Us, _ = backward(L_H, X, W, U)
assert np.allclose(L_Ws.sum(0), W_.grad) and np.allclose(L_Us.sum(0), U_.grad)
print("norm of each step's share of L_W:", np.linalg.norm(L_Ws, axis=(1, 2)).round(3))

# %% [markdown]
# Each step back multiplies by U^T and by the slope of tanh, which is at most 1. If U shrinks, the gradient of a late loss is
# gone before it reaches early steps; if U stretches, it explodes, until tanh saturates. Here U is an orthogonal matrix times a
# factor, and x is small.

# %%
T, M = 60, 24
Q = np.linalg.qr(rng.normal(size=(M, M)))[0]
X = rng.normal(size=(T, 4, 2))
L_H = np.zeros((T, 4, M))
L_H[-1] = rng.normal(size=(4, M))
reach = {}
for factor in (0.8, 1.0, 1.1):
    _, _, carried = backward(L_H, X, 0.02 * rng.normal(size=(2, M)), factor * Q)
    reach[factor] = np.linalg.norm(carried, axis=(1, 2)) / np.linalg.norm(L_H[-1])
    print(f"U = {factor} x orthogonal: {reach[factor][0]:.1e} of a gradient at step {T} arrives at step 0")
assert reach[0.8][0] < 1e-4 and 0.1 < reach[1.0][0] <= 1 < reach[1.1][0]

# %% [markdown]
# What it means for learning: a network is shown a number in -1..1 at step 1, then noise, and must say the number at the end.

# %%
T, steps = 20, 120


def learn(factor):
    rng = np.random.default_rng(1)
    Q = np.linalg.qr(rng.normal(size=(M, M)))[0]
    w, u = (td.Tensor(v, requires_grad=True) for v in (0.3 * rng.normal(size=(2, M)), factor * Q))
    out = td.Tensor(rng.normal(size=(M, 1)) / M, requires_grad=True)
    adam, losses = td.optim.Adam([w, u, out], lr=3e-3), []
    for _ in range(steps):
        number = rng.uniform(-1, 1, size=(32, 1))
        X = 0.1 * rng.normal(size=(T, 32, 2))
        X[:, :, :1] = 0
        X[0, :, :1] = number
        h = td.ops.tanh(X[0] @ w)
        for x in X[1:]:
            h = td.ops.tanh(x @ w + h @ u)
        loss = td.ops.mse_loss(h @ out, number)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return losses


learned = {factor: learn(factor) for factor in (0.6, 1.0)}
for factor, losses in learned.items():
    print(f"U begins at {factor} x orthogonal: loss {losses[0]:.3f} to {np.mean(losses[-10:]):.4f}")
assert np.mean(learned[1.0][-10:]) < 0.1 < np.mean(learned[0.6][-10:])

figure, axes = panels(2, 3, 4.6, 4)
axes[1, 0].remove()
axes[0, 0].set_subplotspec(axes[0, 0].get_gridspec()[:, 0])
graph(axes[0, 0], trace, "three steps by td.trace")
image(axes[0, 1], L_Ws.reshape(3, -1), "each step's share of L_W\n(rows: t)", text=".2f")
shares = np.concatenate([np.zeros((1, 9)), L_Us[1:].reshape(2, -1)])
image(axes[0, 2], shares, "and of L_U\n(none at step 1: h_0 is 0)", text=".2f")
for factor, norms in reach.items():
    axes[1, 1].semilogy(np.arange(len(norms)), norms, label=f"U = {factor} x orthogonal")
axes[1, 1].set(title="what arrives of a gradient at the end", xlabel="step")
for factor, losses in learned.items():
    axes[1, 2].semilogy(losses, label=f"U begins at {factor} x orthogonal")
axes[1, 2].set(title=f"remembering a number for {T} steps: loss", xlabel="training step")
for axis in axes[1, 1:]:
    axis.legend(fontsize=8)
save(figure, args)
