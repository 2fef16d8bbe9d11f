# %% [markdown]
# # 9. A gradient through a random draw
#
# The loss is a mean over draws, J = E[f(z)] with z ~ N(m, s²), and its gradient with respect to m and s is wanted. A draw is
# no function of m and s that could be differentiated. Written as
#
#     z = m + s e,   e ~ N(0, 1)
#
# it is one: e is a constant, and for each draw L_m = f'(z), L_s = f'(z) e (Kingma and Welling, 2014). There is another way,
# which needs no f': the slope of the density instead of that of f. It is called the score-function estimator, or REINFORCE:
#
#     dJ/dm = E[f(z) d/dm log N(z; m, s²)] = E[f(z) e / s]
#
# Both have the right mean. Their spread differs.

# %%
import numpy as np
from picture import options, panels, save

import tinydiff as td

args = options("09_reparameterisation")
rng = np.random.default_rng(0)
m, s, n = 0.5, 0.8, 20_000


def f(z):
    return (z - 2) ** 2 + td.ops.sin(3 * z)


# %% [markdown]
# E[(z - 2)²] = (m - 2)² + s², and E[sin 3z] = sin(3m) exp(-9 s²/2). So the gradient is known.

# %%
decay = np.exp(-4.5 * s**2)
exact = {"L_m": 2 * (m - 2) + 3 * np.cos(3 * m) * decay, "L_s": 2 * s - 9 * s * np.sin(3 * m) * decay}

e = rng.normal(size=n)
M, S = (td.Tensor(np.full(n, v), requires_grad=True) for v in (m, s))  # one m and s for each draw: n gradients
f(M + S * e).sum().backward()
through = {"L_m": M.grad, "L_s": S.grad}
values = f(td.Tensor(m + s * e)).data
score = {"L_m": values * e / s, "L_s": values * (e**2 - 1) / s}

print("        exact     through the draw           score function           variances")
for name, right in exact.items():
    a, b = through[name], score[name]
    errors = [g.std() / np.sqrt(n) for g in (a, b)]
    print(
        f"{name}   {right:8.4f}   {a.mean():8.4f} +- {errors[0]:.4f}        {b.mean():8.4f} +- {errors[1]:.4f}", end=""
    )
    print(f"        {a.var():.1f} and {b.var():.1f}")
    assert all(abs(g.mean() - right) < 5 * error for g, error in zip((a, b), errors, strict=True))
    assert b.var() > 3 * a.var()

# %% [markdown]
# A variational autoencoder is trained through such draws: a network says m and s. The noisy image of a diffusion model has the
# same form, x_t = sqrt(a) x_0 + sqrt(1 - a) e, but no weight of the network enters a or e. So its loss `mse(model(x_t), e)` is an
# ordinary function of the weights once e is drawn.
#
# Here a Gaussian N(m, s²) is fitted to a density p(z) that is known up to its constant, by minimising
# KL = E[log N(z; m, s²) - log p(z)], the Kullback-Leibler divergence, with eight draws a step. p is N(1.5, 0.4²): m and s must
# arrive there. On the way the score function makes the wilder steps. At the end both spread alike: there the bracket is
# nearly the same number in each draw, and the score function is at its best.

# %%
target_mean, target_s, steps = 1.5, 0.4, 400


def fit(way):
    rng = np.random.default_rng(3)
    theta = np.array([-0.5, 0.0])  # m, log s
    path = [theta.copy()]
    for _ in range(steps):
        e = rng.normal(size=8)
        T = td.Tensor(theta, requires_grad=True)
        m, s = T[0], td.ops.exp(T[1])
        if way == "through":
            z = m + s * e
            kl = -T[1] + ((z - target_mean) ** 2).mean() / (2 * target_s**2)  # E[log N] is -log s and a constant
        else:
            z = theta[0] + np.exp(theta[1]) * e  # numbers: no gradient through them
            log_q = -T[1] - (z - m) ** 2 / (2 * s**2)
            cost = -theta[1] - e**2 / 2 + (z - target_mean) ** 2 / (2 * target_s**2)
            kl = (log_q * cost).mean()
        kl.backward()
        theta = theta - 0.02 * T.grad
        path.append(theta.copy())
    return np.array(path)


paths = {way: fit(way) for way in ("through", "score")}
for way, path in paths.items():
    end = path[-100:]
    print(f"\n{way:8} m {end[:, 0].mean():.3f} +- {end[:, 0].std():.3f}, s {np.exp(end[:, 1]).mean():.3f}"
          f" +- {np.exp(end[:, 1]).std():.3f}; wanted {target_mean} and {target_s}")  # fmt: skip
end = paths["through"][-100:].mean(0)
assert abs(end[0] - target_mean) < 0.05 and abs(np.exp(end[1]) - target_s) < 0.05

figure, axes = panels(1, 3, 4.6, 3.8)
for axis, (name, right) in zip(axes[0], exact.items(), strict=False):
    limits = np.percentile(score[name], [1, 99])
    bins = np.linspace(*limits, 80)
    axis.hist(score[name], bins, alpha=0.6, label="score function", density=True)
    axis.hist(through[name], bins, alpha=0.6, label="through the draw", density=True)
    axis.axvline(right, color="black", linewidth=1, label="exact mean")
    axis.set(title=f"{name} of single draws", yticks=[])
    axis.legend(fontsize=8)
for way, path in paths.items():
    axes[0, 2].plot(
        path[:, 0], np.exp(path[:, 1]), label={"through": "through the draw", "score": "score function"}[way]
    )
axes[0, 2].plot(target_mean, target_s, "k*", markersize=12)
axes[0, 2].set(title="fitting a Gaussian, 8 draws a step", xlabel="m", ylabel="s")
axes[0, 2].legend()
save(figure, args)
