"""Many samples as files of a folder, for tools that judge such folders: fixed chunks, which can be resumed.

Chunk c is `CHUNK` pictures, drawn together from step c of the stream of samples. So each picture is the same whatever other
pictures are drawn, before or after it, and by however many processes, one after another or side by side: of several ranks each
draws whole chunks. What is there already stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.backend import to_numpy
from tinydiff.data import pixels
from tinydiff.diffusion import Diffusion, sample
from tinydiff.diffusion.sampler import chain_of
from tinydiff.errors import InputError, at_work, before_work
from tinydiff.machine.files import read_json
from tinydiff.machine.terminal import is_terminal, say
from tinydiff.random import SAMPLING, Generator
from tinydiff.ranks import world
from tinydiff.runs import pictures
from tinydiff.runs.atomic import make_folder, remove_temporary, write_file, writing
from tinydiff.runs.lock import NAME, Lock
from tinydiff.runs.progress import duration
from tinydiff.runs.resuming import versions
from tinydiff.runs.sheets import GUIDANCE, class_count
from tinydiff.unet import UNet

CHUNK = 64  # pictures that are drawn together
RECORD = "sampling.json"  # what the pictures in a folder were drawn with
_SECONDS = 15  # between two lines


def draw_many(
    folder: Path, unet: UNet, diffusion: Diffusion, n: int, seed: int = 0, sampler: str = "ddim", steps: int | None = None,
    eta: float = 0.0, label: int | None = None, guidance: float | None = None, progress: bool = True,
) -> int:  # fmt: skip
    """Sees to it that a folder has the samples 0..n-1 as 000000.png, 000001.png, ...; returns how many were drawn.

    Picture i of a labelled model is of class i modulo their number, unless a label is given. Other arguments as for
    `draw_sheet`. InputError where the folder holds anything else, or pictures that were drawn otherwise.
    """
    classes = class_count(unet) if label is None else None
    labelled = classes is not None or label is not None
    if guidance is None and labelled and unet.null_label is not None:
        guidance = GUIDANCE
    record = {
        "sampler": sampler, "steps": steps, "eta": eta, "label": label, "guidance": guidance, "seed": seed,
        "chunk": CHUNK, "weights": fingerprint_of(unet, diffusion),
    }  # fmt: skip
    ranks, lock, missing = world(), Lock(folder), list[int]()
    try:
        with ranks.together(), before_work():
            if ranks.rank == 0:
                shape, one = (1, unet.image_size, unet.image_size, unet.in_channels), 0 if labelled else None
                chain_of(
                    unet, diffusion, shape, Generator(seed), sampler, steps, eta, one, guidance
                )  # InputError, if any
                _take(folder, lock, record)
                missing = [i for i in range(n) if not os.path.lexists(folder / name_of(i))]
        missing = ranks.gather(missing)[0]
        others = {name: value for name, value in record.items() if name != "weights"} | {"n": n}
        ranks.require_same({"versions": versions(), "models": str(record["weights"]), "settings": json.dumps(others)})
        if progress and len(missing) < n:
            say(f"{n - len(missing):,} of {n:,} pictures are there already")
        told = _Told(len(missing), ranks.size) if progress else None
        wanted: dict[int, list[int]] = {}
        for i in missing:
            wanted.setdefault(i // CHUNK, []).append(i)
        for c, indices in list(wanted.items())[ranks.rank :: ranks.size]:
            labels: Any = label
            if classes is not None:
                labels = np.arange(c * CHUNK, (c + 1) * CHUNK) % classes
            shape = CHUNK, unet.image_size, unet.image_size, unet.in_channels
            how = sampler, steps, eta, labels, guidance
            x = sample(unet, diffusion, shape, Generator(seed).at(SAMPLING, c), *how, progress=False)
            found = to_numpy(pixels.to_bytes(x))
            with at_work():
                for i in indices:
                    pictures.save_png(folder / name_of(i), found[i % CHUNK])
                    if told is not None:
                        told.one()
        if told is not None:
            told.close()
        ranks.wait()
        return len(missing)
    finally:
        lock.release()


def _take(folder: Path, lock: Lock, record: dict[str, Any]) -> None:
    """Becomes the only job that writes to a folder, and leaves a record there. InputError as of `draw_many`."""
    _check(folder, record)
    with writing(folder):
        make_folder(folder)
    lock.acquire()
    _check(folder, record)
    remove_temporary(folder)
    write_file(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())


def name_of(i: int) -> str:
    """The file of picture i."""
    return f"{i:06d}.png"


def _check(folder: Path, record: dict[str, Any]) -> None:
    """InputError where a folder is no place for the pictures of a record."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    if (folder / RECORD).is_file():
        found = read_json(folder / RECORD)
        for name, value in record.items():
            if found.get(name) != value:
                what = "the model" if name == "weights" else name
                how = "is another" if name == "weights" else f"was {found.get(name)} and is {value} now"
                raise InputError(f"{folder} holds samples that were drawn otherwise: {what} {how}; choose a new folder")
    elif any(entry.name != NAME for entry in os.scandir(folder)):
        raise InputError(f"{folder} holds something else than samples of tinydiff: choose a new folder")


def fingerprint_of(unet: UNet, diffusion: Diffusion) -> str:
    """What a model is: weights, schedule and the rest that its samples depend on."""
    digest = hashlib.sha256(repr([diffusion.predict, diffusion.variance, diffusion.clip_x0]).encode())
    digest.update(diffusion.schedule.beta.tobytes())
    for name, p in unet.named_parameters():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(to_numpy(p.data)).data)
    return digest.hexdigest()


class _Told:
    """How far it is: a bar on a terminal, a line now and then elsewhere. at_once: processes that draw, of which this one tells."""

    def __init__(self, total: int, at_once: int = 1) -> None:
        self.total, self.at_once, self.done = total, at_once, 0
        self.start = self.shown = time.monotonic()
        self.bar: Any = None
        if is_terminal():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc="drawing", unit="picture", dynamic_ncols=True)

    def one(self) -> None:
        new = min(self.at_once, self.total - self.done)
        self.done += new
        now = time.monotonic()
        if self.bar is not None:
            with suppress(Exception):  # the terminal may be gone
                self.bar.update(new)
        elif now - self.shown >= _SECONDS:
            self.shown = now
            left = (now - self.start) / self.done * (self.total - self.done)
            say(f"{self.done:,} of {self.total:,} pictures, {duration(left)} left")

    def close(self) -> None:
        if self.bar is not None:
            with suppress(Exception):
                self.bar.close()
