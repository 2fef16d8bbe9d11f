"""A long run of tiny steps: what a process holds must not grow.

    python -m tests.campaign.soak [--steps N] [--threads N]

A small U-Net is trained by the real trainer, with Adam, averages, log, saves and previews. Twenty times on the way the process's
memory, descriptors, threads and Python objects are counted. Counted as a failure, from 15 % of the way on, when all parts have been
in use: more than 4 MiB more, any more descriptor or thread, or more than 200 more objects; and a run that ended early, as Ctrl-C
makes it. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import tinydiff as td
from tinydiff.machine.limits import resident

MORE_MEMORY = 4 << 20
MORE_OBJECTS = 200


class Held(NamedTuple):
    """What a process holds after so many steps."""

    step: int
    memory: int
    descriptors: int
    threads: int
    objects: int


def held(step: int) -> Held:
    """What this process holds now."""
    gc.collect()
    descriptors, tasks = (len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task"))
    return Held(step, resident() or 0, descriptors, tasks, len(gc.get_objects()))


class Watched(td.Trainer):
    """A trainer that is measured every so many steps."""

    every: int
    say: Callable[[str], None]
    found: list[Held]

    def train_step(self, step: int) -> tuple[float, float, float]:
        result = super().train_step(step)
        if step % self.every == 0:
            self.found.append(held(step))
            _, memory, *rest = self.found[-1]
            descriptors, tasks, objects = rest
            self.say(f"{step:>8} steps {memory / 2**20:8.1f} MiB {descriptors:>4} descriptors {tasks:>4} threads "
                     f"{objects:>8} objects")  # fmt: skip
        return result


def grown(first: Held, last: Held) -> list[str]:
    """What a process holds more of, a line each."""
    failures = []
    for name, more in (("memory", MORE_MEMORY), ("descriptors", 0), ("threads", 0), ("objects", MORE_OBJECTS)):
        before, now = getattr(first, name), getattr(last, name)
        if now > before + more:
            failures.append(f"{name}: {before:,} after {first.step:,} steps, {now:,} after {last.step:,}")
    return failures


def run(folder: Path, steps: int, threads: int, say: Callable[[str], None] = print) -> list[str]:
    """Trains so many steps; what went wrong, a line each."""
    np.save(folder / "data.npy", np.random.default_rng(0).integers(0, 256, (16, 4, 4), dtype=np.uint8))
    unet = td.UNet(4, 1, channels=4, channel_mults=(1,), blocks_per_level=1, attention_resolutions=(), groups=2)
    config = td.TrainConfig(
        out=str(folder / "run"), steps=steps, batch_size=2, threads=threads, device="cpu", warmup=0,
        save_every=max(steps // 100, 1), preview_every=max(steps // 10, 1),
    )  # fmt: skip
    diffusion = td.diffusion.Diffusion(td.diffusion.Schedule.cosine(10))
    trainer = Watched(unet, diffusion, td.data.load(folder / "data.npy"), config)
    trainer.every, trainer.say, trainer.found = max(steps // 20, 1), say, []
    done = trainer.run()
    failures = [f"ended after {done:,} of {steps:,} steps"] if done < steps else []
    if len(trainer.found) > 3:
        begun, *_, last = trainer.found[2:]  # the first preview has started the thread of the progress bars
        failures += grown(begun, last)
    return failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        failures = run(Path(name), arguments.steps, arguments.threads, lambda line: print(line, flush=True))
    print(
        *failures,
        f"{arguments.steps:,} steps asked for, {len(failures)} failures, {time.monotonic() - start:.0f} s",
        sep="\n",
    )
    raise SystemExit(bool(failures))
