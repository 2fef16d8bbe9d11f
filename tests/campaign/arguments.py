"""Nonsense arguments: each flag of each command gets odd numbers, texts and paths, and each command odd streams.

    python -m tests.campaign.arguments [--seed N] [--share X] [--only COMMAND]

Counted as a failure: a status other than 0, 1 and 2, a traceback, a last line of more than 330 characters or with control
characters, a trial of more than `PATIENCE` seconds or `BUDGET` bytes of memory, and a change of the files that the arguments name
only for reading. POSIX only: each trial is a fork, in a folder of its own.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

import tinydiff
from tests.campaign.crashes import FLAGS, import_what_runs_use
from tinydiff.cli import main
from tinydiff.cli.entry import _parser
from tinydiff.errors import shown

PATIENCE = 30  # seconds
BUDGET = 2 << 30  # bytes of address space that a trial may add
LONGEST = 330  # characters: "tinydiff: ", a message, and what stands behind it

NUMBERS = [
    "nan", "inf", "-inf", "0", "-0", "-1", "1e400", "-1e400", "1e-400", "1" + "0" * 30, "9" * 5000, "1.5", "1_000", "_1", "",
    " ", " 1 ", "\t1", "1,", ",", "1,,2", "-", "--", "+1", "0x10", "1e3", "\u0663", "\uff11\uff12", "\u00bd", "\u2212\u0031",
    "true", "none", "1;2", "2**63", "18446744073709551616", "9223372036854775808", "2147483648", "1\n2", "\x1b[31m",
    "a\x07b", "\u202ex",
    "x\udcff", "{}", "%s%n", "1" + "\0",
]  # fmt: skip
MADE = ("folder", "fifo", "socket", "broken", "loop", "tofolder", "empty.npy", "zero.py", "deep/no/file.png")
PLACES = [
    *MADE, "/dev/null", "/dev/zero", "/dev/full", "/dev/stdin", "/dev/fd/0", "/dev/tty", "/proc/self/mem", "/", ".", "..",
    "~", "~nobody/x",
    "x" * 300, "x/" * 3000, "home.py/x", "folder/", "fifo:f", "folder:f", "home.py:", ":f", "home.py:f:g", "home.py:no",
    "json:loads",
    "home.py:__class__", "home.py:forward,backward,loss", "\x1b]0;x\x07.png", "a\nb.png", "n\udce9.png", "fifo.png", "folder.png",
    "broken.png",
    "socket.png", "full.png", "fifo.py", "broken.py", "folder.py", "fifo.html", "fifo.gif", "folder.gif", "fifo.npy", "folder.npy",
]  # fmt: skip

HOME = """
import numpy as np
import tinydiff as td

def forward(X, W):
    return X @ W

def backward(L_Y, X, W):
    return L_Y @ W.T, X.T @ L_Y

def loss():
    return td.ops.sum(td.ops.exp(td.Tensor(np.ones(3, np.float32), requires_grad=True)))
