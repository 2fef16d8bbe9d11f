"""What is learned in the same minutes: by tinydiff, and by PyTorch with diffusers' network in float32 and in bf16 autocast.

    python tests/benchmarks/quality.py --data PATH --minutes 10 [--seeds 3] [--out results/quality.json]

All train the same network from the same initial weights, on the same cores, one after another, in an order that turns from seed
to seed. PyTorch's loop is that of diffusers' training script: DataLoader, add_noise, clipping, EMAModel. Optimiser, rates and
batch are the same for all. Pictures come from the averaged weights by the same sampler, noise and classes. They are judged by a
classifier, trained once on the data's images (share recognised as the class asked for), and by a Fréchet distance to those
images. Of each, the mean over the seeds and its standard error are told. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path

import numpy as np

import tinydiff as td
from tinydiff import nn, ops
from tinydiff.cli.bench import describe
from tinydiff.data.pixels import to_float
from tinydiff.evaluation.features import extractor
from tinydiff.evaluation.frechet import frechet_distance, moments
from tinydiff.machine import threads
from tinydiff.random import Generator
from tinydiff.runs.pictures import save_png

CONTESTANTS = ("tinydiff", "PyTorch float32", "PyTorch bf16")
LR, WARMUP, CLIP, EMA = 1e-3, 100, 1.0, 0.999


class Classifier(nn.Module):
    """Images (N, S, S, C) -> logits (N, K), by two convolutions of stride 2 and two linear layers."""

    def __init__(self, size: int, channels: int, classes: int, generator: Generator) -> None:
        side = -(-size // 4)
        self.conv1 = nn.Conv2d(channels, 16, 3, stride=2, padding=1, generator=generator)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, generator=generator)
        self.linear1 = nn.Linear(side * side * 32, 64, generator=generator)
        self.linear2 = nn.Linear(64, classes, generator=generator)

    def forward(self, x):
        h = ops.relu(self.conv2(ops.relu(self.conv1(x))))
        return self.linear2(ops.relu(self.linear1(h.reshape(len(h), -1))))

    def recognise(self, images: np.ndarray) -> np.ndarray:
        with td.no_grad():
            parts = [self(to_float(images[i : i + 256])).data.argmax(1) for i in range(0, len(images), 256)]
        return np.concatenate(parts)


def train_classifier(data, steps):
    """A classifier of the data's classes, and its accuracy on the held-out images."""
    generator = Generator(1_000_003)
    model = Classifier(data.image_size[0], data.channels, data.num_classes, generator.at(0))
    optimizer = td.optim.Adam(model.parameters(), 2e-3)
    for step in range(1, steps + 1):
        x, labels = data.batch(step, 64, generator)
        optimizer.zero_grad()
        ops.cross_entropy(model(x), labels).backward()
        optimizer.step()
    held_out = data.held_out
    return model, float((model.recognise(held_out.images) == held_out.labels).mean())


def network(data, seed, channels):
    """The network that all train, with the weights that all begin with."""
    size = data.image_size[0]
    attention = next(s for s in (size, size // 2, size // 4) if s <= 16)
    return td.UNet(
        size, data.channels, channels=channels, channel_mults=(1, 2, 2), blocks_per_level=1,
        attention_resolutions=(attention,), groups=8, num_classes=data.num_classes, generator=Generator(seed).at(0),
    )  # fmt: skip


def diffusion():
    return td.diffusion.Diffusion(td.diffusion.Schedule.linear(), predict="v")


def train_tinydiff(unet, data, seed, batch, seconds):
    """Trains for so many seconds; returns the steps that were done. The weights are the averages then."""
    with tempfile.TemporaryDirectory() as folder:
        config = td.TrainConfig(
            out=folder, batch_size=batch, lr=LR, warmup=WARMUP, clip=CLIP, ema=EMA, seed=seed, device="cpu"
        )
        trainer = td.Trainer(unet, diffusion(), data, config)
        start, step = time.perf_counter(), 0
        while not step or time.perf_counter() - start < seconds:
            step += 1
            trainer.train_step(step)
    for p, average in zip(trainer.parameters, trainer.ema.averages, strict=True):
        p.data = average
    return step


def torch_network(unet):
    """diffusers' network with the weights of ours."""
    import torch

    from tinydiff.runs.diffusers import unet_config

    from diffusers import UNet2DModel  # isort: skip

    theirs = UNet2DModel.from_config(unet_config(unet))
    state = unet.torch_state_dict()
    theirs.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in state.items()})
    return theirs


