"""What training makes of rounded operands: TF32, bf16 and fp16 beside float32, emulated on the CPU.

    python -m tests.benchmarks.precisions                                    # the network of README's first command; hours
    python -m tests.benchmarks.precisions --small --steps 30 --seeds 1       # a small one; a minute

Every run of a seed sees the same images, times and noise, so that losses differ by rounding alone. Products of matrices and
convolutions round their operands, forward and backward, and add in float32 (`tinydiff.precision.emulated`); all else is float32.
With fp16 the loss is scaled (Micikevicius et al., 2018), by `LossScale`. Told are, for each seed, the mean loss of the last third
of the steps and the loss on other glyphs after the last step, and how far they are from float32's. It fails where the mean distance
over the seeds of either is above `BOUND`. Results are written after each run; what is there already is not computed again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tinydiff as td
from tests.benchmarks.gpu_report import table
from tinydiff.cli import flags
from tinydiff.machine import threads
from tinydiff.precision import PRECISIONS, emulated
from tinydiff.runs.config import RunConfig
from tinydiff.runs.measures import held_out_loss

RESULTS = Path(__file__).parent / "results" / "precisions.json"
BOUND = 0.02  # of float32's loss
SMALL: dict[str, Any] = {
    "image_size": 8, "channels": 16, "mults": (1, 2), "attention": (4,), "batch_size": 16, "warmup": 5, "lr": 2e-3,
}  # fmt: skip
OTHER_GLYPHS = 1_000_003  # seed of glyphs that no run is trained on


@dataclass
class LossScale:
    """The factor of the loss in fp16, whose gradients would vanish below 6e-8: halved where one overflows, and that step is left
    out; doubled after so many good ones."""

    factor: float = 2.0**15
    good_in_a_row: int = 2000
    good: int = 0
    skipped: int = 0

    def after(self, finite: bool) -> None:
        """Takes notice of whether the gradients of a step were finite."""
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.factor, self.skipped = self.factor / 2, self.skipped + 1
        elif self.good == self.good_in_a_row:
            self.factor, self.good = 2 * self.factor, 0


def train(trainer: td.Trainer, precision: str, scale: LossScale | None = None) -> list[float]:
    """The losses of `trainer.config.steps` steps whose products are emulated in a precision; nothing is written. scale: of the
    loss; None: none."""
    config, losses = trainer.config, []
    for step in range(1, config.steps + 1):
        trainer.optimizer.lr = config.learning_rate(step)
        batch = trainer.inputs.batch(step)
        trainer.unet.train(batch.dropout)
        trainer.optimizer.zero_grad()
        factor = np.float32(1 if scale is None else scale.factor)
        with emulated(precision), np.errstate(invalid="ignore", over="ignore"):
            loss = batch.loss(0)
            loss.backward(factor)
        for p in trainer.parameters:
            p.grad /= factor
        most = config.clip or math.inf
        (value,), norm = trainer.optimizer.clipped_step([loss.data], most, trainer.ema)  # changes nothing if not finite
        if scale is not None:
            scale.after(bool(np.isfinite(norm)))
        losses.append(float(value))
    return losses


def measured(settings: dict[str, Any], precision: str, seed: int) -> dict[str, Any]:
    """A run and its figures."""
    config = RunConfig(**settings, data="glyphs", device="cpu", seed=seed, out=f"precision-{precision}")
    trainer = flags.build(flags.Wish(config, resume=False, force=False, profile=False))
    scale, start = LossScale() if precision == "fp16" else None, time.perf_counter()
    losses = train(trainer, precision, scale)
    other = td.data.load("glyphs", seed=OTHER_GLYPHS, image_size=trainer.unet.image_size)
    with emulated(precision):
        held = held_out_loss(trainer.unet, trainer.diffusion, other, trainer.generator, config.batch_size, "cpu")
    return {
        "precision": precision, "seed": seed, "seconds": time.perf_counter() - start, "losses": losses,
        "last third": float(np.mean(losses[-(len(losses) // 3) :])), "other glyphs": held,
        "skipped": scale.skipped if scale else 0,
    }  # fmt: skip


FIGURES = ("last third", "other glyphs")


def distances(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """{precision: {figure: mean over the seeds of |loss / float32's - 1|}}."""
    base = {row["seed"]: row for row in rows if row["precision"] == "float32"}
    return {
        precision: {
            figure: float(np.mean([abs(r[figure] / base[r["seed"]][figure] - 1) for r in rows if r["precision"] == precision]))
            for figure in FIGURES
        }
        for precision in dict.fromkeys(row["precision"] for row in rows) if precision != "float32"
    }  # fmt: skip


def show(rows: list[dict[str, Any]]) -> str:
    """A table of the runs, and one of the distances."""
    runs = [
        [
            f"{r['precision']}, seed {r['seed']}",
            *(f"{r[f]:.5f}" for f in FIGURES),
            str(r["skipped"]),
            f"{r['seconds']:.0f}",
        ]
        for r in rows
    ]
    far = [[name, *(f"{100 * found[f]:.2f} %" for f in FIGURES)] for name, found in distances(rows).items()]
    heads = ["run", *FIGURES, "skipped", "s"], ["from float32", *FIGURES]
    return f"{table(heads[0], runs)}\n\n{table(heads[1], far)}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.precisions", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a network for images of 8 x 8")
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args(arguments)
    settings = {"steps": a.steps, **(SMALL if a.small else {})}
    kept = json.loads(a.out.read_text()) if a.out.is_file() else {}
    same = kept.get("settings") == json.loads(json.dumps(settings))
    rows: list[dict[str, Any]] = kept["runs"] if same else []
    with threads.threads():
        for seed in range(a.seeds):
            for precision in dict.fromkeys(["float32", *a.precisions]):
                if any((row["precision"], row["seed"]) == (precision, seed) for row in rows):
                    continue
                rows.append(measured(settings, precision, seed))
                a.out.parent.mkdir(parents=True, exist_ok=True)
                a.out.write_text(json.dumps({"settings": settings, "runs": rows}, indent=1) + "\n", encoding="utf-8")
                print({k: v for k, v in rows[-1].items() if k != "losses"}, flush=True)
    print(show(rows))
    worst = max((d for found in distances(rows).values() for d in found.values()), default=0.0)
    print(f"{'within' if worst <= BOUND else 'NOT within'} {100 * BOUND:g} % of float32")
    return 0 if worst <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
