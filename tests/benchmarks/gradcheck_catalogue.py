"""The proof of the gradient checker: planted bugs found and named, right operations left alone, on many seeds.

    python tests/benchmarks/gradcheck_catalogue.py --seeds 1000 --out tests/benchmarks/results/gradcheck_catalogue.md

Beside it, on fewer seeds, what finds the same bugs elsewhere: comparing all elements of the gradient of `.sum()` with
differences, and PyTorch's gradcheck in both its modes (columns left out where PyTorch is not installed). Those check the
same forward and backward functions at the same inputs; an exception counts as found.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import sys
import time
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "gradcheck")]

from planted import CATALOGUE  # noqa: E402
from right_operations import cases  # noqa: E402

from tinydiff.gradcheck import GradientError, gradcheck  # noqa: E402


def check_planted(seed):
    """{name: the code of the first diagnosis, None if not found}."""
    found = {}
    for planted in CATALOGUE:
        try:
            gradcheck(planted.function, planted.inputs(np.random.default_rng(seed)), seed=seed)
            found[planted.name] = None
        except GradientError as error:
            found[planted.name] = error.report.diagnosis
    return found


def check_right(seed):
    """The names of the right operations that were accused."""
    accused = []
    for right in cases(seed):
        try:
            gradcheck(right.fn, right.inputs, seed=seed, name=right.name, **right.options)
        except GradientError:
            accused.append(right.name)
    return accused


def apply(planted, arrays):
    """The outputs and the function that takes cotangents to gradients, without tinydiff's tape."""
    op = planted.function()
    op.needs, op.shapes = (True,) * len(arrays), tuple(a.shape for a in arrays)
    ys = op.forward(*arrays)
    several = isinstance(ys, tuple)

    def pull(*cotangents):
        grads = op.backward(*cotangents)
        return grads if isinstance(grads, tuple) else (grads,)

    return [np.asarray(y) for y in (ys if several else (ys,))], pull


def sum_finds(planted, seed):
    """Backward of y.sum() against central differences of it, element by element; rtol 1e-3, atol 1e-5."""
    arrays = planted.inputs(np.random.default_rng(seed))
    try:
        with np.errstate(all="ignore"):
            ys, pull = apply(planted, [a.copy() for a in arrays])
            grads = pull(*(np.ones(y.shape) for y in ys))
            for i, (a, g) in enumerate(zip(arrays, grads, strict=True)):
                numeric = np.empty(a.shape)
                for at in np.ndindex(a.shape):
                    totals = []
                    for step in (1e-6, -1e-6):
                        moved = [x.copy() for x in arrays]
                        moved[i][at] += step
                        totals.append(sum(y.sum() for y in apply(planted, moved)[0]))
                    numeric[at] = (totals[0] - totals[1]) / 2e-6
                if not np.allclose(np.asarray(g), numeric, rtol=1e-3, atol=1e-5) or np.shape(g) != a.shape:
                    return True
    except Exception:
        return True
    return False


def torch_finds(planted, seed, fast):
    """torch.autograd.gradcheck with its default tolerances."""
    import torch

    class Bridge(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):
            op = ctx.op = planted.function()
            op.needs, op.shapes = ctx.needs_input_grad, tuple(tuple(t.shape) for t in tensors)
            ys = op.forward(*(t.numpy() for t in tensors))
            made = tuple(torch.from_numpy(np.array(y)) for y in (ys if isinstance(ys, tuple) else (ys,)))
            return made if isinstance(ys, tuple) else made[0]

        @staticmethod
        def backward(ctx, *cotangents):
            grads = ctx.op.backward(*(c.numpy() for c in cotangents))
            grads = grads if isinstance(grads, tuple) else (grads,)
            return tuple(None if g is None else torch.from_numpy(np.array(g)) for g in grads)

    arrays = planted.inputs(np.random.default_rng(seed))
    torch.manual_seed(seed)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
            return not torch.autograd.gradcheck(Bridge.apply, tensors, fast_mode=fast, raise_exception=False)
        except Exception:
            return True


