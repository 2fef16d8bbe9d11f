"""What other ways to check a gradient find of the planted bugs, on the same inputs.

    python tests/benchmarks/gradcheck_elsewhere.py --seeds 10 --out tests/benchmarks/results/gradcheck_elsewhere.md

Four checkers get the same forward and backward functions of the catalogue in tests/gradcheck/planted:

- a `.sum()` check, as it is often written: backward with ones against central differences of y.sum(), every element;
- torch.autograd.gradcheck in its default mode, the full Jacobian, and in its fast mode, each with the forward and
  backward functions wrapped in a torch.autograd.Function, float64, default tolerances;
- td.gradcheck.

A bug is found if a checker fails or raises, and counts as found by a checker if it is on every seed. The right passes of
tests/gradcheck/homework are checked in the same ways: one that fails or raises on any seed is a false alarm. PyTorch's
columns are left out where it is not installed.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "gradcheck")]

from homework import PAIRS  # noqa: E402
from planted import CATALOGUE  # noqa: E402

from tinydiff.gradcheck import GradientError, gradcheck  # noqa: E402
from tinydiff.gradcheck.making import make_subject  # noqa: E402


class Bug:
    """A planted bug: arrays, forward(arrays) -> (what backward needs, outputs), backward(that, cotangents) -> gradients."""

    def __init__(self, planted):
        self.planted, self.name = planted, planted.name

    def arrays(self, seed):
        return self.planted.inputs(np.random.default_rng(seed))

    def forward(self, arrays, needs):
        op = self.planted.function()
        op.needs, op.shapes = tuple(needs), tuple(a.shape for a in arrays)
        return op, as_tuple(op.forward(*arrays))

    def backward(self, op, cotangents):
        return as_tuple(op.backward(*cotangents))

    def by_tinydiff(self, seed):
        """The diagnosis, or None if nothing was found."""
        return diagnosis(self.planted.function, self.arrays(seed), seed, **self.planted.options)


class Homework:
    """A right pair, in the same form."""

    def __init__(self, pair):
        self.pair, self.name = pair, pair.name

    def subject(self, seed):
        options = {k: v for k, v in self.pair.options.items() if k in ("wrt", "cache")}
        return make_subject(
            self.pair.forward, self.pair.inputs(np.random.default_rng(seed)), backward=self.pair.backward, **options
        )

    def arrays(self, seed):
        self.made = self.subject(seed)
        return self.made.point

    def forward(self, arrays, needs):
        return arrays, self.made.forward([a.copy() for a in arrays])

    def backward(self, arrays, cotangents):
        return tuple(self.made.vjp([a.copy() for a in arrays], cotangents))

    def by_tinydiff(self, seed):
        inputs = self.pair.inputs(np.random.default_rng(seed))
        return diagnosis(self.pair.forward, inputs, seed, backward=self.pair.backward, **self.pair.options)


def diagnosis(fn, inputs, seed, **options):
    try:
        gradcheck(fn, inputs, seed=seed, **options)
    except GradientError as error:
        return error.report.diagnosis
    return None


def as_tuple(values):
    return values if isinstance(values, tuple) else (values,)


def sum_finds(case, seed):
    """Central differences with h = 1e-6; compared as np.allclose does with rtol 1e-3, atol 1e-5."""
    arrays = case.arrays(seed)
    everything = [True] * len(arrays)
    try:
        with np.errstate(all="ignore"):
            kept, ys = case.forward([a.copy() for a in arrays], everything)
            gradients = case.backward(kept, [np.ones(np.shape(y)) for y in ys])
            for i, (a, g) in enumerate(zip(arrays, gradients, strict=True)):
                g = np.zeros(a.shape) if g is None else np.asarray(g)
                if g.shape != a.shape:
                    return True
                slope = np.empty(a.shape)
                for at in np.ndindex(a.shape):
                    sums = []
                    for h in (1e-6, -1e-6):
                        moved = [x.copy() for x in arrays]
                        moved[i][at] += h
                        sums.append(sum(np.sum(y) for y in case.forward(moved, everything)[1]))
                    slope[at] = (sums[0] - sums[1]) / 2e-6
                if not np.allclose(g, slope, rtol=1e-3, atol=1e-5):
                    return True
    except Exception:
        return True
    return False


def torch_finds(case, seed, fast):
    import torch

    class Bridge(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):
            ctx.kept, ys = case.forward([t.numpy() for t in tensors], ctx.needs_input_grad)
            made = tuple(torch.from_numpy(np.array(y)) for y in ys)
            return made if len(made) > 1 else made[0]

        @staticmethod
        def backward(ctx, *cotangents):
            gradients = case.backward(ctx.kept, [c.numpy() for c in cotangents])
            return tuple(None if g is None else torch.from_numpy(np.array(g)) for g in gradients)

    torch.manual_seed(seed)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            tensors = [torch.tensor(a, requires_grad=True) for a in case.arrays(seed)]
            return not torch.autograd.gradcheck(Bridge.apply, tensors, fast_mode=fast)
        except Exception:
            return True


def tinydiff_finds(case, seed):
    """The diagnosis, which is true, or None."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return case.by_tinydiff(seed)


