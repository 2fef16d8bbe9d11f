"""Two checkouts of tinydiff in turns: is this one slower anywhere than another?

    python -m tests.benchmarks.against CHECKOUT [--rounds 15] [--threads 2] [--only WORD] [--json FILE]

Each checkout works in a process of its own. For every operation of `tinydiff bench`, and for the training steps and forward
passes of the two networks of `tests/benchmarks/cpu.py`, the processes have turns: here, there, there, here. A third process, of
CHECKOUT again, has its turns as well: how far two processes of the same code are apart is what a difference means nothing
below. Exit status 1 if a row is slower by more than that and by more than 2 %. Nothing else should run meanwhile.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from tinydiff.cli.bench import describe

ROOT = Path(__file__).parents[2]
LEAST = 0.02  # a difference that counts, as a share

# A worker prints the names of its rows, then answers each name with the seconds of one turn. It runs in any layout of the
# package: where operations used several threads only when told so, they are told.
WORKER = """
import json, sys, time
sys.path.insert(0, ".")
import numpy as np
import tinydiff as td
from tinydiff import ops, optim
from tinydiff.bench.cases import all_cases
if hasattr(td, "set_threads"):  # a loop as a user writes it
    from contextlib import nullcontext
    threads = lambda n: nullcontext(td.set_threads(n))
else:
    try:
        from tinydiff.machine.threads import threads
    except ImportError:
        from tinydiff.workers import threads
W1 = dict(image_size=32, in_channels=1, channels=32, channel_mults=(1, 2, 2), blocks_per_level=2, attention_resolutions=(16,))
W2 = dict(W1, in_channels=3, channels=128, channel_mults=(1, 2, 2, 2))

def network(settings, n, step):
    unet, rng = td.UNet(**settings), np.random.default_rng(0)
    for p in unet.parameters():
        p.data += (0.02 * rng.standard_normal(p.shape)).astype(np.float32)
    x, eps = (rng.standard_normal((n, 32, 32, settings["in_channels"])).astype(np.float32) for _ in range(2))
    t, optimizer = np.arange(1, n + 1), optim.Adam(list(unet.parameters()), 1e-4)
    def train():
        optimizer.zero_grad()
        ops.mse_loss(unet.train()(x, t), eps).backward()
        optimizer.step()
    def forward():
        with td.no_grad():
            unet.eval()(x, t)
    return train if step else forward

def operation(case, work=[]):
    work = case.work("cpu")
    def both():
        y = work.forward()
        if work.backward is not None:
            work.backward(y)
    return both

makers = {case.name: lambda case=case: operation(case) for case in all_cases()}
for name, settings, n in (("W1", W1, 64), ("W2", W2, 8)):
    makers[f"{name} training step"] = lambda s=settings, n=n: network(s, n, True)
    makers[f"{name} forward"] = lambda s=settings, n=n: network(s, n, False)
    makers[f"{name} forward, one image"] = lambda s=settings: network(s, 1, False)
with threads(int(sys.argv[1])):
    print(json.dumps(list(makers)), flush=True)
    current, work = None, None
    for line in sys.stdin:
        name = line.strip()
        if name != current:
            current, work = name, makers[name]()
            work()
            work()
        calls, start = 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - start < 0.02:
            work()
            calls += 1
        print((time.perf_counter() - start) / calls, flush=True)
"""


class Worker:
    """A process that runs the code of a checkout."""

    def __init__(self, checkout, threads):
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(threads)],
            cwd=checkout,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.rows = json.loads(self.process.stdout.readline())

    def turn(self, name):
        """Seconds of one call of the work of that name."""
        print(name, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(name, here, there, again, rounds):
    """Medians of the three, and the ratios: here to there, and there to itself."""
    seconds = {"here": [], "there": [], "again": []}
    workers = {"here": here, "there": there, "again": again}
    for worker in workers.values():
        worker.turn(name)
    for i in range(rounds):
        order = list(workers)[:: 1 if i % 2 == 0 else -1]
        for who in order:
            seconds[who].append(workers[who].turn(name))
    medians = {who: statistics.median(values) for who, values in seconds.items()}
    spread = abs(medians["again"] / medians["there"] - 1)
    ratio = statistics.median(a / b for a, b in zip(seconds["here"], seconds["there"], strict=True))
    return {"name": name, "seconds": medians, "times_as_long": ratio, "spread": spread,
            "slower": ratio - 1 > max(LEAST, spread)}  # fmt: skip


def commit(checkout):
    """The commit that a checkout is at."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkout", type=Path, help="the folder of the other checkout")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each process for each row [15]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="rows whose name has this")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    workers = [Worker(place, options.threads) for place in (ROOT, options.checkout, options.checkout)]
    rows = []
    print(f"{'':32}{'here ms':>10}{'there ms':>10}{'times as long':>15}{'to itself':>11}")
    for name in (name for name in workers[0].rows if name in workers[1].rows and options.only in name):
        row = compare(name, *workers, options.rounds)
        rows.append(row)
        here, there = (1e3 * row["seconds"][who] for who in ("here", "there"))
        print(f"{name:32}{here:10.2f}{there:10.2f}{row['times_as_long']:15.3f}{row['spread']:11.3f}"
              f"{'  SLOWER' if row['slower'] else ''}", flush=True)  # fmt: skip
    for worker in workers:
        worker.close()
    if options.json:
        words = ["CHECKOUT" if word == str(options.checkout) else word for word in sys.argv[1:]]
        result = {
            "command": " ".join(["python -m tests.benchmarks.against", *words]),
            "machine": describe("cpu", options.threads),
            "commits": {"here": commit(ROOT), "there": commit(options.checkout)},
            "rows": rows,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(any(row["slower"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