def percent(part, whole):
    return f"{100 * part / whole:.4g} %"


def report(args, planted_runs, accused, others, seconds):
    """The Markdown of the result."""
    seeds = args.seeds
    diagnoses = defaultdict(Counter)
    for run in planted_runs:
        for name, code in run.items():
            diagnoses[name][code] += 1
    bugs = len(CATALOGUE)
    missed = sum(diagnoses[p.name][None] for p in CATALOGUE)
    named = sum(diagnoses[p.name][p.expected] for p in CATALOGUE)
    count = len(list(cases(0)))
    lines = [
        "# The gradient checker against planted bugs",
        "",
        f"`python tests/benchmarks/gradcheck_catalogue.py --seeds {seeds} --other-seeds {args.other_seeds}`, "
        f"Python {platform.python_version()}, NumPy {np.__version__}, {seconds / 60:.0f} minutes, {args.workers} workers.",
        "",
        f"- {bugs} planted bugs x {seeds} seeds: {bugs * seeds - missed} of {bugs * seeds} found, "
        f"{named} ({percent(named, bugs * seeds)}) with the right diagnosis first.",
        f"- {count} right operations x {seeds} seeds: {sum(accused.values())} of {count * seeds} accused"
        + (f" ({', '.join(f'{n}: {c}' for n, c in accused.items())})." if accused else "."),
        "",
        f"Other checkers at the same inputs, {args.other_seeds} seeds; a bug counts by the share of seeds that find it.",
        "PyTorch's engine itself sums a gradient that was not summed over a broadcast axis, so most slips of the kind",
        "`broadcast` do no harm there.",
        "",
        "| bugs found | " + " | ".join([*others, "td.gradcheck"]) + " |",
        "|---|" + "---|" * (len(others) + 1),
    ]
    kinds = defaultdict(list)
    for p in CATALOGUE:
        kinds[p.expected].append(p)
    rows = [(kind, members) for kind, members in sorted(kinds.items(), key=lambda item: -len(item[1]))]
    for kind, members in [*rows, ("all", CATALOGUE)]:
        cells = [sum(found[p.name] for p in members) / args.other_seeds for found in others.values()]
        cells.append(sum(seeds - diagnoses[p.name][None] for p in members) / seeds)
        shown = " | ".join(f"{c:.3g}" for c in cells)
        lines.append(f"| {'**all**' if kind == 'all' else kind} (of {len(members)}) | {shown} |")
    lines += ["", "| planted bug | the slip | " + " | ".join(others) + " | td.gradcheck | diagnosis |"]
    lines.append("|---|---|" + "---|" * (len(others) + 2))
    for p in CATALOGUE:
        cells = [percent(found[p.name], args.other_seeds) for found in others.values()]
        codes = ", ".join(f"{code} {percent(n, seeds)}" for code, n in diagnoses[p.name].most_common() if code)
        cells.append(percent(seeds - diagnoses[p.name][None], seeds))
        lines.append(f"| {p.name} | {p.slip} | {' | '.join(cells)} | {codes} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--other-seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    start = time.time()
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        planted_runs = pool.map(check_planted, range(args.seeds), chunksize=5)
        accused = Counter(name for names in pool.map(check_right, range(args.seeds), chunksize=5) for name in names)
    seconds = time.time() - start
    checkers = {"`.sum()`, all elements": sum_finds}
    try:
        import torch  # noqa: F401

        checkers["torch, fast mode"] = lambda p, seed: torch_finds(p, seed, fast=True)
        checkers["torch, default"] = lambda p, seed: torch_finds(p, seed, fast=False)
    except ImportError:
        print("PyTorch is not installed: its columns are left out")
    others = {
        title: {p.name: sum(finds(p, seed) for seed in range(args.other_seeds)) for p in CATALOGUE}
        for title, finds in checkers.items()
    }
    text = report(args, planted_runs, accused, others, seconds)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
