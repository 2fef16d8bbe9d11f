# %% [markdown]
# # 10. Level sets, eigenvectors and gradients of a quadratic, and of the Gaussian that is its exponential
#
# q(x) = x^T A x + x^T b + c with symmetric A has gradient 2 A x + b and one critical point x* = -A^-1 b / 2 where A is
# invertible. The eigenvalues of A tell what it is: all positive, a minimum; all negative, a maximum; both, a saddle.
# Where |grad q| equals s, x lies on an ellipse around x* with semi-axes s / (2 |lambda_i|) along the eigenvectors v_i.
#
# g = exp(q) has the same critical point, and its level sets are those of q: a Gaussian is the case of all negative
# eigenvalues, A = -C^-1 / 2, where C is the covariance. But where |grad g| is constant is no ellipse.

# %%
import numpy as np
from picture import options, panels, save

import tinydiff as td
from tinydiff import ops

args = options("10_quadratics_and_gaussians")
rotation = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
grid = np.stack(np.meshgrid(*[np.linspace(-3, 3, 121)] * 2), -1)
points = grid.reshape(-1, 2)


def with_eigenvalues(*values):
    return rotation @ np.diag(values) @ rotation.T


def evaluate(f, x):
    """f at the rows of x, and its gradient there by the tape."""
    X = td.Tensor(x, requires_grad=True)
    y = f(X)
    y.sum().backward()
    return y.data, X.grad


def quadratic(A, b):
    return lambda X: ops.sum(X * (X @ A), axis=1) + X @ b


# %% [markdown]
# Three quadratics: their gradient by the tape is 2 A x + b, and its length is constant on the ellipse.

# %%
critical = np.array([0.4, -0.3])
cases = [("minimum", with_eigenvalues(0.3, 1.0)), ("saddle", with_eigenvalues(0.4, -0.8))]
cases.append(("maximum", with_eigenvalues(-0.125, -0.5)))

figure, axes = panels(1, 4)
for axis, (name, A) in zip(axes[0], cases, strict=False):
    b = -2 * A @ critical  # puts x* = -A^-1 b / 2 where it can be seen
    q = quadratic(A, b)
    values, V = np.linalg.eigh(A)
    y, gradient = evaluate(q, points)
    assert np.allclose(gradient, 2 * points @ A + b)
    s = 2 * np.abs(values).min()  # a long semi-axis of 1
    turn = np.linspace(0, 2 * np.pi, 200)
    ellipse = critical + (np.stack([np.cos(turn), np.sin(turn)], 1) * s / (2 * np.abs(values))) @ V.T
    on_it = np.linalg.norm(evaluate(q, ellipse)[1], axis=1)
    assert np.allclose(on_it, s)
    print(f"{name:8} eigenvalues {values.round(3)}, |grad q| on the ellipse {on_it.min():.12f} to {on_it.max():.12f}")

    axis.contour(*np.moveaxis(grid, -1, 0), y.reshape(121, 121), levels=16, cmap="viridis", linewidths=0.8)
    some = (slice(None, None, 12),) * 2
    arrows = gradient.reshape(grid.shape)[some].reshape(-1, 2)
    axis.quiver(*grid[some].reshape(-1, 2).T, *arrows.T, color="grey", width=0.004)
    axis.plot(*ellipse.T, "r", linewidth=2, label=f"|grad q| = {s:g}")
    for value, v in zip(values, V.T, strict=True):
        axis.annotate("", critical + v * s / (2 * abs(value)), critical, arrowprops={"arrowstyle": "->", "lw": 2})
    axis.plot(*critical, "ko", markersize=4)
    axis.set(
        title=f"q: {name},\neigenvalues {values[0]:.3g} and {values[1]:.3g}", aspect="equal", xlim=(-3, 3), ylim=(-3, 3)
    )
    axis.legend(loc="lower left")

# %% [markdown]
# The Gaussian of the last case: covariance -A^-1 / 2, mean x*, and the constant that makes it a density.

# %%
C = -np.linalg.inv(A) / 2
C = (C + C.T) / 2
log_density = td.diffusion.gaussian.log_prob(points, critical, C)
constant = log_density[0] - y[0]
assert np.allclose(log_density, y + constant)
density, gradient = evaluate(lambda X: ops.exp(quadratic(A, b)(X) + constant), points)
print(f"Gaussian: variances {np.linalg.eigvalsh(C).round(3)}, which are -1 / (2 lambda)")

axis = axes[0, 3]
norm = np.linalg.norm(gradient, axis=1).reshape(121, 121)
axis.contourf(*np.moveaxis(grid, -1, 0), density.reshape(121, 121), levels=16, cmap="Blues")
lines = axis.contour(*np.moveaxis(grid, -1, 0), norm, levels=6, colors="red", linewidths=0.9)
variances, V = np.linalg.eigh(C)
for value, v in zip(variances, V.T, strict=True):
    axis.annotate("", critical + v * np.sqrt(value), critical, arrowprops={"arrowstyle": "->", "lw": 2})
axis.set(title="g = exp(q), the last q: level sets (blue)\nand |grad g| (red), no ellipses", aspect="equal")
save(figure, args)