def train_torch(unet, data, seed, batch, seconds, bf16):
    """The same by PyTorch, in a loop as diffusers' training script has; puts the averages into `unet`."""
    import torch
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    torch.manual_seed(seed)
    theirs = torch_network(unet).train()
    scheduler = DDPMScheduler(num_train_timesteps=1000, prediction_type="v_prediction")
    images = torch.from_numpy(to_float(data.images).transpose(0, 3, 1, 2).copy())
    dataset = torch.utils.data.TensorDataset(images, torch.from_numpy(data.labels))
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch, shuffle=True, drop_last=len(images) >= batch)
    optimizer = torch.optim.Adam(theirs.parameters(), LR)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1.0, (k + 1) / WARMUP))
    ema = EMAModel(theirs.parameters(), decay=EMA)
    start, step = time.perf_counter(), 0
    for clean, labels in (found for epoch in cycle([loader]) for found in epoch):
        noise = torch.randn(clean.shape)
        t = torch.randint(0, 1000, (len(clean),))
        noisy = scheduler.add_noise(clean, noise, t)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = theirs(noisy, t, class_labels=labels).sample
        loss = torch.nn.functional.mse_loss(output.float(), scheduler.get_velocity(clean, noise, t))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), CLIP)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        ema.step(theirs.parameters())
        step += 1
        if time.perf_counter() - start >= seconds:
            break
    ema.copy_to(theirs.parameters())
    unet.load_torch_state_dict({name: a.detach().numpy() for name, a in theirs.state_dict().items()})
    return step


def train(name, unet, data, seed, batch, seconds):
    if name == "tinydiff":
        return train_tinydiff(unet, data, seed, batch, seconds)
    return train_torch(unet, data, seed, batch, seconds, bf16="bf16" in name)


def order(seed):
    """The contestants, each first in turn."""
    k = seed % len(CONTESTANTS)
    return CONTESTANTS[k:] + CONTESTANTS[:k]


def summary(rows):
    """{contestant: {figure: (mean, standard error over the seeds)}}."""
    found = {}
    for name in CONTESTANTS:
        mine = [row for row in rows if row["contestant"] == name]
        figures = ("steps", "images_per_second", "recognised", "frechet_distance")
        columns = {figure: np.array([row[figure] for row in mine], float) for figure in figures}
        found[name] = {
            figure: (float(x.mean()), float(x.std(ddof=1) / len(x) ** 0.5) if len(x) > 1 else None)
            for figure, x in columns.items()
        }
    return found


def show(found):
    def cell(pair):
        mean, error = pair
        return f"{mean:.4g}" + ("" if error is None else f" ± {error:.2g}")

    lines = ["| | steps | images/s | recognised | Fréchet distance |", "|---|---|---|---|---|"]
    return "\n".join(lines + [f"| {name} | {' | '.join(map(cell, row.values()))} |" for name, row in found.items()])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="as for tinydiff train; labels are needed")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=50, help="of DDIM")
    parser.add_argument("--classifier-steps", type=int, default=600)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="keep 100 pictures of each run there")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/quality.json")
    a = parser.parse_args(argv)
    if a.minutes <= 0 or min(a.seeds, a.threads, a.samples - 1) < 1:
        parser.error("minutes must be above 0, seeds and threads at least 1, samples at least 2")
    import torch

    torch.set_num_threads(a.threads)
    if a.pictures:
        a.pictures.mkdir(parents=True, exist_ok=True)
    data = td.data.load(a.data, image_size=a.image_size, labels=True, holdout=0.1)
    rows = []
    with threads.threads(a.threads), tempfile.TemporaryDirectory() as folder:
        classifier, accuracy = train_classifier(data, a.classifier_steps)
        print(f"classifier: {accuracy:.2%} of held-out images recognised", flush=True)
        features = extractor(data, Path(folder) / "features.safetensors")
        real = moments(features(data.images))
        labels = np.arange(a.samples) % data.num_classes
        for seed in range(a.seeds):
            for name in order(seed):
                unet = network(data, seed, a.channels)
                begun = time.perf_counter()
                steps = train(name, unet, data, seed, a.batch_size, 60 * a.minutes)
                seconds = time.perf_counter() - begun
                pipeline = td.checkpoint.Pipeline(unet, diffusion())
                pictures = pipeline.sample(a.samples, labels, "ddim", a.steps, seed=seed, progress=False)
                if a.pictures:
                    save_png(a.pictures / f"{name} {seed}.png", pictures[:100])
                distance = frechet_distance(*moments(features(pictures)), *real)
                hit = float((classifier.recognise(pictures) == labels).mean())
                rows.append({
                    "contestant": name, "seed": seed, "steps": steps, "seconds": seconds,
                    "images_per_second": steps * a.batch_size / (60 * a.minutes), "recognised": hit, "frechet_distance": distance,
                })  # fmt: skip
                print(f"seed {seed}, {name}: {steps} steps, {hit:.1%} recognised, distance {distance:.3f}", flush=True)
    found = summary(rows)
    print(show(found))
    machine = describe("cpu", a.threads, torch)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(a).items()}
    result = {
        "command": " ".join(["python", *sys.argv]), "machine": machine, "settings": settings,
        "classifier_accuracy": accuracy, "summary": found, "runs": rows,
    }  # fmt: skip
    a.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
