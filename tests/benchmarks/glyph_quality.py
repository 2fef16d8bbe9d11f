"""Are the digits that a model draws recognisable? An independent classifier, trained on real glyphs, is asked.

    python tests/benchmarks/glyph_quality.py RUN [--per-class 50] [--steps 50] [--guidance 2]

The classifier is a small convolutional network trained here on glyphs of another seed than any run uses by default;
its own accuracy on glyphs that it has not seen is printed first. Then each class is drawn `per-class` times, and the
share of pictures in which the classifier sees the class that was asked for is printed, with its standard error.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import numpy as np

import tinydiff as td
from tinydiff import nn, ops
from tinydiff.data.pixels import to_float
from tinydiff.machine import threads
from tinydiff.random import Generator


class Classifier(nn.Module):
    """28x28 grey -> 10 logits, by two convolutions of stride 2 and two linear layers."""

    def __init__(self, generator: Generator) -> None:
        self.conv1 = nn.Conv2d(1, 16, 3, stride=2, padding=1, generator=generator)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, generator=generator)
        self.linear1 = nn.Linear(7 * 7 * 32, 64, generator=generator)
        self.linear2 = nn.Linear(64, 10, generator=generator)

    def forward(self, x):
        h = ops.relu(self.conv2(ops.relu(self.conv1(x))))
        return self.linear2(ops.relu(self.linear1(h.reshape(len(h), -1))))

    def recognise(self, images: np.ndarray) -> np.ndarray:
        with td.no_grad():
            return self(to_float(images)).data.argmax(1)


def train_classifier(seed: int = 1_000_003, steps: int = 600) -> tuple[Classifier, float]:
    """A classifier, and its accuracy on held-out glyphs."""
    data = td.data.load("glyphs", seed=seed, holdout=0.2)
    generator = Generator(seed)
    model = Classifier(generator.at(0))
    optimizer = td.optim.Adam(model.parameters(), 2e-3)
    for step in range(1, steps + 1):
        x, labels = data.batch(step, 64, generator)
        optimizer.zero_grad()
        ops.cross_entropy(model(x), labels).backward()
        optimizer.step()
    held_out = data.held_out
    return model, float((model.recognise(held_out.images) == held_out.labels).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--per-class", type=int, default=50)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=2.0, help="as `tinydiff sample` does by default; 1: none")
    parser.add_argument("--json", metavar="FILE", help="write the figures here as well")
    a = parser.parse_args()
    with threads.threads():
        classifier, accuracy = train_classifier()
        print(f"classifier: {accuracy:.2%} of held-out glyphs recognised")
        pipeline = td.load(a.run)
        labels = np.repeat(np.arange(10), a.per_class)
        pictures = pipeline.sample(len(labels), labels, "ddim", a.steps, guidance=a.guidance, seed=99, progress=False)
        seen = classifier.recognise(pictures)
    hit = seen == labels
    share, error = hit.mean(), hit.std() / len(hit) ** 0.5
    by_class = hit.reshape(10, -1).mean(1)
    print(
        f"samples:    {share:.1%} +- {error:.1%} recognised as the class asked for "
        f"({len(labels)} samples, {a.steps} DDIM steps)"
    )
    print("by class:   " + "  ".join(f"{k}: {v:.0%}" for k, v in enumerate(by_class)))
    if a.json:
        figures = {
            "machine": platform.platform(), "run": Path(a.run).name, "classifier_accuracy": accuracy,
            "recognised": share, "standard_error": error, "samples": len(labels), "ddim_steps": a.steps,
            "guidance": a.guidance, "by_class": by_class.tolist(),
        }  # fmt: skip
        Path(a.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
