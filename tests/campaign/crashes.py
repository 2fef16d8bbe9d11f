"""Kills and power cuts: a small run, stopped before each call that changes the disk, and at random moments.

    python -m tests.campaign.crashes [--seed N] [--share X] [--kills N]

After each stop the run is resumed (or started, where it had not begun), and all that it leaves must be byte for byte what a run
leaves that nobody stopped: checkpoint, log, pictures, and nothing else. POSIX only: each trial is a fork.
"""

from __future__ import annotations

import argparse
import builtins
import importlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tinydiff.cli import main
from tinydiff.errors import InputError
from tinydiff.runs import checkpoint
from tinydiff.runs.folder import RunFolder
from tinydiff.runs.log import read_log
from tinydiff.runs.trainer import Trainer

FLAGS = [
    "--channels", "4", "--groups", "2", "--mults", "1", "--attention", "none", "--timesteps", "2", "--batch-size", "2",
    "--threads", "1", "--device", "cpu", "--save-every", "2", "--preview-every", "2", "--holdout", "0.1",
]  # fmt: skip
STEPS = 4


class Disk:
    """Calls `before(name, path, other)` before every call of this process that changes something below a folder, or waits
    until it is on the disk."""

    def __init__(self, root: Path, before: Callable[[str, str, str], None]) -> None:
        self.root, self.before = os.path.abspath(root), before

    def _call(self, name: str, path: Any, other: Any = "") -> None:
        path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.path.abspath(os.fspath(path))
        if path.startswith(self.root):
            self.before(name, path, os.path.abspath(other) if other else "")

    def install(self) -> None:
        shutil._use_fd_functions = False  # so that rmtree removes by path
        for name in ("replace", "rename"):
            self._wrap(os, name, lambda real, a, b, **k: (self._call("rename", a, b), real(a, b, **k))[1])
        for name in ("unlink", "rmdir", "mkdir", "fsync", "ftruncate", "write"):
            self._wrap(os, name, lambda real, a, *r, _n=name, **k: (self._call(_n, a), real(a, *r, **k))[1])
        os.remove = os.unlink
        self._wrap(os, "open", self._open)
        for module in (builtins, io):
            self._wrap(module, "open", self._open)

    def _open(self, real: Any, path: Any, mode: Any = "r", *rest: Any, **named: Any) -> Any:
        writes = mode & os.O_CREAT if isinstance(mode, int) else set(mode) & set("wax+")
        if writes and not isinstance(path, int):
            self._call("create", path)
        return real(path, mode, *rest, **named)

    @staticmethod
    def _wrap(module: Any, name: str, wrapper: Any) -> None:
        real = getattr(module, name)
        setattr(module, name, lambda *a, **k: wrapper(real, *a, **k))


def import_what_runs_use() -> None:
    """Half of the time of a short run goes into imports. A fork has those of the process that it is forked from."""
    for name in (
        "matplotlib.backends.backend_agg",
        "PIL.GifImagePlugin",
        "PIL.PngImagePlugin",
        "safetensors.numpy",
        "tqdm",
    ):
        with suppress(ImportError):  # a run without matplotlib draws less
            importlib.import_module(name)


def forked(work: Callable[[], Any]) -> int:
    """The exit status of a function in a process of its own; 128 + the signal that killed it."""
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        status = 99
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            status = work() or 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def train(out: Path, data: Path) -> int:
    """Starts, or goes on, as a user would."""
    with suppress(InputError):
        RunFolder(out).check_resumable()
        return main(["train", "--resume", "--out", str(out), "--threads", "1"])
    return main(["train", "--out", str(out), "--data", str(data), "--steps", str(STEPS), *FLAGS])


