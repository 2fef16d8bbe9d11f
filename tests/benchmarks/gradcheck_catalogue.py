"""The proof of the gradient checker: planted bugs found and named, right operations left alone, on many seeds.

    python tests/benchmarks/gradcheck_catalogue.py --seeds 1000 --out tests/benchmarks/results/gradcheck_catalogue.md
    python tests/benchmarks/gradcheck_catalogue.py --seeds 1000 --only right --out tests/benchmarks/results/gradcheck_right.md

Each seed draws other inputs, cotangents and directions. Every tenth seed runs a second time with backward in float32, as
kernels do. One process; a line is written to --progress after each seed, and the same command goes on from there.
What other checkers find of the same bugs: gradcheck_elsewhere.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "gradcheck")]

from homework import PAIRS  # noqa: E402
from planted import CATALOGUE  # noqa: E402
from right_operations import cases  # noqa: E402

from tinydiff.gradcheck import GradientError, gradcheck  # noqa: E402

SINGLE_EVERY = 10
# float32 holds no digit of what these come down to: a wrong constant in the seventh, 1 - y at y = 1
BELOW_SINGLE = ("NormalDensityConstant", "GaussianInSingle", "LayerNormEps", "saturated")


def check_planted(seed, dtype=np.float64):
    """{name: the code of the first diagnosis, None if not found}."""
    found = {}
    for planted in CATALOGUE:
        if dtype == np.float32 and planted.name in BELOW_SINGLE:
            continue
        try:
            inputs = planted.inputs(np.random.default_rng(seed))
            gradcheck(planted.function, inputs, seed=seed, dtype=dtype, **planted.options)
            found[planted.name] = None
        except GradientError as error:
            found[planted.name] = error.report.diagnosis
    return found


def check_right(seed, dtype=np.float64):
    """{name: the diagnosis} of the right operations that were accused, and how many were checked."""
    accused, count = {}, 0
    for right in cases(seed):
        if dtype == np.float32 and right.name in BELOW_SINGLE:
            continue
        count += 1
        try:
            gradcheck(right.fn, right.inputs, seed=seed, name=right.name, dtype=dtype, sizes=True, **right.options)
        except GradientError as error:
            accused[right.name] = error.report.diagnosis
    return accused, count


def check_homework(seed):
    """{name: the diagnosis} of the right passes written by hand that were accused."""
    accused = {}
    for pair in PAIRS:
        try:
            inputs = pair.inputs(np.random.default_rng(seed))
            with np.errstate(all="ignore"):
                gradcheck(pair.forward, inputs, backward=pair.backward, seed=seed, **pair.options)
        except GradientError as error:
            accused[pair.name] = error.report.diagnosis
    return accused


def one_seed(seed, only_right=False):
    start = time.process_time()
    result = {"seed": seed, "planted": {} if only_right else check_planted(seed)}
    result["accused"], result["right"] = check_right(seed)
    result["homework"] = check_homework(seed)
    if seed % SINGLE_EVERY == 0:
        result["planted32"] = {} if only_right else check_planted(seed, np.float32)
        result["accused32"], result["right32"] = check_right(seed, np.float32)
    return {**result, "seconds": time.process_time() - start}


def machine():
    """The processor's name and how many cores are used of it, as the operating system gives them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, one of {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}"


def percent(part, whole):
    return f"{100 * part / whole:.4g} %"


def named_counts(accused):
    return f" ({', '.join(f'{name}: {n}' for name, n in accused.most_common())})" if accused else ""


def homework_summary(results):
    accused = Counter(name for r in results for name in r["homework"])
    checked = len(PAIRS) * len(results)
    return (
        f"- {len(PAIRS)} right passes written by hand x {len(results)} seeds, with default arguments: "
        f"{sum(accused.values())} of {checked} accused{named_counts(accused)}."
    )


def summary(results, suffix, bugs):
    """Up to two sentences: planted bugs found and named, right operations accused."""
    runs = [r["planted" + suffix] for r in results]
    total = sum(map(len, runs))
    found = sum(code is not None for run in runs for code in run.values())
    expected = {p.name: p.expected for p in CATALOGUE}
    named = sum(code == expected[name] for run in runs for name, code in run.items())
    accused = Counter(name for r in results for name in r["accused" + suffix])
    checked = sum(r["right" + suffix] for r in results)
    who = named_counts(accused)
    planted = [
        f"- {bugs} planted bugs x {len(results)} seeds: {found} of {total} found, {named} "
        f"({percent(named, max(total, 1))}) with the right diagnosis first.",
    ]
    return [
        *(planted if total else []),
        f"- {checked // len(results)} right operations x {len(results)} seeds: {sum(accused.values())} of {checked} "
        f"accused{who}.",
    ]


def report(results, only_right=False):
    """The Markdown of the result."""
    single = [r for r in results if "planted32" in r]
    diagnoses = defaultdict(Counter)
    for r in results:
        for name, code in r["planted"].items():
            diagnoses[name][code] += 1
    minutes = sum(r["seconds"] for r in results) / 60
    only = " --only right" if only_right else ""
    bugs32 = len(CATALOGUE) - sum(p.name in BELOW_SINGLE for p in CATALOGUE)
    lines = [
        "# The gradient checker " + ("on right passes" if only_right else "against planted bugs"),
        "",
        f"`python tests/benchmarks/gradcheck_catalogue.py --seeds {len(results)}{only}`, {minutes:.0f} minutes of processor",
        f"time on {machine()}.",
        "",
        *summary(results, "", len(CATALOGUE)),
        homework_summary(results),
        "",
        f"With backward in float32 (`dtype=np.float32`), every {SINGLE_EVERY}th seed, without {', '.join(BELOW_SINGLE)}, which",
        "float32 holds no digits of:",
        "",
        *(summary(single, "32", bugs32) if single else ["- no seed yet"]),
    ]
    if only_right:
        return "\n".join(lines) + "\n"
    lines += [
        "",
        "| planted bug | the slip | right diagnosis | found | first diagnoses given |",
        "|---|---|---|---|---|",
    ]
    for p in CATALOGUE:
        codes = ", ".join(f"{code} {percent(n, len(results))}" for code, n in diagnoses[p.name].most_common() if code)
        found = percent(len(results) - diagnoses[p.name][None], len(results))
        lines.append(f"| {p.name} | {p.slip} | {p.expected} | {found} | {codes} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the seed to begin with; those before it come last")
    parser.add_argument("--progress", type=Path, default=Path("gradcheck_catalogue.jsonl"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=["right"], help="right passes alone: how often the innocent are accused")
    args = parser.parse_args()
    only_right = args.only == "right"
    results = []
    if args.progress.exists():
        results = [json.loads(line) for line in args.progress.read_text(encoding="utf-8").splitlines()]
        results = [r for r in results if r["seed"] < args.seeds]
    done = {r["seed"] for r in results}
    with args.progress.open("a", encoding="utf-8") as file:
        for seed in (*range(args.first, args.seeds), *range(min(args.first, args.seeds))):
            if seed not in done:
                results.append(one_seed(seed, only_right))
                file.write(json.dumps(results[-1]) + "\n")
                file.flush()
    text = report(results, only_right)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
