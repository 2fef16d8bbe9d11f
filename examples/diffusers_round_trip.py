"""There and back: a checkpoint of tinydiff sampled by diffusers, and one of diffusers trained on by tinydiff.

    pip install diffusers torch
    python examples/diffusers_round_trip.py            # about 10 minutes on two cores; --steps 20 shows it in one

1. tinydiff trains a small network on the built-in glyphs, without labels, so that `DDPMPipeline` can call it.
2. diffusers opens the checkpoint and draws samples from it, with a scheduler of its own.
3. diffusers saves what it opened as a folder of its own, from which tinydiff goes on training.
4. The loss that the second run begins with is that of the end of the first: nothing was lost on the way.

Folders and pictures go to --out: diffusers.png was drawn by diffusers after the first training, tinydiff.png by tinydiff after
the second.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

from tinydiff import cli
from tinydiff.data import pixels
from tinydiff.runs import pictures

try:
    import torch
    from diffusers import DDPMPipeline, DPMSolverMultistepScheduler
    from diffusers.utils.logging import disable_progress_bar
except ImportError:
    sys.exit("this example needs diffusers and PyTorch: pip install diffusers torch")


def tinydiff(*words):
    """Runs a command of tinydiff's command line."""
    print("$ tinydiff", *words, flush=True)
    status = cli.main([str(word) for word in words])
    if status:
        sys.exit(status)


def losses(run):
    """The loss of each step of a run."""
    with open(run / "log.csv", newline="") as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


def sample(pipeline, n, seed):
    """n images by diffusers, uint8 (n, H, W, C): 25 steps of its DPM-Solver++ on the scheduler's own settings."""
    scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(25)
    unet, generator = pipeline.unet, torch.Generator().manual_seed(seed)
    x = torch.randn((n, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size), generator=generator)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample
    return pixels.to_bytes(x.permute(0, 2, 3, 1).numpy())


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=Path, default=Path("runs/round_trip"), help="(default: runs/round_trip)")
parser.add_argument("--steps", type=int, default=800, help="of the first training; the second takes a quarter")
args = parser.parse_args()
first, theirs, second = args.out / "tinydiff", args.out / "diffusers", args.out / "fine_tuned"

tinydiff("train", "--no-labels", "--steps", args.steps, "--preview-every", 0, "--out", first, "--force")

disable_progress_bar()
pipeline = DDPMPipeline.from_pretrained(first / "checkpoint", low_cpu_mem_usage=False)
drawn = sample(pipeline, 16, seed=1)
pipeline.save_pretrained(theirs)

more = max(args.steps // 4, 1)
tinydiff("train", "--init", theirs, "--no-labels", "--steps", more, "--preview-every", 0, "--out", second, "--force")

window = max(min(args.steps, more) // 2, 1)
before, after, begin = losses(first)[:window].mean(), losses(first)[-window:].mean(), losses(second)[:window].mean()
print(f"\nmean loss over {window} steps: {before:.3f} at the start of the first training, {after:.3f} at its end,")
print(f"{begin:.3f} at the start of the second, which went on from what diffusers saved")

tinydiff(
    "sample", second, "--n", 16, "--sampler", "dpm++", "--steps", 25, "--seed", 1, "--out", args.out / "tinydiff.png"
)
pictures.save_png(args.out / "diffusers.png", pictures.grid(drawn, columns=8))
print("wrote", args.out / "diffusers.png")
