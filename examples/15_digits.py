# %% [markdown]
# # 15. Everything together: a network that draws digits
#
# This is a whole diffusion model in one loop. Nothing in it is new: the network is made of convolutions
# ([3](03_convolution_is_fully_connected.py)), normalisation ([4](04_normalisation.py)), fully connected layers
# ([2](02_fully_connected.py)) and attention ([6](06_attention.py)); the loss is differentiated through a draw of noise
# ([9](09_reparameterisation.py)) by a tape ([1](01_a_tape_in_40_lines.py)); it learns to tell x_0 from x_t
# ([11](11_forward_process.py)), and with it the reverse step ([12](12_posterior_and_reverse_step.py)).
#
# To train in seconds, the digits are 12 x 12 pixels and the network is small. `tinydiff train` is this loop with checkpoints,
# previews and logs.

# %%
import numpy as np
from picture import options, panels, save

import tinydiff as td

args = options("15_digits", steps=300)
SIZE, CLASSES, BATCH = 12, 10, 32
data = td.data.draw_glyphs(2000, image_size=SIZE)
images, labels = data.images.astype(np.float32) / 127.5 - 1, data.labels

td.nn.manual_seed(0)
unet = td.UNet(SIZE, 1, channels=16, channel_mults=(1, 2), blocks_per_level=1, attention_resolutions=(6,), groups=8,
               num_classes=CLASSES + 1, null_label=CLASSES)  # fmt: skip
diffusion = td.diffusion.Diffusion(td.diffusion.Schedule.linear(), predict="x0")
adam = td.optim.Adam(unet.parameters(), lr=2e-3)
ema = td.optim.EMA(unet.parameters(), decay=0.99)
print(f"{sum(w.data.size for w in unet.parameters()):,} weights")

# %% [markdown]
# The loop. One label in ten is replaced by "no label", so that the network also learns to draw any digit: guidance needs both.

# %%
rng, losses = np.random.default_rng(0), []
for step in range(args.steps):
    adam.lr = 2e-3 * min(1, (step + 1) / 20) * (1 - step / args.steps)
    chosen = rng.integers(0, len(images), BATCH)
    given = np.where(rng.random(BATCH) < 0.1, CLASSES, labels[chosen])
    loss = diffusion.loss(unet, images[chosen], td.random.Generator(0, step=step), labels=given)
    unet.zero_grad()
    loss.backward()
    td.optim.clip_grad_norm(unet.parameters(), 1.0)
    adam.step()
    ema.update()
    losses.append(loss.item())
print(f"loss {losses[0]:.3f} to {np.mean(losses[-50:]):.3f}")
assert args.steps < 300 or np.mean(losses[-50:]) < 0.18

# %% [markdown]
# Three of each digit by DDIM in 20 steps, with guidance. The last row was drawn without labels.

# %%
wanted = np.tile(np.arange(CLASSES), 3)
with ema.applied():
    generator = td.random.Generator(1)
    drawn = td.diffusion.sample(unet, diffusion, (30, SIZE, SIZE, 1), generator, "ddim", 20, labels=wanted, guidance=2.0,
                                progress=False)  # fmt: skip
    free = td.diffusion.sample(unet, diffusion, (10, SIZE, SIZE, 1), generator, "ddim", 20, progress=False)

figure, axes = panels(1, 2, 5.2, 3)
sheet = np.concatenate([drawn, free])[..., 0].reshape(4, 10, SIZE, SIZE).swapaxes(1, 2).reshape(4 * SIZE, 10 * SIZE)
axes[0, 0].imshow(sheet, cmap="gray", vmin=-1, vmax=1)
axes[0, 0].set(title=f"after {args.steps} steps of {BATCH} images", xticks=[], yticks=[])
axes[0, 1].semilogy(losses, alpha=0.4)
if len(losses) > 25:
    axes[0, 1].semilogy(np.arange(12, len(losses) - 12), np.convolve(losses, np.ones(25) / 25, "valid"))
axes[0, 1].set(title="loss", xlabel="step")
save(figure, args)
