# %% [markdown]
# # 12. The posterior q(x_{t-1} | x_t, x_0), and why a Gaussian can be a good reverse step
#
# Given x_0 the step back is Gaussian: the product of q(x_t | x_{t-1}), read as a function of x_{t-1}, and of
# q(x_{t-1} | x_0). Without x_0 it is a mixture over all x_0 that may have led to x_t. For small beta_t that is nearly a
# Gaussian, which is what p_theta(x_{t-1} | x_t) assumes; for large beta_t it is not.

# %%
import numpy as np
from picture import options, panels, save

import tinydiff as td
from tinydiff.diffusion import Diffusion, Schedule, gaussian

args = options("12_posterior_and_reverse_step")
schedule = Schedule.linear(100, 1e-3, 0.2)
diffusion = Diffusion(schedule, variance="posterior", clip_x0=False)
line = np.linspace(-3, 3, 1201)


def density(x, mean, variance):
    return np.exp(gaussian.log_prob(np.reshape(x, (-1, 1)), np.reshape(mean, (-1, 1)), variance=variance))


# %% [markdown]
# Three ways to the posterior at one x_0, x_t.

# %%
t, x0, xt = 12, 0.9, 0.1
a, ab, before, beta = schedule.alpha[t], schedule.alpha_bar[t], schedule.alpha_bar[t - 1], schedule.beta[t]
step = gaussian.change_of_variable([xt], [[np.sqrt(a)]], variance=beta)  # as a function of x_{t-1}
product = gaussian.product(*step, [np.sqrt(before) * x0], [[1 - before]])
closed = diffusion.q_posterior(np.array([[x0]]), np.array([[xt]]), t)
eps = (xt - np.sqrt(ab) * x0) / np.sqrt(1 - ab)
from_eps = diffusion.q_posterior_from_eps(np.array([[eps]]), np.array([[xt]]), t)
for name, (mean, variance) in [("product", product), ("closed form", closed), ("from eps", from_eps)]:
    print(f"{name:12} mean {np.squeeze(mean):.12f}  variance {np.squeeze(variance):.12f}")
assert np.allclose(np.squeeze(product[0]), closed[0]) and np.allclose(closed[0], from_eps[0])

# %% [markdown]
# Data at -1 and 1. The reverse step from x_t = 0.3 is a mixture of two posteriors, weighted by p(x_0 | x_t).

# %%
data = np.array([-1.0, 1.0])


def weights(x, s, t):
    """p(x_0 | x_t = x), (N, 2)."""
    p = np.stack([density(x, np.sqrt(s.alpha_bar[t]) * d, s.one_minus_alpha_bar[t]) for d in data], 1)
    return p / p.sum(1, keepdims=True)


def reverse(s, t, x):
    """The reverse step's density on the line, and the Gaussian of the same mean and variance."""
    share = weights([x], s, t)[0]
    on_x0, on_xt = Diffusion(s).posterior_weights(t)
    means, variance = on_x0 * data + on_xt * x, s.posterior_variance[t]
    mixture = sum(w * density(line, m, variance) for w, m in zip(share, means, strict=True))
    mean = share @ means
    return mixture, density(line, mean, variance + share @ (means - mean) ** 2)


# %% [markdown]
# With the exact model the whole way back.


# %%
def exact(x, t, labels=None):
    s, x0 = schedule, np.empty_like(x)
    for i, step in enumerate(t):
        x0[i] = weights(x[i], s, int(step)) @ data
    ab = schedule.alpha_bar[t][:, None]
    return (x - np.sqrt(ab) * x0) / np.sqrt(1 - ab)


generator = td.random.Generator(0)
steps = list(td.diffusion.sample_steps(exact, diffusion, (40, 1), generator))
paths = np.stack([s.x[:, 0] for s in steps], 1)
ends = np.abs(paths[:, -1])
print(f"40 chains back from noise end at distance {np.abs(ends - 1).max():.1e} from the data at most, "
      f"{np.mean(paths[:, -1] > 0):.0%} of them at 1")  # fmt: skip

# %%
figure, axes = panels(1, 4)
one, two, three, four = axes[0]
one.plot(line, density(line, step[0], step[1][0, 0]), label="q(x_t | x_{t-1}) in x_{t-1}")
one.plot(line, density(line, np.sqrt(before) * x0, 1 - before), label="q(x_{t-1} | x_0)")
one.plot(line, density(line, *map(np.squeeze, closed)), "k", label="their product: the posterior")
one.set(title=f"t = {t}: the posterior", xlabel="x_{t-1}", xlim=(-1, 2), ylim=(0, 4))
one.legend(fontsize=8, loc="upper left")
few = schedule.respaced([5, 40, 100])  # the same x_40, but the step back goes to x_5 at once
for axis, s, t, title in [(two, schedule, 40, "from x_40 to x_39"), (three, few, 2, "from x_40 to x_5 at once")]:
    mixture, normal = reverse(s, t, 0.3)
    distance = np.abs(mixture - normal).sum() * (line[1] - line[0]) / 2
    print(f"{title}: beta {s.beta[t]:.3f}, total variation between the true step and a Gaussian {distance:.4f}")
    axis.plot(line, mixture, label="true reverse step")
    axis.plot(line, normal, "r--", label="Gaussian of the same moments")
    axis.set(title=f"{title}, beta = {s.beta[t]:.2f}", xlabel="x_{t-1}", ylim=(0, 1.35 * mixture.max()))
    axis.legend(fontsize=8)
four.plot(np.arange(99, -1, -1), paths.T, linewidth=0.6)
four.set(title="back from noise with the exact model", xlabel="t", xlim=(99, 0))
save(figure, args)
