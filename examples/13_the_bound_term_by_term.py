# %% [markdown]
# # 13. The variational bound, term by term: how many bits an image costs, and where they go
#
#     -log p(x_0) <= E[ L_T + sum over t > 1 of L_{t-1} + L_0 ]
#
# L_T is what x_T still tells of the image, L_{t-1} the distance of the reverse step from the posterior, L_0 the cost of the
# exact bytes once x_1 is known. The data are bytes from a rounded Gaussian, whose entropy is known, and the model is exact:
# E[eps | x_t]. So every term has a closed form, and what the bound exceeds the entropy by is the price of Gaussian steps.

# %%
import math

import numpy as np
from picture import options, panels, save

import tinydiff as td

args = options("13_the_bound_term_by_term")
m, s = 0.05, 0.25  # mean and standard deviation of a pixel, in image values -1..1
schedule = td.diffusion.Schedule.linear(200, 1e-4, 0.09)
ab, beta, posterior = schedule.alpha_bar, schedule.beta, schedule.posterior_variance

# %% [markdown]
# The data: 16 images of 20 x 20 grey pixels, and their entropy in bits per pixel.

# %%
x0 = m + s * np.random.default_rng(0).normal(size=(16, 20, 20, 1))
x0 = np.clip(np.rint((x0 + 1) * 127.5), 0, 255) / 127.5 - 1
edges = (np.arange(1, 256) - 0.5) / 127.5 - 1
cdf = [0.0, *[0.5 * math.erfc((m - v) / s / math.sqrt(2)) for v in edges], 1.0]
p = np.diff(cdf)
entropy = -np.sum(p[p > 0] * np.log2(p[p > 0]))


def exact(x, t, labels=None):
    """E[eps | x_t] for independent Gaussian pixels."""
    a = ab[np.asarray(t)].reshape(-1, 1, 1, 1)
    return np.sqrt(1 - a) * (x - np.sqrt(a) * m) / (a * s**2 + 1 - a)


def closed_form(t, variance):
    """E L_{t-1} in bits per dimension, t >= 2: weight^2 Var[x_0 | x_t] / (2 sigma^2), and the KL of the variances."""
    sigma2 = beta[t] if variance == "beta" else posterior[t]
    unknown = s**2 * (1 - ab[t]) / (ab[t] * s**2 + 1 - ab[t])
    weight = np.sqrt(ab[t - 1]) * beta[t] / (1 - ab[t])
    r = posterior[t] / sigma2
    return (weight**2 * unknown / sigma2 + r - 1 - np.log(r)) / 2 / math.log(2)


# %%
t = np.arange(2, schedule.T + 1)
results = {}
print(f"entropy {entropy:.4f} bits per pixel")
print("\nvariance     L_T      sum L_{t-1}   closed form   L_0      total   above the entropy")
for variance in ("beta", "posterior"):
    diffusion = td.diffusion.Diffusion(schedule, variance=variance, clip_x0=False)
    bound = diffusion.vlb(exact, x0, td.random.Generator(0))
    results[variance] = bound
    steps, expected = bound.L_t[:, 1:].sum(1), closed_form(t, variance)
    se = bound.total.std(ddof=1) / math.sqrt(len(x0))
    print(f"{variance:10} {bound.L_T.mean():.6f}   {steps.mean():.4f}        {expected.sum():.4f}       "
          f"{bound.L_0.mean():.4f}   {bound.total.mean():.4f}  {bound.total.mean() - entropy:+.4f} +- {se:.4f}")  # fmt: skip
    assert abs(steps.mean() - expected.sum()) < 5 * steps.std(ddof=1) / math.sqrt(len(x0)) + 0.002
    assert bound.total.mean() + 5 * se > entropy

# %%
figure, axes = panels(1, 3, 4.6)
left, middle, right = axes[0]
for variance, color in (("beta", "tab:blue"), ("posterior", "tab:orange")):
    bound = results[variance]
    left.loglog(t, bound.L_t[:, 1:].mean(0), ".", color=color, markersize=4, label=f"{variance}, measured")
    left.loglog(t, closed_form(t, variance), color=color, linewidth=1, label=f"{variance}, closed form")
    middle.plot(np.arange(1, schedule.T + 1), bound.L_t.mean(0).cumsum(), color=color, label=variance)
left.set(title="the KL of each step", xlabel="t", ylabel="bits per dimension")
middle.axhline(entropy, color="black", linestyle=":", label="entropy of the data")
middle.set(title="sum of the terms 1..t", xlabel="t", ylim=(0, None))
bottom = np.zeros(2)
for name, values in [("L_0", [b.L_0.mean() for b in results.values()]),
                     ("sum of L_{t-1}", [b.L_t[:, 1:].sum(1).mean() for b in results.values()]),
                     ("L_T (too small to be seen)", [b.L_T.mean() for b in results.values()])]:  # fmt: skip
    right.bar(list(results), values, bottom=bottom, label=name, width=0.5)
    bottom += values
right.axhline(entropy, color="black", linestyle=":", label="entropy of the data")
right.set(title="where the bits go, by variance", ylim=(0, 1.5 * bottom.max()))
for axis in axes[0]:
    axis.legend(fontsize=8)
save(figure, args)
