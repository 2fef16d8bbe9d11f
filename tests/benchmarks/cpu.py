"""tinydiff against PyTorch on the CPU: training steps, small batches, forward passes, memory, start-up, sampling, scaling.

    python -m tests.benchmarks.cpu [--only steps,small,forward,memory,import,sampling,scaling] [--rounds 7] [--threads N]

Needs PyTorch and diffusers (the extra `parity`). The competitor is diffusers' UNet2DModel with the weights of the tinydiff
network and the same batch. Of eager PyTorch in its usual layout and in channels-last the faster counts, in float32, and for
training steps under torch.autocast in bfloat16 too. tinydiff's loop is a user's own without a special call: neither library
is told a number of threads, unless by --threads. Competitors have turns in one process, and figures are medians. Prints
tables and writes a file in tests/benchmarks/results: cpu.json, or cpu_avx2.json where OpenBLAS does not use AVX-512. Nothing
else should run meanwhile. On two cores steps, small, forward and memory take some seven minutes, the rest as long again.

With AVX-512, this measures what the other file holds, with --json for its name:

    OPENBLAS_CORETYPE=Haswell ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python -m tests.benchmarks.cpu
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import tinydiff as td
from tests.benchmarks.contests import LAYOUTS, compare, progress, tinydiff_network, tinydiff_step, torch_step
from tinydiff.bench.torch import diffusers_unet
from tinydiff.cli.bench import describe
from tinydiff.cpu.blas import has_small_products
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.machine.threads import available
from tinydiff.runs.memory import show

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests/benchmarks/results"
SECTIONS = ("steps", "small", "forward", "memory", "import", "sampling", "scaling")
W0 = {
    "image_size": 28, "in_channels": 1, "channels": 32, "channel_mults": (1, 2, 2), "blocks_per_level": 1,
    "attention_resolutions": (14,),
}  # fmt: skip
W1 = {
    "image_size": 32, "in_channels": 1, "channels": 32, "channel_mults": (1, 2, 2), "blocks_per_level": 2,
    "attention_resolutions": (16,),
}  # fmt: skip
W2 = {
    "image_size": 32, "in_channels": 3, "channels": 128, "channel_mults": (1, 2, 2, 2), "blocks_per_level": 2,
    "attention_resolutions": (16,),
}  # fmt: skip
NETWORKS = {"W0": (W0, 32), "W1": (W1, 64), "W2": (W2, 8)}  # settings, and the batch to train with
SMALL_BATCHES = 1, 2, 4, 8  # of W1


# ----------------------------------------------------------------------------------------------------------- the sections


def steps(options):
    return [_compare(options, name, settings, n, "step", bf16=True) for name, (settings, n) in NETWORKS.items()]


def small(options):
    """Training steps of W1 with few images."""
    return [_compare(options, "W1", NETWORKS["W1"][0], n, "step") for n in SMALL_BATCHES]


def forward(options):
    return [
        _compare(options, name, settings, n, "forward")
        for name, (settings, batch) in NETWORKS.items()
        for n in (batch, 1)
    ]


def _compare(options, network, settings, n, what, bf16=False):
    name = f"{network} {'training step' if what == 'step' else what}, batch {n}"
    return compare(name, settings, n, what, options.threads, options.rounds, options.compile, bf16)


SAMPLE_WITH_DIFFUSERS = """
import sys
import torch
from PIL import Image
from diffusers import DDIMScheduler, UNet2DModel
torch.set_num_threads(int(sys.argv[3]))
unet = UNet2DModel.from_pretrained(sys.argv[1], subfolder="unet")
if sys.argv[4] == "channels last":
    unet = unet.to(memory_format=torch.channels_last)