"""
SMALL = ["--steps", "1", *FLAGS]


def commands() -> dict[str, list[str]]:
    """A call of each command that works, in a folder that `furnish` has filled."""
    return {
        "train": ["train", "--data", "data.npy", "--out", "new", *SMALL],
        "doctor": ["doctor", "--data", "data.npy", "--out", "new", *SMALL],
        "sample": ["sample", "run", "--n", "1", "--steps", "1", "--threads", "1"],
        "info": ["info", "run"],
        "evaluate": [
            "evaluate", "run", "--images", "2", "--terms", "3", "--samples", "4", "--steps", "1", "--each", "2", "--step-counts",
            "1", "--threads", "1", "--only", "bits", "--training-images",
        ],
        "gradcheck": ["gradcheck", "home.py:forward,backward", "--shape", "2,3", "--shape", "3,2"],
        "trace": ["trace", "home.py:loss"],
        "exercise": ["exercise", "relu"],
        "puzzle": ["puzzle", "1"],
        "bench": ["bench", "--quick", "--no-torch", "--only", "Adam", "--threads", "1"],
    }  # fmt: skip


def furnish(folder: Path) -> None:
    """Fills the folder of a campaign with what the commands read, and with what no command can use."""
    np.save(folder / "data.npy", np.random.default_rng(0).integers(0, 256, (8, 8, 8), dtype=np.uint8))
    (folder / "home.py").write_text(HOME)
    (folder / "zero.py").write_text("")
    (folder / "empty.npy").write_bytes(b"")
    for ending in ("", ".png", ".py", ".gif", ".npy"):
        (folder / f"folder{ending}").mkdir()
    for ending in ("", ".png", ".py", ".html", ".gif", ".npy"):
        os.mkfifo(folder / f"fifo{ending}")
    for ending in ("", ".png", ".py"):
        (folder / f"broken{ending}").symlink_to("nowhere/at/all")
    (folder / "loop").symlink_to("loop")
    (folder / "tofolder").symlink_to("folder")
    (folder / "full.png").symlink_to("/dev/full")
    here = os.getcwd()
    os.chdir(folder)  # a socket's name must be short
    try:
        for name in ("socket", "socket.png"):
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(name)
    finally:
        os.chdir(here)


def flags(command: str) -> list[tuple[str | None, int]]:
    """The flags of a command that take a value, and None for each argument without a flag, with the place of that."""
    subparsers = next(a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    found: list[tuple[str | None, int]] = []
    for action in subparsers.choices[command]._actions:
        if action.nargs != 0 and not isinstance(action, argparse._HelpAction):
            found.append((action.option_strings[-1] if action.option_strings else None, 1))
    return found


def trials(command: str, words: list[str]) -> Iterator[list[str]]:
    """The calls of a command with one odd value each, and with a few odd pairs."""
    for flag, place in flags(command):
        for value in [*NUMBERS, *PLACES]:
            if flag is None:
                yield [*words[:place], value, *words[place + 1 :]]
            elif flag in words:
                i = words.index(flag)
                yield [*words[:i], f"{flag}={value}", *words[i + 2 :]]
            else:
                yield [*words, f"{flag}={value}"]


class Trials:
    """Runs calls in forks of this process, each in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.furnished = folder, folder / "furnished"
        self.furnished.mkdir()
        furnish(self.furnished)
        import_what_runs_use()
        for module in pkgutil.walk_packages(tinydiff.__path__, "tinydiff."):
            if "cuda" not in module.name and "__main__" not in module.name:
                with suppress(ImportError):
                    importlib.import_module(module.name)
        done = self.attempt(["train", "--data", "data.npy", "--out", "run", *SMALL])
        assert done == "0", done
        shutil.copytree(self.place / "run", self.furnished / "run")
        self.kept = self._content(self.furnished)

    @property
    def place(self) -> Path:
        return self.folder / "trial"

    def attempt(self, words: list[str], check: bool = False) -> str:
        """Runs a call: its status, or what is wrong with it."""
        shutil.rmtree(self.place, ignore_errors=True)
        subprocess.run(["cp", "-a", self.furnished, self.place], check=True)
        begun, said = time.monotonic(), self.folder / "said"
        if (child := os.fork()) == 0:
            self._work(words, said)
        while (done := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() - begun < PATIENCE:
            time.sleep(0.002)
        if done[0] == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"more than {PATIENCE} s"
        return self._judge(os.waitstatus_to_exitcode(done[1]), said, check)

    def _judge(self, status: int, said: Path, check: bool) -> str:
        text = said.read_bytes().decode(errors="surrogateescape")
        last = (text.strip("\n").split("\n") or [""])[-1]
        if "Traceback" in text:
            return f"a traceback: {shown(last, 200)}"
        if status not in (0, 1, 2):
            return f"status {status}: {shown(last, 200)}"
        if status == 2 and not last.startswith("tinydiff: "):
            return f"status 2 without a sentence: {shown(last, 200)}"
        if len(last) > LONGEST and status:
            return f"{len(last)} characters: {shown(last, 200)}"
        if shown(text.replace("\n", "")) != text.replace("\n", ""):
            return f"control characters: {shown(last, 200)}"
        if check and (now := self._content(self.place)) != (now | self.kept):
            return f"changed {[n for n in self.kept if now.get(n) != self.kept[n]][:3]}"
        return str(status)

    def _work(self, words: list[str], said: Path) -> None:
        status = 99
        try:
            os.chdir(self.place)
            null = os.open(os.devnull, os.O_RDWR)
            out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number, descriptor in ((0, null), (1, out), (2, out)):
                os.dup2(descriptor, number)
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + BUDGET, size + BUDGET))
            os.environ["HOME"] = str(self.place)
            status = main(words)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    @staticmethod
    def _content(folder: Path) -> dict[str, bytes | None]:
        return {
            str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
            for path in folder.rglob("*")
            if "loss.png" not in path.name
        }


STREAMS = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", ">/dev/full 2>&1", "</", "<fifo.gif",
           ">&- 2>/dev/full",
           "1<&0", "| true", "| head -c 1"]  # fmt: skip


def stream_trials(trial: Trials, names: list[str], say: Callable[[str], None]) -> list[str]:
    """Each command with odd streams, started as a shell starts it."""
    failures = []
    environment = os.environ | {"PYTHONPATH": str(Path(tinydiff.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    for name in names:
        for streams in STREAMS:
            if streams == "<fifo.gif":
                continue  # the shell itself would wait
            shutil.rmtree(trial.place, ignore_errors=True)
            subprocess.run(["cp", "-a", trial.furnished, trial.place], check=True)
            words = " ".join(commands()[name])
            script = f"{sys.executable} -m tinydiff {words} {streams}; exit ${{PIPESTATUS[0]}}"
            done = subprocess.run(
                ["bash", "-c", script], cwd=trial.place, env=environment, capture_output=True, timeout=120
            )
            text = (done.stderr + done.stdout).decode(errors="replace")
            if "Traceback" in text or "Exception ignored" in text or done.returncode not in (0, 1, 2, 141):
                failures.append(f"{name} {streams}: status {done.returncode}, {shown(text[-300:])}")
    say(f"{len(names) * (len(STREAMS) - 1)} odd streams: {len(failures)} failures")
    return failures


def run(
    folder: Path, seed: int, share: float, only: str | None = None, say: Callable[[str], None] = print
) -> list[str]:
    """The campaign, or a random share of it; what went wrong, a line each."""
    trial, rng, failures = Trials(folder), random.Random(seed), list[str]()
    for name, words in commands().items():
        if only not in (None, name):
            continue
        results = Counter[str]()
        assert (found := trial.attempt(words)) == "0", (name, found)
        for call in trials(name, words):
            if rng.random() >= share:
                continue
            result = trial.attempt(call, check=True)
            results[result if len(result) == 1 else "failures"] += 1
            if len(result) > 1:
                odd = [word for word in call if word not in words] or call
                failures.append(f"{name} {[shown(w, 60) for w in odd]}: {result}")
        say(f"{name:<10} {dict(sorted(results.items()))}")
    return failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the calls")
    parser.add_argument("--only", metavar="COMMAND")
    parser.add_argument("--streams", action="store_true", help="odd streams only")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if arguments.streams:
            failures = stream_trials(
                Trials(Path(name)), [arguments.only] if arguments.only else list(commands()), print
            )
        else:
            failures = run(Path(name), arguments.seed, arguments.share, arguments.only)
    print(*failures, f"{len(failures)} failures", sep="\n")
    raise SystemExit(bool(failures))
