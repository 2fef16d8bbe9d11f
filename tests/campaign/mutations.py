"""Damaged files: every reader gets files with random changes, and may only take them or say one sentence.

    python -m tests.campaign.mutations [--seed N] [--count N] [--only NAME]

Counted as a failure: an exception that is no InputError or RunFailed, a message of more than 300 characters or of two lines or
with control characters, a reading that takes more than ten seconds, and, where the system tells (Linux), one that takes more than
`BUDGET` bytes of memory. Damaged headers of pictures give millions of pixels, which are decoded as far as the budget of
`data/folder.py` allows.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import random
import shutil
import struct
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import tinydiff as td
from tinydiff.cli.info import describe
from tinydiff.errors import LONGEST, InputError, RunFailed, shown
from tinydiff.machine.limits import peak_resident
from tinydiff.runs import config, resuming
from tinydiff.runs.checkpoint import load, load_training_state
from tinydiff.runs.log import Log, read_log

BUDGET = (1 << 30) + (
    64 << 20
)  # bytes that reading a file of a few kilobytes may add: what decoding may take, and slack
FIXTURE = Path(__file__).parents[1] / "fixtures/0.1.0/run"
TOKENS = [
    b"1e400", b"-1", b"NaN", b"Infinity", b"null", b"[]", b"{}", b'""', b"99999999999999999999", b"1" * 5000, b"[" * 5000,
    b'{"a":' * 2000, b"\x1b[31m", b"\xff\xfe", b"\0", b"true", b"0x" + b"f" * 5000, b'"' + b"x" * 9000 + b'"', b"1e8", b"0",
    b"\n", b"1979-05-27", b"''", b"-0.0", b"1.5",
]  # fmt: skip


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content with one to three random changes."""
    for _ in range(rng.randint(1, 3)):
        at, end = sorted((rng.randint(0, len(content)), rng.randint(0, len(content))))
        kind = rng.randrange(7)
        if kind == 0 and content:  # a bit
            at = rng.randrange(len(content))
            content = content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        elif kind == 1:
            content = content[:at]
        elif kind == 2:
            content = content[:at] + content[min(end, at + 40) :]
        elif kind == 3:
            content = content[:at] + bytes(rng.randrange(256) for _ in range(rng.randint(1, 8))) + content[at:]
        elif kind == 4:
            content = content[:at] + rng.choice(TOKENS) + content[at:]
        elif kind == 5 and content.split():  # a word, for one of the odd ones
            word = rng.choice(content[:20_000].split())
            content = content.replace(word, rng.choice(TOKENS), 1)
        else:
            values = [m for m in (b": ", b" = ", b",") if m in content]
            if values:
                parts = content.split(mark := rng.choice(values))
                i = rng.randrange(1, len(parts))
                tail = parts[i][len(parts[i].split(b"\n")[0].split(b",")[0]) :]
                parts[i] = rng.choice(TOKENS) + tail
                content = mark.join(parts)
    return content


def made(folder: Path) -> dict[str, tuple[Path, Callable[[], Any]]]:
    """Each kind of file: where it is, and what reads it."""
    run = folder / "run"
    shutil.copytree(FIXTURE, run)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 8, 8), dtype=np.uint8)
    data = folder / "data"
    data.mkdir()
    np.save(data / "x.npy", images)
    np.savez_compressed(data / "x.npz", images=images, labels=np.arange(6))
    idx = struct.pack(">BBBB3I", 0, 0, 8, 3, *images.shape) + images.tobytes()
    (data / "x-images-idx3-ubyte").write_bytes(idx)
    (data / "y-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx))
    (data / "x.bin").write_bytes(rng.integers(0, 10, 3073 * 2, dtype=np.uint8).tobytes())
    readers: dict[str, tuple[Path, Callable[[], Any]]] = {}
    for name in ("x.npy", "x.npz", "x-images-idx3-ubyte", "y-images-idx3-ubyte.gz", "x.bin"):
        readers[name] = (data / name, lambda name=name: td.data.load(data / name))  # type: ignore[misc]
    for kind in ("png", "jpg", "gif", "bmp", "tiff", "webp", "ppm"):
        place = folder / kind / f"x.{kind}"
        place.parent.mkdir()
        Image.fromarray(images[0]).convert("RGB").save(place)
        readers[kind] = (place, lambda p=place.parent: td.data.load(p, image_size=8, report=lambda line: None))  # type: ignore[misc]
    checkpoint = run / "checkpoint"
    for name in ("unet/config.json", "scheduler/scheduler_config.json", "tinydiff.json", "model_index.json",
                 "unet/diffusion_pytorch_model.safetensors"):  # fmt: skip
        readers[name] = (checkpoint / name, lambda: load(run))
    readers["training_state.safetensors"] = (
        checkpoint / "training_state.safetensors",
        lambda: (load_training_state(run), load(run, raw=True), resuming.recorded(run)),
    )
    readers["config.toml"] = (run / "config.toml", lambda: (config.load(run / "config.toml"), resuming.recorded(run)))
    readers["log.csv"] = (run / "log.csv", lambda: (read_log(run / "log.csv"), describe(run), _open_log(run)))
    return readers


def _open_log(run: Path) -> None:
    log = Log(run / "log.csv")
    log.open(3)
    log.close()


def attempt(path: Path, content: bytes, read: Callable[[], Any]) -> str:
    """What reading a file with that content does: "taken", "refused", or what is wrong with it."""
    path.write_bytes(content)
    before, begun = forget_peak(), time.monotonic()
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            read()
        result = "taken"
    except (InputError, RunFailed) as error:
        text = str(error)
        result = "refused"
        if len(text) > LONGEST or shown(text) != text:  # wide spaces may stay
            result = f"an unfit message of {len(text)} characters: {text[:200]!r}"
    except BaseException as error:
        result = f"{type(error).__name__}: {str(error)[:200]}"
    if time.monotonic() - begun > 10:
        result = f"{time.monotonic() - begun:.0f} s"
    if before is not None and (added := (peak_resident() or 0) - before) > BUDGET:
        result = f"{added >> 20} MiB of memory"
    return result


def forget_peak() -> int | None:
    """The peak of memory counts from now on; returns the bytes that it begins at. None where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return peak_resident()


def run(folder: Path, seed: int, count: int, say: Callable[[str], None] = print, only: str | None = None) -> list[str]:
    """Reads `count` damaged files of each kind, or of the one named; what went wrong, a line each."""
    failures = []
    for name, (path, read) in made(folder).items():
        if only not in (None, name):
            continue
        assert attempt(path, path.read_bytes(), read) == "taken", name
        most = 0
        whole, rng, results = path.read_bytes(), random.Random(f"{seed} {name}"), Counter[str]()
        for i in range(count):
            result = attempt(path, mutated(whole, rng), read)
            most = max(most, peak_resident() or 0)
            results[result if result in ("taken", "refused") else "failures"] += 1
            if result not in ("taken", "refused"):
                failures.append(f"{name}, {i}: {result}")
        path.write_bytes(whole)
        say(f"{name:<42} {dict(results)}, {most >> 20} MiB")
    return failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--only", metavar="NAME", help="one kind of file, as it is called in what this prints")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        failures = run(Path(name), arguments.seed, arguments.count, only=arguments.only)
    print(*failures[:100], f"{len(failures)} failures", sep="\n")
    raise SystemExit(bool(failures))
