"""Training on several processes: how it scales, what a sum over ranks costs, and whether that hides behind backward passes.

    python -m tests.benchmarks.scale [--quick] [--page]

Needs mpi4py, an mpiexec, and two processors that nothing else uses; it takes about ten minutes there. Prints tables and writes
scale.json and scale.md, a page with what follows from it, to tests/benchmarks/results/. --quick takes a tiny network and few steps,
to try the script itself, and writes nothing. --page makes the page again from the figures that are there.

Figures are medians over steps of two rounds, in which the layouts have turns. A layout "2x1" is two processes of one thread each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.benchmarks import scale_page
from tinydiff.machine import limits

RESULT = Path(__file__).parent / "results/scale.json"
W1 = {
    "image_size": 32, "in_channels": 1, "channels": 32, "channel_mults": (1, 2, 2), "blocks_per_level": 2,
    "attention_resolutions": (16,),
}  # fmt: skip
W2 = W1 | {"in_channels": 3, "channels": 128, "channel_mults": (1, 2, 2, 2)}  # those of cpu.py
TINY = W1 | {"image_size": 8, "channels": 8, "channel_mults": (1, 2), "attention_resolutions": (4,)}
LAYOUTS = {"1x1": (1, 1), "1x2": (1, 2), "2x1": (2, 1)}
SIZES = [1 << n for n in range(12, 28, 3)]  # bytes of a sum
FULL = {
    "W1": (W1, {"1x1": [2, 4, 8, 16, 32, 64], "1x2": [2, 4, 8, 16, 32, 64], "2x1": [2, 4, 8, 16, 32, 64, 128]}),
    "W2": (W2, {"1x1": [4], "1x2": [4], "2x1": [4, 8]}),
}
QUICK = {"W1": (TINY, {"1x1": [2, 4], "1x2": [2, 4], "2x1": [2, 4, 8]}), "W2": (TINY, {"1x1": [4], "2x1": [4, 8]})}
SECONDS = {False: 5.0, True: 0.2}  # for the steps of one batch size, in one round


# -------------------------------------------------------------------------------------------- in the processes


def trainer_of(settings, batch_size, threads, out):
    import tinydiff as td
    from tinydiff.diffusion import Diffusion, Schedule

    size, channels = settings["image_size"], settings["in_channels"]
    images = np.random.default_rng(0).integers(0, 256, (64, size, size, channels), np.uint8)
    unet = td.UNet(**settings, groups=8, generator=td.random.Generator(0))
    config = td.TrainConfig(out=out, batch_size=batch_size, threads=threads, device="cpu", steps=10**6)
    return td.Trainer(unet, Diffusion(Schedule.linear(1000)), td.data.Dataset(images), config)


def timed(world, seconds, work):
    """Seconds of one `work()` after another, the slowest rank's; at least three of them, at most forty."""
    work()
    times = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 40):
        world.wait()
        start = time.perf_counter()
        work()
        times.append(max(world.gather(time.perf_counter() - start)))
    return times


def measure_steps(job, world):
    """Times of training steps, and the parts of them that rank 0 waited for others and exchanged gradients."""
    from tinydiff.machine import threads

    spent = {"wait": [], "sum": []}

    def watched(name):
        work = getattr(world, name)

        def watch(*arguments):
            start = time.perf_counter()
            work(*arguments)
            spent[name].append(time.perf_counter() - start)

        return watch

    found = []
    for batch_size in job["batches"]:
        with tempfile.TemporaryDirectory() as out, threads.threads(job["threads"]):
            trainer, step = trainer_of(job["settings"], batch_size, job["threads"], out), [0]
            if world.size > 1:
                trainer._gradients.world = _Watched(world, watched)

            def one(trainer=trainer, step=step):
                step[0] += 1
                trainer.train_step(step[0])

            spent["wait"].clear()
            spent["sum"].clear()
            times = timed(world, job["seconds"], one)
            parts = {name: statistics.median(values[1:]) if values[1:] else 0.0 for name, values in spent.items()}
            size = sum(p.data.nbytes for p in trainer.parameters)
            found.append({"batch": batch_size, "times": times, **parts, "gradient_bytes": size})
    return found


class _Watched:
    """The ranks, with what `watched` puts in the place of waiting and adding up."""

    def __init__(self, world, watched):
        self._world, self.wait, self.sum = world, watched("wait"), watched("sum")

    def __getattr__(self, name):
        return getattr(self._world, name)