def checkers():
    """{title: function of a case and a seed}, and PyTorch's version."""
    found = {"`.sum()` check": sum_finds}
    version = None
    try:
        import torch

        version = torch.__version__.partition("+")[0]
        found["torch, fast mode"] = lambda case, seed: torch_finds(case, seed, fast=True)
        found["torch, default"] = lambda case, seed: torch_finds(case, seed, fast=False)
    except ImportError:
        print("PyTorch is not installed: its columns are left out")
    return {**found, "td.gradcheck": tinydiff_finds}, version


def report(counts, alarms, named, seconds, seeds, version):
    """counts: {title: {name of the bug: on how many seeds it was found}}; alarms: the same of right pairs; named: how many
    findings of td.gradcheck had the right diagnosis first; seconds: {title: of one seed of everything}."""
    titles = list(counts)
    kinds = defaultdict(list)
    for p in CATALOGUE:
        kinds[p.expected].append(p)

    def cells(members):
        return " | ".join(str(sum(counts[t][p.name] == seeds for p in members)) for t in titles)

    def shown(n):
        return "yes" if n == seeds else "no" if n == 0 else f"{n} of {seeds}"

    lines = [
        "# The same planted bugs, checked in other ways",
        "",
        f"`python tests/benchmarks/gradcheck_elsewhere.py --seeds {seeds}`, Python {platform.python_version()}, NumPy "
        f"{np.__version__}" + (f", PyTorch {version}" if version else "") + ".",
        "",
        f"Of {len(CATALOGUE)} planted bugs, how many are found on each of {seeds} seeds. `.sum()` check: backward with ones",
        "against differences of y.sum(), every element. torch: torch.autograd.gradcheck of the same forward and backward.",
        "PyTorch's engine itself sums what was not summed over a broadcast axis: six slips of that kind do no harm there.",
        "",
        "| kind of bug | bugs | " + " | ".join(titles) + " |",
        "|---|" + "---|" * (len(titles) + 1),
    ]
    for kind, members in sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0])):
        lines.append(f"| {kind} | {len(members)} | {cells(members)} |")
    lines.append(
        f"| **all** | **{len(CATALOGUE)}** | " + " | ".join(f"**{c}**" for c in cells(CATALOGUE).split(" | ")) + " |"
    )
    total = len(CATALOGUE) * seeds
    lines += [
        "",
        f"td.gradcheck gives the right diagnosis first for {named} of {total} checks of bugs; the others give none.",
        "",
        f"False alarms: of {len(PAIRS)} right passes written by hand, those that are called wrong on any of {seeds} seeds.",
        "",
        "| | " + " | ".join(titles) + " |",
        "|---|" + "---|" * len(titles),
        "| false alarms | " + " | ".join(str(sum(n > 0 for n in alarms[t].values())) for t in titles) + " |",
        "| seconds for all bugs and right passes, one seed | " + " | ".join(f"{seconds[t]:.0f}" for t in titles) + " |",
        "",
        *(
            f"- {t}: {', '.join(n for n, count in alarms[t].items() if count)}"
            for t in titles
            if any(alarms[t].values())
        ),
    ]
    lines += ["", "| planted bug | the slip | " + " | ".join(titles) + " |", "|---|---|" + "---|" * len(titles)]
    for p in CATALOGUE:
        lines.append(f"| {p.name} | {p.slip} | " + " | ".join(shown(counts[t][p.name]) for t in titles) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    ways, version = checkers()
    bugs, right = [Bug(planted) for planted in CATALOGUE], [Homework(pair) for pair in PAIRS]
    expected = {planted.name: planted.expected for planted in CATALOGUE}
    counts, alarms, seconds, named = {}, {}, {}, 0
    for title, finds in ways.items():
        start = time.process_time()
        found = {bug.name: [finds(bug, seed) for seed in range(args.seeds)] for bug in bugs}
        alarms[title] = {case.name: sum(bool(finds(case, seed)) for seed in range(args.seeds)) for case in right}
        seconds[title] = (time.process_time() - start) / args.seeds
        counts[title] = {name: sum(map(bool, codes)) for name, codes in found.items()}
        named = sum(code == expected[name] for name, codes in found.items() for code in codes)
    text = report(counts, alarms, named, seconds, args.seeds, version)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
