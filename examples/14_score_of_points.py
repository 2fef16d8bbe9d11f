# %% [markdown]
# # 14. A small network learns the score of points in the plane, where the exact score is known
#
# The data are eight blobs of points on a circle. Then x_t is a mixture of eight Gaussians, and its score, the gradient
# of log q(x_t), is the average pull of the blobs, weighted by how likely each is. The best prediction of the noise is
# E[eps | x_t] = -sqrt(1 - alpha_bar_t) score, so a network trained on L_simple learns the score.

# %%
import numpy as np
from picture import options, panels, save

import tinydiff as td
from tinydiff import nn, ops

args = options("14_score_of_points", steps=3000)
figure, axes = panels(1, 5, 3.6)
turn, blob = 2 * np.pi * np.arange(8) / 8, 0.06  # blob: its standard deviation
centres = np.stack([np.cos(turn), np.sin(turn)], 1) * 0.75
schedule = td.diffusion.Schedule.linear(100, 2e-3, 0.2)
diffusion = td.diffusion.Diffusion(schedule)


def exact_eps(x, t):
    """E[eps | x_t] for x (N, 2) and t (N,), by weighing the blobs."""
    ab = schedule.alpha_bar[t][:, None]
    away = x[:, None] - np.sqrt(ab)[..., None] * centres  # (N, 8, 2)
    variance = ab * blob**2 + 1 - ab  # of a blob at t
    weights = ops.softmax(-(away**2).sum(-1) / (2 * variance), axis=1)
    return (weights[..., None] * away).sum(axis=1) * np.sqrt(1 - ab) / variance


def draw(n):
    return (centres[rng.integers(0, 8, n)] + blob * rng.normal(size=(n, 2))).astype(np.float32)


class Network(nn.Module):
    """Sines and cosines of the place and of t, so that fine detail is easy to learn -> the noise (N, 2)."""

    def __init__(self, width=96):
        self.first, self.last = nn.Linear(26, width), nn.Linear(width, 2)
        self.second, self.third = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x, t, labels=None):
        time = t[:, None] / schedule.T * np.pi * 2.0 ** np.arange(-1, 5)
        place = np.concatenate([np.pi * k * x for k in (0.5, 1, 2)], 1)
        features = [x, *(f(angle) for f in (np.sin, np.cos) for angle in (time, place))]
        h = ops.silu(self.first(np.concatenate(features, 1).astype(np.float32)))
        h = h + ops.silu(self.second(h))
        return self.last(h + ops.silu(self.third(h)))


# %%
td.nn.manual_seed(0)
network = Network()
optimiser = td.optim.Adam(network.parameters(), lr=3e-3)
ema = td.optim.EMA(network.parameters(), decay=0.995)
rng, losses = np.random.default_rng(0), []
for step in range(args.steps):
    optimiser.lr = 3e-3 * (1 - step / args.steps)
    loss = diffusion.loss(network, draw(256), td.random.Generator(0, step=step))
    network.zero_grad()
    loss.backward()
    optimiser.step()
    ema.update()
    losses.append(loss.item())


def score(model, x, t):  # grad log q(x_t), (N, 2), which the predicted noise stands for
    return -model(x, np.full(len(x), t)).data / np.sqrt(schedule.one_minus_alpha_bar[t])


# %% [markdown]
# How far from the exact model, whose loss is the least that there is?

# %%
x0 = draw(4000)
grid = np.stack(np.meshgrid(*[np.linspace(-1.2, 1.2, 13)] * 2), -1).reshape(-1, 2).astype(np.float32)
with ema.applied():
    best, ours = (diffusion.loss(m, x0, td.random.Generator(1)).item() for m in (exact_eps, network))
    print(f"L_simple after {args.steps} steps: {ours:.4f}; of the exact model: {best:.4f}")
    for axis, t in zip(axes[0], (5, 20, 50), strict=False):
        xt = diffusion.q_sample(x0, t, td.random.Generator(2).normal(x0.shape))
        exact = score(exact_eps, xt, t)
        error = np.mean((exact - score(network, xt, t)) ** 2) / np.mean(exact**2)
        print(f"t = {t:2}: mean squared error of the learned score, {100 * error:.2f}% of the score's own mean square")
        scale = 12 * np.sqrt(np.linalg.norm(score(exact_eps, grid, t), axis=1).max())
        for model, color, width in ((exact_eps, "black", 0.012), (network, "red", 0.004)):
            field = score(model, grid, t)
            field /= np.sqrt(np.linalg.norm(field, axis=1, keepdims=True) + 1e-9)
            axis.quiver(*grid.T, *field.T, color=color, width=width, scale=scale, headwidth=3.5)
        axis.plot(*(np.sqrt(schedule.alpha_bar[t]) * centres).T, "o", color="tab:blue", markersize=4)
        axis.set(title=f"score at t = {t} (root of its length)\nblack: exact; red: learned", aspect="equal")
    sampled = td.diffusion.sample(network, diffusion, (1000, 2), td.random.Generator(3), progress=False)
for name, z in (("samples", sampled), ("data", draw(1000))):
    distance = np.linalg.norm(z[:, None] - centres, axis=2).min(1)
    print(
        f"{name}: {np.median(distance):.3f} from the nearest centre in the median, {np.mean(distance < 0.18):.0%} < 0.18"
    )
axes[0, 3].scatter(*sampled.T, s=3)
axes[0, 3].plot(*centres.T, "r+", markersize=10)
axes[0, 3].set(title="1000 samples, and the centres", aspect="equal", xlim=(-1.2, 1.2), ylim=(-1.2, 1.2))
axes[0, 4].plot(np.convolve(losses, np.ones(25) / 25, "valid"))
axes[0, 4].axhline(best, color="black", linestyle=":")
axes[0, 4].set(title="L_simple; dotted: exact model", xlabel="step", yscale="log")
save(figure, args)
