# %% [markdown]
# # 8. What a tape keeps in memory, and recompute
#
# Backward needs values of forward: L_W = X^T L_Y needs X, the slope of tanh needs its result. So every operation keeps arrays
# until its backward pass has run, and the memory of training grows with the depth of the network. `td.trace` shows it.
#
# The way out is to forget and to compute again. `td.recompute(f, x)` runs f without keeping anything but x. When backward comes
# to it, it runs f once more, this time on the tape, and goes on through it. Of n layers, cut into k blocks, the memory holds k
# inputs of blocks, and the inside of one block, which is c n / k arrays where a layer keeps c. The sum k + c n / k is least for
# k = sqrt(c n), and costs one more forward pass (Chen et al., 2016).

# %%
from itertools import pairwise

import numpy as np
from picture import options, panels, save

import tinydiff as td
from tinydiff import nn

args = options("08_memory_and_recompute")
DEPTH, WIDTH, BATCH = 36, 64, 256
X = np.random.default_rng(0).normal(size=(BATCH, WIDTH)).astype(np.float32)
td.nn.manual_seed(0)
layers = [nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)]


def some_layers(h, first, last):
    for layer in layers[first:last]:
        h = h + 0.3 * td.ops.silu(layer(h))
    return h


def train_step(blocks):
    """The gradients of the weights, and the trace. blocks: how many to recompute; 0: keep everything."""
    for layer in layers:
        layer.zero_grad()
    h = td.Tensor(X)
    ends = np.linspace(0, DEPTH, max(blocks, 1) + 1).astype(int).tolist()
    with td.trace(values=0) as trace:
        for first, last in pairwise(ends):
            if blocks:
                h = td.recompute(lambda h, first=first, last=last: some_layers(h, first, last), h)
            else:
                h = some_layers(h, first, last)
        (h * h).mean().backward()
    return [layer.weight.grad for layer in layers], trace


# %% [markdown]
# The gradients are the same, bit for bit. Memory is counted in arrays of one layer's result; a layer keeps three of them: what
# goes into the product, into silu, and into the multiplication.

# %%
ARRAY = BATCH * WIDTH * 4  # bytes
plain, trace = train_step(0)
live = {0: np.array([event.live for event in trace.events]) / ARRAY}
print("blocks     arrays kept at most   layers run forward")
for blocks in (0, 1, 2, 3, 4, 6, 9, 12, 18, 36):
    gradients, trace = train_step(blocks)
    assert all(np.array_equal(a, b) for a, b in zip(plain, gradients, strict=True))
    live[blocks] = np.array([event.live for event in trace.events]) / ARRAY
    runs = sum(event.kind == "forward" and event.operation.name == "Linear" for event in trace.events)
    assert runs == (2 * DEPTH if blocks else DEPTH)
    print(f"{blocks or 'none':>6}     {live[blocks].max():8.0f}              {runs}")
peaks = {blocks: kept.max() for blocks, kept in live.items() if blocks}
best = min(peaks, key=peaks.get)
print(f"least with {best} blocks: {live[0].max() / peaks[best]:.1f} times less than without")
assert all(abs(k + 3 * DEPTH / k - peaks[k]) <= 2 for k in peaks) and best in (9, 12)

# %% [markdown]
# A module is recomputed in the same way: `td.recompute(module, x)`. Its weights get their gradients as before.

# %%
figure, axes = panels(1, 2, 6, 4)
for blocks in (0, 1, 6, 36):
    name = f"{blocks} block{'s' * (blocks > 1)} recomputed" if blocks else "everything kept"
    axes[0, 0].plot(np.linspace(0, 1, len(live[blocks])), live[blocks], label=name)
axes[0, 0].set(title=f"kept for backward, {DEPTH} layers", xlabel="share of the step's operations", ylabel="arrays")
axes[0, 0].legend()
k = np.linspace(1, DEPTH, 200)
axes[0, 1].plot(k, k + 3 * DEPTH / k, color="grey", linewidth=1, label="k + 3 n / k")
axes[0, 1].plot(list(peaks), list(peaks.values()), "o", label="at most, by td.trace")
axes[0, 1].axhline(live[0].max(), color="tab:red", linestyle=":", label="everything kept")
axes[0, 1].set(title="the most that is kept, by the number of blocks k", xlabel="k", ylabel="arrays", ylim=(0, None))
axes[0, 1].legend()
save(figure, args)
