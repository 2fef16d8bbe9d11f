# %% [markdown]
# # 6. Attention
#
# A query asks all keys, and takes the mean of the values that belong to them, weighted by how well they answer:
#
#     S = Q K^T / sqrt(D)       scores, (L, M)
#     P = softmax(S)            along each row
#     Y = P V
#
# Backwards these are a matrix product, a softmax, and a matrix product, from [2](02_fully_connected.py) and
# [5](05_softmax_and_cross_entropy.py):
#
#     L_V = P^T L_Y             L_P = L_Y V^T
#     L_S = P * (L_P - row sums of P * L_P)
#     L_Q = L_S K / sqrt(D)     L_K = L_S^T Q / sqrt(D)

# %%
import numpy as np
from picture import image, options, panels, save

import tinydiff as td

args = options("06_attention", steps=400)
rng = np.random.default_rng(0)


def forward(Q, K, V):
    S = Q @ K.T / np.sqrt(Q.shape[1])
    E = np.exp(S - S.max(1, keepdims=True))
    P = E / E.sum(1, keepdims=True)
    return P @ V, P


def backward(L_Y, Q, K, V):
    scale, P = 1 / np.sqrt(Q.shape[1]), forward(Q, K, V)[1]
    L_V = P.T @ L_Y
    L_P = L_Y @ V.T
    L_S = P * (L_P - (P * L_P).sum(1, keepdims=True))
    return L_S @ K * scale, L_S.T @ Q * scale, L_V


Q, K, V = rng.normal(size=(4, 3)), rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
print(td.gradcheck(lambda *QKV: forward(*QKV)[0], [Q, K, V], backward=backward))

L_Y = rng.normal(size=(4, 2))
tensors = [td.Tensor(A, requires_grad=True) for A in (Q, K, V)]
td.ops.attention(*tensors).backward(L_Y)
assert all(np.allclose(a, t.grad) for a, t in zip(backward(L_Y, Q, K, V), tensors, strict=True))

# %% [markdown]
# With a mask, some scores become -infinity and their weights 0. A causal mask lets position i see positions up to i. So no
# gradient of an early output reaches a later value.

# %%
causal = np.tril(np.ones((5, 5), bool))
q, k, v = (td.Tensor(rng.normal(size=(5, 3)), requires_grad=True) for _ in range(3))
Y = td.ops.attention(q, k, v, mask=causal)
Y[1].sum().backward()
print("\nnorm of L_v at each position, for a loss of output 1:", np.linalg.norm(v.grad, axis=1).round(2))
assert not v.grad[2:].any() and not k.grad[2:].any() and v.grad[:2].all()

# %% [markdown]
# Can attention learn to look something up? Each example has six pairs of a key and a value, and asks for the value of one of the
# keys. Keys lie among noise, in a space in which only a part matters: two matrices must learn where to look. Adam is
# gradient descent with a step length of its own for each weight.

# %%
M, D = 6, 8
weights = [td.Tensor(0.3 * rng.normal(size=(2 * D, D)), requires_grad=True) for _ in range(2)]
adam = td.optim.Adam(weights, lr=0.04)


def examples(n):
    """Queries (n, 1, 2 D), keys (n, M, 2 D), values (n, M, 1), and which one is asked for."""
    keys, which = rng.normal(size=(n, M, 2 * D)), rng.integers(0, M, n)
    queries = rng.normal(size=(n, 1, 2 * D))
    queries[:, 0, :D] = keys[np.arange(n), which, :D]  # the other D numbers are noise
    return queries, keys, rng.normal(size=(n, M, 1)), which


losses = []
for step in range(args.steps):
    adam.lr = 0.04 * (1 - step / args.steps)
    queries, keys, values, which = examples(64)
    Y = td.ops.attention(queries @ weights[0], keys @ weights[1], values)
    loss = td.ops.mse_loss(Y[:, 0], values[np.arange(64), which])
    if step == 0:
        before = forward((queries @ weights[0].data)[0], (keys @ weights[1].data)[0], values[0])[1]
    adam.zero_grad()
    loss.backward()
    adam.step()
    losses.append(loss.item())
queries, keys, values, which = examples(8)
after = [
    forward(q @ weights[0].data, k @ weights[1].data, v)[1][0] for q, k, v in zip(queries, keys, values, strict=True)
]
right = np.array(after)[np.arange(8), which]
print(
    f"\nloss {losses[0]:.3f} to {np.mean(losses[-20:]):.3f}; weight of the key asked for, 8 new examples: {right.round(2)}"
)
assert args.steps < 400 or right.mean() > 0.8

figure, axes = panels(1, 4, 3.7, 3.5)
_, P = forward(Q, K, V)
L_P = L_Y @ V.T
image(axes[0, 0], P, "P = softmax(Q K^T / sqrt(D))", text=".2f", cmap="Blues")
image(axes[0, 1], P * (L_P - (P * L_P).sum(1, keepdims=True)), "L_S: its rows add up to 0", text=".2f")
asked = np.array(after)
image(axes[0, 2], asked, "weights after training, 8 examples\n(red: the key that was asked for)", cmap="Blues", limit=1)
for row, key in enumerate(which):
    axes[0, 2].plot(key, row, "rs", markersize=16, fillstyle="none")
axes[0, 3].semilogy(losses)
axes[0, 3].set(title="looking up a value: loss", xlabel="step")
save(figure, args)
