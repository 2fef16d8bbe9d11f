"""A tiny run, for `mpiexec -n N python -m tests.ranks.job SETTINGS`; SETTINGS: JSON, see `Job`."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinydiff import random
from tinydiff.data import Dataset
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.errors import InputError, RunFailed
from tinydiff.ranks import world
from tinydiff.ranks.launcher import announced
from tinydiff.runs import checkpoint
from tinydiff.runs.config import TrainConfig
from tinydiff.runs.trainer import Trainer
from tinydiff.unet import UNet


@dataclass
class Job:
    """config: of `TrainConfig`. resume: as of `run`. fault: None, or [what, rank, step] of something that goes wrong."""

    config: dict[str, Any]
    resume: bool = False
    fault: tuple[str, int, int] | None = None


def trainer_of(job: Job) -> Trainer:
    """A trainer of an 8x8 network with dropout and labels."""
    fault, rank, _ = job.fault or ("", 0, 0)
    here = fault if world().rank == rank else ""
    images = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 1), np.uint8)
    if here == "data":
        images[7, 3, 3] ^= 1
    data = Dataset(images, np.arange(40) % 3, num_classes=3, flip=True)
    unet = UNet(
        image_size=8, in_channels=1, out_channels=1, channels=8, channel_mults=(1, 2), blocks_per_level=1,
        attention_resolutions=(4,), groups=4, dropout=0.3, num_classes=4, null_label=3,
        generator=random.Generator(0, random.INIT),
    )  # fmt: skip
    settings = {"threads": 1, "warmup": 2, "preview_every": 0, "lr": 3e-3, "clip": 0.5, "device": "cpu"} | job.config
    if here == "settings":
        settings["seed"] = 5
    if here == "elsewhere":
        settings["out"] += "-elsewhere"
    trainer = _Faulty(unet, Diffusion(Schedule.cosine(20)), data, TrainConfig(**settings))
    trainer.fault = job.fault if here else None
    trainer.results.finish = lambda *_: None  # drawing takes longer than all the rest
    return trainer


class _Faulty(Trainer):
    fault: Any = None

    def train_step(self, step: int) -> Any:
        if self.fault is not None and step == self.fault[2]:
            self.go_wrong(self.fault[0])
        return super().train_step(step)

    def go_wrong(self, what: str) -> None:
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "nan":
            self.parameters[3].data[...] = np.nan
        if what == "raise":
            raise RuntimeError("something of the caller's")
        if what == "memory":
            raise MemoryError
        if what == "full":
            checkpoint.save = _no_space
        if what == "sleep":
            time.sleep(6)
        if what == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if what == "exit":
            sys.exit(3)


def _no_space(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def main() -> int:
    """Runs the job that the command line names. Status 2 for wrong input, 1 for a failed run."""
    job = Job(**json.loads(sys.argv[1]))
    try:
        with world().together():
            trainer = trainer_of(job)
        trainer.run(job.resume)
    except (InputError, RunFailed) as error:
        if announced()[0] == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, InputError) else 1
    if world().rank == 0:
        print(f"step {trainer.step} of {world().size} ranks, stopped by {trainer.stopped_by}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
