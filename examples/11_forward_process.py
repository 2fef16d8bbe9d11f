# %% [markdown]
# # 11. The forward process: how a spiral becomes noise, in steps and in one go
#
# One step is x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps. Any number of steps is one Gaussian,
# x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, with alpha_bar_t the product of all 1 - beta up to t.

# %%
import numpy as np
from picture import options, panels, save

import tinydiff as td

args = options("11_forward_process")
rng = np.random.default_rng(0)
schedule = td.diffusion.Schedule.linear(100, 1e-3, 0.2)
diffusion = td.diffusion.Diffusion(schedule)

n = 3000
angle = np.sqrt(rng.uniform(0.02, 1, n)) * 3 * np.pi
x0 = (np.stack([np.cos(angle), np.sin(angle)]) * angle / 5.5).T + rng.normal(scale=0.03, size=(n, 2))

# %%
shown = [0, 5, 15, 30, 60, 100]
chain, x = {0: x0}, x0
for t in range(1, schedule.T + 1):
    x = diffusion.q_step(x, t, rng.normal(size=x.shape))
    chain[t] = x
closed = {t: diffusion.q_sample(x0, t, rng.normal(size=x0.shape)) for t in shown}

print("  t  alpha_bar   distance of the covariance of x_t from I          noise in x_t - sqrt(alpha_bar) x_0")
print("                 chain     closed form   alpha_bar |cov x_0 - I|   chain    closed    1 - alpha_bar")
start = np.linalg.norm(np.cov(x0.T) - np.eye(2))
for t in shown:
    ab = schedule.alpha_bar[t]
    distance = [np.linalg.norm(np.cov(z.T) - np.eye(2)) for z in (chain[t], closed[t])]
    noise = [np.mean((z - np.sqrt(ab) * x0) ** 2) for z in (chain[t], closed[t])]
    print(f"{t:3}   {ab:.5f}    {distance[0]:.4f}    {distance[1]:.4f}        {ab * start:.4f}", end="")
    print(f"                    {noise[0]:.4f}   {noise[1]:.4f}    {1 - ab:.4f}")
    assert all(abs(v - (1 - ab)) < 5 * np.sqrt(2 / (2 * n)) * (1 - ab) + 1e-12 for v in noise)  # 5 standard errors

# %%
figure, axes = panels(3, 6, 2.6, 2.6)
for row, (name, samples) in enumerate([("step by step", chain), ("in one go", closed)]):
    for axis, t in zip(axes[row], shown, strict=True):
        axis.scatter(*samples[t].T, s=1, c=angle, cmap="viridis")
        axis.set(title=f"t = {t}, {name}" if t else "data", aspect="equal", xlim=(-3.3, 3.3), ylim=(-3.3, 3.3))
        axis.set_xticks([])
        axis.set_yticks([])

# Below, over the whole width: what is left of the image, and where the noise in x_T came from.
for axis in axes[2]:
    axis.remove()
left, right = (figure.add_subplot(axes[2, 0].get_gridspec()[2, span]) for span in (slice(0, 3), slice(3, 6)))
t = np.arange(schedule.T + 1)
left.plot(t, schedule.alpha_bar, label="alpha_bar: share of the data's variance")
left.plot(t, schedule.one_minus_alpha_bar, label="1 - alpha_bar: variance of the noise")
left.set(xlabel="t")
left.legend()
for end in (25, 50, 100):
    right.plot(np.arange(1, end + 1), schedule.noise_weights(end) ** 2, label=f"in x_{end}")
right.set(xlabel="step that added it", title="squared weight of each step's noise")
right.legend()
save(figure, args)