scheduler = DDIMScheduler.from_pretrained(sys.argv[1], subfolder="scheduler")
scheduler.set_timesteps(50)
x = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t).sample, t, x, eta=0.0).prev_sample
pixels = ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)[:, 0]
sheet = pixels.reshape(8, 8, 28, 28).permute(0, 2, 1, 3).reshape(224, 224)
Image.fromarray(sheet.numpy()).save(sys.argv[2])
"""


def sampling(options):
    """64 glyphs in 50 steps of DDIM, as whole commands with their start-up, from one checkpoint folder."""
    threads = options.threads or available()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "glyphs"
        td.checkpoint.Pipeline(tinydiff_network(W0), Diffusion(Schedule.linear(), "v")).save(place)
        words = [
            "--n",
            "64",
            "--steps",
            "50",
            "--threads",
            str(threads),
            "--out",
            str(Path(folder) / "ours.png"),
        ]
        commands = {"tinydiff": [sys.executable, "-m", "tinydiff", "sample", str(place), *words]}
        for layout in LAYOUTS:
            arguments = [str(place), str(Path(folder) / "theirs.png"), str(threads), layout]
            commands[layout] = [sys.executable, "-c", SAMPLE_WITH_DIFFUSERS, *arguments]
        once = alternate(commands, 1)
        slower = max(LAYOUTS, key=once.get)
        del commands[slower]  # to save minutes; its one turn is reported
        seconds = {slower: once[slower]} | alternate(commands, options.rounds)
    row = {"name": "64 glyphs, 50 steps, whole command", "threads": threads, "seconds": seconds}
    row["times_torch"] = min(seconds[layout] for layout in LAYOUTS) / seconds["tinydiff"]
    progress(f"sampling: {seconds}; {row['times_torch']:.2f} times PyTorch")
    return [row]


def alternate(commands, rounds):
    """Median seconds of commands that have turns."""
    seconds = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            start = time.perf_counter()
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            seconds[name].append(time.perf_counter() - start)
            if done.returncode:
                raise SystemExit(f"{name} failed: {done.stderr}")
    return {name: statistics.median(runs) for name, runs in seconds.items()}


MEMORY = """
import json, sys
from tests.benchmarks import cpu
settings, n, threads, who = json.loads(sys.argv[1])
print(json.dumps(cpu.peak_of_steps(settings, n, threads, who)))
"""


def peak_of_steps(settings, n, threads, who):
    """Bytes that three training steps add to what the process holds after its imports; runs in a process of its own."""
    from tinydiff.machine import limits

    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    if who == "tinydiff":
        from tinydiff.runs import trainer  # noqa: F401  what a run imports

        if threads is not None:
            td.set_threads(threads)
        before = limits.resident()
        step = tinydiff_step(tinydiff_network(settings), settings, n)
        for _ in range(3):
            step()
        return limits.peak_resident() - before
    import torch

    layout = torch.channels_last if who == "channels last" else torch.contiguous_format
    network = diffusers_unet({**settings, "channels": 32, "channel_mults": (1,), "attention_resolutions": ()})
    del network  # diffusers imports what it needs when the first network is made
    if threads is not None:
        torch.set_num_threads(threads)
    before = limits.resident()
    step = torch_step(diffusers_unet(settings).to(memory_format=layout), settings, n, layout)
    for _ in range(3):
        step()
    return limits.peak_resident() - before


COMPETITORS = ("tinydiff", *LAYOUTS)


def memory(options, cases=None, competitors=COMPETITORS):
    rows = []
    for name, (settings, n) in (cases or NETWORKS).items():
        peaks = {}
        for who in competitors:
            words = json.dumps([settings, n, options.threads, who])
            done = subprocess.run([sys.executable, "-c", MEMORY, words], cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{who} failed: {done.stderr}")
            peaks[who] = int(done.stdout)
        best = min(peak for who, peak in peaks.items() if who != "tinydiff")
        rows.append({"name": f"{name} training step, batch {n}", "threads": options.threads, "bytes": peaks,
                     "share_of_torch": peaks["tinydiff"] / best})  # fmt: skip
        progress(f"memory {name}: {', '.join(f'{who} {show(peak)}' for who, peak in peaks.items())}")
    return rows


def start_up(options):
    """Time to import, as whole processes, less that of an interpreter that imports nothing."""
    names = ("pass", "import numpy", "import tinydiff", "import tinydiff.cli", "import torch",
             "from diffusers import UNet2DModel")  # fmt: skip
    seconds = alternate({name: [sys.executable, "-c", name] for name in names}, max(options.rounds, 5))
    empty = seconds.pop("pass")
    rows = [{"name": name, "seconds": value - empty} for name, value in seconds.items()]
    progress("import: " + ", ".join(f"{row['name']} {row['seconds']:.2f} s" for row in rows))
    return rows


SCALES = {  # what varies, its values, and how the settings and the batch follow
    "batch": ((1, 4, 16, 64), lambda v: (W1, v)),
    "image size": ((8, 16, 32, 64), lambda v: ({**W1, "image_size": v, "attention_resolutions": (v // 4,)}, 8)),
    "channels": ((32, 64, 128), lambda v: ({**W1, "channels": v}, 8)),
}


def scaling(options):
    """Training steps of W1 with one thing varied: seconds and bytes for each image, and their power law."""
    results = []
    for what, (values, make) in SCALES.items():
        rows = []
        for value in values:
            settings, n = make(value)
            row = compare(f"{what} {value}", settings, n, "step", options.threads, options.rounds)
            peaks = memory(options, {f"{what} {value}": (settings, n)}, COMPETITORS[:2])[0]["bytes"]
            best = min(LAYOUTS, key=lambda key: row["seconds"][key])
            rows.append({
                "value": value, "batch": n, "times_torch": row["times_torch"],
                "seconds_per_image": {"tinydiff": row["seconds"]["tinydiff"] / n, "torch": row["seconds"][best] / n},
                "bytes": {"tinydiff": peaks["tinydiff"], "torch": peaks["channels first"]},
            })  # fmt: skip
        exponents = {
            f"{figure} of {who}": power(values, [row[figure][who] for row in rows])
            for figure in ("seconds_per_image", "bytes")
            for who in ("tinydiff", "torch")
        }
        results.append({"what": what, "rows": rows, "exponents": exponents})
    rows = [{"value": k, **compare(f"threads {k}", W1, 16, "step", k, options.rounds)} for k in (1, 2)]
    results.append({"what": "threads", "rows": rows})
    return results


def power(xs, ys):
    """The exponent p of the power law y = c x^p that fits best in logarithms."""
    return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


# ------------------------------------------------------------------------------------------------------------- the report


def table(section, rows):
    lines = [f"\n{section}"]
    if section == "import":
        lines += [f"  {row['name']:<36}{row['seconds']:8.2f} s" for row in rows]
    elif section == "memory":
        lines += [f"  {row['name']:<36}" + "".join(f"{who} {show(b):>9}   " for who, b in row["bytes"].items())
                  + f"{row['share_of_torch']:.2f} of PyTorch's" for row in rows]  # fmt: skip
    elif section == "scaling":
        for part in rows:
            lines.append(f"  {part['what']}")
            for row in part["rows"]:
                if "seconds" in row:
                    lines.append(f"  {row['value']:>8}  tinydiff {1e3 * row['seconds']['tinydiff']:8.1f} ms a step"
                                 f"   {row['times_torch']:5.2f} times PyTorch")  # fmt: skip
                    continue
                t, b = row["seconds_per_image"], row["bytes"]
                lines.append(
                    f"  {row['value']:>8}  tinydiff {1e3 * t['tinydiff']:8.2f} ms an image {show(b['tinydiff']):>9}   "
                    f"PyTorch {1e3 * t['torch']:8.2f} ms {show(b['torch']):>9}   {row['times_torch']:5.2f} times PyTorch"
                )
            for name, exponent in part.get("exponents", {}).items():
                lines.append(f"            {name:<32} grows as {part['what']}^{exponent:.2f}")
    else:
        for row in rows:
            times = "".join(f"{who} {1e3 * s:7.0f} ms   " for who, s in row["seconds"].items())
            bf16 = f", {row['times_bf16']:.2f} times its bf16" if "times_bf16" in row else ""
            lines.append(f"  {row['name']:<36}{times}{row['times_torch']:.2f} times PyTorch{bf16}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, of " + ",".join(SECTIONS))
    parser.add_argument("--threads", type=int, help="for both [as many as each takes when it is told nothing]")
    parser.add_argument(
        "--rounds", type=int, default=7, help="turns of each competitor, at least 7 for figures to quote [7]"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile as well, which takes minutes to compile")
    result_file = RESULTS / ("cpu.json" if has_small_products() else "cpu_avx2.json")
    parser.add_argument("--json", type=Path, default=result_file, help="where to write [%(default)s]")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := sorted(set(chosen) - set(SECTIONS)):
        parser.error(f"there is no section {unknown[0]}; there are {', '.join(SECTIONS)}")
    import diffusers
    import torch

    about = describe("cpu", options.threads or available(), torch) | {"diffusers": diffusers.__version__}
    result = {"command": "python -m tests.benchmarks.cpu " + " ".join(sys.argv[1:]), "machine": about, "sections": {}}
    functions = {"steps": steps, "small": small, "forward": forward, "memory": memory, "import": start_up,
                 "sampling": sampling, "scaling": scaling}  # fmt: skip
    begun = time.perf_counter()
    for section in (name for name in SECTIONS if name in chosen):
        progress(f"== {section}")
        result["sections"][section] = functions[section](options)
        result["seconds"] = time.perf_counter() - begun
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")  # also if a later one fails
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    for section, rows in result["sections"].items():
        print(table(section, rows))
    print(f"\n{result['seconds']:.0f} s in all; written to {options.json}")


if __name__ == "__main__":
    main()
