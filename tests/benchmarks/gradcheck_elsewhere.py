"""What other ways to check a gradient find of the planted bugs, on the same inputs.

    python tests/benchmarks/gradcheck_elsewhere.py --seeds 20 --out tests/benchmarks/results/gradcheck_elsewhere.md

Four checkers get the same forward and backward functions of the catalogue in tests/gradcheck/planted:

- a `.sum()` check, as it is often written: backward with ones against central differences of y.sum(), every element;
- torch.autograd.gradcheck in its default mode, the full Jacobian, and in its fast mode, each with the forward and
  backward functions wrapped in a torch.autograd.Function, float64, default tolerances;
- td.gradcheck.

A bug is found if a checker fails or raises, and counts as found by a checker if it is on every seed. PyTorch's columns
are left out where it is not installed.
"""

from __future__ import annotations

import argparse
import platform
import sys
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "gradcheck")]

from planted import CATALOGUE  # noqa: E402

from tinydiff.gradcheck import GradientError, gradcheck  # noqa: E402


def inputs(planted, seed):
    return planted.inputs(np.random.default_rng(seed))


def as_tuple(values):
    return values if isinstance(values, tuple) else (values,)


def prepared(planted, needs, shapes):
    """The operation as tinydiff's tape prepares it for forward."""
    op = planted.function()
    op.needs, op.shapes = tuple(needs), tuple(shapes)
    return op


def sum_finds(planted, seed):
    """Central differences with h = 1e-6; compared as np.allclose does with rtol 1e-3, atol 1e-5."""
    arrays = inputs(planted, seed)

    def total(arrays):
        op = prepared(planted, [True] * len(arrays), [a.shape for a in arrays])
        return op, as_tuple(op.forward(*arrays))

    try:
        with np.errstate(all="ignore"):
            op, ys = total([a.copy() for a in arrays])
            gradients = as_tuple(op.backward(*(np.ones(np.shape(y)) for y in ys)))
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
                        sums.append(sum(np.sum(y) for y in total(moved)[1]))
                    slope[at] = (sums[0] - sums[1]) / 2e-6
                if not np.allclose(g, slope, rtol=1e-3, atol=1e-5):
                    return True
    except Exception:
        return True
    return False


def torch_finds(planted, seed, fast):
    import torch

    class Bridge(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):
            ctx.op = prepared(planted, ctx.needs_input_grad, [tuple(t.shape) for t in tensors])
            ys = ctx.op.forward(*(t.numpy() for t in tensors))
            made = tuple(torch.from_numpy(np.array(y)) for y in as_tuple(ys))
            return made if isinstance(ys, tuple) else made[0]

        @staticmethod
        def backward(ctx, *cotangents):
            gradients = as_tuple(ctx.op.backward(*(c.numpy() for c in cotangents)))
            return tuple(None if g is None else torch.from_numpy(np.array(g)) for g in gradients)

    torch.manual_seed(seed)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            tensors = [torch.tensor(a, requires_grad=True) for a in inputs(planted, seed)]
            return not torch.autograd.gradcheck(Bridge.apply, tensors, fast_mode=fast)
        except Exception:
            return True


def tinydiff_finds(planted, seed):
    try:
        gradcheck(planted.function, inputs(planted, seed), seed=seed, **planted.options)
    except GradientError:
        return True
    return False


def checkers():
    """{title: function of a planted bug and a seed}, and PyTorch's version."""
    found = {"`.sum()` check": sum_finds}
    version = None
    try:
        import torch

        version = torch.__version__.partition("+")[0]
        found["torch, fast mode"] = lambda planted, seed: torch_finds(planted, seed, fast=True)
        found["torch, default"] = lambda planted, seed: torch_finds(planted, seed, fast=False)
    except ImportError:
        print("PyTorch is not installed: its columns are left out")
    return {**found, "td.gradcheck": tinydiff_finds}, version


def report(counts, seeds, version):
    """counts: {title: {name of the bug: on how many seeds it was found}}."""
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
    counts = {
        title: {p.name: sum(finds(p, seed) for seed in range(args.seeds)) for p in CATALOGUE}
        for title, finds in ways.items()
    }
    text = report(counts, args.seeds, version)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
