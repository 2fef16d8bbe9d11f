"""Images a second of a whole training run: `tinydiff train` as README's first command has it, against a plain PyTorch loop.

    python -m tests.benchmarks.training [--seconds 20] [--rounds 7] [--batch 32]

Needs PyTorch and diffusers (the extra `parity`). Data, network, initial weights, clipping, learning rate and average are the same.
The loop is that of quality.py, which is diffusers' training script without what it does for several machines. Each contestant is a
command of its own, they have turns, and figures are medians. All their steps count, the first ones as well. Nothing else should
run meanwhile. Writes training.json into tests/benchmarks/results.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.contests import progress
from tinydiff.cli.bench import describe
from tinydiff.machine.threads import available
from tinydiff.runs.log import read_log

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "tests/benchmarks/results/training.json"
TINYDIFF, ONE_PROCESS, TORCH = "tinydiff train", "tinydiff train --processes 1", "PyTorch, float32"


def tinydiff(seconds, batch, *words):
    """Images a second of the command, which is stopped after so many seconds of steps."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable,
            "-m",
            "tinydiff",
            "train",
            "--data",
            "glyphs",
            "--out",
            str(run),
            "--batch-size",
            str(batch),
        ]
        command += ["--steps", "1000000", "--preview-every", "0", "--save-every", "1000000", *words]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while not (run / "log.csv").exists() and process.poll() is None:
                time.sleep(0.1)
            time.sleep(seconds)
            process.terminate()
        rows = read_log(run / "log.csv")
    return len(rows) / sum(1 / float(row["images_per_second"]) for row in rows)


def torch(seconds, batch):
    """The same of PyTorch's loop, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.training", "--loop", str(seconds), "--batch", str(batch)]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def loop(seconds, batch):
    """What the process of `torch` does. Imports do not count."""
    import diffusers.training_utils  # noqa: F401

    from tests.benchmarks.quality import train_torch
    from tinydiff.runs import building
    from tinydiff.runs.config import RunConfig

    data = building.load_data(RunConfig())
    config = building.resolve(RunConfig(label_dropout=0.0), data)
    unet, start = building.build_network(config, data), time.perf_counter()
    steps = train_torch(unet, data, 0, batch, seconds, bf16=False)
    print(steps * batch / (time.perf_counter() - start))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--loop", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.loop:
        return loop(options.loop, options.batch)
    contestants = {
        TINYDIFF: lambda: tinydiff(options.seconds, options.batch),
        ONE_PROCESS: lambda: tinydiff(options.seconds, options.batch, "--processes", "1"),
        TORCH: lambda: torch(options.seconds, options.batch),
    }
    found = {name: [] for name in contestants}
    for i in range(options.rounds):
        for name, contestant in contestants.items():
            found[name].append(contestant())
            progress(f"round {i + 1}: {name}: {found[name][-1]:.1f} images/s")
    medians = {name: statistics.median(speeds) for name, speeds in found.items()}
    times = {name: medians[name] / medians[TORCH] for name in (TINYDIFF, ONE_PROCESS)}
    command = f"python -m tests.benchmarks.training --seconds {options.seconds:g} --rounds {options.rounds} --batch {options.batch}"
    result = {
        "command": command,
        "machine": describe("cpu", available()),
        "images_per_second": found,
        "medians": medians,
        "times_torch": times,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(f"{name}: {speed:.1f} images/s" for name, speed in medians.items()))
    print(", ".join(f"{name}: {ratio:.2f} times PyTorch" for name, ratio in times.items()))
    return None


if __name__ == "__main__":
    main()
