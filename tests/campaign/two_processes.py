"""Two processes on one run folder: while a run lives, others are refused and damage nothing.

    python -m tests.campaign.two_processes [--trials N]

A run trains in one process. In each trial two others start at the same moment, `--resume` and `--force`. Counted as a failure: a
status other than 2, and a process that has not ended after `PATIENCE` seconds, which is killed. At the end the living run is
stopped, and its checkpoint and each row of its log must be there. POSIX only.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.campaign.crashes import FLAGS, forked_quiet
from tinydiff.cli import main
from tinydiff.runs import checkpoint
from tinydiff.runs.log import read_log

PATIENCE = 60


def started(arguments: list[str]) -> int:
    """The process that runs a command."""
    if (child := os.fork()) == 0:
        status = [99]
        try:
            forked_quiet(lambda: status.__setitem__(0, main(arguments)))
        finally:
            os._exit(status[0])
    return child


def ended(child: int) -> int:
    """The exit status of a process; 128 + the signal that killed it, which is SIGKILL where it took too long."""
    until = time.monotonic() + PATIENCE
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            done = os.waitpid(child, 0)
            break
        time.sleep(0.01)
    status = os.waitstatus_to_exitcode(done[1])
    return 128 - status if status < 0 else status


def run(folder: Path, trials: int) -> list[str]:
    """So many trials; what went wrong, a line each."""
    data, out, failures = folder / "data.npy", folder / "run", []
    np.save(data, np.random.default_rng(0).integers(0, 256, (8, 8, 8), dtype=np.uint8))
    fresh = ["train", "--out", str(out), "--data", str(data), "--steps", "1000000", *FLAGS]
    fresh[fresh.index("--preview-every") + 1] = "0"
    living = started(fresh)
    until = time.monotonic() + PATIENCE
    while not (out / "config.toml").exists():
        if time.monotonic() > until:
            os.kill(living, signal.SIGKILL)
            return [f"the run that was to live had not begun after {PATIENCE} s: status {ended(living)}"]
        time.sleep(0.05)
    for trial in range(trials):
        others = {"--resume": ["train", "--resume", "--out", str(out)], "--force": [*fresh, "--force"]}
        children = {name: started(arguments) for name, arguments in others.items()}
        for name, child in children.items():
            if (status := ended(child)) != 2:
                failures.append(f"trial {trial}: {name} ended with status {status}")
    os.kill(living, signal.SIGTERM)
    if (status := ended(living)) != 128 + signal.SIGTERM:
        failures.append(f"the living run ended with status {status}")
    step = checkpoint.read_step(out)
    checkpoint.load(out)
    if not step or [int(row["step"]) for row in read_log(out / "log.csv")] != list(range(1, step + 1)):
        failures.append(f"the log does not hold the rows of the {step} steps that are saved")
    return failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        failures = run(Path(name), arguments.trials)
    print(*failures, f"{arguments.trials} trials of two processes: {len(failures)} failures", sep="\n")
    raise SystemExit(bool(failures))
