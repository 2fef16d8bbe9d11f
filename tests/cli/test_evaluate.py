"""The flags of `tinydiff evaluate`."""

import argparse

from tinydiff.cli import evaluate
from tinydiff.evaluation.evaluate import PARTS, Settings


def test_the_flags_are_the_settings(monkeypatch):
    parser = argparse.ArgumentParser()
    evaluate.add_command(parser.add_subparsers())
    seen = []
    monkeypatch.setattr("tinydiff.evaluation.evaluate.evaluate", lambda path, settings: seen.append((path, settings)))
    for words in (
        "", "--all-terms --raw --no-clip --only bits,samplers --step-counts 5,6",
        "--data D --images 9 --terms 8 --samples 7 --sampler ddpm --steps 6 --each 5 --png-folder P --out O --seed 4 "
        "--device cpu --threads 3", "--training-images --clip",
    ):  # fmt: skip
        arguments = parser.parse_args(["evaluate", "RUN", *words.split()])
        assert arguments.run(arguments) == 0
    assert all(path == "RUN" for path, _ in seen)
    assert [settings for _, settings in seen] == [
        Settings(),
        Settings(terms=None, raw=True, clip=False, only=("bits", "samplers"), step_counts=(5, 6)),
        Settings(
            data="D", images=9, terms=8, samples=7, sampler="ddpm", steps=6, each=5, png_folder="P", out="O", seed=4,
            device="cpu", threads=3,
        ),
        Settings(training_images=True, clip=True),
    ]  # fmt: skip
    assert Settings().only == PARTS