def left(out: Path) -> dict[str, Any]:
    """Everything in a run's folder that does not depend on the time or the place."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_dir() or name in ("config.toml", "loss.png"):  # these hold the place, and the speed
            found[name] = None
        elif name == "log.csv":
            found[name] = [[v for k, v in row.items() if k != "images_per_second"] for row in read_log(path)]
        else:
            found[name] = path.read_bytes()
    return found


class Campaign:
    """The folder of a campaign, with a reference run in it."""

    def __init__(self, folder: Path, say: Callable[[str], None] = print) -> None:
        self.folder, self.say = folder, say
        import_what_runs_use()
        self.data = folder / "data.npy"
        np.save(self.data, np.random.default_rng(0).integers(0, 256, (8, 8, 8), dtype=np.uint8))
        assert forked(lambda: train(folder / "reference", self.data)) == 0
        self.wanted = left(folder / "reference")
        self.failures: list[str] = []
        self.seen: list[tuple[Any, int | None]] = []

    def check(self, out: Path, what: str, least: int | None = None) -> None:
        """Recovers a run and compares; least: the step that must not be lost."""
        if least is not None:
            step = None
            with suppress(Exception):
                step = checkpoint.read_step(out)
            if step is None or step < least:
                self.failures.append(f"{what}: step {least} was saved, and {step} is there")
        status = forked(lambda: train(out, self.data))
        if status == 2 and left(out) == self.wanted:
            status = 0  # it had done its steps, pictures included
        if status:
            self.failures.append(f"{what}: status {status}")
        elif (found := left(out)) != self.wanted:
            wrong = [n for n in {*found, *self.wanted} if found.get(n, 0) != self.wanted.get(n, 0)]
            self.failures.append(f"{what}: differs in {sorted(wrong)}")
        shutil.rmtree(out)

    def calls(self) -> tuple[list[str], list[tuple[int, int]], list[list[dict[str, bytes | None]]]]:
        """The calls of a whole run; after how many of them each step was saved; and what a power cut before each call may
        leave."""
        out = self.folder / "counted"
        names: list[str] = []
        saves: list[tuple[int, int]] = []
        images: list[list[dict[str, bytes | None]]] = []
        shadow = Shadow(self.folder)

        def before(name: str, path: str, other: str) -> None:
            names.append(f"{name} {os.path.relpath(path, out)}")
            images.append(shadow.images(out, random.Random(len(names))))
            shadow.apply(name, path, other)

        def work() -> int:
            real = Trainer.save

            def save(trainer: Trainer) -> None:
                real(trainer)
                saves.append((len(names), trainer.step))

            Trainer.save = save  # type: ignore[method-assign]
            Disk(out, before).install()
            return train(out, self.data)

        import pickle

        answer = self.folder / "calls.pickle"

        def report() -> int:
            status = work()
            answer.write_bytes(pickle.dumps((names, saves, images)))
            return status

        assert forked(report) == 0
        shutil.rmtree(out)
        return pickle.loads(answer.read_bytes())

    def kill_before(self, k: int, name: str) -> None:
        out = self.folder / f"killed{k}"
        count = [0]

        def before(*_: str) -> None:
            count[0] += 1
            if count[0] == k + 1:
                os.kill(os.getpid(), signal.SIGKILL)

        def work() -> int:
            Disk(out, before).install()
            return train(out, self.data)

        assert forked(work) == 128 + signal.SIGKILL
        self.check(out, f"killed before call {k}, {name}") if out.exists() else None

    def cut_before(self, k: int, name: str, images: list[dict[str, bytes | None]], least: int | None) -> int:
        new = [image for image in images if (image, least) not in self.seen]
        for i, image in enumerate(new):
            self.seen.append((image, least))
            out = self.folder / f"cut{k}.{i}"
            out.mkdir()
            for path, content in image.items():
                (out / path).mkdir(parents=True, exist_ok=True) if content is None else (out / path).write_bytes(
                    content
                )
            self.check(out, f"power cut {i} before call {k}, {name}", least)
        return len(new)

    def kill_at(self, seconds: float) -> None:
        out = self.folder / "random"
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                forked_quiet(lambda: train(out, self.data))
            os._exit(0)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if out.exists():
            self.check(out, f"killed after {seconds:.3f} s")


def forked_quiet(work: Callable[[], Any]) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    work()


class _File:
    synced: bytes = b""


class _Folder:
    def __init__(self) -> None:
        self.now: dict[str, Any] = {}
        self.durable: dict[str, Any] = {}


class Shadow:
    """What of a folder is surely on the disk: contents and names that were waited for."""

    def __init__(self, root: Path) -> None:
        self.root, self.top = os.path.abspath(root), _Folder()

    def _at(self, path: str) -> tuple[_Folder, str]:
        *above, name = os.path.relpath(path, self.root).split(os.sep)
        folder = self.top
        for part in above:
            folder = folder.now[part]
        return folder, name

    def apply(self, call: str, path: str, other: str) -> None:
        folder, name = self._at(path)
        if call == "create":
            folder.now.setdefault(name, _File())
        elif call == "mkdir":
            if not os.path.lexists(path):
                folder.now[name] = _Folder()
        elif call == "rename":
            there, new = self._at(other)
            there.now[new] = folder.now.pop(name)
        elif call in ("unlink", "rmdir"):
            folder.now.pop(name, None)
        elif call == "fsync":
            node = folder.now[name]
            if isinstance(node, _Folder):
                node.durable = dict(node.now)
            else:
                node.synced = Path(path).read_bytes()

    def images(self, out: Path, rng: random.Random) -> list[dict[str, bytes | None]]:
        """What a power cut now may leave of a folder: only what is surely there; every name, but of the contents what is
        surely there; and a mixture, folder by folder."""
        found = []
        for names in (lambda f: f.durable, lambda f: f.now, lambda f: rng.choice((f.durable, f.now))):
            image: dict[str, bytes | None] = {}
            node = self.top.now.get(out.name)
            if isinstance(node, _Folder):
                self._collect(node, "", names, image)
            if image not in found:
                found.append(image)
        return found

    def _collect(self, folder: _Folder, prefix: str, names: Any, image: dict[str, bytes | None]) -> None:
        for name, node in names(folder).items():
            if isinstance(node, _Folder):
                image[prefix + name] = None
                self._collect(node, f"{prefix}{name}/", names, image)
            else:
                image[prefix + name] = node.synced


def run(folder: Path, seed: int, share: float, kills: int, say: Callable[[str], None] = print) -> list[str]:
    """The whole campaign, or a random share of its calls; what went wrong, a line each."""
    campaign, rng = Campaign(folder, say), random.Random(seed)
    names, saves, images = campaign.calls()
    chosen = [k for k in range(len(names)) if rng.random() < share]
    for k in chosen:
        campaign.kill_before(k, names[k])
    say(f"{len(chosen)} kills before one of {len(names)} calls: {len(campaign.failures)} failures")
    before, cuts = len(campaign.failures), 0
    for k in chosen:
        steps = [step for count, step in saves if count <= k]
        cuts += campaign.cut_before(k, names[k], images[k], max(steps, default=None))
    say(
        f"{cuts} different disks after power cuts before one of {len(chosen)} calls: {len(campaign.failures) - before} failures"
    )
    before = len(campaign.failures)
    for _ in range(kills):
        campaign.kill_at(rng.uniform(0, 0.6))
    say(f"{kills} kills at random moments: {len(campaign.failures) - before} failures")
    return campaign.failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the calls")
    parser.add_argument("--kills", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        failures = run(Path(name), arguments.seed, arguments.share, arguments.kills)
    print(*failures, sep="\n", flush=True)
    raise SystemExit(bool(failures))
