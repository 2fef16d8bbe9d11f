# %% [markdown]
# # 5. Softmax and cross-entropy
#
# A network gives a score x_k for each class. Softmax makes probabilities of them, and the loss is the surprise at the right
# class y:
#
#     p_k = exp(x_k) / sum_j exp(x_j)           loss = -log p_y
#
# Softmax alone has the Jacobian, the matrix of all derivatives, dp_k/dx_j = p_k (1[k = j] - p_j), where 1[k = j] is 1 if k = j
# and 0 if not. So for any L_p
#
#     L_x = p * (L_p - sum_k p_k L_p_k)
#
# With the loss, L_p is -1/p_y at y and 0 elsewhere, and nearly everything cancels: L_x = p - 1[y], where 1[y] is the
# vector with 1 at y and 0 elsewhere.

# %%
import numpy as np
from picture import image, options, panels, save

import tinydiff as td

args = options("05_softmax_and_cross_entropy", steps=300)
rng = np.random.default_rng(0)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))  # the same probabilities, and nothing above exp(0)
    return e / e.sum(-1, keepdims=True)


def softmax_backward(L_p, x):
    p = softmax(x)
    return p * (L_p - (p * L_p).sum(-1, keepdims=True))


x, y = np.array([1.0, 2.5, -0.5, 0.3]), 0
p = softmax(x)
J = np.diag(p) - np.outer(p, p)
assert np.allclose(J, td.numerical_jacobian(softmax, x), atol=1e-8)
td.gradcheck(softmax, [rng.normal(size=(3, 5))], backward=softmax_backward)

# %% [markdown]
# Rows and columns of J add up to 0: a constant added to all scores changes nothing, and probabilities keep the sum 1. This is
# why `softmax(x).sum().backward()` is no test at all: the right gradient is 0 there.

# %%
assert np.allclose(J.sum(0), 0) and np.allclose(J.sum(1), 0)
L_p = np.zeros(4)
L_p[y] = -1 / p[y]
assert np.allclose(softmax_backward(L_p, x), p - np.eye(4)[y])
scores = td.Tensor(x[None], requires_grad=True)
td.ops.cross_entropy(scores, [y]).backward()
assert np.allclose(scores.grad[0], p - np.eye(4)[y])
print("p      ", p.round(3), "\nL_x    ", (p - np.eye(4)[y]).round(3))

# %% [markdown]
# The two steps must not be computed one after the other. If the scores are far apart, p_y is 0 in floating point, its logarithm
# is infinite, and so is the gradient. log p_y = x_y - log(sum exp x) has neither problem.

# %%
far = np.array([0.0, 800.0])
with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
    naive = np.exp(far) / np.exp(far).sum()
    print("\nscores 0 and 800: naive softmax", naive, " log of a careful one", np.log(softmax(far)))
print("log_softmax", td.ops.log_softmax(far).data)
assert np.isnan(naive[1]) and np.array_equal(td.ops.log_softmax(far).data, [-800, 0])

# %% [markdown]
# Three kinds of points, and scores X W + b. L_scores = (P - Y) / N says to each point: pull the right score up by what is
# missing to 1, push each other score down by its probability. At the end the pushes of all points cancel.

# %%
N = 150
labels = np.arange(N) % 3
centres = np.array([[0, 1.4], [-1.3, -0.8], [1.3, -0.8]])
X = centres[labels] + rng.normal(scale=0.75, size=(N, 2))
W, b, losses = np.zeros((2, 3)), np.zeros(3), []
for _ in range(args.steps):
    P = softmax(X @ W + b)
    L_scores = (P - np.eye(3)[labels]) / N
    losses.append(-np.log(P[np.arange(N), labels]).mean())
    W, b = W - 1.0 * X.T @ L_scores, b - 1.0 * L_scores.sum(0)
print(f"\nloss {losses[0]:.4f} (log 3) to {losses[-1]:.4f}; {np.mean(P.argmax(1) == labels):.0%} of the points right")
assert np.isclose(losses[0], np.log(3)) and losses[-1] < 0.5

figure, axes = panels(1, 4, 3.7, 3.5)
axes[0, 0].bar(np.arange(4) - 0.2, p, 0.4, label="p")
axes[0, 0].bar(np.arange(4) + 0.2, p - np.eye(4)[y], 0.4, label="L_x = p - 1[y]")
axes[0, 0].set(title="four classes, class 0 is right", xticks=range(4))
axes[0, 0].axhline(0, color="black", linewidth=0.6)
axes[0, 0].legend()
image(axes[0, 1], J, "the Jacobian dp_k / dx_j", text=".2f")
grid = np.stack(np.meshgrid(*[np.linspace(-3.4, 3.4, 160)] * 2), -1)
colours = np.array([[0.85, 0.35, 0.3], [0.3, 0.6, 0.35], [0.3, 0.45, 0.8]])
axes[0, 2].imshow(softmax(grid @ W + b) @ colours, extent=(-3.4, 3.4, -3.4, 3.4), origin="lower", alpha=0.6)
axes[0, 2].scatter(*X.T, c=colours[labels], edgecolor="black", linewidth=0.5, s=16)
axes[0, 2].set(title="probabilities, trained")
axes[0, 3].plot(losses)
axes[0, 3].set(title="cross-entropy", xlabel="step")
save(figure, args)
