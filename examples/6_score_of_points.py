"""A small network learns the score of points in the plane, where the exact score is known.

    python examples/6_score_of_points.py                  half a minute; --steps 500 for a first look

The data are eight blobs of points on a circle. Then x_t is a mixture of eight Gaussians, and its score, the gradient
of log q(x_t), is the average pull of the blobs, weighted by how likely each is. The best prediction of the noise is
E[eps | x_t] = -sqrt(1 - alpha_bar_t) score, so a network trained on L_simple learns the score.
"""

import numpy as np
from picture import arguments, panels, save

import tinydiff as td
from tinydiff import nn, ops

args = arguments(__doc__, steps=8000)
turn = 2 * np.pi * np.arange(8) / 8
centres, blob = np.stack([np.cos(turn), np.sin(turn)], 1) * 0.75, 0.06  # of a blob, its standard deviation
schedule = td.diffusion.Schedule.linear(100, 2e-3, 0.2)
diffusion = td.diffusion.Diffusion(schedule, variance="posterior")


def exact_eps(x, t):
    """E[eps | x_t] for x (N, 2) and t (N,), by weighing the blobs."""
    ab = schedule.alpha_bar[np.asarray(t)][:, None]
    away = x[:, None] - np.sqrt(ab)[..., None] * centres  # (N, 8, 2)
    variance = ab * blob**2 + 1 - ab  # of a blob at t
    weights = ops.softmax(-(away**2).sum(-1) / (2 * variance), axis=1).data
    return (weights[..., None] * away).sum(1) * np.sqrt(1 - ab) / variance


def draw(n):
    return (centres[rng.integers(0, 8, n)] + blob * rng.normal(size=(n, 2))).astype(np.float32)


class Network(nn.Module):
    """Sines and cosines of the place and of t, so that fine detail is easy to learn -> the noise (N, 2)."""

    def __init__(self, width=96):
        self.first = nn.Linear(26, width)
        self.second = nn.Linear(width, width)
        self.third = nn.Linear(width, width)
        self.last = nn.Linear(width, 2)

    def forward(self, x, t, labels=None):
        time = np.asarray(t)[:, None] / schedule.T * np.pi * 2.0 ** np.arange(-1, 5)
        place = np.concatenate([np.pi * k * x for k in (0.5, 1, 2)], 1)
        features = [x, *(f(angle) for f in (np.sin, np.cos) for angle in (time, place))]
        h = ops.silu(self.first(np.concatenate(features, 1).astype(np.float32)))
        h = h + ops.silu(self.second(h))
        h = h + ops.silu(self.third(h))
        return self.last(h)


network = Network()
optimiser = td.optim.Adam(network.parameters(), lr=3e-3)
ema = td.optim.EMA(network.parameters(), decay=0.995)
rng, losses = np.random.default_rng(0), []
for step in range(args.steps):
    optimiser.lr = 3e-3 * (1 - step / args.steps)
    x0 = draw(256)
    loss = diffusion.loss(network, x0, td.random.Generator(0, step=step))
    network.zero_grad()
    loss.backward()
    optimiser.step()
    ema.update()
    losses.append(loss.item())

# How far from the exact model? The loss of the exact model is what no network can go below.
x0 = draw(4000)
shown = [5, 20, 50]
with ema.applied():
    best, ours = (diffusion.loss(m, x0, td.random.Generator(1)).item() for m in (exact_eps, network))
    print(f"L_simple after {args.steps} steps: {ours:.4f}; of the exact model: {best:.4f}")
    for t in shown:
        xt = diffusion.q_sample(x0, t, td.random.Generator(2).normal(x0.shape))
        t_each = np.full(len(x0), t)
        exact, learned = exact_eps(xt, t_each), network(xt, t_each).data
        error = np.mean((exact - learned) ** 2) / np.mean(exact**2)
        print(f"t = {t:2}: the learned score misses {100 * error:.2f}% of the exact one's mean square")
    sampled = td.diffusion.sample(network, diffusion, (1000, 2), td.random.Generator(3), progress=False)
    grid = np.stack(np.meshgrid(*[np.linspace(-1.2, 1.2, 13)] * 2), -1).reshape(-1, 2).astype(np.float32)
    fields = {}
    for t in shown:
        t_each, scale = np.full(len(grid), t), -1 / np.sqrt(schedule.one_minus_alpha_bar[t])
        fields[t] = scale * exact_eps(grid, t_each), scale * network(grid, t_each).data
for name, z in (("samples", sampled), ("data", draw(1000))):
    nearest = np.linalg.norm(z[:, None] - centres, axis=2).min(1)
    print(
        f"{name}: {np.median(nearest):.3f} from the nearest centre in the median, {np.mean(nearest < 0.18):.0%} below 0.18"
    )

figure, axes = panels(1, 5, 3.6)
for axis, t in zip(axes[0], shown, strict=False):
    for field, color, width, name in zip(
        fields[t], ("black", "red"), (0.012, 0.004), ("exact", "learned"), strict=True
    ):
        root = field / np.sqrt(
            np.linalg.norm(field, axis=1, keepdims=True) * np.linalg.norm(fields[t][0], axis=1).max()
        )
        axis.quiver(*grid.T, *root.T, color=color, width=width, scale=11, headwidth=3.5, label=name)
    axis.plot(*(np.sqrt(schedule.alpha_bar[t]) * centres).T, "o", color="tab:blue", markersize=4)
    axis.set(title=f"score at t = {t} (root of its length)", aspect="equal")
    axis.legend(loc="upper right", fontsize=7)
axes[0, 3].scatter(*sampled.T, s=3)
axes[0, 3].plot(*centres.T, "r+", markersize=10)
axes[0, 3].set(title="1000 samples, and the centres", aspect="equal", xlim=(-1.2, 1.2), ylim=(-1.2, 1.2))
axes[0, 4].plot(np.convolve(losses, np.ones(25) / 25, "valid"))
axes[0, 4].axhline(best, color="black", linestyle=":", label="exact model")
axes[0, 4].set(title="L_simple, mean of 25 steps", xlabel="step", yscale="log")
axes[0, 4].legend()
save(figure, args.out)