def measure_sums(job, world):
    """Seconds of a sum over ranks, by bytes."""
    found = []
    for size in job["sizes"]:
        array = np.ones(size // 4, np.float32)
        found.append({"bytes": size, "seconds": statistics.median(timed(world, 0.5, lambda a=array: world.sum([a])))})
    return found


def measure_overlap(job, world):
    """What of an exchange hides behind products of matrices, as backward passes are made of: not at all if MPI moves bytes only
    inside its calls; more where it is asked between the products whether it is done ("asked")."""
    from mpi4py import MPI

    comm, a = MPI.COMM_WORLD, np.ones((256, 256), np.float32)
    sent, received = np.ones(job["bytes"] // 4, np.float32), np.empty(job["bytes"] // 4, np.float32)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 0.05:
        a @ a
        count += 1

    def compute(request=None):
        for _ in range(count):
            a @ a
            if request is not None:
                request.Test()

    def both(asked):
        request = comm.Ialltoall(sent, received)
        compute(request if asked else None)
        request.Wait()

    works = {
        "compute": compute, "exchange": lambda: comm.Alltoall(sent, received), "both": lambda: both(False),
        "asked": lambda: both(True),
    }  # fmt: skip
    return {name: statistics.median(timed(world, job["seconds"], work)) for name, work in works.items()} | {
        "bytes": job["bytes"]
    }


def work_as_rank(text):
    from tinydiff.ranks import world

    job, ranks = json.loads(text), world()
    with ranks.working():
        found = {"steps": measure_steps, "sums": measure_sums, "overlap": measure_overlap}[job["what"]](job, ranks)
    if ranks.rank == 0:
        print("RESULT " + json.dumps(found), flush=True)


# ------------------------------------------------------------------------------------------------ all together


def run(ranks, **job):
    """What `job` measures with so many ranks."""
    launcher = ["mpiexec", "-n", str(ranks)] if ranks > 1 else []
    command = [*launcher, sys.executable, "-m", "tests.benchmarks.scale", "--rank", json.dumps(job)]
    environment = os.environ | {"OMP_NUM_THREADS": str(job.get("threads", 1))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        sys.exit(f"{' '.join(command)} failed with status {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(lines[0].removeprefix("RESULT "))


def flops_of(settings):
    """Of the forward pass of one image."""
    import tinydiff as td
    from tinydiff.autograd.tape import no_grad
    from tinydiff.study import trace

    unet = td.UNet(**settings, groups=8, generator=td.random.Generator(0))
    size = settings["image_size"]
    with no_grad(), trace(values=0) as recorded:
        unet(np.zeros((1, size, size, settings["in_channels"]), np.float32), 1)
    return recorded.cost().total.flops[0]


def measure(quick):
    plan, seconds = (QUICK if quick else FULL), SECONDS[quick]
    steps, networks = {}, {}
    for name, (settings, layouts) in plan.items():
        networks[name] = {"flops": flops_of(settings)}
        for _ in range(1 if quick or name == "W2" else 2):
            for layout, batches in layouts.items():
                ranks, threads = LAYOUTS[layout]
                print(f"{name} {layout} ...", file=sys.stderr, flush=True)
                job = {"settings": settings, "batches": batches, "threads": threads, "seconds": seconds}
                for row in run(ranks, what="steps", **job):
                    networks[name]["gradient_bytes"] = row["gradient_bytes"]
                    steps.setdefault((name, layout, row["batch"]), []).append(row)
    print("sums, overlap ...", file=sys.stderr, flush=True)
    sums = run(2, what="sums", sizes=SIZES[:3] if quick else SIZES)
    overlap = [run(2, what="overlap", bytes=size, seconds=seconds) for size in (1 << 20, 8 << 20)]
    rows = []
    for (name, layout, batch), found in steps.items():
        times = [t for row in found for t in row["times"]]
        waited, summed = (statistics.mean(row[part] for row in found) for part in ("wait", "sum"))
        rows.append(
            {
                "network": name, "layout": layout, "batch": batch, "seconds": statistics.median(times),
                "fastest": min(times), "steps": len(times), "wait": waited, "sum": summed,
            }
        )  # fmt: skip
    machine = {"processor": limits.processor_name(), "processors": limits.processors()}
    return {"machine": machine, "networks": networks, "steps": rows, "sums": sums, "overlap": overlap}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        return work_as_rank(options.rank)
    if not (options.quick or options.page) and limits.processors() < 2:
        sys.exit("two processors are needed, and this process may use one")
    start = time.monotonic()
    found = json.loads(RESULT.read_text()) if options.page else measure(options.quick)
    found["fitted"] = scale_page.fit(found["sums"])
    found["predicted"] = scale_page.predictions(found)
    page = scale_page.page(found)
    print(page)
    if not options.quick:
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        RESULT.with_suffix(".md").write_text(page, encoding="utf-8")
        print(f"the largest batch that gained: {scale_page.largest_gaining_batch(found)}", file=sys.stderr)
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)
    return None


if __name__ == "__main__":
    main()
